"""Claim records as jobs: each is given to one worker at a time, and to another if that one does not end in time.

A claim is a field of the record, so it is in the log and the snapshot as all else is, and every process sees it:
``{"owner": …, "until": …, "fence": …}``. `until` is in seconds since 1970 by the clock of the machine, and None when
nobody has the record. Who upserts a claimed record without that field takes it from its worker, who is told at the end.
Who sets the clock forward lets leases run out early; the fence is there for that.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Final, Self

from microdb import imports
from microdb.edits import Edits
from microdb.errors import ClaimLostError, RecordError, shown
from microdb.expiry import seconds
from microdb.keys import Key
from microdb.query import Query, conditions
from microdb.values import Record

__all__ = ["Claim", "Claims"]

FIELD: Final = "claim"


class Claim:
    """One record that nobody else is given until it is released or completed, or its lease runs out.

    In a ``with`` block it is released at the end, unless it has ended before: so a job that raises is free at once.

    >>> import microdb
    >>> mdb = microdb.MicroDB(":memory:", ["job"])
    >>> mdb.upsert({"job": "wash"})
    >>> with mdb.claim({"job": "wash"}, lease=60, owner="me") as claim:
    ...     claim.record["job"], claim.owner, mdb.claim({"job": "wash"}, lease=60)
    ('wash', 'me', None)

    Attributes:
        record: As it was claimed.
        owner: Who has it.
        fence: A number higher than that of every earlier claim of this record, one that was deleted meanwhile included.
            Send it along to where the work has effects, and refuse lower ones there: then a worker that slept over its
            lease does no harm.
        until: When the lease runs out, in seconds since 1970.
    """

    def __init__(self, database: "Claims", record: Record, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s
        self.key: Final[Key] = database.gen_key(record)
        self.record: Final = record
        self.owner: Final[str] = record[FIELD]["owner"]
        self.fence: Final[int] = record[FIELD]["fence"]
        self.until: float = record[FIELD]["until"]
        self._has_ended = False

    def renew(self, lease: float | None = None) -> None:
        """Have it for so many seconds from now on; None: for as many as in the beginning.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["job"])
        >>> mdb.upsert({"job": "wash"})
        >>> claim = mdb.claim({"job": "wash"}, lease=60)
        >>> claim.renew(3_600)
        >>> claim.until == mdb["wash",]["claim"]["until"]
        True

        Raises:
            ClaimLostError: Somebody else has claimed it since, or it has ended, or is deleted.
            TypeError: `lease` is no number. Nothing was changed.
            ValueError: `lease` is not above 0, or not finite. Nothing was changed.
        """
        until = time.time() + (self._lease_s if lease is None else seconds("lease", lease))
        self._change({}, {"owner": self.owner, "until": until, "fence": self.fence})
        self.until = until

    def release(self, **changes: Any) -> None:
        """Give it back, to be claimed by anyone.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["job"])
        >>> mdb.upsert({"job": "wash"})
        >>> mdb.claim({"job": "wash"}, lease=60).release(tries=1)
        >>> mdb.claim({"job": "wash"}, lease=60).record["tries"]
        1

        Args:
            changes: Fields to set at the same time.

        Raises:
            ClaimLostError: As `renew`. Nothing was changed.
        """
        self._end(changes)

    def complete(self, **changes: Any) -> Record:
        """Set fields, such as that by which the record is no more among those to be claimed, and end the claim, as one.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["job"])
        >>> mdb.upsert({"job": "wash"})
        >>> mdb.claim({"job": "wash"}, lease=60).complete(status="done")["status"]
        'done'

        Returns:
            The record as it is then.

        Raises:
            ClaimLostError: As `renew`. Nothing was changed: what was worked out is not to be used.
        """
        return self._end(changes)

    def __enter__(self) -> Self:
        """This claim."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Release it, unless it has ended. If it is lost, that is an error, unless there is one already."""
        if not self._has_ended:
            try:
                self.release()
            except ClaimLostError:
                if exc[0] is None:
                    raise

    def __repr__(self) -> str:
        """Of what, by whom and until when. That somebody else has it by now, only the table tells."""
        end = "ended" if self._has_ended else f"until {self.until:.3f}"
        return f"<Claim on {shown(self.key)} by {self.owner!r}, fence {self.fence}, {end}>"

    def _end(self, changes: Mapping[str, Any]) -> Record:
        record = self._change(changes, {"owner": None, "until": None, "fence": self.fence})
        self._has_ended = True
        return record

    def _change(self, changes: Mapping[str, Any], claim: Mapping[str, Any]) -> Record:
        if FIELD in changes:
            raise RecordError(f"record[{FIELD!r}]", "holds the claim itself; name your field otherwise")
        try:
            with self._database.edit(self.key) as record:
                found = _claim_of(record)
                if self._has_ended or found["fence"] != self.fence or found["owner"] != self.owner:
                    raise ClaimLostError(self.key, self.fence, found)
                record.update({**changes, FIELD: claim})
        except KeyError:
            raise ClaimLostError(self.key, self.fence, None) from None
        return record


