import collections
import datetime as dt
import enum
import fractions
import math
import sys
import uuid
import zoneinfo
from decimal import Decimal
from typing import NamedTuple

import pytest

from microdb.errors import RecordError
from microdb.values import CONTAINERS, DEPTH_MAX, FLAT, FORMS, Nested, checked, is_sound, kept, stored
from strategies import same

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

ACCEPTED = [
    None, True, False, 0, -1, 2**64, -(10**5000), 0.0, -0.0, 5e-324, math.inf, -math.inf, math.nan, 1j,
    complex(math.nan, -0.0), "", "naïve", "\U0001f600", "\0", b"", b"\xff\0", ..., dt.date(1, 1, 1),
    dt.timedelta(-1, 2, 3),
    dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
    dt.datetime(2024, 10, 27, 2, tzinfo=BERLIN, fold=1),
    dt.time(1, 2), dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=1), "ours"), fold=1),
    Decimal("1.10"), Decimal("sNaN"), uuid.UUID(int=7), [],
    [1, [2]], (), (1, [2]), set(), {1, (2,)}, frozenset({1}), {},
    {"a": 1, 2: [3], (4,): {}, None: 0, frozenset({5}): 6},
]  # fmt: skip


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    def utcoffset(self, _when):
        return dt.timedelta()


class ZoneInfo(zoneinfo.ZoneInfo):
    pass


class Colour(enum.IntEnum):
    RED = 1


class Pair(NamedTuple):
    x: int


class Scalar:
    """As a scalar of numpy: it behaves like a number, and is none."""

    def __float__(self):
        return 1.0

    __index__ = __int__ = lambda self: 1


class Mapping(collections.UserDict):
    pass


def nested(depth, of=list):
    """A container that is `depth` deep."""
    value = of()
    for _ in range(depth - 1):
        value = {"in": value} if of is dict else of([value])
    return value


def cycle():
    found = []
    found.append(found)
    return found


def cyclic_dict():
    found = {}
    found["self"] = (found,)
    return found


REFUSED = {
    "an IntEnum": Colour.RED,
    "a str subclass": Text("a"),
    "an OrderedDict": collections.OrderedDict(a=1),
    "a defaultdict": collections.defaultdict(int),
    "a Counter": collections.Counter("a"),
    "a namedtuple": Pair(1),
    "a bytearray": bytearray(b"a"),
    "a memoryview": memoryview(b"a"),
    "an array scalar": Scalar(),
    "a user mapping": Mapping(),
    "a Nested": Nested(a=1),
    "a Fraction": fractions.Fraction(1, 2),
    "a range": range(3),
    "an iterator": iter([1]),
    "a function": nested,
    "a class": int,
    "a module": math,
    "an object": object(),
    "NotImplemented": NotImplemented,
    "a zone of one's own": dt.datetime(2024, 1, 1, tzinfo=Zone()),
    "a time with such a zone": dt.time(1, tzinfo=Zone()),
    "a ZoneInfo subclass": dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
    "a zone's name with a lone surrogate": dt.time(1, tzinfo=dt.timezone(dt.timedelta(), "\udc00")),
    "a lone surrogate": "a\ud800",
    "a cycle": cycle(),
    "a cycle of dicts and tuples": cyclic_dict(),
    "a list too deep": nested(DEPTH_MAX + 1),
    "a tuple too deep": nested(DEPTH_MAX + 1, tuple),
    "a frozenset too deep": nested(DEPTH_MAX + 1, frozenset),
    "a dict too deep": nested(DEPTH_MAX + 1, dict),
    "a key too deep": {nested(DEPTH_MAX, tuple): 1},
}

UNHASHABLE = {"an OrderedDict", "a defaultdict", "a Counter", "a Nested", "a bytearray", "a user mapping", "a cycle"}
UNHASHABLE |= {"a cycle of dicts and tuples", "a list too deep", "a dict too deep", "a key too deep"}

HASHABLE_REFUSED = {name: value for name, value in REFUSED.items() if name not in UNHASHABLE}


def refusal(record):
    """The error; both ways in give the same."""
    with pytest.raises(RecordError) as caught:
        checked(record)
    return caught.value


def mutables(value):
    """The mutable containers in a value, at every depth."""
    if isinstance(value, dict):
        return [value, *(found for item in value.values() for found in mutables(item))]
    if isinstance(value, list | tuple):
        inner = [found for item in value for found in mutables(item)]
        return inner if isinstance(value, tuple) else [value, *inner]
    return [value] if isinstance(value, set) else []


def shared(a, b):
    """The mutable containers that two values have in common."""
    return set(map(id, mutables(a))) & set(map(id, mutables(b)))


