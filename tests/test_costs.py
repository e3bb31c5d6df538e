"""What a read and an upsert cost, counted: system calls and memory. Counts do not care how busy the machine is."""

import collections
import functools
import gc
import itertools
import re
import subprocess
import sys
import tracemalloc

import pytest

OPERATIONS = 50
UPSERT_CALLS = ["flock", "lseek", "pwrite64", "flock"]
"""Lock, where the log ends, write, unlock: no other call that any file is concerned with."""

GETPID_CALLS_MAX = 1
"""Who forked without telling has another pid."""

PYTHON_CALLS_MAX = {"read": 1, "get": 1, "in": 1, "upsert": 17, "upsert_many": 28}
"""Functions written in Python that are entered; of `upsert_many`, for all of a thousand records together."""

UPSERT_BYTES_MAX = 1_088
"""Of a record of seven fields: its copy, its bytes, a frame, and what carries them."""

# Python's allocator asks for memory, and the interpreter waits for its own lock, now and then: for no one operation.
NOT_COUNTED = frozenset({"brk", "futex", "madvise", "mmap", "mremap", "munmap"})

CHILD = """
import os, sys
import microdb

def mark(what):
    try:
        os.stat(f"/mark/{what}")
    except FileNotFoundError:
        pass

with microdb.MicroDB(sys.argv[1], ["id"], durability=sys.argv[2]) as mdb:
    records = [{"id": n % 10, "name": "Alice", "n": n} for n in range(int(sys.argv[3]))]
    mdb.upsert_many(records[:10])
    mdb.get((1,)), mdb.upsert(records[0])
    for record in records:
        mark("upsert")
        mdb.upsert(record)
    for n in range(len(records)):
        mark("read")
        mdb[n % 10,]
    for n in range(len(records)):
        mark("get")
        mdb.get({"id": n % 10})
    for n in range(len(records)):
        mark("in")
        (n,) in mdb
    mark("end")
"""


@pytest.fixture
def calls(_strace, tmp_path):
    """For a durability, the system calls of each operation of each kind."""

    def of(durability="process"):
        trace = tmp_path / "trace"
        command = ["strace", "-f", "-o", trace, sys.executable, "-c", CHILD, tmp_path / "mdb.json", durability]
        subprocess.run([*command, str(OPERATIONS)], check=True, capture_output=True)
        return _by_operation(trace.read_text(encoding="utf-8", errors="replace"))

    return of


def _by_operation(trace):
    found = collections.defaultdict(list)
    current = None
    for line in trace.splitlines():
        mark = re.search(r'"/mark/(\w+)"', line)
        call = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if mark:
            current = mark[1]
            found[current].append([])
        elif call and current is not None and call[1] not in NOT_COUNTED:
            found[current][-1].append(call[1])
    return found


def _usual(operations):
    """The calls of most operations: once a second one more looks whether the files are still there."""
    assert len(operations) == OPERATIONS
    ((usual, times),) = collections.Counter(map(tuple, operations)).most_common(1)
    assert times > OPERATIONS // 2, operations
    return usual


def test_a_read_makes_no_system_call(calls):
    found = calls()
    assert [_usual(found[kind]) for kind in ("read", "get", "in")] == [()] * 3


def test_an_upsert_makes_no_more_than_its_four_system_calls_on_files(calls):
    usual = _usual(calls()["upsert"])
    assert [call for call in usual if call != "getpid"] == UPSERT_CALLS
    assert usual.count("getpid") <= GETPID_CALLS_MAX


def test_an_upsert_that_waits_for_the_disk_makes_one_more(calls):
    usual = _usual(calls("power")["upsert"])
    assert [call for call in usual if call != "getpid"] == [*UPSERT_CALLS[:3], "fdatasync", UPSERT_CALLS[3]]
    assert usual.count("getpid") <= GETPID_CALLS_MAX


def test_of_all_reads_together_next_to_none_makes_a_system_call(calls):
    found = calls()
    assert sum(map(len, itertools.chain(found["read"], found["get"], found["in"]))) <= 3


def _python_calls(operation):
    """How many functions that are written in Python one operation enters."""
    for _ in range(3):
        operation()
    calls = []
    gc.disable()  # Others may have asked to be called by it.
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        operation()
    finally:
        sys.setprofile(None)
        gc.enable()
    return [name for name in calls if "lambda" not in name]  # Without the operation itself.


# Memory.

alone = pytest.mark.skipif("coverage" in sys.modules, reason="what coverage notes down would be counted, too")


def _peak_bytes(operation):
    """The most memory that is in use at once while an operation runs, beyond what was before."""
    for _ in range(20):
        operation()  # Caches of the interpreter fill up.
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(10):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            operation()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return min(peaks)
    finally:
        tracemalloc.stop()


def _kept_blocks(operation):
    """How many blocks of memory the results of an operation hold, one by the other."""
    count = 1_000
    kept = [None] * count
    gc.collect()
    gc.disable()  # What other tests left behind must not go in the middle.
    for _ in range(2):  # The second time free lists of the interpreter are as empty as they get.
        before = sys.getallocatedblocks()
        for n in range(count):
            kept[n] = operation()
        after = sys.getallocatedblocks()
        held, kept = kept, [None] * count
    gc.enable()
    assert len(held) == count
    return round((after - before) / count, 1)


RECORD = {"id": 1, "name": "Alice", "age": 30, "city": "Kyoto", "score": 1.5, "active": True, "note": None}


@pytest.fixture
def mdb(open_db):
    mdb = open_db()
    mdb.upsert(RECORD)
    return mdb


READS = {
    "by key": lambda mdb: mdb[1,],
    "get by key": lambda mdb: mdb.get((1,)),
    "get by record": lambda mdb: mdb.get({"id": 1}),
}


@alone
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_takes_the_memory_of_the_copy_that_it_returns_and_no_more(mdb, read):
    table = {(1,): dict(RECORD)}
    mine, copy = functools.partial(read, mdb), table[1,].copy
    assert _kept_blocks(mine) <= _kept_blocks(copy)
    assert _peak_bytes(mine) <= _peak_bytes(copy)


@alone
def test_asking_whether_a_key_is_there_keeps_no_memory(mdb):
    assert _kept_blocks(lambda: (1,) in mdb) == 0


@alone
def test_an_upsert_takes_little_memory_beyond_the_record_that_it_stores(mdb):
    assert _peak_bytes(lambda: mdb.upsert(RECORD)) <= UPSERT_BYTES_MAX


MANY = [{**RECORD, "id": n} for n in range(1_000)]

OPERATIONS_OF_KIND = {
    "read": lambda mdb: mdb[1,],
    "get": lambda mdb: mdb.get((1,)),
    "in": lambda mdb: (1,) in mdb,
    "upsert": lambda mdb: mdb.upsert(RECORD),
    "upsert_many": lambda mdb: mdb.upsert_many(MANY),
}


@alone
@pytest.mark.parametrize("kind", OPERATIONS_OF_KIND)
def test_an_operation_enters_few_functions_that_are_written_in_python(mdb, kind):
    calls = _python_calls(lambda: OPERATIONS_OF_KIND[kind](mdb))
    assert 1 <= len(calls) <= PYTHON_CALLS_MAX[kind], calls
