"""The options of ``microdb repair``, its exit codes, and how its report looks."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from microdb import snapshot
from microdb.database import MicroDB
from microdb.errors import MicroDBError
from microdb.files import OS
from microdb.paths import Paths
from microdb.repair.findings import Finding
from microdb.repair.salvage import Choice, Salvage, salvage
from microdb.save import export
from microdb.values import Expiring

__all__ = ["add_arguments", "run"]

_WHOLE: Final = 0
_LOST: Final = 1
_USAGE: Final = 2

_ORDER: Final = ("lost", "in doubt", "note")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to `parser`."""
    parser.add_argument("path", help="the snapshot of the damaged database; it is only read. Close it first")
    parser.add_argument("--into", metavar="NEW", help="write what is sound into this new database; else only tell")
    parser.add_argument("--keys", metavar="A,B", help="the partition keys, if no log tells them")
    parser.add_argument(
        "--log",
        choices=("apply", "ignore"),
        default="apply",
        help="apply the changes in the log over the snapshot (default), or take the snapshot as it is",
    )
    parser.add_argument(
        "--snapshot",
        choices=("file", "original"),
        default="file",
        help="if the snapshot can be read, but is not the one that the log follows: take it as it stands (default), or "
        "make that one anew",
    )
    parser.add_argument(
        "--gaps",
        choices=("pass", "stop"),
        default="pass",
        help="apply the sound changes behind a damaged place, too (default), or stop there: a state that once was",
    )


def run(args: argparse.Namespace) -> int:
    """Carry it out. The exit code: 0 nothing is lost or in doubt, 1 something is, 2 nothing can be done."""
    choice = Choice(original=args.snapshot == "original", with_log=args.log == "apply", behind_gaps=args.gaps == "pass")
    try:
        keys = args.keys.split(",") if args.keys is not None else None
        if args.into is not None:
            _check_new(args.into)
        found = salvage(args.path, keys, choice=choice)
        if args.into is not None:
            _write(found, args.into)
    except (MicroDBError, OSError, ValueError) as error:
        print(f"microdb repair: {error}", file=sys.stderr)  # noqa: T201 - it prints: that is its work
        return _USAGE
    _show(found, args.path, args.into)
    return _WHOLE if found.is_whole else _LOST


def _check_new(target: str) -> None:
    paths = Paths(target)
    if OS.identity(paths.snapshot) is not None or OS.identity(paths.folder) is not None:
        raise FileExistsError(17, "--into names a new database; this one exists", paths.snapshot)


def _write(found: Salvage, target: str) -> None:
    export(OS, target, snapshot.encode_list(list(found.records.values())))
    with MicroDB(target, found.partition_keys) as mdb:
        for record in found.records.values():
            if type(record) is Expiring:  # A snapshot holds no times.
                mdb.upsert(record.copy(), expires_at=record.expires_at)


def _show(found: Salvage, path: str, into: str | None) -> None:
    _line(f"{path}: keyed by {', '.join(found.partition_keys)}")
    _show_findings(sorted(found.findings, key=lambda finding: _ORDER.index(finding.kind)))
    for line in _sum(found, into):
        _line(line)


def _show_findings(findings: Sequence[Finding]) -> None:
    with contextlib.suppress(ImportError):
        from microdb.repair import pretty  # noqa: PLC0415 - it needs rich, which comes with an extra

        if pretty.is_wanted():
            pretty.show(findings)
            return
    for kind, where, what in findings:
        _line(f"{kind}: {where}: {what}")


def _sum(found: Salvage, into: str | None) -> Iterator[str]:
    yield f"{len(found.records):,} records can be saved; batches of the log in them: {found.frames:,}"
    if into is None:
        yield "Nothing was written. To write them into a new database: --into NEW"
    else:
        yield f"written: {into}"


def _line(text: str) -> None:
    print(text)  # noqa: T201 - as above
