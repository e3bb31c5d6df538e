"""The garbage collector, held off while a table is built.

Each few hundred new dicts make Python look through all that it holds for cycles, of which a table has none: half the
time that a load takes.
"""

import contextlib
import gc
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

__all__ = ["paused"]

_MANY: Final = 10_000
"""Objects, of which a look at all takes long enough to be put off."""

_pausing: Final[dict[object, int]] = {}
"""Who holds it off, and in which thread."""
_looks: Final = deque([-1, -1], 2)
"""How often all had been looked through as that was last put off, and the time before."""


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect nothing within a block; then go on as before. For the whole process, all its threads."""
    was_enabled = gc.isenabled()
    pause = object()
    try:
        try:
            _pausing[pause] = threading.get_ident()
            gc.disable()
            yield
            if was_enabled:
                _make_old()
        finally:
            _end(pause, was_enabled)
    except BaseException:
        # An interrupt may have come within the first time; twice does no harm.
        _end(pause, was_enabled)
        raise


def _end(pause: object, was_enabled: bool) -> None:  # noqa: FBT001  # Private.
    if was_enabled:
        gc.enable()
    _pausing.pop(pause, None)


def _make_old() -> None:
    """Put what was made to the oldest objects, unlooked at: a tenth of what it takes to open a table.

    The garbage of the program goes with it, and the next look at all is put off. So it is done for much only, and twice
    between two such looks, for log and snapshot: else who opens tables again and again would keep its garbage for ever.
    And not where something is frozen, which would be thawed: so never in Python 3.12, which freezes objects of its own.
    """
    looks = gc.get_stats()[-1]["collections"]
    if gc.get_count()[0] > _MANY and looks != _looks[0] and not gc.get_freeze_count():
        _looks.append(looks)
        try:
            gc.freeze()
        finally:
            gc.unfreeze()


def _after_in_child() -> None:
    # The threads that would end their pause are not here.
    if _pausing and threading.get_ident() not in _pausing.values():
        _pausing.clear()
        gc.enable()


os.register_at_fork(after_in_child=_after_in_child)
