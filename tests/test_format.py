import doctest
import re
import struct
import sys

import pytest

from microdb import keys
from microdb.wal import format as layout
from microdb.wal import header
from microdb.wal.writer import log_header, write_frames

FIELD = re.compile(r"(\d+(?: \+ [nk])?) {2,}(\d+|n|k) {2,}(\S.*?)(?= {3,}\d|$)")


def tables():
    """The two tables of the docstring, each a list of offset, size and field."""
    lines = layout.__doc__.splitlines()
    at = next(number for number, line in enumerate(lines) if "offset  size  field" in line)
    middle = lines[at].index("offset", lines[at].index("offset") + 1)
    block = lines[at + 1 : lines.index("", at)]
    rows = [match for line in block for match in FIELD.finditer(line)]
    return [[match.groups() for match in rows if (match.start() >= middle) is is_right] for is_right in (False, True)]


LOG_HEADER, FRAME = tables()


def fixed(table):
    """The fields that stand at a fixed offset, with their size."""
    return [(int(offset), int(size), field) for offset, size, field in table if offset.isdigit() and size.isdigit()]


def spans(structure):
    """Offset and size of each field of a struct, whose format has no padding."""
    items = re.findall(r"(\d*)([sBIQ])", structure.format)
    sizes = [int(count) if code == "s" else struct.calcsize("<" + code) for count, code in items]
    assert structure.format.startswith("<")
    return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


def test_both_tables_are_read_whole():
    assert [len(LOG_HEADER), len(FRAME)] == [11, 5]


@pytest.mark.parametrize(
    ("structure", "table"), [("LOG_HEADER", LOG_HEADER), ("FRAME", FRAME)], ids=["header", "frame"]
)
def test_a_struct_is_what_its_table_says(structure, table):
    assert spans(getattr(layout, structure)) == [(offset, size) for offset, size, _ in fixed(table)]


@pytest.mark.parametrize("table", [LOG_HEADER, FRAME], ids=["header", "frame"])
def test_the_fields_of_a_table_follow_one_another_without_a_gap(table):
    ends = [offset + size for offset, size, _ in fixed(table)]
    *_, (start, variable, _), (crc_offset, crc_size, crc_field) = table
    assert [offset for offset, _, _ in fixed(table)] == [0, *ends[:-1]]
    assert int(start) == ends[-1]
    assert (crc_offset, crc_size, crc_field) == (f"{start} + {variable}", str(layout.CRC_BYTES), "crc")


def test_the_constants_are_what_the_tables_say():
    assert layout.BASE_BYTES == int(LOG_HEADER[-2][0]) == layout.LOG_HEADER.size
    assert layout.FRAME_BYTES_MIN == int(FRAME[-2][0]) + layout.CRC_BYTES == layout.FRAME.size + layout.CRC.size
    fields = {field.split(",")[0].split(":")[0]: (size, field) for _, size, field in fixed(LOG_HEADER)}
    assert fields["magic"] == (len(layout.MAGIC), f"magic, {layout.MAGIC}".replace("'", '"'))
    assert fields["version"] == (4, f"version, {layout.VERSION}")
    assert fields["salt"][0] == layout.SALT_BYTES
    assert fields["hash of the snapshot that the log follows; zeros where there is none"][0] == layout.HASH_BYTES
    assert layout.NO_SNAPSHOT == bytes(layout.HASH_BYTES)


def test_the_first_bytes_of_a_log_are_for_ever():
    data, fields = log_header(
        generation=3, boot_id=b"b" * 16, base_sequence=9, snapshot_hash=b"h" * 16, partition_keys=("id",)
    )
    assert data[:24] == b"microdbL" + b"\1\0\0\0" + b"\0\0\0\0" + b"\3" + bytes(7)
    assert data[24:32] == fields.salt
    assert data[32:80] == b"b" * 16 + b"\x09" + bytes(7) + b"h" * 16 + b"\4\0\0\0" + b"\x91\xa2id"
    assert data[80:] == fields.crc.to_bytes(4, "little")


def test_the_first_bytes_of_a_frame_are_for_ever():
    data, end = write_frames([b"\x91\x80"], layout.Position(1, 100, 0x0102, 7), flags=layout.DURABLE_BEFORE)
    assert data[:15] == b"\2\0\0\0" + b"\1" + b"\3\1" + bytes(6) + b"\x91\x80"
    assert data[15:] == end.crc.to_bytes(4, "little")
    assert end[:3] == (1, 119, 0x0103)


def test_each_log_has_a_salt_of_its_own():
    salts = {
        log_header(generation=1, boot_id=bytes(16), base_sequence=0, snapshot_hash=bytes(16), partition_keys=("id",))[
            1
        ].salt
        for _ in range(100)
    }
    assert len(salts) == 100


