"""What every contestant can do: a `Peer` says how one is set up, a `Store` is one open table of it.

Each is set up as its own documentation tells its users to, and gets no help that microdb does not get.
"""

import abc
import contextlib
import importlib.util
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

from benchmarks.data import DataSet, Key, Record

__all__ = ["Peer", "Store", "encode_key", "not_installed"]


class Store(abc.ABC):
    """One open table.

    `read` and `write` are loops of single operations. Where the price of a Python call would show in the result, an
    adapter writes the loop out, so that what is measured is the peer and not this class.
    """

    @abc.abstractmethod
    def get(self, key: Key) -> Record:
        """The record with that key, as of now, for the caller to keep and to change. Raises KeyError or TypeError."""

    @abc.abstractmethod
    def put(self, record: Record) -> None:
        """Store one record; as durable on return as the peer's setting says."""

    @abc.abstractmethod
    def put_many(self, records: Sequence[Record]) -> None:
        """Store many in the way that the peer has for that, atomically if it has one."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many records there are now."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def read(self, keys: Iterable[Key]) -> None:
        """`get` each."""
        for key in keys:
            self.get(key)

    def write(self, records: Iterable[Record]) -> None:
        """`put` each."""
        for record in records:
            self.put(record)


class Peer(Protocol):
    """One way to keep a table.

    Attributes:
        name: As tables and plots call it.
        records_max: More than that it cannot hold, or nobody can wait for.
        is_shared: Whether several processes may write at once, by what its documentation promises.
        is_durable: Whether a write that returned survives a power cut.
        is_threaded: Whether several threads may write at once.
        is_floor: Whether it is none, but shows how quick a single write could be.
    """

    name: ClassVar[str]
    records_max: ClassVar[int] = 1_000_000
    is_shared: ClassVar[bool] = False
    is_durable: ClassVar[bool] = False
    is_threaded: ClassVar[bool] = True
    is_floor: ClassVar[bool] = False

    def missing(self) -> str | None:
        """Why it cannot be measured here, with the command that changes that; None if it can."""
        return None

    def served(self, folder: str, data: DataSet) -> AbstractContextManager[object]:
        """What must run while stores of that folder are open: a server, a block of memory."""
        return contextlib.nullcontext()

    def open(self, folder: str, fields: tuple[str, ...]) -> Store:
        """A store of that folder: in any process if `is_shared`, else in one."""
        ...


def encode_key(key: Sequence[str]) -> bytes:
    """A key as bytes, for stores that have no tuples."""
    return "\0".join(key).encode()


def not_installed(module: str, package: str) -> str | None:
    """Why a peer is missing, if its module is."""
    return None if importlib.util.find_spec(module) else f"not installed: pip install {package}"
