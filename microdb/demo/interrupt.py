"""Ctrl-C as something that a loop can wait for, beside its pipes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import FrameType


@contextmanager
def interrupt_as_message() -> Iterator[Connection]:
    """Within the context each SIGINT puts one message on the connection, and raises nothing.

    So Ctrl-C cannot tear another message in two, nor come between a worker's stop and its going on, nor stop the
    clearing away at the end. Only for the main thread.
    """
    arrived, sender = Pipe(duplex=False)

    def note(_signal_number: int, _frame: FrameType | None) -> None:
        """Put the message on the connection."""
        sender.send_bytes(b"\0")

    before = signal.signal(signal.SIGINT, note)
    try:
        with arrived, sender:
            yield arrived
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupt_blocked() -> Iterator[None]:
    """A process that is started in here never gets SIGINT, not even before its first line has run."""
    from multiprocessing import resource_tracker  # noqa: PLC0415 - there is none on Windows

    # The first process would start the tracker, and that start unblocks SIGINT for the process that comes after it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
