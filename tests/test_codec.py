import math
import os
import struct
import sys
import threading
import tracemalloc
import zoneinfo

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from children import forked, with_little_memory
from microdb.errors import RecordError
from microdb.keys import PartitionKeys
from microdb.values import DEPTH_MAX, FORMS, Nested, stored
from microdb.wal import codec
from microdb.wal.codec import (
    CodecError,
    decode,
    decode_all,
    decode_names,
    encode_clear,
    encode_delete,
    encode_names,
    encode_upsert,
    encode_upserts,
    join,
)
from microdb.wal.format import PAYLOAD_BYTES_MAX
from strategies import same

KEYS = PartitionKeys(["job", "name"])

TUPLE, DATETIME = 1, 7
MIB = 1 << 20


def ext(code, data):
    """An extension, however long."""
    return b"\xc9" + struct.pack(">IB", len(data), code) + data


def nested_ext(depth):
    """A tuple in a tuple in a tuple …"""
    data = b"\x90"
    for _ in range(depth):
        data = ext(TUPLE, b"\x91" + data)
    return data


def upsert_of(value):
    """A payload of one upsert with these bytes as the value of a field."""
    return b"\x91\x81\xa1a" + value


def test_an_upsert_comes_back_under_the_key_of_its_fields():
    record = {"name": "Bob", "job": "clean", "status": None}
    assert decode(join([encode_upsert(record)]), KEYS) == [(("clean", "Bob"), record)]


def test_a_delete_comes_back_with_its_key():
    key = ("clean", (1, None, frozenset({2})))
    [change] = decode(join([encode_delete(key)]), KEYS)
    assert change == (key, None)
    assert same(change[0], key)


def test_a_clear_comes_back():
    assert decode(join([encode_clear()]), KEYS) == [(None, None)]


def test_a_delete_whose_key_looks_like_a_change_is_a_delete():
    assert decode(join([encode_delete((1, 2))]), KEYS) == [((1, 2), None)]


def test_changes_come_back_in_order():
    items = [encode_upsert({"job": 1}), encode_clear(), encode_delete((1, None)), encode_upsert({"job": 2})]
    assert decode(join(items), KEYS) == [
        ((1, None), {"job": 1}),
        (None, None),
        ((1, None), None),
        ((2, None), {"job": 2}),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 65_535, 65_536])
def test_any_number_of_changes_makes_one_payload(count):
    payload = join([encode_upsert({"job": number}) for number in range(count)])
    assert [record["job"] for _, record in decode(payload, KEYS)] == list(range(count))


def test_the_order_of_fields_is_kept():
    record = dict.fromkeys("zebra", 0)
    [(_, found)] = decode(join([encode_upsert(record)]), KEYS)
    assert list(found) == list("zebra")


def test_a_payload_is_one_array_that_msgpack_alone_can_read():
    payload = join([encode_upsert({"a": [1, "b", b"c", None, 1.5]}), encode_delete((1, "x")), encode_clear()])
    assert msgpack.unpackb(payload) == [{"a": [1, "b", b"c", None, 1.5]}, [1, [1, "x"]], [2]]


def test_a_value_that_msgpack_does_not_know_is_an_extension_of_its_form():
    payload = join([encode_upsert({"a": (1, 2)})])
    assert msgpack.unpackb(payload) == [{"a": msgpack.ExtType(TUPLE, b"\x92\1\2")}]


def test_the_codes_of_the_forms_are_for_ever():
    names = "tuple set frozenset int complex ellipsis datetime date time timedelta decimal uuid"
    assert {form.code: form.name for form in FORMS} == dict(enumerate(names.split(), 1))


def test_what_is_decoded_is_ready_to_be_stored():
    payload = join([encode_upsert({"job": 1}), encode_upsert({"a": [1]}), encode_upsert({"a": (1,)})])
    kinds = [type(record) for _, record in decode(payload, KEYS)]
    assert kinds == [dict, Nested, Nested] == [type(stored({"a": value})) for value in (1, [1], (1,))]


@pytest.mark.parametrize("value", [{1: "x"}, {None: [{b"x": 2}]}, ({1: "x"},)], ids=repr)
def test_a_dict_whose_keys_are_no_str_comes_back(value):
    [(_, record)] = decode(join([encode_upsert({"a": value})]), KEYS)
    assert same(record["a"], value)


