"""Modules that are loaded where they are first needed, as what most programs never need: but never amid a fork.

The child of a fork that comes while another thread imports has a half of the module, and waits for ever for the thread.
"""

import threading
from typing import Final

__all__ = ["guard"]

guard: Final = threading.RLock()
"""Held by whoever imports such a module, and by whoever forks. Comes after the locks of tables; nobody waits within."""
