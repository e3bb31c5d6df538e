import itertools
import random
import time
from zlib import crc32

import pytest

from microdb.wal import reader
from microdb.wal.format import (
    BASE_BYTES,
    CRC,
    DURABLE_BEFORE,
    FRAME,
    FRAME_BYTES_MIN,
    GENERATION_MAX,
    KEYS_BYTES_MAX,
    LOG_HEADER,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    SEQUENCE_MAX,
    VERSION,
    Position,
)
from microdb.wal.reader import (
    HeaderError,
    LaterFrame,
    NewerVersionError,
    Run,
    find_frame,
    later_frames,
    only_frame,
    read_frames,
    read_header,
)
from microdb.wal.writer import log_header, write_frames

START = Position(generation=1, offset=100, sequence=0, crc=0x1234)

MIB = 1 << 20


def header_bytes(names=("job", "name")):
    return log_header(generation=7, boot_id=b"b" * 16, base_sequence=41, snapshot_hash=b"h" * 16, partition_keys=names)


def signed(body):
    """Bytes of a log header, with the crc that they should have."""
    return body + CRC.pack(crc32(body))


def with_field(at, value):
    """A log header that is sound but for the bytes at one place."""
    data = header_bytes()[0][: -CRC.size]
    return signed(data[:at] + value + data[at + len(value) :])


def frames(*payloads, after=START, flags=0):
    """Frames one by one, and the positions before, between and behind them."""
    parts, positions = [], [after]
    for payload in payloads:
        data, end = write_frames([payload], positions[-1], flags=flags)
        parts.append(data)
        positions.append(end)
    return parts, positions


def frame(payload, *, sequence=1, seed=START.crc, flags=0, length=None):
    """One frame, of which anything may be wrong but the crc."""
    body = FRAME.pack(len(payload) if length is None else length, flags, sequence) + payload
    return body + CRC.pack(crc32(body, seed))


def later(before, *, durable_before=False):
    """The frame that stands behind a position."""
    return LaterFrame(offset=before.offset, sequence=before.sequence + 1, durable_before=durable_before)


def test_a_header_gives_back_what_was_written():
    data, fields = header_bytes()
    assert read_header(data) == fields
    assert fields[0:1] + fields[2:6] == (7, b"b" * 16, 41, b"h" * 16, ("job", "name"))
    assert fields[6:] == (False, len(data), crc32(data[:-4]))
    assert fields.start == Position(7, len(data), 41, fields.crc)


def test_a_header_tells_whether_the_log_before_it_failed():
    assert not read_header(header_bytes()[0]).after_failure
    assert read_header(with_field(12, b"\1")).after_failure


def test_what_follows_a_header_does_not_matter():
    data, fields = header_bytes()
    assert read_header(data + b"\xff" * 1000) == fields


@pytest.mark.parametrize("names", [("a",), ("naïve", "日本"), ("", "a", "b"), tuple(map(str, range(1000)))], ids=len)
def test_partition_keys_come_back(names):
    assert read_header(header_bytes(names)[0]).partition_keys == names


@pytest.mark.parametrize("data", [b"", b"[{}]", b"microdb", b"microdbH" + bytes(100), bytes(200)], ids=repr)
def test_first_the_magic_is_checked(data):
    with pytest.raises(HeaderError, match="not a microdb log") as caught:
        read_header(data)
    assert (type(caught.value), caught.value.offset) == (HeaderError, 0)
    assert str(caught.value.reason).endswith(f"it begins with {data[:8]!r}, not b'microdbL'")


