"""The storm: writers killed at random moments and started anew, readers watching, saves going on.

The oracle is the list of acknowledgements that the parent received over pipes, never the database itself. A number is
sent after its upsert returned, so what was received was acknowledged; a killed writer may have got one further than it
could tell.
"""

import os
import random
import signal
from multiprocessing.connection import wait

import microdb
from children import SPAWN, save_until_killed, write_until_killed


class Storm:
    """Kill `kills` processes in all; then see what is there.

    Attributes:
        seed: What makes it the same storm again, as far as the scheduler allows.
        acknowledged: The next number that each writer may or may not have written, by writer.
        report: What happened, for people.
    """

    def __init__(self, path, *, writers, kills, seed=None, power=False):
        self.path = str(path)
        self.seed = random.randrange(2**32) if seed is None else seed
        self.random = random.Random(self.seed)
        self.kills = kills
        self.power = power
        self.acknowledged = dict.fromkeys(range(writers), 0)
        self.pipes = {}
        self.reads = 0

    def run(self):
        print(f"storm seed {self.seed}")
        try:
            for writer in self.acknowledged:
                self.start(writer)
            self.start("saver")
            with microdb.MicroDB(self.path, ["writer", "n"]) as mdb:
                for _ in range(self.kills):
                    self.watch(mdb)
                    self.kill(self.random.choice([*self.acknowledged, "saver"]))
        finally:
            for name in list(self.pipes):
                self.kill(name, again=False)
        self.check()

    def start(self, name):
        ours, theirs = SPAWN.Pipe()
        if name == "saver":
            target, args = save_until_killed, (theirs, self.path)
        else:
            target, args = write_until_killed, (theirs, self.path, name, self.acknowledged[name], self.power)
        process = SPAWN.Process(target=target, args=args)
        process.start()
        theirs.close()
        self.pipes[name] = ours, process

    def take(self, name):
        """Take in what a process has told so far."""
        pipe, _ = self.pipes[name]
        try:
            while pipe.poll():
                told = pipe.recv()
                if isinstance(told, int):
                    assert told == self.acknowledged[name], f"writer {name} told {told}"
                    self.acknowledged[name] = told + 1
        except EOFError:
            return

    def watch(self, mdb):
        """Take acknowledgements for a random number of times, and see each at once in a handle of our own."""
        for _ in range(self.random.randrange(1, 30)):
            ready = wait([pipe for pipe, _ in self.pipes.values()], timeout=60)
            assert ready, "nobody makes progress"
            for name in list(self.pipes):
                self.take(name)
            for writer, count in self.acknowledged.items():
                if count:
                    assert (writer, count - 1) in mdb, f"stale: {writer, count - 1}"
                    self.reads += 1

    def kill(self, name, *, again=True):
        _, process = self.pipes[name]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{name} ended by itself, with {process.exitcode}"
        self.take(name)
        self.pipes.pop(name)[0].close()
        if again:
            self.start(name)

    def check(self):
        for _ in range(2):
            with microdb.MicroDB(self.path, ["writer", "n"]) as mdb:
                for writer, count in self.acknowledged.items():
                    found = [n for who, n in mdb if who == writer]
                    assert found[:count] == list(range(count)), f"writer {writer}: acknowledged, and missing"
                    assert found[count:] in ([], [count]), f"writer {writer}: {found[count:]} were never written"
                stats = mdb.stats()
                mdb.save()
        self.report = f"{self.kills} kills, {sum(self.acknowledged.values())} acknowledged, 0 missing, {stats}"
        print(self.report)
