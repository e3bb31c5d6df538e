"""``python -m microdb``: the same as the command ``microdb``."""

import sys

from microdb.cli import main

if __name__ == "__main__":
    sys.exit(main())
