"""The options of ``microdb demo``, and its exit codes."""

import argparse
import logging
import os
import random
import secrets
import signal
import sys
import tempfile  # noqa: TID251 - a folder of its own to play in, not a temporary name beside somebody's database
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from microdb.demo.index import Module, find_modules
from microdb.demo.interrupt import interrupt_as_message
from microdb.demo.result import DemoError, Outcome, Plan
from microdb.demo.scenario import play

_GOOD, _BAD, _USAGE, _INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT
_MISSING_RICH = 'the demo needs rich: pip install "microdb[cli]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demonstration to `parser`."""
    parser.add_argument("--workers", type=_count, default=4, metavar="N", help="how many processes index (default: 4)")
    parser.add_argument("--path", metavar="FILE", help="a new database, kept (default: in a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder, too")
    parser.add_argument("--limit", type=_count, metavar="N", help="index only N modules, chosen by the seed")
    parser.add_argument("--seed", type=int, metavar="N", help="decides on the modules, the reads and the victim")
    parser.add_argument("--durability", choices=["process", "power"], default="process", help="default: process")


def run(options: argparse.Namespace) -> int:
    """Run the demonstration and print its table.

    Returns:
        0 when all is good, 1 when something acknowledged is missing or differs or the run failed, 2 when it cannot
        begin, 130 when Ctrl-C ended it early and what was written until then is good.
    """
    refusal = _refusal(options)
    if refusal:
        return _complain(refusal, _USAGE)
    # That a process died, the report tells.
    logging.getLogger("microdb").addHandler(logging.NullHandler())
    try:
        with interrupt_as_message() as interrupt, _place(options) as path:
            outcome = _run_and_show(_plan(options, path), interrupt)
    except DemoError as error:
        return _complain(str(error), _BAD)
    if not outcome.good:
        return _BAD
    return _INTERRUPTED if outcome.interrupted else _GOOD


def _count(text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if number >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no whole number from 1 on")


def _complain(reason: str, code: int) -> int:
    print(f"microdb demo: {reason}", file=sys.stderr)
    return code


def _refusal(options: argparse.Namespace) -> str | None:
    """Why the run cannot begin; None when it can."""
    if not hasattr(signal, "SIGSTOP"):
        return "it stops and kills a process with POSIX signals, which this system does not have"
    if options.path and os.path.exists(options.path):
        return f"{options.path} exists; name a new file, so that all that is in it can be judged"
    if options.path and not _is_writable(os.path.dirname(os.path.abspath(options.path))):
        return f"{options.path}: there is no folder for it that can be written to; make one, or name another file"
    try:
        import microdb.demo.report  # noqa: F401, PLC0415 - only here is it known that somebody wants the extra
    except ImportError:
        return _MISSING_RICH
    return None


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[str]:
    if options.path:
        yield options.path
    elif options.keep:
        yield _file_in(tempfile.mkdtemp(prefix="microdb-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="microdb-demo-") as folder:
            yield _file_in(folder)


def _file_in(folder: str) -> str:
    return os.path.join(folder, "stdlib.json")


def _plan(options: argparse.Namespace, path: str) -> Plan:
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    modules = _shuffled(find_modules(), seed)[: options.limit]
    return Plan(path, modules, options.workers, seed, options.durability)


def _shuffled(modules: list[Module], seed: int) -> list[Module]:
    return random.Random(seed).sample(modules, len(modules))  # noqa: S311 - to be repeatable, not secret


def _run_and_show(plan: Plan, interrupt: Connection) -> Outcome:
    from microdb.demo.report import Report  # noqa: PLC0415 - needs rich, see `_refusal`

    with Report(plan) as report:
        outcome = play(plan, report, interrupt)
    report.show(outcome)
    return outcome
