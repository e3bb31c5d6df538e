"""Processes at work on one store together: started anew, each with a handle of its own, beginning at one moment.

A job is a function of `JOBS`: it is given the store and prepares; what it returns is called when all are ready, with
the moment at which to stop. Jobs check their own work.
"""

import multiprocessing as mp
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

from benchmarks import jobs
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.base import Store

__all__ = ["Crew", "throughput_cost"]

Task = tuple[int, str, tuple[Any, ...]]
"""Which worker, which job, its arguments."""

_SPAWN: Final = mp.get_context("spawn")
_HEAD_START_S: Final = 0.005
_PATIENCE_S: Final = 300.0
_FIELDS: Final = ("id",)


class Crew:
    """Workers that wait for something to do.

    Raises:
        RuntimeError: A worker failed; with its traceback.
    """

    def __init__(self, peer: Peer, folder: str, count: int) -> None:
        self._pipes, self._processes = [], []
        for _ in range(count):
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_work, args=(theirs, peer.name, folder), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        try:
            for pipe in self._pipes:
                _receive(pipe)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def call(self, tasks: Sequence[Task], seconds: float = 0.0) -> tuple[float, list[Any]]:
        """Do these at the same time, for about so many seconds if the jobs look at the clock.

        Returns:
            The moment at which all began, by the monotonic clock, and what each job returned.
        """
        pipes = [self._pipes[worker] for worker, _, _ in tasks]
        for pipe, (_, job, arguments) in zip(pipes, tasks, strict=True):
            pipe.send((job, arguments))
        for pipe in pipes:
            _receive(pipe)
        begin = time.monotonic() + _HEAD_START_S
        for pipe in pipes:
            pipe.send((begin, begin + seconds))
        return begin, [_receive(pipe) for pipe in pipes]


def throughput_cost(begin: float, done: Iterable[jobs.Done]) -> float:
    """Seconds for one operation of all together, from the begin to when the last one stopped."""
    all_done = list(done)
    return (max(each.end for each in all_done) - begin) / sum(each.operations for each in all_done)


def _receive(pipe: Any) -> Any:
    if not pipe.poll(_PATIENCE_S):
        raise RuntimeError(f"a worker did not answer for {_PATIENCE_S:.0f} s")
    answer, error = pipe.recv()
    if error is not None:
        raise RuntimeError(error)
    return answer


def _work(pipe: Any, name: str, folder: str) -> None:
    """The life of a worker."""
    try:
        (peer,) = [peer for peer in PEERS if peer.name == name]
        store = peer.open(folder, _FIELDS)
        pipe.send((None, None))
        while True:
            _serve(pipe, store)
    except EOFError:
        return
    except Exception:
        pipe.send((None, traceback.format_exc()))


def _serve(pipe: Any, store: Store) -> None:
    job, arguments = pipe.recv()
    run: Callable[[float], Any] = jobs.JOBS[job](store, *arguments)
    pipe.send((None, None))
    begin, until = pipe.recv()
    while (left := begin - time.monotonic()) > 0:
        time.sleep(left)
    pipe.send((run(until), None))