@pytest.mark.parametrize(
    "value", ACCEPTED, ids=[f"{number}-{type(value).__name__}" for number, value in enumerate(ACCEPTED)]
)
def test_a_value_of_each_kind_is_stored_equal_and_of_the_same_type(value):
    for wrap in ({"a": value}, {"a": [value]}, {"a": (value,)}, {"a": {"b": value}}):
        assert same(stored(wrap), wrap)
        assert same(checked(wrap), wrap)
        assert same(stored(wrap).copy(), wrap)


def test_every_type_that_is_accepted_is_among_those_that_are_tested():
    assert {type(value) for value in ACCEPTED} == FLAT | CONTAINERS


def test_each_form_has_a_name_a_code_and_a_type_of_its_own():
    for field in ("type", "name", "code"):
        assert len({getattr(form, field) for form in FORMS}) == len(FORMS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_each_form_gives_back_what_it_was_given(form):
    values = [value for value in ACCEPTED if type(value) is form.type]
    assert values
    for value in values:
        assert same(form.from_plain(form.to_plain(value)), value)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_accepted_is_refused_with_the_path_of_the_field(what):
    value = REFUSED[what]
    assert refusal({"good": 1, "bad": value}).field.startswith("record['bad']")
    assert refusal({"good": 1, "bad": [0, value]}).field.startswith("record['bad'][1]")
    assert refusal({"good": 1, "bad": (0, {"x": value})}).field.startswith("record['bad'][1]['x']")


@pytest.mark.parametrize("what", [what for what in REFUSED if what != "a lone surrogate"])
def test_the_fast_way_in_refuses_the_same(what):
    with pytest.raises(RecordError) as caught:
        stored({"bad": REFUSED[what]})
    assert str(caught.value) == str(refusal({"bad": REFUSED[what]}))


@pytest.mark.parametrize("what", HASHABLE_REFUSED)
def test_what_is_not_accepted_is_no_key_and_no_member_either(what):
    value = HASHABLE_REFUSED[what]
    assert refusal({"bad": {value: 1}}).field.startswith("record['bad'] (a key)")
    assert refusal({"bad": {value}}).field.startswith("record['bad'] (a member)")
    assert refusal({"bad": frozenset({value})}).field.startswith("record['bad'] (a member)")


def test_the_message_names_the_type_and_what_to_store_instead():
    assert "Colour" in str(refusal({"a": Colour.RED}))
    assert refusal({"a": Colour.RED}).reason.endswith("store it as int")
    assert refusal({"a": Pair(1)}).reason.endswith("store it as tuple")
    assert refusal({"a": collections.OrderedDict()}).reason.endswith("store it as dict")
    assert refusal({"a": object()}).reason.endswith("store its parts as plain values")


def test_the_message_names_the_lone_surrogate_and_its_place():
    assert "'\\ud800' at position 1" in refusal({"a": "b\ud800"}).reason


@pytest.mark.parametrize("name", [None, 1, b"a", ("a",), Text("b"), Colour.RED], ids=repr)
def test_a_field_name_that_is_no_str_is_refused(name):
    for way in (stored, checked):
        with pytest.raises(RecordError, match="field names are str") as caught:
            way({"good": 1, name: 2})
        assert caught.value.field == "record"


def test_a_field_name_with_a_lone_surrogate_is_refused():
    assert refusal({"a\udfff": 1}).field == "record (a field name)"


@pytest.mark.parametrize(
    "record",
    [None, [], [("a", 1)], "a", 1, collections.OrderedDict(a=1), Nested(a=1), Mapping(a=1)],
    ids=lambda record: f"{type(record).__name__}-{len(repr(record))}",
)
def test_a_record_that_is_no_dict_is_refused(record):
    for way in (stored, checked):
        with pytest.raises(RecordError, match="expected a dict") as caught:
            way(record)
        assert caught.value.field == "record"


@pytest.mark.parametrize("of", [list, tuple, frozenset, dict])
def test_64_levels_are_accepted_and_65_are_not(of):
    deep = {"a": nested(DEPTH_MAX, of)}
    assert same(stored(deep).copy(), deep)
    assert "more than 64 deep" in refusal({"a": nested(DEPTH_MAX + 1, of)}).reason


def test_a_leaf_may_stand_in_the_64th_level():
    deep = nested(DEPTH_MAX)
    innermost = deep
    while innermost:
        innermost = innermost[0]
    innermost.append(1)
    assert same(stored({"a": deep}), {"a": deep})


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "a lone surrogate"])
@pytest.mark.parametrize(
    "within",
    [lambda value: value, lambda value: [1, value], lambda value: {"b": [value]}],
    ids=["alone", "in a list", "in a list in a dict"],
)
def test_what_is_refused_is_not_taken_for_sound(name, within):
    record = {"a": within(REFUSED[name])}
    assert not is_sound(record)
    assert kept([{"a": 1}, {"a": [1]}, record]) is None


