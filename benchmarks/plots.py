"""Results as SVG plots, by matplotlib. Knows nothing of how they came about."""

import os
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report import amount, groups_of, slug
from benchmarks.results import Result, Unit, value

__all__ = ["draw_all"]

_MINE: Final = ("microdb", "microdb, power")
_LIMITS: Final = ("dict", "floor", "pwrite + fdatasync", "unpackb + dict", "its dependencies")
_STYLES: Final = {
    "lmdb": ("#0072b2", "s"),
    "sqlite": ("#e69f00", "v"),
    "rocksdict": ("#009e73", "^"),
    "UltraDict": ("#8c564b", "D"),
    "diskcache": ("#56b4e9", "<"),
    "sqlitedict": ("#bcbd22", ">"),
    "shelve": ("#9467bd", "p"),
    "redis": ("#cc79a7", "P"),
    "Manager().dict()": ("#17a2a2", "X"),
    "tinydb": ("#5b7f00", "*"),
    "json": ("#e69f00", "v"),
    "json.dump": ("#e69f00", "v"),
    "msgspec": ("#0072b2", "s"),
    "orjson": ("#009e73", "^"),
    "microdb 0.1.3": ("#aa6688", "h"),
}
"""Colour and marker by the name up to its first comma or plus: a peer looks the same everywhere."""

_OTHER_STYLE: Final = ("#7f7f7f", "d")
_LABELS: Final[dict[Unit, str]] = {
    "s": "time for one, less is better",
    "B": "memory for one, less is better",
    "n": "number",
}
_NARROW: Final = 100
"""Less than that from one end of a log axis to the other: the powers of ten alone are too few ticks."""

_MY_COLOUR: Final = "#d62728"

# The same figure gives the same bytes: ids by a fixed salt, and below no date.
mpl.rcParams.update({"svg.hashsalt": "microdb", "font.size": 10, "font.family": "sans-serif"})


def draw_all(results: Sequence[Result], folder: str) -> None:
    """One SVG for each group."""
    os.makedirs(folder, exist_ok=True)
    for group, its in groups_of(results).items():
        figure = _lines(group, its) if len(its) > 1 else _bars(group, its[0])
        path = os.path.join(folder, f"{slug(group)}.svg")
        figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")


def _lines(group: str, its: Sequence[Result]) -> Figure:
    """Cost against x, both on log axes; a band from quartile to quartile."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for result in its for name in result.costs))
    for name in names:
        points = [(result.x, value(result.costs[name])) for result in its if name in result.costs]
        x = [point[0] for point in points]
        style = _style(name)
        axes.plot(x, [point[1].median for point in points], label=name, **style)
        axes.fill_between(
            x, [p[1].low for p in points], [p[1].high for p in points], color=style["color"], alpha=0.12, linewidth=0
        )
    axes.set_xscale("log")
    axes.set_xticks([result.x for result in its], [f"{result.x:,}" for result in its])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel(its[0].x_label)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _NARROW * low else (1,)))
    axes.set_ylabel(_LABELS[its[0].unit])
    _finish(axes, axes.yaxis, group, its[0].unit)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def _bars(group: str, result: Result) -> Figure:
    """One bar a contestant, the best on top; a log axis where they differ by more than tenfold."""
    values = {name: value(costs) for name, costs in result.costs.items()}
    names = sorted(values, key=lambda name: values[name].median, reverse=True)
    medians = [values[name].median for name in names]
    figure = Figure(figsize=(7.2, 0.8 + 0.34 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    colours = [_style(name)["color"] for name in names]
    spread = [[values[n].median - values[n].low for n in names], [values[n].high - values[n].median for n in names]]
    bars = axes.barh(names, medians, color=colours, xerr=spread, ecolor="#444444")
    axes.bar_label(bars, [amount(median, result.unit) for median in medians], padding=4)
    if medians and max(medians) > 10 * min(medians) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 2, max(medians) * 4)
    else:
        axes.set_xlim(0, max(medians, default=1) * 1.25 or 1)
    axes.set_xlabel(_LABELS[result.unit])
    _finish(axes, axes.xaxis, group, result.unit)
    return figure


def _style(name: str) -> dict[str, Any]:
    if name in _MINE:
        return {"color": _MY_COLOUR, "marker": "o", "markersize": 5, "linewidth": 2.4, "zorder": 5}
    if name.startswith("microdb, "):
        return {"color": "#f0a0a0", "marker": "o", "markersize": 5, "linewidth": 1.3}
    if name.startswith(_LIMITS):
        shade = "#777777" if ", " in name or "one function" in name else "#000000"
        return {"color": shade, "marker": "o", "markersize": 3, "linewidth": 1.2, "linestyle": "--"}
    colour, marker = _STYLES.get(re.split(r", | \+ ", name)[0], _OTHER_STYLE)
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.3}


def _finish(axes: Any, costs: Any, title: str, unit: Unit) -> None:
    costs.set_major_formatter(FuncFormatter(lambda cost, _: amount(cost, unit) if cost > 0 else "0"))
    costs.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", axis="both", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