@pytest.mark.parametrize("value", [(VERSION + 1).to_bytes(4, "little"), b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_then_the_version_even_if_the_crc_is_wrong(value):
    for data in (with_field(8, value), with_field(8, value)[:-1] + b"?"):
        with pytest.raises(NewerVersionError, match="upgrade microdb") as caught:
            read_header(data)
        assert caught.value.offset == 8


def test_unknown_flags_are_a_newer_version():
    with pytest.raises(NewerVersionError):
        read_header(with_field(12, b"\2"))


def test_then_the_crc():
    data, _ = header_bytes()
    with pytest.raises(HeaderError, match="crc") as caught:
        read_header(data[:-1] + bytes([data[-1] ^ 1]))
    assert (type(caught.value), caught.value.offset) == (HeaderError, len(data) - CRC.size)


def test_each_flipped_bit_of_a_header_is_noticed():
    data, _ = header_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeaderError):
            read_header(bytes(flipped))


def test_a_header_that_ends_before_its_partition_keys_is_said_to_be_too_short():
    with pytest.raises(HeaderError, match=f"should have {len(header_bytes()[0])} bytes, found 76") as caught:
        read_header(header_bytes()[0][:BASE_BYTES])
    assert caught.value.offset == 72


LAST = {16: GENERATION_MAX, 48: SEQUENCE_MAX}


@pytest.mark.parametrize("at", LAST)
def test_a_number_beyond_what_any_log_can_have_is_refused_and_the_last_one_is_not(at):
    read_header(with_field(at, LAST[at].to_bytes(8, "little")))
    with pytest.raises(HeaderError, match="beyond what any log can have") as caught:
        read_header(with_field(at, (LAST[at] + 1).to_bytes(8, "little")))
    assert caught.value.offset == 16


def test_a_header_cut_at_any_byte_is_noticed():
    data, _ = header_bytes()
    for size in range(len(data)):
        with pytest.raises(HeaderError) as caught:
            read_header(data[:size])
        assert type(caught.value) is HeaderError
        assert caught.value.offset <= len(data)


@pytest.mark.parametrize("length", [KEYS_BYTES_MAX + 1, 2**32 - 1])
def test_the_length_of_the_partition_keys_is_checked_before_the_crc(length):
    with pytest.raises(HeaderError, match="should have") as caught:
        read_header(with_field(BASE_BYTES - 4, length.to_bytes(4, "little")) + bytes(KEYS_BYTES_MAX + 100))
    assert caught.value.offset == BASE_BYTES - 4


@pytest.mark.parametrize("names", [b"", b"\xc0", b"\x91\x01", b"\x91", b"\x90\x90", b"\xd4\x63\0"], ids=repr)
def test_partition_keys_that_are_no_list_of_names_are_noticed(names):
    fixed = LOG_HEADER.pack(MAGIC, VERSION, 0, 1, bytes(8), bytes(16), 0, bytes(16), len(names))
    with pytest.raises(HeaderError, match="partition keys") as caught:
        read_header(signed(fixed + names))
    assert caught.value.offset == BASE_BYTES


@pytest.mark.parametrize(
    ("at", "value"), [(16, GENERATION_MAX + 1), (48, SEQUENCE_MAX + 1)], ids=["generation", "base sequence"]
)
def test_a_header_beyond_what_a_log_can_have_is_refused_and_what_it_can_just_have_is_read(at, value):
    """No head could publish such a generation, and no sequence could follow such a base."""
    with pytest.raises(HeaderError, match="beyond what any log can have") as caught:
        read_header(with_field(at, value.to_bytes(8, "little")))
    assert (type(caught.value), caught.value.offset) == (HeaderError, 16)
    fields = read_header(with_field(at, (value - 1).to_bytes(8, "little")))
    assert value - 1 in (fields.generation, fields.base_sequence)


def test_frames_come_back_in_order_with_the_position_behind_them():
    parts, positions = frames(b"one", b"t", b"three" * 1000)
    run = read_frames(b"".join(parts), START)
    assert [bytes(payload) for payload in run.payloads] == [b"one", b"t", b"three" * 1000]
    assert (run.end, run.reason) == (positions[-1], None)
    assert run.end.sequence == 3


def test_frames_written_at_once_are_those_written_one_by_one():
    parts, positions = frames(b"one", b"two", b"three")
    assert write_frames([b"one", b"two", b"three"], START) == (b"".join(parts), positions[-1])


def test_only_the_first_of_the_frames_written_at_once_bears_the_flags():
    data, _ = write_frames([b"a", b"b"], START, flags=DURABLE_BEFORE)
    first, second = data[: FRAME_BYTES_MIN + 1], data[FRAME_BYTES_MIN + 1 :]
    assert (FRAME.unpack_from(first)[1], FRAME.unpack_from(second)[1]) == (DURABLE_BEFORE, 0)


def test_nothing_gives_no_frames_and_no_complaint():
    assert read_frames(b"", START) == ([], START, None)


def test_reading_goes_on_from_any_position():
    parts, positions = frames(b"one", b"two", b"three")
    for number, position in enumerate(positions):
        run = read_frames(b"".join(parts[number:]), position)
        assert (len(run.payloads), run.end, run.reason) == (3 - number, positions[-1], None)


@pytest.mark.parametrize("last", range(5))
def test_reading_stops_behind_the_last_frame_asked_for(last):
    parts, positions = frames(b"one", b"two", b"three")
    run = read_frames(b"".join(parts), START, last=last)
    assert (len(run.payloads), run.end, run.reason) == (min(last, 3), positions[min(last, 3)], None)


def test_what_stands_behind_the_last_frame_asked_for_is_not_looked_at():
    parts, positions = frames(b"one")
    assert read_frames(parts[0] + b"garbage", START, last=1) == ([b"one"], positions[1], None)


@pytest.mark.parametrize("size", [1, 2, reader._SMALL_BYTES])
@pytest.mark.parametrize("behind", [b"", b"\1" * FRAME.size, b"\1" * 100])
@pytest.mark.parametrize("flags", [0, DURABLE_BEFORE])
def test_small_payloads_are_bytes_whatever_is_behind_them(size, behind, flags):
    """Copied quickly, and not looked into by `_flaw`."""
    parts, positions = frames(bytes(size), bytes(size), flags=flags)
    run = read_frames(b"".join([*parts, behind]), START)
    assert (run.payloads, run.end) == ([bytes(size)] * 2, positions[-1])
    assert [type(payload) for payload in run.payloads] == [bytes] * 2
    assert (run.reason is None) == (not behind)


def test_large_payloads_are_views():
    data = frames(b"x" * (reader._SMALL_BYTES + 1))[0][0]
    assert read_frames(data, START).payloads[0].obj is data


SMALL, LARGE = b"s" * reader._SMALL_BYTES, b"l" * (reader._SMALL_BYTES + 1)


@pytest.mark.parametrize("sizes", [*itertools.product([b"t", SMALL, LARGE], repeat=3)])
def test_small_and_large_frames_are_read_in_any_order_and_so_is_each_flaw(sizes):
    parts, positions = frames(*sizes)
    data = b"".join(parts)
    assert read_frames(data, START) == Run(list(sizes), positions[-1], None)
    for last in range(3):
        assert read_frames(data, START, last=last) == Run(list(sizes[:last]), positions[last], None)
    for count, at in enumerate(itertools.accumulate(map(len, parts), initial=0)):
        for cut in (1, FRAME_BYTES_MIN - 1, FRAME_BYTES_MIN):
            if count < 3:
                run = read_frames(data[: at + cut], START)
                assert (run.payloads, run.end) == (list(sizes[:count]), positions[count])
                assert run.reason
            if count > 0:
                changed = bytearray(data)
                changed[at - cut] ^= 1
                run = read_frames(bytes(changed), START)
                assert (run.payloads, run.end) == (list(sizes[: count - 1]), positions[count - 1])
                assert run.reason


@pytest.mark.parametrize("sequence", [1, 2, 3])
def test_a_frame_is_found_by_its_sequence_wherever_the_part_begins(sequence):
    parts, positions = frames(b"one", b"two", b"three")
    data, end = b"".join(parts), positions[sequence]
    assert find_frame(data, sequence, seed=START.crc) == (end.offset - START.offset, end.crc)
    before = positions[sequence - 1].offset - START.offset
    for cut in range(before + 1):
        found = find_frame(data[cut:], sequence)
        expected = (end.offset - START.offset - cut, end.crc)
        assert found == (expected if before - cut >= CRC.size else None)
    assert find_frame(data[before + 1 :], sequence) is None


@pytest.mark.parametrize("sequence", [0, 4, SEQUENCE_MAX])
def test_a_frame_that_is_not_there_is_not_found(sequence):
    assert find_frame(b"".join(frames(b"one", b"two", b"three")[0]), sequence, seed=START.crc) is None
    assert find_frame(b"", sequence, seed=START.crc) is None


def test_what_merely_looks_like_a_frame_is_passed_over():
    number = (2).to_bytes(8, "little")
    decoys = number + b"\1\0\0\0\0" + number + b"?" + bytes(4)
    parts, positions = frames(decoys, decoys)
    assert find_frame(number + b"".join(parts), 2) == (8 + positions[2].offset - START.offset, positions[2].crc)


def test_the_search_for_a_frame_gives_up_when_too_much_looks_like_it():
    (data,), (_, end) = frames((1).to_bytes(8, "little") * reader._LOOKS_MAX)
    assert find_frame(data, 1, seed=START.crc) == (len(data), end.crc)
    assert find_frame(bytes(9) + data[13:-4] + bytes(4) + data, 1) is None


BAD = {
    "too short": (b"\1" * (FRAME_BYTES_MIN - 1), "too few"),
    "zeros": (bytes(100), "without a payload"),
    "empty, with a good crc": (frame(b""), "without a payload"),
    "longer than the file": (frame(b"abc", length=4), "does not fit"),
    "longer than any frame": (frame(b"abc", length=PAYLOAD_BYTES_MAX + 1), "does not fit"),
    "unknown flags": (frame(b"abc", flags=2), "unknown flags 0x2"),
    "sequence too low": (frame(b"abc", sequence=0), "sequence 0 stands where 1 should"),
    "sequence too high": (frame(b"abc", sequence=2), "sequence 2 stands where 1 should"),
    "another seed": (frame(b"abc", seed=START.crc + 1), "crc"),
    "no seed": (frame(b"abc", seed=0), "crc"),
}


@pytest.mark.parametrize("what", BAD)
def test_reading_stops_before_what_is_no_frame_and_says_why(what):
    data, why = BAD[what]
    run = read_frames(data, START)
    assert (run.payloads, run.end) == ([], START)
    assert why in run.reason


@pytest.mark.parametrize(
    ("bad", "why"),
    [(b"\1" * 16, "16 bytes are too few for a frame"), (b"\1" * 17, "does not fit into the 17 that are left")],
)
def test_of_a_frame_that_does_not_fit_it_is_told_how_much_room_it_has(bad, why):
    assert why in read_frames(frames(b"one")[0][0] + bad, START).reason


def test_the_longest_frame_is_read_and_a_longer_one_is_not(monkeypatch):
    monkeypatch.setattr(reader, "PAYLOAD_BYTES_MAX", 3)
    monkeypatch.setattr(reader, "_SMALL_BYTES", 0)
    assert read_frames(frame(b"abc"), START).payloads == [b"abc"]
    assert read_frames(frame(b"abcd"), START).payloads == []


def test_the_flag_known_is_accepted():
    assert read_frames(frame(b"abc", flags=DURABLE_BEFORE), START).payloads == [b"abc"]


def test_reading_stops_at_the_first_bad_frame_though_good_ones_follow():
    parts, positions = frames(b"one", b"two", b"three")
    run = read_frames(parts[0] + parts[1][:-1] + b"?" + parts[2], START)
    assert (run.payloads, run.end, run.reason) == ([b"one"], positions[1], "the crc is wrong")


BETWEEN = {
    "garbage": lambda size: random.Random(1).randbytes(size),
    "zeros": bytes,
    "ones": lambda size: b"\1" * size,
    "ff": lambda size: b"\xff" * size,
}


@pytest.mark.parametrize("what", BETWEEN)
@pytest.mark.parametrize("flags", [0, DURABLE_BEFORE])
def test_a_later_frame_is_found_behind(what, flags):
    parts, positions = frames(b"one", b"two", b"three", flags=flags)
    torn = BETWEEN[what](len(parts[0]) - 4) + parts[0][-4:]
    found = later_frames(torn + parts[1] + parts[2], START)
    assert found == [later(position, durable_before=bool(flags)) for position in positions[1:3]]


def test_a_later_frame_is_found_behind_a_frame_whose_payload_was_lost():
    parts, positions = frames(b"one" * 100, b"two")
    torn = parts[0][:20] + bytes(len(parts[0]) - 24) + parts[0][-4:]
    assert later_frames(torn + parts[1], START) == [later(positions[1])]


def test_a_frame_whose_own_seed_is_lost_is_not_found_but_the_next_one_is():
    parts, positions = frames(b"one", b"two", b"three")
    assert later_frames(bytes(len(parts[0])) + parts[1] + parts[2], START) == [later(positions[2])]


@pytest.mark.parametrize("flags", [0, DURABLE_BEFORE])
def test_the_frame_behind_one_of_which_only_the_crc_is_wrong_is_found(flags):
    parts, positions = frames(b"one", b"two", flags=flags)
    torn = parts[0][:-4] + bytes(4)
    assert later_frames(torn + parts[1], START) == [later(positions[1], durable_before=bool(flags))]


def test_what_looks_like_a_frame_within_the_payload_of_a_sound_one_is_none():
    inner = b"seed" + frame(b"x", sequence=3, seed=int.from_bytes(b"seed", "little"))
    parts, positions = frames(b"one", inner)
    torn = b"?" * (len(parts[0]) - 4) + parts[0][-4:]
    assert later_frames(torn + parts[1], START) == [later(positions[1])]


@pytest.mark.parametrize("before", range(4))
def test_what_has_no_room_for_a_seed_before_it_is_no_later_frame(before):
    data = bytes(before) + frame(b"abc", sequence=2, seed=0)
    assert later_frames(data + bytes(8), START) == []


def test_each_later_frame_says_whether_all_before_it_was_durable():
    one, end = write_frames([b"one"], START)
    two, end = write_frames([b"two"], end, flags=DURABLE_BEFORE)
    three, _ = write_frames([b"three"], end)
    found = later_frames(b"?" + one[1:] + two + three, START)
    assert [frame.durable_before for frame in found] == [True, False]


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(1000), b"\1" * 1000, b"\xff" * 1000], ids=lambda data: repr(data)[:9]
)
def test_where_nothing_sound_follows_nothing_is_found(data):
    assert later_frames(data, START) == []


