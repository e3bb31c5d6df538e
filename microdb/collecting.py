"""The garbage collector, held off while a table is built.

Each few hundred new dicts make Python look through all that it holds for cycles, of which a table has none: half the
time that a load takes.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

__all__ = ["paused"]

_pausing: list[int] = []
"""The threads that hold it off."""


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect nothing within a block; then go on as before. For the whole process, all its threads."""
    was_enabled = gc.isenabled()
    thread = threading.get_ident()
    try:
        _pausing.append(thread)
        gc.disable()
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # What was made goes to the oldest generation, unlooked at: a tenth of what it takes to open a table.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
        with contextlib.suppress(ValueError):
            _pausing.remove(thread)


def _after_in_child() -> None:
    # The threads that would end their pause are not here.
    if _pausing and threading.get_ident() not in _pausing:
        _pausing.clear()
        gc.enable()


os.register_at_fork(after_in_child=_after_in_child)
