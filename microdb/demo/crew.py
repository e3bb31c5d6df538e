"""The worker processes as the parent sees them: start, stop, kill, read what they say.

Workers are spawned, not forked: they start from nothing, as programs do that meet at a file, and share no handle, no
lock and no memory with the parent. Each has two pipes of its own, one for tasks and one for messages. A queue that all
shared would have a lock, and a worker that is killed while it holds that lock would stop the others.
"""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.process import BaseProcess

from microdb.demo.index import Key, Module, Record
from microdb.demo.interrupt import interrupt_blocked
from microdb.demo.worker import Message, Order, Task, work

_SPAWN = multiprocessing.get_context("spawn")
_EXIT_S = 10.0


class CrewMember:
    """One worker process, its pipes, and the module that it works on.

    Attributes:
        pid: Its process id.
        messages: Where its messages arrive; ready, with end of file, once it is gone.
        module: What it works on; None while it has nothing to do.
        keys: The keys that it acknowledged within `module`.
    """

    def __init__(self, order: Order) -> None:
        """Start the process. It does nothing before its first task."""
        tasks_end, self._tasks = _SPAWN.Pipe(duplex=False)
        self.messages, messages_end = _SPAWN.Pipe(duplex=False)
        self._process: BaseProcess = _SPAWN.Process(target=work, args=(order, tasks_end, messages_end), daemon=True)
        with interrupt_blocked():
            self._process.start()
        # Only the worker may hold these ends: its death is known by the end of file.
        tasks_end.close()
        messages_end.close()
        self.pid: int = self._process.pid or 0
        self.module: Module | None = None
        self.keys: list[Key] = []

    def give(self, module: Module, known: list[Record]) -> None:
        """Hand it a module to index, and some finished records of others to read back."""
        self.module = module
        self.keys = []
        with suppress(BrokenPipeError):  # It died; the end of its messages says so, with what it had to say.
            self._tasks.send(Task(module, known))

    @property
    def is_free(self) -> bool:
        """Whether it can be given a module."""
        return self.module is None and not self._tasks.closed

    def dismiss(self) -> None:
        """No more tasks: it ends as soon as it is done with the one it has."""
        self._tasks.close()

    def ask_to_stop(self) -> None:
        """Make it end after the write that is under way; its acknowledgements still arrive."""
        self.dismiss()
        self._process.terminate()

    def pause(self) -> bool:
        """Stop the process where it stands, with SIGSTOP, and return when it has stopped; False if it died instead."""
        os.kill(self.pid, signal.SIGSTOP)
        # A signal sent is not yet a process stopped: on another core it runs on for a moment, so ask the kernel.
        # Without taking away what its exit code is read from.
        state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return state is not None and state.si_code == os.CLD_STOPPED

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> list[Message]:
        """End it with SIGKILL, in whatever it does. Returns what it had said before and was not heard yet."""
        self._process.kill()
        self._process.join(_EXIT_S)
        return list(iter(self.hear, None))

    def hear(self) -> Message | None:
        """Its next message; blocks until there is one. None once it is gone and everything it said was heard."""
        try:
            message: Message = self.messages.recv()
        except (EOFError, OSError):  # OSError: killed in the middle of a message, which so was never sent.
            return None
        return message

    def wait_gone(self) -> int | None:
        """Its exit code, once it is gone; None when it did not go in time. The pipes are closed."""
        self._process.join(_EXIT_S)
        self._tasks.close()
        self.messages.close()
        return self._process.exitcode

    def clear_away(self) -> None:
        """Whatever state it is in, leave nothing of it behind."""
        self._process.kill()
        self.wait_gone()
