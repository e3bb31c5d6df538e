"""How the findings look on a terminal. The only user of `rich` here, which comes with the extra ``microdb[cli]``."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from microdb.repair.findings import Finding, Kind

__all__ = ["is_wanted", "show"]

_STYLES: Final[Mapping[Kind, str]] = MappingProxyType({"lost": "bold red", "in doubt": "yellow", "note": "dim"})


def is_wanted() -> bool:
    """Whether standard output is a terminal: elsewhere a finding is one plain line, to be searched and copied."""
    return Console().is_terminal


def show(findings: Sequence[Finding]) -> None:
    """Print them as a table."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    table.add_column(ratio=1)
    for kind, where, what in findings:
        table.add_row(Text(kind, style=_STYLES[kind]), Text(where), Text(what))
    Console().print(table)
