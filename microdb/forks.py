"""What a fork does to the handles of a process.

A fork stops all tables where they are whole, and nothing else. A write that is under way in another thread goes on in
the parent alone: the child closes every file that it inherits, so it needs no lock to be free. Waiting for the write
lock instead would let a fork wait for another process, and deadlock where locks are nested.

It waits for modules, too, that another thread is just importing: the child would have a half of them.
"""

import logging  # noqa: F401  # So that its hooks come first: a fork then takes its lock after those of the tables.
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from microdb import imports, locks

__all__ = ["Forked", "notice", "register"]


class Forked(Protocol):
    """What a handle does about a fork."""

    def stop_for_fork(self) -> None:
        """Wait until the table is whole, and keep it so."""
        ...

    def go_on_in_parent(self) -> None:
        """Undo `stop_for_fork`."""
        ...

    def begin_in_child(self, *, is_sound: bool) -> None:
        """Let go of all that is the parent's; of the table too, unless it was stopped and is sound."""
        ...


_handles: weakref.WeakValueDictionary[int, Forked] = weakref.WeakValueDictionary()
_guard = threading.RLock()
_stopped: dict[int, list[Forked]] = {}
"""What each thread that is just forking has stopped."""


def register(handle: Forked) -> None:
    """From now on, forks are told to this handle as long as it lives."""
    with _guard:
        _handles[id(handle)] = handle


def notice(handle: Forked, is_foreign: Callable[[], bool]) -> None:
    """Tell a handle that it is in a child after all: it was forked in C, which calls no hooks."""
    with _guard:
        if is_foreign():
            locks.after_fork_in_child()
            handle.begin_in_child(is_sound=False)


def _before() -> None:
    with _guard:
        handles = list(_handles.values())
    stopped = _stopped[threading.get_ident()] = []
    for handle in handles:
        handle.stop_for_fork()
        stopped.append(handle)
    imports.guard.acquire()


def _after_in_parent() -> None:
    imports.guard.release()
    for handle in _stopped.pop(threading.get_ident()):
        handle.go_on_in_parent()


def _after_in_child() -> None:
    global _guard  # noqa: PLW0603  # A thread that does not exist here may hold the old one.
    _guard = threading.RLock()
    imports.guard.release()
    locks.after_fork_in_child()
    stopped = _stopped.pop(threading.get_ident())
    _stopped.clear()
    for handle in list(_handles.values()):
        handle.begin_in_child(is_sound=any(one is handle for one in stopped))


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
