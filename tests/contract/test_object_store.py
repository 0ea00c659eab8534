"""What every object store must do, over a directory and over a real S3 server."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.ports import ObjectStore

WRITERS = 8


def race(action: Callable[[int], bool]) -> list[bool]:
    """Results of WRITERS simultaneous calls."""
    barrier = threading.Barrier(WRITERS)

    def run(writer: int) -> bool:
        barrier.wait()
        return action(writer)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(run, range(WRITERS)))


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 5000])
def test_an_object_is_read_back_as_it_was_written(object_store: ObjectStore, data: bytes) -> None:
    etag = object_store.put("a/b", data)

    assert object_store.get("a/b") == data
    assert object_store.get_with_etag("a/b") == (data, etag)
    with object_store.open_read("a/b") as stream:
        assert stream.read(3) + stream.read() + stream.read() == data


def test_the_etag_follows_the_bytes(object_store: ObjectStore) -> None:
    etags = [object_store.put("a", data) for data in (b"one", b"two", b"three")]

    info = object_store.head("a")
    assert len(set(etags)) == 3
    assert info is not None
    assert (info.key, info.size_bytes, info.etag) == ("a", 5, etags[-1])
    assert info.modified_time > 1.7e9


def test_an_absent_object_is_not_found(object_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a/b"):
        object_store.get("a/b")
    with pytest.raises(NotFoundError, match="a/b"), object_store.open_read("a/b"):
        pass
    with pytest.raises(NotFoundError, match="a/b"):
        object_store.get_file("a/b", tmp_path / "copy")

    assert object_store.head("a/b") is None
    assert not list(tmp_path.glob("*copy*"))
    object_store.delete("a/b")


def test_a_folder_is_no_object(object_store: ObjectStore) -> None:
    object_store.put("a/b", b"")

    assert object_store.head("a") is None
    with pytest.raises(NotFoundError):
        object_store.get("a")


def test_a_deleted_object_is_gone(object_store: ObjectStore) -> None:
    object_store.put("a/b/c", b"1")
    object_store.put("a/d", b"2")

    object_store.delete("a/b/c")

    assert object_store.head("a/b/c") is None
    assert [info.key for info in object_store.list("")] == ["a/d"]


def test_creation_does_not_overwrite(object_store: ObjectStore) -> None:
    assert object_store.put_if_absent("a", b"first")
    assert not object_store.put_if_absent("a", b"second")

    assert object_store.get("a") == b"first"


def test_a_repeated_creation_with_the_same_bytes_succeeds(object_store: ObjectStore) -> None:
    assert object_store.put_if_absent("a", b"mine")
    assert object_store.put_if_absent("a", b"mine")


def test_of_many_creators_one_wins(object_store: ObjectStore) -> None:
    for round_ in range(5):
        key = f"race/{round_}"
        won = race(lambda writer, key=key: object_store.put_if_absent(key, b"%d" % writer))  # type: ignore[misc]
        assert sum(won) == 1
        assert object_store.get(key) == b"%d" % won.index(True)


def test_only_the_named_version_is_replaced(object_store: ObjectStore) -> None:
    first = object_store.put("a", b"1")
    second = object_store.put_if_match("a", b"2", first)

    assert second is not None
    assert object_store.put_if_match("a", b"3", first) is None
    assert object_store.get_with_etag("a") == (b"2", second)


def test_an_absent_object_matches_no_version(object_store: ObjectStore) -> None:
    assert object_store.put_if_match("a", b"1", "0" * 32) is None
    assert object_store.head("a") is None


def test_no_increment_is_lost_between_writers(object_store: ObjectStore) -> None:
    object_store.put("counter", json.dumps({"count": 0}).encode())

    def increment(writer: int) -> bool:
        done = 0
        while done < 3:
            data, etag = object_store.get_with_etag("counter")
            body = {"count": json.loads(data)["count"] + 1, "nonce": uuid4().hex}
            done += object_store.put_if_match("counter", json.dumps(body).encode(), etag) is not None
        return True

    race(increment)

    assert json.loads(object_store.get("counter"))["count"] == 3 * WRITERS


def test_a_file_of_several_parts_comes_back_the_same(object_store: ObjectStore, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(1 << 20) * 33)  # one part holds 32 MiB
    copy.write_bytes(b"old")

    etag = object_store.put_file("big", source)
    sha256 = object_store.get_file("big", copy)

    info = object_store.head("big")
    assert info is not None
    assert (info.size_bytes, info.etag) == (33 << 20, etag)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == hashlib.sha256(source.read_bytes()).hexdigest() == sha256


def test_objects_are_listed_in_key_order(object_store: ObjectStore) -> None:
    keys = ["a", "a-b/x", "a.b", "a0", "ab/c/d", "ab/c0", "ab/c_", "ab/cd", "b/a00010/m", "b/a00009/m"]
    for key in keys:
        object_store.put(key if key != "a" else "Z", key.encode())

    listed = [info.key for info in object_store.list("")]

    assert listed == sorted([*keys[1:], "Z"])
    assert [info.size_bytes for info in object_store.list("ab/c")] == [6, 5, 5, 5]


def test_names_of_a_folder_are_listed_once_whatever_is_below_them(object_store: ObjectStore) -> None:
    for key in ("jobs/1/x", "jobs/1/y/z", "jobs/10/x", "jobs/2", "jobs-3/x", "job"):
        object_store.put(key, b"")

    assert sorted(object_store.list_names("jobs")) == ["1", "10", "2"]
    assert list(object_store.list_names("none")) == []
    with pytest.raises(InvalidArgumentError):
        list(object_store.list_names("../jobs"))


def test_a_prefix_need_not_end_at_a_folder(object_store: ObjectStore) -> None:
    for key in ("jobs/1/x", "jobs/10/x", "jobs/2/x", "job"):
        object_store.put(key, b"")

    assert [info.key for info in object_store.list("jobs/1")] == ["jobs/1/x", "jobs/10/x"]
    assert [info.key for info in object_store.list("jobs/1/")] == ["jobs/1/x"]
    assert list(object_store.list("none/")) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".hidden", "a\\b", "a b", "a\nb", "é", "-a", "a" * 600]
)
def test_keys_that_stores_would_rewrite_are_refused(object_store: ObjectStore, key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        object_store.put(key, b"")
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        object_store.get(key)
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        object_store.delete(key)
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        object_store.get_file(key, tmp_path / "copy")
