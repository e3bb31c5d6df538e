import random
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from microdb.wal.format import CRC, FRAME, Position
from microdb.wal.reader import HeaderError, later_frames, read_frames, read_header
from microdb.wal.writer import log_header, write_frames

PAYLOADS = st.binary(min_size=1, max_size=40) | st.builds(bytes, st.integers(1, 40))
LISTS = st.lists(PAYLOADS, max_size=8)
SOME = st.lists(PAYLOADS, min_size=1, max_size=8)
SEQUENCES = st.sampled_from([0, 1, 250, 255, 65_530, 2**32 - 4]) | st.integers(0, 2**63)


class Log:
    """A log made of payloads.

    Attributes:
        data: Its bytes, without its header.
        start: The position before the first frame.
        frames: Its frames, as bytes.
        offsets: Where in `data` each frame begins, and the last one ends.
    """

    def __init__(self, payloads, *, generation=1, base=0, flags=0):
        _, header = log_header(
            generation=generation,
            boot_id=bytes(16),
            base_sequence=base,
            snapshot_hash=bytes(16),
            partition_keys=("id",),
        )
        self.payloads = payloads
        self.start = header.start
        self.frames = []
        position = self.start
        for payload in payloads:
            frame, position = write_frames([payload], position, flags=flags)
            self.frames.append(frame)
        self.end = position
        self.data = b"".join(self.frames)
        self.offsets = [0, *accumulate(map(len, self.frames))]

    def read(self, data=None):
        """What is read from these bytes, which stand behind the header."""
        return read_frames(self.data if data is None else data, self.start)

    def holds_at(self, data, offset):
        """Whether the frame at this offset is one that was written there."""
        if offset not in self.offsets[:-1]:
            return False
        frame = self.frames[self.offsets.index(offset)]
        return data[offset : offset + len(frame)] == frame


def common(one, other):
    """How many frames two lists share from the first on."""
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def invents_nothing(log, data, sound):
    """From `data` exactly the first `sound` frames are read, and whatever is found behind them was written there."""
    run = log.read(data)
    assert run.payloads == log.payloads[:sound]
    assert run.end.offset == log.start.offset + log.offsets[sound]
    assert (run.reason is None) == (len(data) == log.offsets[sound])
    try:
        found = later_frames(data[log.offsets[sound] :], run.end)
    except HeaderError:
        return
    assert all(log.holds_at(data, frame.offset - log.start.offset) for frame in found)


@given(
    LISTS,
    st.integers(1, 2**28 - 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.text(st.characters(codec="utf-8")), max_size=3),
)
def test_a_header_is_read_as_it_was_written(payloads, generation, base, names):
    data, fields = log_header(
        generation=generation,
        boot_id=b"b" * 16,
        base_sequence=base,
        snapshot_hash=b"h" * 16,
        partition_keys=tuple(names),
    )
    assert read_header(data) == read_header(data + b"".join(payloads)) == fields


@given(LISTS, SEQUENCES)
def test_what_is_read_is_what_was_written(payloads, base):
    log = Log(payloads, base=base)
    assert log.read() == (payloads, log.end, None)
    assert write_frames(payloads, log.start) == (log.data, log.end)


@given(SOME, SEQUENCES, st.data())
def test_reading_may_be_resumed_anywhere(payloads, base, data):
    log = Log(payloads, base=base)
    first = read_frames(log.data, log.start, last=base + data.draw(st.integers(0, len(payloads))))
    rest = read_frames(log.data[first.end.offset - log.start.offset :], first.end)
    assert [*first.payloads, *rest.payloads] == payloads
    assert rest.end == log.end


@given(SOME, SEQUENCES, st.data())
def test_a_log_cut_anywhere_gives_exactly_the_frames_before_the_cut(payloads, base, data):
    log = Log(payloads, base=base)
    size = data.draw(st.integers(0, len(log.data)))
    sound = sum(end <= size for end in log.offsets[1:])
    invents_nothing(log, log.data[:size], sound)
    assert later_frames(log.data[log.offsets[sound] : size], log.read(log.data[:size]).end) == []


