"""The command ``microdb``: which subcommands there are. What each does stands in its own module."""

import argparse
import signal
import sys
from collections.abc import Sequence

from microdb import MicroDBError, __version__, demo, repair

_BAD = 1
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; `arguments` are those of the process by default.

    Exit codes: 0 all good, 1 something is wrong, 2 wrong usage or a missing extra, 130 ended by Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (MicroDBError, OSError) as error:
        print(f"microdb: {error}", file=sys.stderr)
        return _BAD
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="microdb", description="In-memory table that any number of processes share.")
    parser.add_argument("--version", action="version", version=f"microdb {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module, summary in (
        ("demo", demo, "index the standard library with several processes, kill one, lose nothing"),
        ("repair", repair, "salvage what is sound of a damaged database into a new one"),
    ):
        # The rest of a docstring is for whoever reads the code.
        command = commands.add_parser(name, help=summary, description=(module.__doc__ or "").partition("\n")[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
