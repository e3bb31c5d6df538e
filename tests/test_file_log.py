"""The log in files, as whoever meets it comes at a bad moment: within a save, after a death, or after a stranger."""

import contextlib
import fcntl
import os
import sys
import threading
import types

import pytest

import microdb
from children import forked
from faulty import Faulty, fail, in_thread, only
from microdb.files import OS
from microdb.keys import PartitionKeys
from microdb.paths import Paths
from microdb.presence import is_alone
from microdb.wal import file_log, open_files
from microdb.wal.file_log import FileLog
from microdb.wal.format import FRAME_BYTES_MIN, OFFSET_MAX, Position, split_head
from microdb.wal.header import DIRTY, DURABLE, HEAD, HEADER_BYTES
from microdb.wal.memory_log import MemoryLog
from walfiles import Wal, ids

pytestmark = pytest.mark.usefixtures("way")

A = {"id": "a", "n": 1}
B = {"id": "b", "n": 2}


def die(*_):
    os._exit(9)


def die_writing(path, call):
    """Somebody who writes a record and dies before this call: at `sync_data` its frame stands in the log already."""

    def child():
        faulty = Faulty()
        mdb = microdb.MicroDB(path, ["id"], files=faulty, durability="power")
        faulty.on[call] = only(".log", die)
        mdb.upsert({"id": "never"})

    assert forked(child) == 9


def die_saving(path, *, in_place=True):
    """Somebody who saves and dies when the snapshot is in place, or just before, and the new log is not published."""

    def child():
        faulty = Faulty()
        mdb = microdb.MicroDB(path, ["id"], files=faulty)
        if in_place:
            faulty.on["sync_folder"] = only(str(path.parent), die)
        else:
            faulty.on["rename"] = only("mdb.json", die)
        mdb.save()

    assert forked(child) == 9


def once(name, act):
    """Act at the first call on a path that ends so."""
    left = [act]
    return only(name, lambda _: left.pop()() if left else None)


@contextlib.contextmanager
def stopped_between_its_renames(saver, faulty, parent):
    """Within the block a save has the snapshot in place and its log not published, and the write lock is taken."""
    reached, go_on = threading.Event(), threading.Event()

    def pause():
        reached.set()
        assert go_on.wait(60)

    faulty.on["sync_folder"] = once(str(parent), pause)
    thread = threading.Thread(target=saver.save)
    thread.start()
    try:
        assert reached.wait(60)
        yield
    finally:
        go_on.set()
        thread.join()


# Opening.


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES - 1])
def test_a_reader_beside_a_page_that_was_never_finished_reads_and_follows_whoever_comes(ten, open_db, size):
    os.truncate(ten.header, size)
    before = {file.name: file.read_bytes() for file in ten.folder.iterdir()}
    reader = open_db(read_only=True)
    assert ids(reader) == list(range(10))
    assert {file.name: file.read_bytes() for file in ten.folder.iterdir()} == before
    open_db().upsert({"id": 10})
    assert ids(reader) == list(range(11))