@pytest.mark.parametrize("payload", [b"\x80", b"\xa0", b"\xc4\0"], ids=["map", "str", "bytes"])
def test_what_is_no_array_is_no_payload_even_if_nothing_is_in_it(payload):
    with pytest.raises(CodecError, match="expected an array"):
        decode(payload, KEYS)


def test_a_payload_may_be_a_view():
    assert decode(memoryview(join([encode_clear()])), KEYS) == [(None, None)]


@pytest.mark.parametrize("value", ["b\ud800", ["b\ud800"], ("b\ud800",), {"\ud800": 1}, {(1, "\ud800")}])
def test_a_lone_surrogate_is_refused_with_the_path_of_the_field(value):
    record = {"good": 1, "bad": value}
    with pytest.raises(RecordError, match="lone surrogate") as caught:
        encode_upsert(record)
    assert caught.value.field.startswith("record['bad']")
    with pytest.raises(RecordError):
        encode_upsert(Nested(record))


def test_a_lone_surrogate_in_a_name_is_refused():
    with pytest.raises(RecordError) as caught:
        encode_upsert({"\udc00": 1})
    assert caught.value.field == "record (a field name)"


def test_a_refused_record_leaves_nothing_behind_in_the_next_one():
    sound = encode_upsert({"a": 1})
    with pytest.raises(RecordError):
        encode_upsert({"long": "x" * 1000, "bad": "\ud800"})
    assert encode_upsert({"a": 1}) == sound


class Claim(bytes):
    """Bytes that claim to be longer than they are."""

    __slots__ = ()
    length = 0

    def __len__(self):
        return self.length


@pytest.mark.parametrize("count", [257, 1000, 1 << 20])
def test_a_batch_above_the_limit_is_refused_without_building_it(count):
    item = bytes(1 << 20)
    with pytest.raises(RecordError, match=str(count << 20)):
        join([item] * count)


def test_the_limit_counts_the_longest_array_header():
    Claim.length = PAYLOAD_BYTES_MAX - 5
    assert join([Claim()]) == b"\x91"
    Claim.length += 1
    with pytest.raises(RecordError, match=str(PAYLOAD_BYTES_MAX - 5)):
        join([Claim()])
    with pytest.raises(RecordError):
        join([Claim(), b"\xc0"])


def test_flat_records_encoded_together_are_what_their_items_come_to_joined():
    records = [{"a": n, "b": None} for n in range(20)]
    assert encode_upserts(records) == join(list(map(encode_upsert, records)))


def test_a_lone_surrogate_among_records_encoded_together_is_refused_with_its_field():
    sound = encode_upserts([{"a": 1}])
    with pytest.raises(RecordError) as caught:
        encode_upserts([{"a": 1}, {"b": "\ud800"}])
    assert caught.value.field == "record['b']"
    assert encode_upserts([{"a": 1}]) == sound


def test_a_name_that_only_equals_that_of_a_record_before_is_refused():
    class Name(str):
        __slots__ = ()

    with pytest.raises(RecordError, match="field names are str, found 'a'"):
        encode_upserts([{"a": 1}, {Name("a"): 2}])


def test_of_many_payloads_one_with_a_name_that_is_no_str_is_none():
    sound, bad = (b"\x91" + msgpack.packb(record) for record in ({"id": 1}, {"id": 2, 3: 4}))
    with pytest.raises(CodecError, match="field names are str"):
        list(decode_all([sound, bad], PartitionKeys(["id"])))


def test_records_encoded_together_obey_the_limit(monkeypatch):
    payload = encode_upserts([{"a": "xyz"}, {"a": "uvw"}])
    monkeypatch.setattr(codec, "PAYLOAD_BYTES_MAX", len(payload))
    assert encode_upserts([{"a": "xyz"}, {"a": "uvw"}]) == payload
    with pytest.raises(RecordError, match=f"^record: {len(payload) + 1} bytes encoded; one change or batch holds at"):
        encode_upserts([{"a": "xyz"}, {"a": "uvwx"}])


