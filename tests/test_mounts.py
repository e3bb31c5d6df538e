"""Which file systems `microdb.mounts` accepts, told by prepared lists of mounts."""

import os
import pickle
from pathlib import Path

import pytest

from microdb.errors import StorageError
from microdb.mounts import Mount, check, find, parse

LOCAL = ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "bcachefs", "fuseblk", "ext4.of-next-year"]
FOREIGN = [
    "virtiofs",
    "9p",
    "fakeowner",
    "drvfs",
    "vboxsf",
    "prl_fs",
    "fuse.grpcfuse",
    "fuse.osxfs",
    "fuse.vmhgfs-fuse",
]
NETWORK = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "afs", "fuse.sshfs", "fuse.glusterfs"]
PROGRAM = ["fuse", "fuse.rclone", "fuse.mergerfs", "fuse.fuse-overlayfs", "fuse.of-next-year"]


def line(point: str, kind: str, optional: str = "shared:1 ") -> bytes:
    """One line as the kernel prints it, with `point` escaped as the kernel does."""
    escaped = "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in point)
    return os.fsencode(f"36 35 98:0 / {escaped} rw,relatime {optional}- {kind} /dev/some rw,errors=continue\n")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return Path(os.path.realpath(tmp_path))


@pytest.fixture
def mountinfo(here: Path) -> Path:
    return here / "mountinfo"


@pytest.mark.parametrize("kind", LOCAL)
def test_a_local_file_system_is_accepted(here: Path, mountinfo: Path, kind: str) -> None:
    mountinfo.write_bytes(line("/", "nfs") + line(str(here), kind))

    check(here / "mdb.json", mountinfo=mountinfo)


@pytest.mark.parametrize("kind", FOREIGN + NETWORK + PROGRAM)
def test_a_file_system_with_another_half_is_refused(here: Path, mountinfo: Path, kind: str) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here), kind))

    with pytest.raises(StorageError):
        check(here / "mdb.json", mountinfo=mountinfo)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("virtiofs", "another operating system"),
        ("nfs4", "several machines"),
        ("fuse.sshfs", "several machines"),
        ("fuse.rclone", "served by a program"),
    ],
)
def test_the_error_names_the_file_the_mount_the_type_the_reason_and_the_way_out(
    here: Path, mountinfo: Path, kind: str, why: str
) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here), kind))

    with pytest.raises(StorageError) as caught:
        check(here / "mdb.json", mountinfo=mountinfo)

    assert caught.value.path == str(here / "mdb.json")
    assert caught.value.reason.startswith(f"{here} is mounted as {kind}, which ")
    assert why in caught.value.reason
    assert caught.value.reason.endswith("; keep the database on a local disk")


def test_the_error_survives_pickling(here: Path, mountinfo: Path) -> None:
    mountinfo.write_bytes(line(str(here), "nfs"))

    with pytest.raises(StorageError) as caught:
        check(here / "mdb.json", mountinfo=mountinfo)

    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_file_in_a_folder_that_does_not_exist_yet_is_judged_by_where_it_will_be(here: Path, mountinfo: Path) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here), "nfs"))

    with pytest.raises(StorageError):
        check(here / "not" / "yet" / "mdb.json", mountinfo=mountinfo)


def test_a_link_is_judged_by_where_it_leads(here: Path, mountinfo: Path) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here / "far"), "nfs"))
    (here / "near").symlink_to(here / "far")

    with pytest.raises(StorageError):
        check(here / "near" / "mdb.json", mountinfo=mountinfo)


def test_a_relative_path_is_judged_from_the_working_folder(
    here: Path, mountinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here), "nfs"))
    monkeypatch.chdir(here)

    with pytest.raises(StorageError):
        check("mdb.json", mountinfo=mountinfo)


def test_a_single_mounted_file_is_judged_by_its_own_mount(here: Path, mountinfo: Path) -> None:
    mountinfo.write_bytes(line("/", "ext4") + line(str(here / "mdb.json"), "virtiofs"))

    with pytest.raises(StorageError):
        check(here / "mdb.json", mountinfo=mountinfo)


def test_where_no_list_of_mounts_exists_nothing_is_checked(here: Path) -> None:
    check(here / "mdb.json", mountinfo=here / "no" / "such" / "list")


def test_where_the_list_of_mounts_is_hidden_nothing_is_checked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)

    check(here / "mdb.json")


def test_a_list_that_cannot_be_read_for_another_reason_is_an_error_of_the_system(here: Path) -> None:
    with pytest.raises(IsADirectoryError):
        check(here / "mdb.json", mountinfo=here)


def test_a_path_below_no_mount_is_accepted(here: Path, mountinfo: Path) -> None:
    mountinfo.write_bytes(line("/elsewhere", "nfs"))

    check(here / "mdb.json", mountinfo=mountinfo)


def test_the_deepest_mount_wins_wherever_it_stands_in_the_list() -> None:
    outer, inner = Mount("/data", "nfs"), Mount("/data/local", "ext4")

    assert find([outer, inner], "/data/local/mdb.json") == inner
    assert find([inner, outer], "/data/local/mdb.json") == inner
    assert find([inner, outer], "/data/mdb.json") == outer


def test_of_two_mounts_at_one_place_the_later_wins() -> None:
    below, above = Mount("/data", "ext4"), Mount("/data", "nfs")

    assert find([below, above], "/data/mdb.json") == above
    assert find([above, below], "/data/mdb.json") == below


def test_a_mount_holds_no_path_that_merely_begins_with_its_name() -> None:
    assert find([Mount("/data", "nfs")], "/database/mdb.json") is None


def test_the_root_mount_holds_every_path() -> None:
    assert find([Mount("/", "ext4")], "/mdb.json") == Mount("/", "ext4")


@pytest.mark.parametrize("optional", ["", "shared:1 ", "master:1 propagate_from:2 unbindable "])
def test_any_number_of_optional_fields_is_understood(optional: str) -> None:
    assert parse(line("/data", "xfs", optional)) == [Mount("/data", "xfs")]


@pytest.mark.parametrize(
    "point", ["/my disk", "/a\ttab", "/two\nlines", "/cr\r", "/back\\slash", "/no#1", "/040", "/a - b", "/ü"]
)
def test_every_name_of_a_mount_point_is_understood(point: str) -> None:
    assert parse(line(point, "xfs")) == [Mount(point, "xfs")]


def test_a_mount_point_that_is_not_utf_8_is_found_by_its_path() -> None:
    mounts = parse(b"36 35 98:0 / /caf\xe9 rw - nfs server:/ rw\n")

    assert find(mounts, os.fsdecode(b"/caf\xe9/mdb.json")) == Mount(os.fsdecode(b"/caf\xe9"), "nfs")


@pytest.mark.parametrize("garbage", [b"\n", b"36 35\n", b"36 35 98:0 / /data rw\n", b"36 35 98:0 / /data - xfs s rw\n"])
def test_a_line_of_another_form_is_left_out(garbage: bytes) -> None:
    assert parse(garbage + line("/data", "xfs") + garbage) == [Mount("/data", "xfs")]


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux lists its mounts there")
def test_each_line_of_the_list_of_this_machine_is_understood() -> None:
    listing = Path("/proc/self/mountinfo").read_bytes()

    mounts = parse(listing)

    assert len(mounts) == listing.count(b"\n") > 0
    assert all(mount.point.startswith("/") and mount.kind for mount in mounts)