@pytest.mark.parametrize("size", [0, HEADER_BYTES - 1])
def test_a_timeout_beside_a_page_that_was_never_finished_does_not_know_who_holds_the_lock(ten, open_db, size):
    os.truncate(ten.header, size)
    held, let_go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = os.open(ten.folder / "lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(held[1], b"1")
        os.close(let_go[1])
        os.read(let_go[0], 1)
        os._exit(0)
    os.read(held[0], 1)
    for read_only in (False, True):
        with pytest.raises(microdb.LockTimeoutError) as caught:
            open_db(timeout=0.01, read_only=read_only)
        assert caught.value.owner_pid is None
    os.close(let_go[1])
    os.waitpid(pid, 0)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_timeout_while_opening_names_the_process_that_holds_the_lock(open_db, path, read_only):
    def hold(pipe):
        with microdb.MicroDB(path, ["id"]) as mdb, mdb.lock():
            os.write(pipe, b"1")
            os.read(let_go[0], 1)

    held, let_go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(let_go[1])
        os._exit(run(lambda: hold(held[1])))
    os.read(held[0], 1)
    try:
        with pytest.raises(microdb.LockTimeoutError, match=f"process {pid} holds it") as caught:
            open_db(timeout=0.01, read_only=read_only)
    finally:
        os.close(let_go[1])
        os.waitpid(pid, 0)
    assert caught.value.path == str(path) + ".wal/lock"


def run(body):
    try:
        body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def test_a_page_that_was_replaced_before_a_fork_used_its_files_is_refused(open_db, wal):
    mdb = open_db()
    mdb.upsert(A)

    def child():
        os.rename(wal.header, wal.folder / "away")
        (wal.folder / "header").write_bytes((wal.folder / "away").read_bytes())
        with pytest.raises(microdb.FailedError, match="Close this handle and open another one") as caught:
            mdb.upsert(B)
        assert caught.value.path == str(wal.header)
        os.rename(wal.folder / "away", wal.header)
        mdb.upsert(B)

    assert forked(child) == 0
    assert list(mdb) == [("a",), ("b",)]


def test_whoever_opens_as_its_lock_is_replaced_is_refused(ten, open_db):
    opening = Faulty()

    def replace():
        os.rename(ten.folder / "lock", ten.folder / "away")
        (ten.folder / "lock").touch()

    opening.on["open"] = once("header", replace)
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        open_db(files=opening)
    assert caught.value.path == str(ten.folder / "lock")
    assert ids(open_db()) == list(range(10))


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_reader_reads_straight_from_its_table_if_its_page_is_kept_up_or_was_left_in_order(ten, open_db, is_alone):
    if not is_alone:
        open_db()
    reader = open_db(read_only=True)
    reader._find = lambda _: pytest.fail("the long way")
    assert reader[3,] == {"id": 3}


# Loading while others save, or after they died.


@pytest.mark.parametrize("timeout", [None, 60])
def test_whoever_opens_between_the_two_renames_of_a_save_waits_for_its_end(open_db, path, timeout):
    faulty, opening = Faulty(), Faulty()
    saver = open_db(files=faulty)
    saver.upsert(A)
    context = stopped_between_its_renames(saver, faulty, path.parent)
    looks = []

    def look(_):
        looks.append(1)
        if len(looks) == 1:
            context.__enter__()
        elif len(looks) == 4:
            context.__exit__(None, None, None)

    opening.on["open"] = only("mdb.json", look)
    mdb = open_db(files=opening, timeout=timeout)
    assert list(mdb.all()) == [A]
    assert len(looks) >= 4
    assert mdb.stats().generation == 2


def test_whoever_opens_between_the_two_renames_of_a_save_waits_no_longer_than_told(open_db, path):
    faulty, opening = Faulty(), Faulty()
    saver = open_db(files=faulty)
    saver.upsert(A)
    context = stopped_between_its_renames(saver, faulty, path.parent)
    opening.on["open"] = once("mdb.json", context.__enter__)
    with pytest.raises(microdb.LockTimeoutError):
        open_db(files=opening, timeout=0.05)
    context.__exit__(None, None, None)
    assert list(open_db(timeout=0.05).all()) == [A]


def test_who_takes_the_lock_far_behind_a_save_between_its_renames_waits_no_longer_than_told(open_db, path, wal):
    faulty = Faulty()
    mdb, saver = open_db(), open_db(files=faulty)
    for record in (A, B):
        saver.upsert(record)
        saver.save()
        for history in wal.folder.glob("*.history"):
            history.unlink()
    saver.upsert({"id": "c"})  # So the new snapshot is another than that which the log in use follows.
    with (
        stopped_between_its_renames(saver, faulty, path.parent),
        pytest.raises(microdb.LockTimeoutError, match=r"not free within 0\.01 s"),
        mdb.lock(timeout=0.01),
    ):
        pytest.fail("a save holds it")
    assert list(mdb.all()) == [A, B, {"id": "c"}]


def test_a_child_without_files_of_its_own_that_reads_between_the_two_renames_waits_for_the_end(open_db, path):
    faulty, reading = Faulty(), Faulty()
    saver, mdb = open_db(files=faulty), open_db(files=reading)
    saver.upsert(A)
    looked, look = os.pipe()

    def child():
        reading.on["open"] = only("mdb.json", lambda _: os.write(look, b"1"))
        mdb._position, mdb._applied = None, -1  # As after a fork amid a change of the table.
        assert list(mdb.all()) == [A]

    with stopped_between_its_renames(saver, faulty, path.parent):
        pid = os.fork()
        if pid == 0:
            os._exit(forked(child))
        os.read(looked, 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("read_only", [False, True])
def test_a_save_that_comes_and_goes_while_somebody_opens_is_no_conflict(open_db, read_only):
    opening = Faulty()
    mdb = open_db()
    mdb.upsert(A)

    def save():
        mdb.save()
        mdb.upsert(B)

    opening.on["open"] = once("mdb.json", save)
    opened = open_db(files=opening, read_only=read_only)
    assert list(opened.all()) == [A, B]
    mdb.upsert({"id": "c"})
    assert ids(opened) == ["a", "b", "c"]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_log_that_goes_with_the_save_that_made_it_is_missed_by_whoever_opens(open_db, wal, read_only):
    opening = Faulty()
    mdb = open_db()
    mdb.upsert(A)

    def save():
        mdb.save()
        wal.log(2).rename(wal.folder / "away")

    opening.on["open"] = once("mdb.json", save)
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        open_db(files=opening, read_only=read_only)
    assert caught.value.path == str(wal.log(2))
    (wal.folder / "away").rename(wal.log(2))
    assert list(open_db(read_only=read_only).all()) == [A]


def test_a_reader_that_meets_a_save_and_then_a_death_reads_up_to_the_head(open_db, path):
    opening = Faulty()
    mdb = open_db()
    mdb.upsert(A)

    def save_and_die():
        mdb.save()
        mdb.upsert(B)
        die_writing(path, "sync_data")

    opening.on["open"] = once("mdb.json", save_and_die)
    reader = open_db(files=opening, read_only=True)
    assert reader.stats().dirty_pid is not None, "a reader repairs nothing"
    assert list(reader.all()) == [A, B]
    mdb.upsert({"id": "c"})
    assert mdb.stats().repairs == 1
    assert ids(reader) == ["a", "b", "c"]


def test_a_reader_after_a_death_between_two_renames_misses_logs_that_are_gone(open_db, path, wal):
    mdb = open_db()
    mdb.upsert(A)
    die_saving(path)
    for generation in (1, 2):
        wal.log(generation).rename(wal.folder / f"away {generation}")
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        open_db(read_only=True)
    assert caught.value.path == str(wal.log(1))
    for generation in (1, 2):
        (wal.folder / f"away {generation}").rename(wal.log(generation))
    assert list(open_db(read_only=True).all()) == [A]


@pytest.mark.parametrize("read_only", [False, True])
def test_whoever_opens_what_is_in_use_beside_another_snapshot_or_no_log_is_refused(open_db, path, wal, read_only):
    mdb = open_db()
    mdb.upsert(A)
    path.write_text("[]")
    with pytest.raises(microdb.ConflictError, match="put the old one back, or close them all") as conflict:
        open_db(read_only=read_only)
    assert str(wal.log()) in str(conflict.value)
    path.unlink()
    wal.log().rename(wal.folder / "away")
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        open_db(read_only=read_only)
    assert caught.value.path == str(wal.log())
    (wal.folder / "away").rename(wal.log())
    assert list(open_db(read_only=read_only).all()) == [A]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_snapshot_that_is_edited_right_behind_a_save_while_somebody_opens_is_a_conflict(open_db, path, read_only):
    opening = Faulty()
    mdb = open_db()
    mdb.upsert(A)
    acts = [mdb.save, lambda: path.write_text("[]")]
    opening.on["open"] = only("mdb.json", lambda _: acts.pop(0)() if acts else None)
    with pytest.raises(microdb.ConflictError, match="put the old one back"):
        open_db(files=opening, read_only=read_only)


def test_a_reader_that_finds_another_snapshot_says_so_without_waiting_for_a_writer(open_db, path):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    path.write_text("[]")
    mdb._position, mdb._applied = None, -1  # As after a fork amid a change of the table.
    with other.lock(), pytest.raises(microdb.ConflictError, match="put the old one back"):
        in_thread(lambda: list(mdb.all()))


@pytest.mark.parametrize("name", ["lock", "header"])
def test_a_save_and_a_sync_miss_a_lock_or_a_page_that_was_replaced(open_db, path, wal, name):
    mdb = open_db()
    mdb.upsert(A)
    (wal.folder / name).rename(wal.folder / "away")
    for replace in (lambda: None, (wal.folder / name).touch):
        replace()
        for call in (mdb.save, mdb.sync):
            with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
                call()
            assert caught.value.path == str(wal.folder / name)
    (wal.folder / "away").rename(wal.folder / name)
    mdb.save()
    assert path.exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_two_saves_that_come_and_go_while_somebody_opens_are_no_damage(open_db, read_only):
    """The page has room for the salts of two logs: that of the first is gone with the second save."""
    opening = Faulty()
    mdb = open_db()
    mdb.upsert(A)
    looks = []

    def look(_):
        looks.append(1)
        if len(looks) == (1 if read_only else 2):  # The first look of who may write is at the end of the log.
            for _ in range(2):
                mdb.upsert(B)
                mdb.save()

    opening.on["open"] = only("0000000001.log", look)
    opened = open_db(files=opening, read_only=read_only)
    assert mdb.stats().generation == 3
    assert list(opened.all()) == [A, B]


@pytest.mark.parametrize("read_only", [False, True])
def test_the_log_of_another_database_is_refused_by_whoever_opens_what_is_in_use(open_db, tmp_path, wal, read_only):
    mdb = open_db()
    mdb.upsert(A)
    with open_db(tmp_path / "other.json") as other:
        other.upsert(B)
    sound = wal.log().read_bytes()
    wal.log().write_bytes(Wal(tmp_path / "other.json").log().read_bytes())
    with pytest.raises(microdb.CorruptError, match="that of another database") as caught:
        open_db(read_only=read_only)
    assert caught.value.path == str(wal.log())
    wal.log().write_bytes(sound)
    assert list(open_db(read_only=read_only).all()) == [A]


def test_a_head_that_went_back_is_noticed_by_whoever_opens_and_whoever_writes(open_db, wal):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    assert list(other.all()) == [A]
    words, head = mdb._log.words, mdb._log.words[HEAD]
    mdb.upsert(B)
    ahead, words[HEAD] = words[HEAD], head
    for write in (open_db, lambda: other.upsert({"id": "c"})):
        with pytest.raises(microdb.CorruptError, match="the next to open it mends it") as caught:
            write()
        assert (caught.value.path, caught.value.offset, caught.value.sequence) == (str(wal.header), 8 * HEAD, 2)
    words[HEAD] = ahead
    assert list(open_db().all()) == list(other.all()) == [A, B]


# Repairing what a dead owner left.


def test_a_death_before_the_first_byte_leaves_nothing_to_cut(open_db, path, wal):
    mdb = open_db()
    mdb.upsert(A)
    size = wal.log().stat().st_size
    die_writing(path, "write_at")
    assert (wal.log().stat().st_size, mdb.stats().dirty_pid) != (size, None)
    mdb.upsert({"id": "c"})
    assert list(mdb) == [("a",), ("c",)]
    assert (mdb.stats().repairs, mdb.stats().dirty_pid) == (1, None)


def test_a_death_in_mid_write_takes_back_what_was_called_durable_beyond_the_head(open_db, path):
    mdb = open_db(durability="power")
    mdb.upsert(A)
    head = split_head(mdb._log.words[HEAD])[1]
    die_writing(path, "sync_data")
    mdb._log.words[DURABLE] = head + 1_000  # As if it had died behind its fsync.
    with mdb.lock():
        mdb._prepare_locked()
        assert (mdb._log.words[DURABLE], mdb._log.words[DIRTY]) == (head, 0)


def test_whoever_finishes_the_save_of_a_dead_owner_publishes_it_when_its_names_are_on_the_disk(open_db, path):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    die_saving(path)
    published = []
    faulty.on["sync_folder"] = only(path.parent.name, lambda _: published.append(mdb._log.words[HEAD] >> 36))
    mdb.upsert(B)
    assert (published, mdb.stats().generation) == ([1], 2)


def test_whoever_takes_back_the_save_of_a_dead_owner_sees_that_its_log_does_not_come_back(open_db, path, wal):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert(A)
    die_saving(path, in_place=False)
    assert wal.log(2).exists()
    faulty.calls.clear()
    mdb.upsert(B)
    steps = [call for call in faulty.calls if call[0] in ("unlink", "sync_folder")]
    assert steps == [("unlink", "0000000002.log"), ("sync_folder", "mdb.json.wal")]
    assert (list(mdb.all()), mdb.stats().generation) == ([A, B], 1)


def test_whoever_finishes_the_save_of_a_dead_owner_does_not_need_the_log_before_it(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    die_saving(path)
    mdb._log.generations.last = None  # As after a fork.
    mdb._log.generations._history_bytes = 0  # As if the log were too long to be kept.
    mdb.upsert(B)
    assert (list(mdb.all()), mdb.stats().generation, mdb.stats().repairs) == ([A, B], 2, 1)


# Appending.


class InterruptedAt:
    """The page, with an interrupt right behind the first store into one of its words."""

    def __init__(self, words, word):
        self._words = words
        self._word = word

    def __getitem__(self, word):
        return self._words[word]

    def __setitem__(self, word, value):
        self._words[word] = value
        if word == self._word:
            self._word = None
            raise KeyboardInterrupt


@pytest.mark.parametrize(("word", "is_written"), [(DIRTY, False), (HEAD, True), (DURABLE, True)])
def test_an_interrupt_within_an_append_leaves_it_done_if_it_is_published_and_undone_if_not(
    open_db, wal, word, is_written
):
    mdb, other = open_db(durability="power"), open_db()
    mdb.upsert(A)
    words = mdb._log.words
    mdb._log.words = InterruptedAt(words, word)
    with pytest.raises(KeyboardInterrupt):
        mdb.upsert(B)
    mdb._log.words = words
    assert list(mdb.all()) == list(other.all()) == ([A, B] if is_written else [A])
    assert words[DIRTY] == 0
    assert words[DURABLE] <= wal.log().stat().st_size == wal.head()
    other.upsert({"id": "c"})
    assert other.stats().repairs == 0
    assert list(mdb.all()) == list(other.all())


def test_a_log_that_would_grow_beyond_what_a_head_can_tell_is_full(open_db, wal):
    mdb = open_db()
    mdb.upsert(A)
    log, end = mdb._log, mdb._position
    clear = b"\x91\x91\x02"
    last = end._replace(offset=OFFSET_MAX - FRAME_BYTES_MIN - len(clear))
    beyond = last._replace(offset=last.offset + 1)
    with mdb.lock():
        try:
            log.words[HEAD] = beyond.head
            with pytest.raises(microdb.StorageError, match=r"the log is full at .* bytes; save\(\)") as caught:
                log.append([clear], beyond, sync=False)
            assert (wal.log().stat().st_size, log.words[DIRTY]) == (end.offset, 0)
            log.words[HEAD] = last.head
            os.truncate(wal.log(), last.offset)  # A file of 64 GiB that takes no room.
            assert log.append([clear], last, sync=False).offset == OFFSET_MAX
        finally:
            os.truncate(wal.log(), end.offset)
            log.words[HEAD] = end.head
    assert (caught.value.path, caught.value.offset) == (str(wal.log()), beyond.offset)
    assert list(mdb.all()) == [A]


def test_what_a_stranger_has_appended_to_the_log_is_cut_by_the_next_write(open_db, wal):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    with wal.log().open("ab") as log:
        log.write(b"by a stranger")
    mdb.upsert(B)
    assert wal.log().stat().st_size == wal.head()
    assert list(other.all()) == [A, B]


def test_a_log_that_a_stranger_has_cut_is_refused_until_a_save_writes_it_anew(open_db, wal):
    mdb, other = open_db(), open_db()
    mdb.upsert_many([A, B])
    os.truncate(wal.log(), wal.head() - 1)
    with pytest.raises(microdb.CorruptError, match=r"something cut it. save\(\) writes it anew") as caught:
        mdb.upsert({"id": "c"})
    assert (caught.value.path, caught.value.offset, caught.value.sequence) == (str(wal.log()), wal.head() - 1, 1)
    mdb.save()
    mdb.upsert({"id": "c"})
    assert ids(mdb) == ids(other) == ["a", "b", "c"]


def test_a_log_that_was_taken_away_before_the_first_write_is_missed_by_it(open_db, wal):
    open_db().upsert(A)
    mdb = open_db()
    mdb._log.generations.last = None  # As after a fork.
    wal.log().rename(wal.folder / "away")
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        mdb.upsert(B)
    assert caught.value.path == str(wal.log())
    (wal.folder / "away").rename(wal.log())
    mdb.upsert(B)
    assert list(mdb.all()) == [A, B]


# Making durable.


@pytest.mark.parametrize("is_open", [False, True])
def test_sync_misses_a_log_that_was_taken_away(open_db, wal, is_open):
    mdb = open_db()
    mdb.upsert(A)
    if not is_open:
        mdb._log.generations.last = None  # As after a fork.
    wal.log().rename(wal.folder / "away")
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        mdb.sync()
    assert caught.value.path == str(wal.log())
    (wal.folder / "away").rename(wal.log())
    mdb.sync()


def test_sync_of_a_log_that_was_saved_over_and_thrown_away_meanwhile_has_nothing_to_do(open_db, wal):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)
    mdb._log.generations.last = None  # As after a fork.

    def save():
        other.save()
        (wal.folder / "0000000001.history").unlink()

    faulty.on["identity"] = once("lock", save)
    faulty.calls.clear()
    mdb.sync()
    assert "sync_data" not in dict(faulty.calls)
    assert (mdb.stats().generation, list(mdb.all())) == (2, [A])


def test_sync_of_a_log_that_was_saved_over_meanwhile_says_nothing_of_the_new_one(open_db):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert_many([A, B])
    size = mdb.stats().log_bytes

    def save():
        other.save()
        other.upsert({"id": "c"})

    faulty.on["identity"] = once("lock", save)
    mdb.sync()
    assert dict(faulty.calls)["sync_data"].startswith("0000000001")
    durable = mdb._log.words[DURABLE]
    assert durable < mdb.stats().log_bytes
    assert durable < size


@pytest.mark.parametrize("held", [False, True])
def test_sync_says_what_is_durable_only_if_it_need_not_wait_for_that(open_db, held):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    with other.lock() if held else contextlib.nullcontext():
        in_thread(mdb.sync)
    head = split_head(mdb._log.words[HEAD])[1]
    assert (mdb._log.words[DURABLE] == head) is not held


def test_sync_after_a_death_in_mid_write_leaves_the_page_to_the_next_writer(open_db, path):
    mdb = open_db()
    mdb.upsert(A)
    durable = mdb._log.words[DURABLE]
    die_writing(path, "sync_data")
    mdb.sync()
    assert (mdb._log.words[DURABLE], mdb.stats().repairs) == (durable, 0)
    mdb.upsert(B)
    assert (mdb.stats().repairs, list(mdb.all())) == (1, [A, B])


def test_sync_never_takes_back_what_is_called_durable(open_db):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    behind = other._log.words[HEAD]
    mdb.upsert(B)
    mdb.sync()
    durable = mdb._log.words[DURABLE]
    other._log.sync(behind)
    assert mdb._log.words[DURABLE] == durable == split_head(mdb._log.words[HEAD])[1]


def test_a_failed_sync_poisons_its_own_generation_and_no_later_one(open_db):
    faulty = Faulty()
    mdb, other = open_db(files=faulty), open_db()
    mdb.upsert(A)

    def save_and_fail(_):
        other.save()
        fail()

    faulty.on["sync_data"] = save_and_fail
    with pytest.raises(OSError, match="made to fail"):
        mdb.sync()
    faulty.on.clear()
    generation = mdb.stats().generation
    assert not mdb._log.is_poisoned()
    mdb.upsert(B)
    assert mdb.stats().generation == generation


# What every log is to a handle.


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_log_that_can_be_written_to_is_followed(path, kind):
    if kind == "memory":
        log = MemoryLog()
        assert log.is_followed()
        assert log.follow()
    else:
        with microdb.MicroDB(path, ["id"]) as mdb:
            log = mdb._log
            assert log.is_followed()
    assert log.is_followed()


def test_a_log_that_was_never_attached_has_a_page_of_zeros_and_no_files(path):
    log = FileLog(Paths(path), PartitionKeys(["id"]), files=Faulty(), read_only=False)
    assert list(log.words) == [0] * (HEADER_BYTES // 8)
    log.detach()
    log.close()
    assert Position(0, 0, 0, 0).head == log.words[HEAD]
    assert not path.parent.joinpath("mdb.json.wal").exists()


# Closing.


def open_below(folder):
    """The files below a folder that this process has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # That of the listing.
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_handle_that_is_closed_keeps_no_file_open(ten, open_db, read_only):
    mdb = open_db(read_only=read_only)
    assert ids(mdb) == list(range(10))
    assert open_below(ten.folder) != []
    mdb.close()
    assert open_below(ten.folder) == []


def test_a_forked_child_keeps_no_log_open_from_before_a_save_behind_which_its_parent_wrote(open_db):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    other.save()
    mdb.upsert(B)
    file = mdb._log.generations.before.file  # As a thread might hold it that is reading from it.

    def child():
        assert mdb["a",] == A
        assert file.fd < 0

    assert forked(child) == 0
    assert file.fd > 0


def test_a_handle_that_is_closed_does_not_look_alive_though_a_thread_is_reading_from_its_page(ten, open_db):
    mdb = open_db()
    words = mdb._log.words
    mdb.close()
    assert is_alone(OS.open(str(ten.header), write=True))
    assert words[HEAD] > 0


# Looking whether the files are still there.


@pytest.fixture
def clock(monkeypatch):
    """The time of the log, which stands still until it is set."""
    now = types.SimpleNamespace(monotonic=lambda: now.time_s, time_s=1_000.0)
    for module in (file_log, open_files):
        monkeypatch.setattr(module, "time", now)
    return now


def test_a_writer_looks_at_its_files_once_a_second(open_db, clock):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    looks = []
    for time_s in (1_000, 1_000, 1_001, 1_001.5, 1_002, 1_002.5, 1_002.6):
        clock.time_s = time_s
        faulty.calls.clear()
        mdb.upsert(A)
        looks.append([base for name, base in faulty.calls if name == "identity"])
    files = ["lock", "header", "0000000001.log"]
    assert [bool(look) for look in looks] == [True, False, False, True, False, False, True]
    assert looks[3] == looks[6] == files


@pytest.mark.parametrize("name", ["lock", "header", "0000000001.log"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_writer_misses_a_file_that_was_taken_away_a_second_ago(open_db, wal, clock, name, replaced):
    mdb = open_db()
    mdb.upsert(A)
    (wal.folder / name).rename(wal.folder / "away")
    if replaced:
        (wal.folder / name).write_bytes((wal.folder / "away").read_bytes())
    clock.time_s += 2
    with pytest.raises(microdb.FailedError, match="removed or replaced") as caught:
        mdb.upsert(B)
    assert caught.value.path == str(wal.folder / name)
    (wal.folder / "away").rename(wal.folder / name)
    mdb.upsert(B)
    assert list(mdb.all()) == list(open_db().all()) == [A, B]


def test_a_writer_that_has_another_log_open_does_not_look_for_it_under_the_present_name(open_db, clock):
    mdb, other = open_db(), open_db()
    mdb.upsert(A)
    other.save()
    clock.time_s += 2
    mdb.upsert(B)
    clock.time_s += 2
    other.upsert({"id": "c"})
    assert ids(mdb) == ids(other) == ["a", "b", "c"]


def test_an_old_log_that_fails_does_not_make_the_current_one_good(open_db):
    faulty = Faulty()
    mdb = open_db(files=faulty)
    mdb.upsert({"id": "a"})
    log, old = mdb._log, mdb._log.generations.last
    mdb.save()
    mdb.upsert({"id": "b"})
    faulty.on["sync_data"] = fail
    for failing in (log.generations.last, old):
        with pytest.raises(OSError, match="made to fail"):
            log.sync_file(failing)
        assert log.is_poisoned()