def test_items_joined_obey_the_limit(monkeypatch):
    monkeypatch.setattr(codec, "_ITEMS_BYTES_MAX", 2)
    assert join([b"\xc0", b"\xc0"]) == b"\x92\xc0\xc0"
    with pytest.raises(RecordError, match=r"^record: 3 bytes encoded; one change or batch holds at most 2"):
        join([b"\xc0", b"\xc0", b"\xc0"])


UPSERT, DELETE, CLEAR_ITEM = encode_upsert({"a": 1, "b": "x"}), encode_delete((1,)), encode_clear()
NESTED, OTHER_KEY = encode_upsert({"a": 1, "c": [1]}), encode_upsert({"b": 1})


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [join([UPSERT])],
        [join([UPSERT]), join([UPSERT, UPSERT])] * 3_000,
        [join([UPSERT]), join([DELETE])],
        [join([CLEAR_ITEM]), join([UPSERT])],
        [join([NESTED]), join([UPSERT])],
        [join([OTHER_KEY])],
        [memoryview(join([UPSERT])), join([encode_upsert({"a": 1.5, "b": None})])],
    ],
)
@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["job", "name"]])
def test_payloads_decoded_together_give_what_each_gives(payloads, names):
    keys = PartitionKeys(names)
    together = [change for changes in decode_all(payloads, keys) for change in changes]
    one_by_one = [change for payload in payloads for change in decode(payload, keys)]
    assert together == one_by_one
    assert [type(record) for _, record in together] == [type(record) for _, record in one_by_one]


@pytest.mark.parametrize(
    "bad", [b"", b"\xc0", b"\x91", b"\x92\x80", b"\x91\x80\x80", b"\x81\x91\x80\x91\x80", b"\x90\x90"]
)
def test_a_payload_that_is_none_is_found_among_others(bad):
    with pytest.raises(CodecError):
        list(decode_all([join([UPSERT]), bad, join([UPSERT])], KEYS))


def test_large_payloads_are_not_put_together(monkeypatch):
    """Else small ones with large ones behind them would take ten times their bytes."""
    sizes = []
    unpack = codec._unpack
    monkeypatch.setattr(codec, "_unpack", lambda data: (sizes.append(len(data)), unpack(data))[1])
    monkeypatch.setattr(codec, "_TOGETHER_BYTES", 100_000)
    small, large = join([UPSERT]), join([encode_upsert({"a": "x" * 50_000})])
    payloads = [small] * 5_000 + [large] * 30 + [small] * 2_000
    changes = [change for some in decode_all(payloads, PartitionKeys(["a"])) for change in some]
    assert len(changes) == len(payloads)
    assert max(sizes) <= 100_000 + 5
    assert len(sizes) < 1_500


def test_a_packer_that_has_grown_is_not_kept(monkeypatch):
    monkeypatch.setattr(codec, "_packers", [])
    encode_upsert({"a": 1})
    assert len(codec._packers) == 1
    encode_upserts([{"a": bytes(codec._KEPT_BYTES_MAX)}])
    assert codec._packers == []


def refused_or_sound(payload):
    """Refuses by CodecError alone; what it does not refuse, it can give again."""
    try:
        changes = decode(payload, KEYS)
    except CodecError:
        return
    assert all(len(change) == 2 for change in changes)
    assert all(key is None or type(key) is tuple for key, _ in changes)


EXTENSIONS = st.builds(ext, st.integers(0, 20), st.binary(max_size=20))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 2), inner, max_size=2)
        | st.builds(lambda code, value: msgpack.ExtType(code, msgpack.packb(value)), st.integers(0, 14), inner)
    ),
    max_leaves=8,
)


@given(st.binary() | st.binary().map(lambda data: b"\x91" + data) | EXTENSIONS.map(upsert_of))
@example(b"")
@example(b"\xc0")
@example(b"\x90\x90")
@example(b"\x91\x92\x01")
@example(upsert_of(b"\xd4\xff\0"))
def test_any_bytes_give_changes_or_codec_error(payload):
    refused_or_sound(payload)


@given(st.lists(VALUES, max_size=3))
@example([[1, 5]])
@example([[1]])
@example([[]])
@example([["a"]])
@example([None])
@example([msgpack.ExtType(99, b"")])
@example([msgpack.Timestamp(1)])
def test_any_msgpack_gives_changes_or_codec_error(values):
    refused_or_sound(msgpack.packb(values))


