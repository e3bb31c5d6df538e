"""The judge of the demonstration: what the table holds against what was acknowledged.

Pure. It compares two plain dicts and knows nothing of the store, nor of processes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from microdb.demo.index import Key, Record


@dataclass(frozen=True)
class Verdict:
    """The keys where table and acknowledgements disagree, each list sorted.

    Attributes:
        missing: Acknowledged, but not in the table.
        different: In the table, but not as last acknowledged.
        unexpected: In the table, though nobody can have written it.
    """

    missing: Sequence[Key] = ()
    different: Sequence[Key] = ()
    unexpected: Sequence[Key] = ()

    @property
    def good(self) -> bool:
        """Whether table and acknowledgements agree."""
        return not (self.missing or self.different or self.unexpected)

    @property
    def lost(self) -> int:
        """How many acknowledged records are not there as they were acknowledged."""
        return len(self.missing) + len(self.different)

    def lines(self) -> list[str]:
        """One line for each disagreement."""
        kinds = {"missing": self.missing, "different": self.different, "unexpected": self.unexpected}
        return [f"{kind}: {' '.join(key)}" for kind, keys in kinds.items() for key in keys]


def verify(
    acknowledged: Mapping[Key, Record], table: Mapping[Key, Record], *, in_flight: Collection[Record] = ()
) -> Verdict:
    """Compare `table` with the last acknowledged record of each key.

    Args:
        acknowledged: The last acknowledged record of each key.
        table: What is stored.
        in_flight: Records that may be stored without an acknowledgement, because their writer was killed between the
            two and nobody finished its work.

    >>> verify({("m", "f"): {"line": 1}}, {}).missing
    [('m', 'f')]
    """
    changed = {key for key, record in table.items() if acknowledged.get(key) != record and record not in in_flight}
    return Verdict(
        missing=sorted(acknowledged.keys() - table.keys()),
        different=sorted(changed & acknowledged.keys()),
        unexpected=sorted(changed - acknowledged.keys()),
    )
