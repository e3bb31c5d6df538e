import errno
import gc
import hashlib
import os
import pathlib

import pytest

from microdb.files import BOOT_ID_BYTES, OS, File, Identity


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "file")


@pytest.fixture
def file(path):
    return OS.create(path)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


def test_what_is_written_is_read(file):
    file.write_at(b"hello", 3)
    assert file.read_all() == b"\0\0\0hello"
    file.write_at(b"J", 3)
    assert file.read_at(3, 5) == b"Jello"


@pytest.mark.parametrize("share", [lambda size: size // 2 + 1, lambda size: 1], ids=["half", "one byte"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_a_short_write_is_finished(file, monkeypatch, share, size):
    # No real file writes short on demand: the system does so when the disk fills up or a signal comes.
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[: share(len(data))], at))
    data = os.urandom(size)
    file.write_at(data, 7)
    assert file.read_at(7, size + 1) == data
    assert file.size() == (7 + size if size else 0)


def test_a_short_write_whose_rest_fails_raises_what_the_system_says(file, monkeypatch):
    # As above: the disk fills up in the middle.
    pwrite = os.pwrite
    calls = []

    def full(fd, data, at):
        calls.append(at)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, bytes(data)[:2], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space") as caught:
        file.write_at(b"hello", 10)
    assert (caught.value.errno, calls) == (errno.ENOSPC, [10, 12])


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_short_read_is_finished(file, monkeypatch, size):
    # As above: a signal, or a file system that reads block by block.
    data = os.urandom(1000)
    file.write_at(data, 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, size), at))
    assert file.read_at(0, 1000) == data
    assert file.read_at(10, 500) == data[10:510]
    assert file.read_at(900, 500) == data[900:]


@pytest.mark.parametrize(
    ("offset", "length", "data"),
    [(0, 0, b""), (0, 5, b"hello"), (0, 6, b"hello"), (2, 100, b"llo"), (4, 1, b"o"), (5, 1, b""), (500, 10, b"")],
)
def test_at_the_end_of_a_file_reading_gives_what_there_is(file, offset, length, data):
    file.write_at(b"hello", 0)
    assert file.read_at(offset, length) == data


def test_an_empty_file_reads_as_nothing(file):
    assert (file.read_all(), file.size()) == (b"", 0)


def test_a_file_is_cut(file):
    file.write_at(b"hello", 0)
    file.truncate(2)
    assert (file.read_all(), file.size()) == (b"he", 2)


def test_create_refuses_what_exists_and_leaves_it_alone(file, path):
    file.write_at(b"hello", 0)
    with pytest.raises(FileExistsError):
        OS.create(path)
    assert OS.open(path).read_all() == b"hello"


def test_create_refuses_a_link_into_the_void(path):
    os.symlink("nowhere", path)
    with pytest.raises(FileExistsError):
        OS.create(path)


def test_open_takes_only_what_exists_unless_told_otherwise(path):
    with pytest.raises(FileNotFoundError):
        OS.open(path)
    with pytest.raises(FileNotFoundError):
        OS.open(path, write=True)
    assert OS.open_if_exists(path) is None
    assert OS.open(path, write=True, create=True).size() == 0
    assert OS.open_if_exists(path).path == path


def test_open_does_not_empty_a_file_and_writes_only_if_told(file, path):
    file.write_at(b"hello", 0)
    assert OS.open(path, write=True, create=True).read_all() == b"hello"
    with pytest.raises(OSError, match="Bad file descriptor"):
        OS.open(path).write_at(b"x", 0)


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a file but p") as caught:
        OS.open(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, path)
    with pytest.raises(OSError, match="not a file but p"):
        OS.open(path, write=True)


def test_a_folder_in_the_place_of_a_file_is_refused(path):
    os.mkdir(path)
    with pytest.raises(IsADirectoryError, match="not a file but d") as caught:
        OS.open(path)
    assert caught.value.filename == path


def test_a_device_in_the_place_of_a_file_is_refused():
    with pytest.raises(OSError, match="not a file but c"):
        OS.open("/dev/zero")


def test_no_descriptor_is_inherited_by_another_program(file, path):
    assert not os.get_inheritable(file.fd)
    assert not os.get_inheritable(OS.open(path).fd)


def test_a_file_is_closed_with_its_last_reference(path):
    file = OS.create(path)
    other, fd = file, file.fd
    del file
    assert is_open(fd)
    del other
    gc.collect()
    assert not is_open(fd)


def test_a_folder_that_was_synced_leaves_no_descriptor(tmp_path):
    before = os.listdir("/proc/self/fd")
    OS.sync_folder(str(tmp_path))
    assert os.listdir("/proc/self/fd") == before