@given(SOME, SEQUENCES, st.data())
def test_a_flipped_bit_gives_exactly_the_frames_before_it(payloads, base, data):
    log = Log(payloads, base=base)
    bit = data.draw(st.integers(0, 8 * len(log.data) - 1))
    invents_nothing(log, flipped(log.data, bit), sum(end <= bit // 8 for end in log.offsets[1:]))


@given(SOME, SEQUENCES, st.data())
def test_any_damage_gives_exactly_the_frames_before_it(payloads, base, data):
    log = Log(payloads, base=base)
    at = data.draw(st.integers(0, len(log.data)))
    damage = data.draw(st.binary(max_size=30) | st.builds(bytes, st.integers(0, 30)))
    damaged = log.data[:at] + damage + log.data[at + data.draw(st.integers(0, 30)) :]
    first = next((n for n, (a, b) in enumerate(zip(damaged, log.data, strict=False)) if a != b), None)
    same = min(len(damaged), len(log.data)) if first is None else first
    run = log.read(damaged)
    assert run.payloads == payloads[: sum(end <= same for end in log.offsets[1:])]


@given(SOME, SEQUENCES, st.data())
def test_frames_that_changed_places_pass_only_up_to_the_first_that_did(payloads, base, data):
    log = Log(payloads, base=base)
    order = data.draw(st.lists(st.integers(0, len(payloads) - 1), max_size=12))
    frames = [log.frames[number] for number in order]
    invents_no_payload(log, frames, common(order, range(len(payloads))))


@given(SOME, SEQUENCES, st.data())
def test_a_frame_duplicated_or_dropped_ends_the_log(payloads, base, data):
    log = Log(payloads, base=base)
    number = data.draw(st.integers(0, len(payloads) - 1))
    invents_no_payload(log, [*log.frames[: number + 1], *log.frames[number:]], number + 1)
    invents_no_payload(log, [*log.frames[:number], *log.frames[number + 1 :]], number)


@given(SOME, SEQUENCES, st.data())
def test_frames_of_another_log_with_the_same_numbers_and_payloads_never_pass(payloads, base, data):
    log, other = Log(payloads, base=base), Log(payloads, base=base)
    number = data.draw(st.integers(0, len(payloads) - 1))
    invents_no_payload(log, log.frames[:number] + other.frames[number:], number)
    invents_no_payload(log, [*log.frames[:number], other.frames[number], *log.frames[number + 1 :]], number)


@given(LISTS, SOME, SEQUENCES, st.data())
def test_the_stale_tail_of_an_older_generation_never_passes(payloads, old_payloads, base, data):
    log, old = Log(payloads, generation=2, base=base), Log(old_payloads, generation=1, base=base)
    tail = old.data[data.draw(st.integers(0, len(old.data) - 1)) :]
    assert log.read(log.data + tail).payloads == payloads
    overlaid = log.data + old.data[len(log.data) :]
    assert log.read(overlaid).payloads == payloads


@given(LISTS, SEQUENCES, st.integers(1, 1000))
def test_zeros_never_pass_as_a_frame(payloads, base, count):
    log = Log(payloads, base=base)
    invents_nothing(log, log.data + bytes(count), len(payloads))
    assert later_frames(bytes(count), log.end) == []


@given(SOME, SEQUENCES, st.data())
def test_a_range_of_zeros_gives_exactly_the_frames_before_it(payloads, base, data):
    log = Log(payloads, base=base)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(log.data))] * 2)))
    zeroed = log.data[:start] + bytes(stop - start) + log.data[stop:]
    invents_nothing(log, zeroed, common_bytes(log, zeroed))


@given(st.lists(PAYLOADS, min_size=2, max_size=8), SEQUENCES, st.booleans(), st.data())
def test_every_sound_frame_behind_the_damage_is_found_if_its_seed_is_sound(payloads, base, is_durable, data):
    log = Log(payloads, base=base, flags=int(is_durable))
    bad = data.draw(st.integers(0, len(payloads) - 2))
    at = log.offsets[bad]
    size = len(log.frames[bad]) - CRC.size
    torn = log.data[:at] + data.draw(st.sampled_from([b"\0", b"\xff", b"\1"])) * size + log.data[at + size :]
    end = log.read(torn).end
    found = later_frames(torn[at:], end)
    assert [frame.offset - log.start.offset for frame in found] == log.offsets[bad + 1 : -1]
    assert [frame.sequence for frame in found] == list(range(base + bad + 2, base + len(payloads) + 1))
    assert {frame.durable_before for frame in found} == {is_durable}


@given(st.binary(max_size=400), SEQUENCES, st.integers(0, 2**32 - 1))
def test_any_bytes_are_no_frame(data, base, crc):
    position = Position(1, 100, base, crc)
    run = read_frames(data, position)
    assert (run.payloads, run.end, run.reason is None) == ([], position, not data)
    assert later_frames(data, position) == []


@given(
    st.integers(0, 100),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=120),
    st.integers(0, 2**32 - 1),
)
def test_what_looks_like_a_frame_without_the_crc_is_none(length, flags, sequence, rest, crc):
    position = Position(1, 100, sequence - 1, crc)
    assert read_frames(FRAME.pack(length, flags, sequence) + rest, position).payloads == []


def test_each_flipped_bit_of_a_log_of_100_records_gives_exactly_the_frames_before_it():
    source = random.Random(100)
    log = Log([source.randbytes(1 + number % 23) for number in range(100)])
    for bit in range(8 * len(log.data)):
        data = flipped(log.data, bit)
        sound = sum(end <= bit // 8 for end in log.offsets[1:])
        run = log.read(data)
        assert (run.payloads, run.end.sequence) == (log.payloads[:sound], sound), f"bit {bit}"


def test_behind_each_flipped_bit_every_later_frame_is_found():
    log = Log([bytes([number]) * (1 + number % 5) for number in range(12)])
    for bit in range(8 * len(log.data)):
        data = flipped(log.data, bit)
        sound = sum(end <= bit // 8 for end in log.offsets[1:])
        found = later_frames(data[log.offsets[sound] :], log.read(data).end)
        expected = log.offsets[sound + 1 : -1]
        assert [frame.offset - log.start.offset for frame in found] == expected, f"bit {bit}"


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def common_bytes(log, data):
    """How many frames are as they were written."""
    return common(
        log.frames, [data[start : start + len(frame)] for start, frame in zip(log.offsets, log.frames, strict=False)]
    )


def invents_no_payload(log, frames, sound):
    """Of these frames exactly the first `sound` are read, which are those that were written there."""
    run = log.read(b"".join(frames))
    assert run.payloads == log.payloads[:sound]
    assert (run.reason is None) == (len(frames) == sound)