@pytest.mark.parametrize("of", [list, dict])
def test_64_levels_are_sound_and_65_are_not(of):
    assert is_sound({"a": nested(DEPTH_MAX, of)})
    assert not is_sound({"a": nested(DEPTH_MAX + 1, of)})


def test_a_list_that_stands_twice_in_itself_is_refused_at_once():
    found = []
    found += [found, found]
    assert "deep" in refusal({"a": found}).reason


def test_an_int_too_long_to_print_is_no_trouble_in_a_message():
    digits = sys.get_int_max_str_digits()
    assert "object" in refusal({"a": {10 ** (digits + 1): object()}}).reason


def test_a_message_shows_a_long_key_in_short():
    assert len(refusal({"a": {"k" * 10_000: object()}}).field) < 100


def test_a_record_of_immutable_values_is_kept_as_a_plain_dict():
    assert type(stored({"a": 1, "b": "x"})) is dict


def test_a_record_with_anything_mutable_is_kept_as_one_whose_copy_is_deep():
    record = {"a": [1, {"b": {2}}], "c": ([3], [4])}
    assert type(stored(record)) is Nested
    assert type(stored(record).copy()) is dict


DEEP = {
    "list": [1, [2, [3]]],
    "dict": {"a": {"b": {"c": 1}}, (1, 2): [3]},
    "set": {1, 2},
    "tuple": ([1], ({2}, {"a": [3]})),
    "mixed": [({"a": [{1}]},)],
}


def test_what_is_stored_shares_nothing_mutable_with_the_input():
    assert shared(DEEP, stored(DEEP)) == set()
    assert len(mutables(stored(DEEP))) == len(mutables(DEEP))


def test_what_is_copied_shares_nothing_mutable_with_what_is_stored_or_another_copy():
    kept = stored(DEEP)
    one, other = kept.copy(), kept.copy()
    assert shared(one, kept) == shared(one, other) == set()


def test_one_list_in_two_places_is_two_lists_once_stored():
    twice = [1]
    kept = stored({"a": twice, "b": twice}).copy()
    kept["a"].append(2)
    assert kept == {"a": [1, 2], "b": [1]}


def test_a_change_of_the_input_or_of_a_copy_does_not_reach_what_is_stored():
    record = {"a": [1, {"b": {2}}], "c": "x"}
    kept = stored(record)
    for other in (record, kept.copy()):
        other["a"][1]["b"].add(3)
        other["a"].append(4)
        other["c"] = "y"
    assert kept == {"a": [1, {"b": {2}}], "c": "x"}


def test_a_zone_without_a_key_or_with_one_that_finds_nothing_is_refused():
    with open(_zone_file(), "rb") as file:
        nameless = zoneinfo.ZoneInfo.from_file(file)
        file.seek(0)
        invented = zoneinfo.ZoneInfo.from_file(file, key="No/Where")
    for zone in (nameless, invented):
        assert "time zone" in refusal({"a": dt.datetime(2024, 1, 1, tzinfo=zone)}).reason


def _zone_file():
    found = next((f"{folder}/Europe/Berlin" for folder in zoneinfo.TZPATH if _exists(f"{folder}/Europe/Berlin")), None)
    return found or pytest.skip("the time zones of this machine are in no folder")


def _exists(path):
    try:
        open(path, "rb").close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", [dt.datetime, dt.time])
def test_a_moment_whose_offset_has_a_name_and_is_missing_is_refused(kind):
    form = next(form for form in FORMS if form.type is kind)
    text = kind.min.isoformat()
    assert form.from_plain([text + "+01:00", 0, None, "ours"]).tzname() == "ours"
    with pytest.raises(ValueError, match="a name for an offset, and no offset"):
        form.from_plain([text, 0, None, "ours"])


@pytest.mark.parametrize("microseconds", [1, -1, 999_999, -999_999])
@pytest.mark.parametrize("name", [None, "ours"])
def test_an_offset_below_a_second_comes_back(microseconds, name):
    """Python reads such an offset from ISO text as UTC."""
    offset = dt.timedelta(microseconds=microseconds)
    zone = dt.timezone(offset) if name is None else dt.timezone(offset, name)
    for value in (dt.datetime(2024, 1, 2, 3, tzinfo=zone, fold=1), dt.time(3, tzinfo=zone)):
        form = next(form for form in FORMS if form.type is type(value))
        assert form.to_plain(value)[2] == microseconds
        assert same(form.from_plain(form.to_plain(value)), value)