def test_sync_folder_refuses_a_file(file, path):
    with pytest.raises(NotADirectoryError):
        OS.sync_folder(path)


def test_sync_reaches_the_system_for_the_file_itself(file, monkeypatch):
    # What an fsync does to a disk cannot be seen from here; that it is asked for, can.
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync", fd)))
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append(("fdatasync", fd)))
    file.sync()
    file.sync_data()
    assert calls == [("fsync", file.fd), ("fdatasync", file.fd)]


def test_make_folder_says_whether_it_is_new(tmp_path):
    folder = str(tmp_path / "folder")
    assert [OS.make_folder(folder), OS.make_folder(folder)] == [True, False]
    assert os.path.isdir(folder)


def test_make_folder_takes_a_link_to_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    os.symlink("folder", tmp_path / "link")
    assert not OS.make_folder(str(tmp_path / "link"))


@pytest.mark.parametrize("make", [pathlib.Path.touch, lambda path: os.symlink("nowhere", path)], ids=["file", "link"])
def test_make_folder_says_if_a_file_is_in_the_way(tmp_path, make):
    path = tmp_path / "folder"
    make(path)
    with pytest.raises(NotADirectoryError, match="in the way") as caught:
        OS.make_folder(str(path))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOTDIR, str(path))


def test_make_folder_makes_no_parents(tmp_path):
    with pytest.raises(FileNotFoundError):
        OS.make_folder(str(tmp_path / "a" / "b"))


def test_rename_replaces(file, path):
    file.write_at(b"new", 0)
    OS.create(path + "2").write_at(b"old", 0)
    OS.rename(path, path + "2")
    assert OS.open(path + "2").read_all() == b"new"
    assert OS.open_if_exists(path) is None


def test_unlink_removes_what_may_be_there(file, path):
    OS.unlink(path)
    OS.unlink(path)
    assert OS.identity(path) is None


def test_names_are_sorted(tmp_path):
    for name in ("b", "a", "c"):
        OS.create(str(tmp_path / name))
    assert OS.names(str(tmp_path)) == ["a", "b", "c"]


def test_an_identity_is_the_same_by_name_and_by_descriptor_until_the_file_changes(file, path):
    before = file.identity()
    assert OS.identity(path) == before == Identity.of(os.stat(path))
    file.write_at(b"hello", 0)
    assert file.identity() != before
    assert file.identity().file == before.file


def test_an_identity_sees_a_change_that_keeps_the_size(file):
    file.write_at(b"hello", 0)
    os.utime(file.fd, ns=(1, 1))
    before = file.identity()
    file.write_at(b"jelly", 0)
    assert file.identity() != before


def test_another_file_under_the_same_name_is_another_file(file, path):
    OS.rename(path, path + "2")
    other = OS.create(path)
    assert other.identity().file != file.identity().file
    assert OS.identity(path + "2").file == file.identity().file


def test_permissions_are_copied_from_the_file_that_is_replaced(file, path):
    OS.create(path + "2")
    for mode in (0o600, 0o644, 0o444):
        os.chmod(path + "2", mode)
        file.copy_mode(path + "2")
        assert os.stat(path).st_mode & 0o7777 == mode
    file.copy_mode(path + "3")
    assert os.stat(path).st_mode & 0o7777 == 0o444


def test_a_digest_is_that_of_the_whole_content(file):
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 21) + 1):
        data = bytes(size)
        file.truncate(size)
        assert file.digest(16) == hashlib.blake2b(data, digest_size=16).digest()


def test_words_are_native_and_shared(file, path):
    file.write_at(bytes(4096), 0)
    words, others = file.map_words(4096, writable=True), OS.open(path).map_words(4096, writable=False)
    words[3] = 2**64 - 2
    assert (others[3], len(others), others.itemsize) == (2**64 - 2, 512, 8)
    assert others.readonly
    assert not words.readonly


def test_the_run_of_the_machine_has_a_name_that_stays():
    boot_id = OS.boot_id()
    assert (len(boot_id), boot_id) == (BOOT_ID_BYTES, OS.boot_id())
    text = pathlib.Path("/proc/sys/kernel/random/boot_id")
    expected = bytes.fromhex(text.read_text().replace("-", "")) if text.exists() else bytes(BOOT_ID_BYTES)
    assert boot_id == expected


def test_where_the_system_does_not_tell_its_run_the_name_is_zeros(monkeypatch, path):
    # A file that every Linux has cannot be taken away.
    monkeypatch.setattr("microdb.files._BOOT_ID", path)
    assert OS.boot_id() == bytes(BOOT_ID_BYTES)


def test_a_descriptor_given_to_a_file_belongs_to_it(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    file = File(fd, path)
    assert (file.fd, file.path) == (fd, path)
    del file
    gc.collect()
    assert not is_open(fd)
