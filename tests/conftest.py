"""What most tests need: a path, and databases that are closed at the end."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import microdb
from microdb.appending import Appending
from walfiles import Wal

# Children and a loaded machine make times mean nothing, and so does coverage.
settings.register_profile(
    "microdb",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=int(os.environ.get("MICRODB_EXAMPLES", "100")),
)
settings.load_profile("microdb")

DATA = Path(__file__).parent / "data"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mdb.json"


@pytest.fixture
def open_db(path):
    """Open a database, by default at `path` and keyed by id; all are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def _open(filename=None, partition_keys=("id",), **options):
            mdb = microdb.MicroDB(filename or path, partition_keys, **options)
            stack.callback(mdb.close)
            return mdb

        yield _open


@pytest.fixture(params=["file", "memory"])
def either(request, open_db):
    """An empty database of each kind."""
    return open_db() if request.param == "file" else open_db(":memory:")


@pytest.fixture(params=["straight", "long"])
def way(request, monkeypatch):
    """By which way the upsert of a record gets into the log, where both are open to it."""
    if request.param == "long":
        monkeypatch.setattr(Appending, "_upsert_straight", lambda *_: False)
    return request.param


@pytest.fixture
def legacy(tmp_path):
    """A writable copy of a file that microdb 0.1.3 wrote."""

    def _copy(name):
        return Path(shutil.copy(DATA / "legacy" / name, tmp_path / name))

    return _copy


@pytest.fixture
def _strace():
    """Skips where strace cannot be used."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode:
        pytest.skip("strace may trace nothing here")


@pytest.fixture
def wal(path):
    """The files of the database at `path`."""
    return Wal(path)


@pytest.fixture
def ten(open_db, wal):
    """A database with ten records in its log, closed."""
    mdb = open_db()
    for n in range(10):
        mdb.upsert({"id": n})
    mdb.close()
    return wal
