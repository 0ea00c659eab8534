"""What LocalStore promises beyond the contract of every object store."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from madpo.config import StoreSettings
from madpo.errors import OverloadedError, UnavailableError
from madpo.storage.local import LocalStore
from madpo.storage.open import open_store

FORK = multiprocessing.get_context("fork")


def increment(root: Path, times: int) -> None:
    store = LocalStore(root)
    done = 0
    while done < times:
        data, etag = store.get_with_etag("counter")
        done += store.put_if_match("counter", json.dumps(json.loads(data) + 1).encode(), etag) is not None


def test_processes_do_not_lose_increments(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("counter", b"0")
    processes = [FORK.Process(target=increment, args=(tmp_path, 25)) for _ in range(3)]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert LocalStore(tmp_path).get("counter") == b"75"


def test_quick_rewrites_of_equal_size_have_other_etags(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    etags = {store.put("a", b"%03d" % write) for write in range(200)}

    assert len(etags) == 200


def die_before(call: str, number: int, root: Path) -> None:
    """Overwrite an object, and die before the n-th of these system calls."""
    original, seen = getattr(os, call), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            os._exit(77)
        return original(*args, **kwargs)

    setattr(os, call, counted)
    LocalStore(root).put("a/b", b"new" * 1000)
    os._exit(0)


@pytest.mark.parametrize(("call", "number"), [("fsync", 1), ("utime", 1), ("replace", 1), ("fsync", 2)])
def test_a_killed_write_leaves_the_old_or_the_new_object(tmp_path: Path, call: str, number: int) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"old")

    process = FORK.Process(target=die_before, args=(call, number, tmp_path))
    process.start()
    process.join()

    assert process.exitcode == 77
    assert store.get("a/b") == (b"new" * 1000 if number == 2 else b"old")
    assert [info.key for info in store.list("")] == ["a/b"]
    store.put("a/b", b"next")  # the dead writer's lock is free
    assert store.get("a/b") == b"next"


def test_opening_removes_what_writers_left_a_day_ago(tmp_path: Path) -> None:
    settings = StoreSettings(store_url=f"file://{tmp_path}")
    open_store(settings)
    old, recent = tmp_path / ".tmp" / uuid4().hex, tmp_path / ".tmp" / uuid4().hex
    for file in (old, recent):
        file.touch()
    os.utime(old, (0, time.time() - 90_000))

    open_store(settings)

    assert not old.exists()
    assert recent.exists()


@pytest.mark.promise("D5")
def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OverloadedError, match=f"no space left .*{tmp_path}"):
        store.put("a", b"new")

    assert store.get("a") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_root_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(UnavailableError, match=f"file://{tmp_path}/file"):
        open_store(StoreSettings(store_url=f"file://{tmp_path}/file"))


def test_a_stream_keeps_the_version_it_was_opened_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    with store.open_read("a") as stream:
        store.put("a", b"new")
        store.delete("a")
        assert stream.read() == b"old"


def test_errors_of_the_reader_are_its_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"")

    with pytest.raises(OSError, match="mine") as caught, store.open_read("a"):
        raise OSError("mine")
    assert not isinstance(caught.value, UnavailableError)


def test_folders_go_with_their_last_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b/c", b"")

    store.delete("a/b/c")

    assert not (tmp_path / "a").exists()
