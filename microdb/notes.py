"""What is to be logged, put off until no lock is held: a handler may read and write the very database that it hears of.

The logger is ``microdb``, of the standard `logging`. Nothing of what records hold is noted, but for
the traceback of a caller's own function.
"""

import logging
import os
import threading
import traceback
from collections import deque
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "add", "tell", "waiting"]

_LOG: Final = logging.getLogger("microdb")

waiting: Final[deque[tuple[int, str, tuple[object, ...]]]] = deque()
"""Level, message and arguments of what was noted, and not told yet."""


class _Telling(threading.local):
    """Whether the calling thread is in a handler that it has told something."""

    is_on = False


_telling: Final = _Telling()


def add(level: int, message: str, *args: object) -> None:
    """Note a message, if anybody wants to hear it. May be called under any lock.

    What a handler does with microdb is not noted: it would be told of that, and do it again, without end.

    Args:
        level: As `logging` has it.
        message: It is formatted as late as there, or never.
        args: What it is formatted with. No errors, which keep their frames, and with them files.
    """
    if _LOG.isEnabledFor(level) and not _telling.is_on:
        waiting.append((level, message, args))


def tell() -> None:
    """Hand all that was noted to the logger. Without any lock: a handler may wait for whoever waits for that.

    An error in a handler is printed, as `logging` prints those that it catches: whoever wrote must not be told that it
    did not.
    """
    if _telling.is_on:
        return
    _telling.is_on = True
    try:
        while waiting:
            level, message, args = waiting.popleft()
            try:
                _LOG.log(level, message, *args)
            except Exception:  # noqa: BLE001  # A handler may raise anything.
                if logging.raiseExceptions:
                    traceback.print_exc()
    finally:
        _telling.is_on = False


os.register_at_fork(after_in_child=waiting.clear)  # The parent tells it.
