import copy
import errno
import pathlib
import pickle

import pytest

import microdb
from microdb import errors
from microdb.errors import (
    ClaimLostError,
    ClosedError,
    ConflictError,
    CorruptError,
    FailedError,
    GridError,
    LockTimeoutError,
    MicroDBError,
    ReadOnlyError,
    RecordError,
    ReentrantError,
    SinceLostError,
    StorageError,
    TransactionError,
    VersionError,
    WaitTimeoutError,
)

HUGE = 10**5_000
"""Python refuses to write an int of so many digits."""

RESEMBLES = {
    RecordError: ValueError,
    GridError: ValueError,
    LockTimeoutError: TimeoutError,
    WaitTimeoutError: TimeoutError,
    TransactionError: RuntimeError,
    ReentrantError: RuntimeError,
    CorruptError: StorageError,
    VersionError: StorageError,
    FailedError: StorageError,
}

FACTS = [
    (RecordError("record['a'][3]", "too deep"), {"field": "record['a'][3]", "reason": "too deep"}),
    (GridError({"a": 1}, ["b", "c"]), {"record": {"a": 1}, "missing": ["b", "c"]}),
    (ConflictError("edited by hand"), {"found": None}),
    (ConflictError("changed", found={"a": 1}), {"found": {"a": 1}}),
    (ClaimLostError((1,), 2, None), {"key": (1,), "fence": 2, "found": None}),
    (SinceLostError("saved"), {}),
    (WaitTimeoutError("not so after 5 s"), {}),
    (LockTimeoutError("/db/lock", 1.5, 77), {"path": "/db/lock", "timeout_s": 1.5, "owner_pid": 77}),
    (LockTimeoutError("/db/lock", 0.0, None), {"path": "/db/lock", "timeout_s": 0.0, "owner_pid": None}),
    (ClosedError("closed"), {}),
    (ReadOnlyError("read-only"), {}),
    (TransactionError("inside"), {}),
    (ReentrantError("from a signal handler"), {}),
    (StorageError("/db", "odd", offset=7), {"path": "/db", "reason": "odd", "offset": 7}),
    (CorruptError("/db", "rot", offset=8, sequence=9), {"path": "/db", "reason": "rot", "offset": 8, "sequence": 9}),
    (CorruptError("/db", "rot", offset=0, sequence=0), {"path": "/db", "reason": "rot", "offset": 0, "sequence": 0}),
    (CorruptError("/db", "rot"), {"path": "/db", "reason": "rot", "offset": None, "sequence": None}),
    (VersionError("/db", "version 9", offset=8), {"path": "/db", "reason": "version 9", "offset": 8}),
    (FailedError("/db", "fsync failed"), {"path": "/db", "reason": "fsync failed", "offset": None}),
]

EVERY_ERROR = pytest.mark.parametrize(
    ("error", "facts"), FACTS, ids=[f"{number}-{type(error).__name__}" for number, (error, _) in enumerate(FACTS)]
)


def classes():
    return [getattr(errors, name) for name in errors.__all__]


def copies(error):
    by_pickle = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    return [*by_pickle, copy.copy(error), copy.deepcopy(error)]


def test_every_error_stands_in_the_one_tree_and_is_public():
    assert all(issubclass(kind, MicroDBError) for kind in classes())
    assert {kind for kind in classes() if kind is not StorageError} <= {type(error) for error, _ in FACTS} | {
        MicroDBError
    }
    assert all(getattr(microdb, name) is getattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize(("kind", "other"), RESEMBLES.items())
def test_each_is_also_what_it_resembles(kind, other):
    assert issubclass(kind, other)


def test_only_the_timeouts_are_os_errors_because_the_others_come_from_no_system_call():
    assert [kind for kind in classes() if issubclass(kind, OSError)] == [LockTimeoutError, WaitTimeoutError]


def test_version_and_corrupt_do_not_catch_each_other():
    assert not issubclass(VersionError, CorruptError)
    assert not issubclass(CorruptError, VersionError)


@EVERY_ERROR
def test_each_carries_its_facts(error, facts):
    assert {name: getattr(error, name) for name in facts} == facts


@EVERY_ERROR
def test_each_survives_pickling_and_copying(error, facts):
    for other in copies(error):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert {name: getattr(other, name) for name in facts} == facts


@EVERY_ERROR
def test_a_note_survives_pickling_and_copying(error, facts):
    noted = copy.copy(error)
    noted.add_note("while opening")
    assert [other.__notes__ for other in copies(noted)] == [["while opening"]] * len(copies(noted))


def test_a_path_object_becomes_a_str():
    for error in copies(CorruptError(pathlib.Path("/db/mdb.json"), "rot", offset=3)):
        assert (error.path, str(error)) == ("/db/mdb.json", "/db/mdb.json, byte 3: rot")


def test_a_storage_error_names_path_byte_and_what_to_do():
    assert str(CorruptError("/db", "rot; restore a copy", offset=0)) == "/db, byte 0: rot; restore a copy"
    assert str(FailedError("/db", "fsync failed; save")) == "/db: fsync failed; save"


def test_a_record_error_names_the_field_and_what_to_do():
    assert str(RecordError("record['a']", "store it as str")) == "record['a']: store it as str"


def test_a_grid_error_names_the_record_the_fields_and_what_to_do():
    assert str(GridError({"a": 1}, ["b", "c"])) == "no grid: record {'a': 1} lacks 'b', 'c'; use save() instead"


@pytest.mark.parametrize(("owner_pid", "holder"), [(77, "process 77 holds it"), (None, "another process holds it")])
def test_a_lock_timeout_names_the_path_the_time_and_the_holder(owner_pid, holder):
    assert str(LockTimeoutError("/db/lock", 2.5, owner_pid)) == f"/db/lock: not free within 2.5 s; {holder}"


def test_a_lock_timeout_says_nothing_wrong_as_an_os_error():
    error = LockTimeoutError("/db/lock", 2.5, 77)
    assert error.errno in {None, errno.ETIMEDOUT}
    assert error.filename in {None, "/db/lock"}
    assert error.strerror is None or isinstance(error.strerror, str)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (HUGE, "0x31e20801036510f3..."),
        (-HUGE, "-0x31e20801036510f..."),
        ((HUGE,), "(0x31e20801036510f3...,)"),
        ((HUGE, "a"), "(0x31e20801036510f3..., 'a')"),
        ([{"n": HUGE, HUGE: 1.5}, 2], "[{'n': 0x31e20801036510f3..., 0x31e20801036510f3...: 1.5}, 2]"),
        ({HUGE}, "<set>"),
        ((1, ["a"], None), "(1, ['a'], None)"),
    ],
    ids=errors.shown,
)
def test_what_python_refuses_to_write_is_shown_all_the_same(value, text):
    assert errors.shown(value) == text


def test_what_is_nested_too_deep_to_be_shown_is_named_by_its_type():
    value = []
    for _ in range(100_000):
        value = [value]
    assert errors.shown(value) == "<list>"


def test_errors_about_ints_of_so_many_digits_have_a_text():
    said = str(GridError({"n": HUGE, "m": 1}, ["x"]))
    assert said == "no grid: record {'n': 0x31e20801036510f3..., 'm': 1} lacks 'x'; use save() instead"
    said = str(ClaimLostError((HUGE,), 1, {"owner": HUGE, "until": None, "fence": HUGE}))
    assert said.endswith("the record belongs to 0x31e20801036510f3..., with fence 0x31e20801036510f3...")
    assert said.startswith("the claim on record (0x31e20801036510f3...,) with fence 1 is lost")
