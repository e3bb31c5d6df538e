"""The garbage collector, held off while a table is built.

Each few hundred new dicts make Python look through all that it holds for cycles, of which a table has none: half the
time that a load takes.
"""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["paused"]


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Collect nothing within a block; then go on as before. For the whole process, all its threads."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