class Claims(Edits):
    """Jobs for workers."""

    def claim(
        self,
        where: Query | Mapping[str, Any] | Callable[[Record], object],
        lease: float,
        *,
        owner: str | None = None,
    ) -> Claim | None:
        """Take the first record that is meant and that nobody has; None if there is none.

        Of any number of processes and threads that claim at the same time, each gets another record.

        >>> import microdb
        >>> mdb = microdb.MicroDB(":memory:", ["job"])
        >>> mdb.upsert_many({"job": job, "status": "undone"} for job in ("wash", "clean"))
        >>> with mdb.claim(mdb.where(status="undone").order_by("job"), lease=60, owner="me") as claim:
        ...     _ = claim.complete(status="done")
        >>> claim.key, mdb["clean",]["status"]
        (('clean',), 'done')

        Args:
            where: Which records: a query, whose order tells which is first, or what `MicroDB.where` takes.
            lease: For how many seconds at most, unless renewed: longer than the work takes.
            owner: Who takes it, for people; by default host, process and thread.

        Raises:
            RecordError: A record that is meant has another use for the field ``claim``.
            TypeError: The query is one of a view, or of another database; or `lease` is no number, or `owner` no name.
            ValueError: `lease` is not above 0, or not finite.
        """
        lease_s = seconds("lease", lease)
        if owner is not None:
            _check_owner(owner)
        query = self._query(where)
        with self.lock():
            now = time.time()
            for record in query:
                claim = _claim_of(record)
                if claim["until"] is None or claim["until"] <= now:
                    fence = self._next_fence(self.gen_key(record), claim["fence"])
                    taken = {"owner": owner or _whoever(), "until": now + lease_s, "fence": fence}
                    with contextlib.suppress(KeyError):  # It has expired in between.
                        return Claim(self, self.patch(self.gen_key(record), {FIELD: taken}), lease_s)
        return None

    def _query(self, where: Query | Mapping[str, Any] | Callable[[Record], object]) -> Query:
        query = where if isinstance(where, Query) else Query(self, *conditions([where], {}))
        if not query.asks(self):
            raise TypeError("expected a query of this database itself, as its own where() gives")
        return query


def _claim_of(record: Record) -> Record:
    claim = record.get(FIELD)
    if claim is None:
        return {"owner": None, "until": None, "fence": 0}
    if not _is_claim(claim):
        raise RecordError(
            f"record[{FIELD!r}]", f"holds {shown(claim):.60}, which is no claim; name your field otherwise"
        )
    return claim  # type: ignore[no-any-return]  # It is a dict.


def _is_claim(found: Any) -> bool:
    """Whether it says who has a record, until when, and with which fence."""
    if type(found) is not dict or not {"owner", "until", "fence"} <= found.keys():
        return False
    return type(found["fence"]) is int and type(found["until"]) in (int, float, NoneType)


def _check_owner(owner: object) -> None:
    if not isinstance(owner, str) or not owner:
        raise TypeError(f"owner is a str that names who takes it, found {shown(owner):.60}")


def _whoever() -> str:
    with imports.guard:
        import socket  # noqa: PLC0415  # It imports a good deal.

    return f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
