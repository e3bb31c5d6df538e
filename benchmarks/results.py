"""What a measurement gives: for each contestant a cost a round. Pure.

A cost is seconds, bytes or a count, for one operation: less is better, everywhere. A ratio is taken between costs of
the same round, in which both contestants ran within moments of each other on the same machine.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

__all__ = ["Result", "Unit", "Value", "ratio", "value"]

Unit = Literal["s", "B", "n"]


class Value(NamedTuple):
    """The middle of some rounds and how far they spread.

    Attributes:
        median: Half of the rounds are at most this.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float


def value(samples: Sequence[float]) -> Value:
    """Median and quartiles.

    >>> value([3.0, 1.0, 2.0, 4.0, 5.0])
    Value(median=3.0, low=2.0, high=4.0)
    """
    if len(samples) == 1:
        return Value(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Value(median, low, high)


def ratio(over: Sequence[float], under: Sequence[float]) -> Value:
    """How many times `over` costs what `under` does, round by round.

    >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
    2.0
    """
    return value([a / b for a, b in zip(over, under, strict=True)])


@dataclasses.dataclass
class Result:
    """One contest.

    Attributes:
        group: What was done; the contests of a group differ in `x` alone, and make one plot and one table.
        x: How much of it: records, processes, changes; None where a group is one contest.
        x_label: What `x` counts.
        unit: Of a cost.
        costs: For each contestant, its cost in each round.
        left_out: For each that did not take part, why.
        settings: What else was set.
    """

    group: str
    x: int | None = None
    x_label: str = ""
    unit: Unit = "s"
    costs: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Which contest this is."""
        return self.group if self.x is None else f"{self.group} @ {self.x}"

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse."""
        return cls(**fields)
