"""Records printed for people."""

import pprint
from typing import Any

from microdb.errors import shown

__all__ = ["Printer"]


class Printer(pprint.PrettyPrinter):
    """A pretty printer that shows also those ints of which Python writes no decimals."""

    def format(self, *given: Any) -> tuple[str, bool, bool]:
        """See `pprint.PrettyPrinter.format`."""
        try:
            return super().format(*given)
        except ValueError:
            return shown(given[0]), False, False