def test_a_torn_frame_alone_is_no_later_frame():
    parts, _ = frames(b"one" * 10)
    for size in range(len(parts[0])):
        assert later_frames(parts[0][:size], START) == []


@pytest.mark.parametrize(
    "sequence", [0, 1, 254, 255, 256, 65_534, 65_535, 2**24 - 1, 2**32 - 1, 2**32, 2**48 - 2, 2**56 - 2, 2**63]
)
@pytest.mark.parametrize("count", [2, 3, 300])
def test_later_frames_are_found_whatever_their_sequences(sequence, count):
    after = START._replace(sequence=sequence)
    parts, positions = frames(*[b"x"] * count, after=after)
    torn = b"\xff" * (len(parts[0]) - 4) + parts[0][-4:]
    found = later_frames(torn + b"".join(parts[1:]), after)
    assert found == [later(position) for position in positions[1:-1]]


def test_a_frame_of_a_sequence_that_there_is_no_room_for_is_not_found():
    data = b"????" + frame(b"abc", sequence=1000, seed=int.from_bytes(b"????", "little"))
    assert later_frames(data, START._replace(sequence=997)) == []
    assert len(later_frames(data, START._replace(sequence=998))) == 1


def test_a_frame_of_a_sequence_already_seen_is_not_found():
    data = b"????" + frame(b"abc", sequence=5, seed=int.from_bytes(b"????", "little"))
    assert len(later_frames(data, START._replace(sequence=4))) == 1
    assert later_frames(data, START._replace(sequence=5)) == []


