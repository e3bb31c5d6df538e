"""What a record may hold, for hypothesis, and what it means that two of them are the same."""

import datetime as dt
import functools
import math
import zoneinfo
from decimal import Decimal

from hypothesis import strategies as st

__all__ = ["literals", "names", "plain", "records", "same", "values"]

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")

SPECIAL_INTS = (-(2**63) - 1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40, -(10**700), 2**2126)

SPECIAL_FLOATS = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 2.0**64, 1e22)

SPECIAL_DECIMALS = ("NaN", "-NaN123", "sNaN", "Infinity", "-0", "1.10", "1E+1000", "0E-7")

DOLLAR_NAMES = ("$", "$$", "$bytes", "$$bytes", "$dict", "a$", "$int", "$unknown")


@functools.cache
def text():
    """Any str but one with a lone surrogate, which is refused."""
    return st.text(st.characters(codec="utf-8"), max_size=8)


@functools.cache
def names():
    """Names of fields."""
    return st.sampled_from(["a", "b", "id", "naïve", "日本", "", "it's", 'a "b"', "x\n", *DOLLAR_NAMES]) | text()


@functools.cache
def ints():
    """Of 64 bits, of a few more, of many."""
    return st.integers() | st.sampled_from(SPECIAL_INTS) | st.integers(-(2**80), 2**80)


@functools.cache
def floats():
    """Of each kind. A nan has a sign and a payload that nothing promises to keep."""
    return st.floats() | st.sampled_from(SPECIAL_FLOATS)


@functools.cache
def zones():
    """Time zones of each kind that is accepted."""
    small = st.integers(-1_000_000, 1_000_000).map(lambda count: dt.timedelta(microseconds=count))
    offsets = small | st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59))
    fixed = offsets.map(dt.timezone)
    named = st.builds(dt.timezone, offsets, text())
    return st.just(dt.UTC) | fixed | named | st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)


@functools.cache
def moments():
    """Times of all kinds, with every zone and both folds."""
    fold = st.integers(0, 1)
    zone = st.none() | zones()
    datetimes = st.builds(lambda value, zone, fold: value.replace(tzinfo=zone, fold=fold), st.datetimes(), zone, fold)
    times = st.builds(lambda value, zone, fold: value.replace(tzinfo=zone, fold=fold), st.times(), zone, fold)
    return datetimes | times | st.dates() | st.timedeltas()


@functools.cache
def plain():
    """What JSON carries as it is."""
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | text()


@functools.cache
def literal_leaves():
    """What a Python literal carries, and what holds nothing itself."""
    complexes = st.builds(complex, floats(), floats())
    return st.sampled_from([None, False, True, ...]) | ints() | floats() | complexes | text() | st.binary(max_size=8)


@functools.cache
def leaves():
    """What holds nothing itself."""
    decimals = st.decimals() | st.sampled_from(SPECIAL_DECIMALS).map(Decimal)
    return literal_leaves() | moments() | decimals | st.uuids()


def hashables(of):
    """Keys of dicts and members of sets made of these leaves. A signalling nan has no hash."""
    single = of.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan()))
    return single | st.lists(single, max_size=2).map(tuple) | st.frozensets(single, max_size=2)


def containers(inner, keys):
    """Whatever holds values and keys."""
    few = st.lists(inner, max_size=3)
    members = st.lists(keys, max_size=3)
    named = st.dictionaries(names(), inner, max_size=3)
    return (
        few
        | few.map(tuple)
        | members.map(set)
        | members.map(frozenset)
        | named
        | st.dictionaries(keys, inner, max_size=3)
    )


@functools.cache
def values():
    """Every value that a record may hold."""
    keys = hashables(leaves())
    return st.recursive(leaves(), lambda inner: containers(inner, keys), max_leaves=5)


@functools.cache
def literals():
    """Every value that a file of microdb 0.1.3 may hold."""
    keys = hashables(literal_leaves())
    return st.recursive(literal_leaves(), lambda inner: containers(inner, keys), max_leaves=5)


def records(of=None, *, max_size=4):
    """Records, of these values or of any."""
    return st.dictionaries(names(), values() if of is None else of, max_size=max_size)


def same(a, b):
    """Whether two values are equal and of the same type at every depth.

    A nan is the same as a nan, 0.0 is not the same as -0.0; of a time the fold, the zone and its name count, of a dict
    the order. `values.Nested` is the same as a dict.
    """
    return _form(a) == _form(b)


def _form(value):
    """A value without traps: equal exactly if the values are the same."""
    kind = dict if isinstance(value, dict) else type(value)
    return kind, FORMS.get(kind, repr)(value)


FORMS = {
    dict: lambda value: [(_form(key), _form(item)) for key, item in value.items()],
    list: lambda value: [_form(item) for item in value],
    tuple: lambda value: [_form(item) for item in value],
    set: lambda value: sorted(map(_form, value), key=repr),
    frozenset: lambda value: sorted(map(_form, value), key=repr),
    int: lambda value: value,
    complex: lambda value: (repr(value.real), repr(value.imag)),
    Decimal: lambda value: value.as_tuple(),
    dt.datetime: lambda value: (value.replace(tzinfo=None, fold=0), value.fold, _zone(value.tzinfo)),
    dt.time: lambda value: (value.replace(tzinfo=None, fold=0), value.fold, _zone(value.tzinfo)),
}


def _zone(zone):
    if isinstance(zone, dt.timezone):
        return dt.timezone, zone.utcoffset(None), zone.tzname(None)
    return type(zone), zone and zone.key