@pytest.mark.parametrize("generation", [0, 1, 7, (1 << 28) - 1])
@pytest.mark.parametrize("offset", [0, 1, 4096, layout.OFFSET_MAX])
def test_a_head_is_split_into_what_it_was_made_of(generation, offset):
    head = layout.head_of(generation, offset)
    assert layout.split_head(head) == (generation, offset)
    assert layout.Position(generation, offset, 1, 2).head == head < 1 << 64


def test_a_later_generation_has_a_greater_head_wherever_the_logs_end():
    assert layout.head_of(2, 0) > layout.head_of(1, layout.OFFSET_MAX)


def test_the_largest_payload_fits_the_length_field_and_the_log():
    assert layout.PAYLOAD_BYTES_MAX < 1 << 32
    assert layout.PAYLOAD_BYTES_MAX + layout.FRAME_BYTES_MIN < layout.OFFSET_MAX


def test_the_largest_place_in_the_logs_fills_the_word_that_publishes_it():
    assert layout.head_of(layout.GENERATION_MAX, layout.OFFSET_MAX) == (1 << 64) - 1


def test_what_an_older_microdb_refuses_is_never_written():
    """The limits are part of the format: to raise one takes a new version."""
    limits = (layout.KEYS_BYTES_MAX, layout.PAYLOAD_BYTES_MAX, layout.SEQUENCE_MAX, layout.FLAGS_KNOWN)
    assert limits == (65_536, 268_435_456, 9_223_372_036_854_775_807, 1)


def words_of_the_page():
    """The table of `wal.header`: the words of each field."""
    rows = re.findall(r"^    (\d+)(?:-(\d+))? +(\w+)", header.__doc__, re.MULTILINE)
    return {name: range(int(first), int(last or first) + 1) for first, last, name in rows}


def test_the_words_of_the_page_are_what_its_table_says():
    public = ["HEAD", "DIRTY", "POISONED", "OWNER", "DURABLE", "EXPIRING", "REPAIRS", "TORN", "SAVES", "WAITING"]
    public += ["LOCK_WAITS", "CONFLICTS", "SAVE_US", "LAST"]
    names = [*public, "_INODE", "_SEALED", "_SEAL"]
    constants = {name.lower().strip("_"): range(getattr(header, name), getattr(header, name) + 1) for name in names}
    constants |= {"magic": range(1), "version": range(1, 2), "boot": range(header._BOOT, header._BOOT + 2)}
    constants |= {"salt": range(header._SALT, header._SALT + 2)}
    constants |= {"slots": range(header._SLOTS.start, header._SLOTS.stop)}
    assert words_of_the_page() == constants


def test_no_word_of_the_page_has_two_meanings_and_all_lie_within_it():
    words = [word for span in words_of_the_page().values() for word in span]
    assert len(set(words)) == len(words)
    assert max(words) < header.HEADER_BYTES // 8


def test_the_head_shares_its_cache_line_with_nothing():
    lines = {name: {word // 8 for word in span} for name, span in words_of_the_page().items()}
    assert lines.pop("head") == {header.HEAD // 8}
    assert all(header.HEAD // 8 not in others for others in lines.values())


def test_the_magic_of_the_page_reads_as_its_table_says():
    assert header.MAGIC.to_bytes(8, sys.byteorder) == b"microdbH"
    assert f'b"microdbH"\n    1      version, {header.VERSION}\n' in header.__doc__


@pytest.mark.parametrize("module", [layout, keys], ids=["format", "keys"])
def test_the_examples_of_the_documentation_are_true(module):
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)


POSITION = layout.Position(2, 311, 40, 7)


@pytest.mark.parametrize("given", [POSITION, tuple(POSITION), list(POSITION)])
def test_a_position_is_given_as_such_or_by_its_numbers(given):
    position = layout.position_of(given, "since")
    assert (position, type(position)) == (POSITION, layout.Position)


def test_each_number_of_a_position_fits_a_word():
    assert layout.position_of([2**64 - 1, 0, 0, 0], "since").generation == 2**64 - 1


@pytest.mark.parametrize(
    "given",
    [
        *(None, 5, "abcd", b"abcd", {1, 2, 3, 4}, [1, 2, 3], [1, 2, 3, 4, 5]),
        *([2**64, 1, 1, 1], [1, -1, 1, 1], [True, 1, 1, 1], [1.0] * 4, layout.Position("2", 311, 40, 7)),
    ],
    ids=repr,
)
def test_what_is_no_position_is_refused_and_named(given):
    with pytest.raises(TypeError, match=r"^since is the position of .* or its four numbers; found ") as caught:
        layout.position_of(given, "since")
    assert repr(given)[:60] in str(caught.value)
