"""What each error of a file system is taken for; the kernel's own error for an object that a disk cannot read."""

import errno
import os
from pathlib import Path

import pytest

from madpo.errors import CorruptObjectError, InternalError, MadpoError, OverloadedError, UnavailableError
from madpo.storage import bundle
from madpo.storage.check import check_store
from madpo.storage.local import LocalStore
from madpo.storage.local_errors import Disk
from madpo.types import StoreFinding

UNREADABLE = Path("/proc/self/mem")
"""A regular file whose first byte the kernel refuses to read with EIO, as a bad sector is."""
BAD = "jobs/a/logs/a00001-" + "0" * 64 + ".log"

TABLE = {
    errno.ENOSPC: (OverloadedError, "free some space"),
    errno.EDQUOT: (OverloadedError, "free some space"),
    errno.EROFS: (UnavailableError, "read-only"),
    errno.EACCES: (UnavailableError, "the user that services run as"),
    errno.EPERM: (UnavailableError, "the user that services run as"),
    errno.EIO: (UnavailableError, "its disk fails"),
    errno.ESTALE: (UnavailableError, "mount it again"),
    errno.ENODEV: (UnavailableError, "its disk is gone"),
    errno.EMFILE: (UnavailableError, "ulimit -n"),
    errno.EFBIG: (UnavailableError, "ulimit -f"),
    errno.ETIMEDOUT: (UnavailableError, "cannot be used"),
    errno.EHOSTDOWN: (UnavailableError, "cannot be used"),
    errno.EISDIR: (InternalError, "cannot hold a/b"),
    errno.ENOTDIR: (InternalError, "cannot hold a/b"),
    errno.ENAMETOOLONG: (InternalError, "cannot hold a/b"),
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    store.check()
    return store


def spoil(store: LocalStore, root: Path, key: str) -> None:
    store.put(key, b"")
    (root / key).unlink()
    (root / key).symlink_to(UNREADABLE)


@pytest.mark.parametrize("number", TABLE, ids=errno.errorcode.get)
def test_each_failure_of_a_write_is_waited_for_or_refused_and_says_what_to_do(
    store: LocalStore, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a/b", b"old")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    expected, said = TABLE[number]
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(expected, match=said) as caught:
            store.put("a/b", b"new")

    assert str(tmp_path) in str(caught.value)
    assert store.get("a/b") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_name_that_another_object_is_in_the_way_of_is_no_reason_to_wait(store: LocalStore) -> None:
    store.put("a/b", b"")
    for key in ("a", "a/b/c"):
        with pytest.raises(InternalError, match=f"cannot hold {key}"):
            store.put(key, b"")


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs Linux' /proc")
def test_an_object_that_the_disk_cannot_read_is_as_good_as_damaged(store: LocalStore, tmp_path: Path) -> None:
    spoil(store, tmp_path, BAD)

    for read in (store.get, lambda key: store.get_file(key, tmp_path / "copy")):
        with pytest.raises(CorruptObjectError, match=f"{BAD} cannot be read from the disk"):
            read(BAD)
    with store.open_read(BAD) as stream, pytest.raises(CorruptObjectError):
        stream.read(10)
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert not (tmp_path / "copy").exists()


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs Linux' /proc")
def test_where_nothing_can_be_read_it_is_the_disk_that_fails(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(store, tmp_path, BAD)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnavailableError, match="its disk fails"):
        store.get(BAD)


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs Linux' /proc")
def test_a_check_names_what_cannot_be_read_and_goes_on(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "part").write_bytes(b"123")
    bundle.publish(store, "models/m", source, metadata={})
    bundle.publish(store, "models/n", source, metadata={})
    for key in (BAD, "models/m/part", "models/n/manifest.json"):
        spoil(store, tmp_path, key)

    found = [(each.key, each.verdict) for each in check_store(store) if isinstance(each, StoreFinding)]

    assert [each for each in found if "source" not in each[0]] == [
        (BAD, "damaged"),
        ("models/m/part", "damaged"),
        ("models/n/manifest.json", "damaged"),
    ]


def test_errors_of_ours_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(MadpoError, match="as it is"), Disk(tmp_path, lambda: True).errors("a"):
        raise UnavailableError("as it is")