@pytest.mark.parametrize(
    "plain",
    [
        *["", "x", None, 1, [], [1], {}, "9" * 5000, "1E+" + "9" * 30, ["2024-01-01T00:00", 9, None, None]],
        *[["2024-01-01T00:00", 0, zone, None] for zone in ("No/Where", "../x", "x" * 5000, "America")],
    ],
    ids=lambda plain: repr(plain)[:40],
)
@pytest.mark.parametrize("code", [form.code for form in FORMS])
def test_what_no_form_gives_is_refused_by_codec_error(code, plain):
    refused_or_sound(upsert_of(ext(code, msgpack.packb(plain))))


def test_a_zone_that_is_a_folder_is_refused_by_codec_error(tmp_path, monkeypatch):
    folder = tmp_path / "tzdata" / "zoneinfo" / "America"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    for name in ("tzdata", "tzdata.zoneinfo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    zoneinfo.ZoneInfo.clear_cache()
    with pytest.raises(CodecError):
        decode(upsert_of(ext(DATETIME, msgpack.packb(["2024-01-01T00:00", 0, "America", None]))), KEYS)


@pytest.mark.parametrize("payload", [code + b"\xff" * 4 for code in (b"\xdd", b"\x91\xdf", b"\x91\xc6")])
@pytest.mark.parametrize(
    "wrap", [bytes, lambda payload: upsert_of(ext(TUPLE, payload))], ids=["bare", "in an extension"]
)
def test_a_huge_declared_length_asks_for_no_memory(payload, wrap):
    data = wrap(payload)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode(data, KEYS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [1025, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["arrays", "maps"])
def test_deep_arrays_and_maps_are_refused_by_codec_error(depth, opening):
    with pytest.raises(CodecError):
        decode(upsert_of(opening * depth + b"\xc0"), KEYS)


def result_in_a_child(function, stack_bytes):
    """What a thread with this much stack says in a process of its own, which an overflow takes along."""
    pid = os.fork()
    if pid == 0:
        codes = []
        threading.stack_size(stack_bytes)
        thread = threading.Thread(target=lambda: codes.append(function()))
        thread.start()
        thread.join()
        os._exit(codes[0] if codes else 99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("depth", [300, 2000])
def test_deep_extensions_are_refused_by_codec_error_and_not_by_a_crash(depth):
    payload = upsert_of(nested_ext(depth))

    def refused():
        try:
            decode(payload, KEYS)
        except CodecError:
            return 0
        return 1

    assert result_in_a_child(refused, 8 << 20) == 0


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: ext(TUPLE, value)], ids=["plain", "in a tuple"])
def test_lists_that_declare_more_than_memory_holds_are_refused_if_they_end_before(wrap):
    deep = wrap((b"\xdd" + struct.pack(">I", 10_000)) * 1000 + b"\xc0" * 10_000)
    whole = wrap(b"\xdd" + struct.pack(">I", 8 * MIB) + b"\xc0" * 8 * MIB)

    def decode_them():
        assert type(with_little_memory(32 * MIB, lambda: decode(upsert_of(deep), KEYS))) is CodecError
        assert type(with_little_memory(32 * MIB, lambda: decode(upsert_of(whole), KEYS))) is MemoryError

    assert forked(decode_them) == 0


@pytest.mark.parametrize("stack_bytes", [1 << 18, 1 << 19, 1 << 20, 8 << 20])  # A thread has 512 KiB on macOS.
def test_the_deepest_record_comes_back_in_a_thread_with_a_small_stack(stack_bytes):
    value = ()
    for _ in range(DEPTH_MAX - 1):
        value = (value,)
    payload = join([encode_upsert(stored({"a": value}))])

    def comes_back():
        return 0 if decode(payload, KEYS) == [((None, None), {"a": value})] else 1

    assert result_in_a_child(comes_back, stack_bytes) == 0


def test_a_nan_is_a_member_of_its_own_each_time():
    [(_, record)] = decode(join([encode_upsert({"a": {math.nan, float("nan")}})]), KEYS)
    assert len(record["a"]) == 2


@pytest.mark.parametrize("names", [["a"], ["a", "naïve", "", "日本"], [str(number) for number in range(100)]], ids=len)
def test_names_come_back(names):
    assert decode_names(encode_names(names)) == tuple(names)


@given(st.binary() | VALUES.map(msgpack.packb) | EXTENSIONS)
@example(b"\xd4\x63\xc0")
@example(b"\x91\xd4\x63\xc0")
def test_any_bytes_are_names_or_codec_error(data):
    try:
        names = decode_names(data)
    except CodecError:
        return
    assert all(type(name) is str for name in names)


@pytest.mark.parametrize("value", [[1], ["a", None], [["a"]], None, 1, [b"a"]], ids=repr)
def test_what_is_no_list_of_names_is_refused(value):
    with pytest.raises(CodecError):
        decode_names(msgpack.packb(value))


def test_a_record_that_is_mended_while_the_packer_complains_about_it_is_refused_all_the_same():
    class Mended(dict):
        seen = 0

        def keys(self):
            self.seen += 1
            return ["sound" if self.seen > 1 else "\ud800"]

        def __iter__(self):
            return iter(self.keys())

        def __getitem__(self, name):
            return 1

    with pytest.raises(UnicodeEncodeError):
        encode_upsert(Mended())
    assert decode(join([encode_upsert({"job": 1})]), KEYS) == [((1, None), {"job": 1})], "the packer is sound"


def test_an_extension_too_deep_is_refused_as_such():
    assert decode(upsert_of(nested_ext(DEPTH_MAX - 1)), KEYS)
    with pytest.raises(CodecError, match=f"nested more than {DEPTH_MAX} deep"):
        decode(upsert_of(nested_ext(DEPTH_MAX)), KEYS)
    with pytest.raises(CodecError, match="nested too deep"):
        decode(upsert_of(nested_ext(DEPTH_MAX + 4)), KEYS)


def test_a_change_that_is_not_known_is_named():
    with pytest.raises(CodecError, match="unknown change 5"):
        decode(b"\x91\x92\x05\x04", KEYS)


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize(
    "rest",
    [
        *[({"a": 1}, at) for at in (math.nan, math.inf, -math.inf, 1, True, None, "1.5", [1.5])],
        *[(record, 1.5) for record in (None, 1, "a", [["a", 1]], [3, {"a": 1}, 1.5])],
    ],
    ids=repr,
)
def test_what_is_no_record_with_a_finite_time_is_refused(kind, rest):
    with pytest.raises(CodecError, match="not a record and when it expires"):
        decode(msgpack.packb([[kind, *rest]]), KEYS)


@pytest.mark.parametrize("item", [[3], [3, {}], [3, {}, 1.5, 1.5], [4, {}]], ids=repr)
def test_a_record_that_expires_of_too_much_or_too_little_is_refused(item):
    with pytest.raises(CodecError):
        decode(msgpack.packb([item]), KEYS)


def test_two_values_in_one_extension_are_refused():
    with pytest.raises(CodecError, match="more than one value"):
        decode(upsert_of(ext(TUPLE, b"\x90\x90")), KEYS)


HOSTILE = {
    "a map in the place of the list": b"\x81\x91\x02\x91\x02",
    "a field name that is no str": b"\x91\x81\x01\x02",
    "a field name that is no str, and something mutable": b"\x91\x82\x01\x02\xa1a\x90",
    "a timestamp": upsert_of(b"\xd6\xff\x00\x00\x00\x00"),
    "a list as a key": b"\x91\x81\xa3job\x90",
    "a delete of a list": b"\x91\x92\x01\x91\x90",
    "a delete of two keys": b"\x91\x93\x01\x91\x01\x91\x01",
    "a clear with more": b"\x91\x92\x02\x01",
    "lists 900 deep": upsert_of(b"\x91" * 900 + b"\x01"),
    "a decimal of an int": upsert_of(ext(11, b"\x01")),
    "a tuple of a str": upsert_of(ext(TUPLE, b"\xa1a")),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_what_nobody_can_have_stored_is_no_payload(payload):
    with pytest.raises(CodecError, match="not a batch of changes"):
        decode(payload, KEYS)
