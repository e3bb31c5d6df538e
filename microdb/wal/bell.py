"""Sleep until the head moves, and wake who sleeps: by a futex at the head, or without one by looking now and then.

Who is about to sleep notes in the page at which head. Who moves the head from there, or from before, wakes all: so one
that died asleep costs no more than the wake of one write. A wake that is missed all the same, because its writer was
killed behind the store, costs `SLEEP_S_MAX`, never news: those are in the log.

Source of the call: futex(2). It is no function of the C library, so it goes by its number.
"""

import errno
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from microdb import imports
from microdb.wal.header import HEAD, HEADER_BYTES, WAITING, Words

__all__ = ["SLEEP_S_MAX", "Bell", "ring"]

SLEEP_S_MAX: Final = 0.25
_LOOK_EVERY_S: Final = (0.001, 0.01)
"""Without a futex: at first, and in the end."""

_WAIT: Final = 0
_WAKE: Final = 1
_ALL: Final = (1 << 31) - 1
_NUMBERS: Final = {
    **dict.fromkeys(("x86_64", "amd64"), 202),
    **dict.fromkeys(("aarch64", "arm64", "riscv64", "loongarch64"), 98),
    "ppc64le": 221,
    "s390x": 238,
}
"""Of the call futex, by machine; those of 64 bits, on which its times are two words."""

_LOW_HALF: Final = 8 * HEAD + (0 if sys.byteorder == "little" else 4)
"""A futex has 32 bits. A head that moves so that these stay the same moves by a save, which changes no record."""


def ring(words: Words) -> None:
    """Wake all who sleep. Costs a system call."""
    futex = None if words.readonly else _futex()
    if futex is not None:
        futex(words, _WAKE, _ALL, 0)


class Bell:
    """How one waiter sleeps. Without a futex it looks now and then: less often the longer the head does not move."""

    def __init__(self) -> None:
        self._head = -1
        self._look_s = 0.0

    def wait(self, words: Words, head: int, timeout_s: float | None, *, rings: bool = True) -> None:
        """Return when the head is another one; or after some time, at most `SLEEP_S_MAX` and `timeout_s`; or sooner.

        Args:
            words: The page.
            head: Which one the waiter knows.
            timeout_s: How long at most; None: as said.
            rings: Whether writers use this page at all.
        """
        limit_s = SLEEP_S_MAX if timeout_s is None else min(SLEEP_S_MAX, max(timeout_s, 0))
        futex = _futex() if rings and not words.readonly else None
        if futex is None:
            first_s, last_s = _LOOK_EVERY_S
            self._look_s = min(2 * self._look_s, last_s) if head == self._head else first_s
            self._head = head
            time.sleep(min(limit_s, self._look_s))
            return
        # Never back, while another one sleeps at a later head.
        words[WAITING] = max(words[WAITING], head)
        if words[HEAD] == head:
            futex(words, _WAIT, head & 0xFFFF_FFFF, limit_s)


@functools.cache
def _futex() -> Callable[[Words, int, int, float], None] | None:
    """The system call on the low half of the head; None where there is none, or where it is forbidden."""
    number = _NUMBERS.get(os.uname().machine) if sys.platform == "linux" else None
    if number is None:
        return None
    with imports.guard:
        import ctypes  # noqa: PLC0415  # For those alone who wait, and whom they wait for.

    call: Any = ctypes.CDLL(None, use_errno=True).syscall

    class Time(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))

    def futex(words: Words, what: int, value: int, limit_s: float) -> None:
        """Sleep while the head is `value`, for so many seconds at most; or wake that many who do."""
        half = ctypes.c_uint32.from_buffer(words, _LOW_HALF)
        limit = Time(int(limit_s), int(limit_s % 1 * 1e9))
        operation = ctypes.c_int(what), ctypes.c_uint32(value), ctypes.byref(limit)
        if call(ctypes.c_long(number), ctypes.byref(half), *operation, None, ctypes.c_int(0)) < 0:
            code = ctypes.get_errno()
            # Woken by a signal; the time is up; or the head was another one by then.
            if code not in (errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN):
                raise OSError(code, os.strerror(code))

    try:
        futex(memoryview(bytearray(HEADER_BYTES)).cast("Q"), _WAKE, _ALL, 0)
    except OSError:
        return None
    return futex