def crowded(size, length, step=17):
    """Bytes that look like a frame of this length every few bytes, and hold none."""
    return (FRAME.pack(length, 0, 2) + bytes(step - FRAME.size)) * (size // step)


HOSTILE = {
    "zeros": lambda: bytes(8 * MIB),
    "random": lambda: random.Random(2).randbytes(8 * MIB),
    "ones": lambda: b"\1" * (8 * MIB),
    "short frames": lambda: crowded(8 * MIB, 9),
    "frames of 64 KiB": lambda: crowded(8 * MIB, 65_536),
    "frames of 1 MiB": lambda: crowded(8 * MIB, MIB),
    "frames too long": lambda: crowded(8 * MIB, PAYLOAD_BYTES_MAX),
    "a one in every 14 bytes": lambda: (b"\1" + bytes(13)) * (8 * MIB // 14),
    "lengths of all sizes": lambda: b"\1\0\0\0\0\2\0\0\0\0\0\0\0" * (8 * MIB // 13),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_search_is_bounded_whatever_the_bytes(what):
    data = HOSTILE[what]()
    began = time.process_time()
    for _ in range(10):
        crc32(data)
    crc_s = (time.process_time() - began) / 10
    began = time.process_time()
    try:
        found = later_frames(data, START)
    except HeaderError as error:
        assert "looks like a frame" in error.reason
        found = []
    assert time.process_time() - began < max(3000 * crc_s, 3)
    assert found == []


@pytest.mark.parametrize("what", ["frames of 64 KiB", "frames of 1 MiB"])
def test_a_search_that_is_given_up_says_so_and_where(what):
    with pytest.raises(HeaderError, match="too much") as caught:
        later_frames(HOSTILE[what](), START)
    assert caught.value.offset == START.offset


def test_a_sound_log_never_exhausts_the_search():
    parts, _ = frames(*[random.Random(number).randbytes(1 + number % 300) for number in range(3000)])
    torn = b"\xff" + parts[0][1:]
    assert len(later_frames(torn + b"".join(parts[1:]), START)) == len(parts) - 1


def test_what_looks_like_a_frame_and_does_not_fit_costs_nothing():
    data = bytes(MIB // 2) + crowded(MIB // 2, MIB * 3 // 4)
    assert later_frames(data, START) == []


# A frame alone.


@pytest.mark.parametrize("payload", [b"x", b"x" * 100, b"x" * 5_000])
def test_a_frame_alone_tells_its_sequence_and_its_crc(payload):
    seed = CRC.pack(START.crc)
    (data,), (_, end) = frames(payload)
    assert only_frame(seed + data) == (end.sequence, end.crc)
    assert read_frames(data, START) == Run([payload], end, None)
    two = b"".join(frames(payload, payload)[0])
    for wrong in (seed + two, seed + data + b"\0", *(seed + data[:size] for size in (0, 5, 16, len(data) - 1))):
        assert only_frame(wrong) is None
    assert only_frame(b"") is None
    for at in range(0, 8 * (len(seed) + len(data)), 7):
        flipped = bytearray(seed + data)
        flipped[at // 8] ^= 1 << at % 8
        assert only_frame(bytes(flipped)) is None, f"bit {at}"


@pytest.mark.parametrize(
    "data",
    [frame(b""), frame(b"x", flags=2), frame(b"x", sequence=2), frame(b"x", seed=START.crc + 1)],
    ids=["empty", "unknown flag", "another sequence", "behind another"],
)
def test_a_frame_alone_that_is_none_is_not_read(data):
    assert read_frames(data, START)[:2] == ([], START)


def test_a_frame_alone_behind_the_last_one_that_is_wanted_is_not_read():
    (data,), _ = frames(b"x")
    assert read_frames(data, START, last=START.sequence) == Run([], START, None)
