"""How the demonstration looks: a progress bar on a terminal, plain lines elsewhere, and a table at the end.

The only user of `rich`, which comes with the extra ``microdb[cli]``.
"""

from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from microdb.demo.result import Kill, Outcome, Plan

_LINES_MAX = 20
_PLAIN_COLUMNS = 120


class Report:
    """Tells on standard output how a run goes on, from its plan to its outcome: the `Observer` of the command."""

    def __init__(self, plan: Plan) -> None:
        self._console = console = _console()
        self._plan = plan
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("modules"),
            TextColumn("[green]{task.fields[records]:,}[/] records"),
            TextColumn("[cyan]{task.fields[writes_per_s]:,.0f}[/] writes/s"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=len(plan.modules), records=0, writes_per_s=0.0)

    def __enter__(self) -> Self:
        plan = self._plan
        self._line(
            f"seed {plan.seed}, {plan.workers:,} workers, {len(plan.modules):,} modules, durability {plan.durability}"
        )
        self._line(f"database {plan.path}")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progressed(self, outcome: Outcome) -> None:
        """One more module is done."""
        self._progress.update(
            self._task,
            completed=outcome.modules,
            records=outcome.acknowledged,
            writes_per_s=outcome.writes_per_s,
        )

    def killed(self, kill: Kill) -> None:
        """A worker was killed."""
        where = "in mid-write" if kill.in_mid_write else "between two writes"
        self._line(f"killed worker {kill.pid} {where} of {kill.module}; another takes over")

    def show(self, outcome: Outcome) -> None:
        """Print what came of it: first what is wrong, then the table."""
        self._progress.stop()
        self._list("not indexed", [f"{module}: {reason}" for module, reason in outcome.unreadable.items()])
        self._list("while open", outcome.while_open.lines())
        self._list("after reopening", outcome.reopened.lines())
        self._list("read wrongly", [" ".join(key) for key in outcome.tally.wrong_reads])
        self._console.print(_table(self._plan, outcome))

    def _list(self, title: str, lines: list[str]) -> None:
        for line in lines[:_LINES_MAX]:
            self._line(f"{title}: {line}")
        if len(lines) > _LINES_MAX:
            self._line(f"{title}: and {len(lines) - _LINES_MAX:,} more")

    def _line(self, text: str) -> None:
        # A line is one fact, to be searched and copied: not wrapped, and a name in brackets is no markup.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width of its own, and the default of 80 columns would break the rows.
    return console if console.is_terminal else Console(width=_PLAIN_COLUMNS)


def _table(plan: Plan, outcome: Outcome) -> Table:
    table = Table(title="microdb demo, ended early" if outcome.interrupted else "microdb demo", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(plan, outcome):
        table.add_row(*row)
    return table


def _rows(plan: Plan, outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    tally = outcome.tally
    yield "records", f"{outcome.records:,}", f"of {outcome.modules:,} modules, {len(outcome.unreadable):,} unreadable"
    yield "workers", f"{plan.workers:,}", "processes, each with a handle of its own"
    yield "killed in mid-write", *_killed(outcome.kill)
    yield "acknowledged", f"{outcome.acknowledged:,}", "writes; some overwrote a record"
    yield "lost", _verdict(outcome.lost), "acknowledged, but missing or different"
    yield "unexpected", _verdict(outcome.unexpected), "stored, though nobody wrote it"
    yield "wrong reads", _verdict(len(tally.wrong_reads)), f"of {tally.reads:,}, all of others' records"
    yield (
        "writes/s",
        f"{outcome.writes_per_s:,.0f}",
        f"all workers, with indexing; {_mean(tally.write_ns, tally.writes)}",
    )
    yield "reads/s", f"{outcome.reads_per_s:,.0f}", f"one worker, amid writes; {_mean(tally.read_ns, tally.reads)}"
    yield "log", _size(outcome.log_bytes), "before the save"
    yield "snapshot", _size(outcome.snapshot_bytes), "after the save"
    yield "repairs", f"{outcome.repairs:,}", "of what a dead process left half done"
    yield "seconds", f"{outcome.seconds:.1f}", f"{outcome.writing_s:.1f} from the first write to the last"


def _killed(kill: Kill | None) -> tuple[str, str]:
    if kill is None:
        return "no", "too little work to kill anybody amid it"
    return ("[green]yes[/]" if kill.in_mid_write else "[yellow]no[/]"), f"pid {kill.pid}, at stop {kill.tries:,}"


def _verdict(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "[bold green]0[/]"


def _mean(time_ns: int, count: int) -> str:
    return f"{time_ns / count / 1e3:.1f} µs each" if count else "none"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:,.0f} KiB"
