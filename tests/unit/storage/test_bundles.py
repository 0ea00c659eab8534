"""Bundles: all or nothing, and no changed byte is ever used."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from madpo.errors import AlreadyExistsError, CorruptObjectError, InvalidArgumentError, NotFoundError
from madpo.storage import bundle
from madpo.storage.listing import list_newest
from madpo.storage.local import LocalStore

FILES = {
    "weights.safetensors": b"\x00\x01" * 500,
    "config.json": b"{}",
    "sub/empty": b"",
    "sub/deep/notes.txt": b"text",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path / "source", FILES)


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def read_files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_files_come_back_as_they_were_published(store: LocalStore, directory: Path, tmp_path: Path) -> None:
    manifest = bundle.publish(store, "models/m", directory, metadata={"kind": "causal_lm"})
    bundle.fetch(store, "models/m", tmp_path / "copy")

    assert read_files(tmp_path / "copy") == FILES
    assert [file.path for file in manifest.files] == sorted(FILES)
    assert bundle.read_manifest(store, "models/m") == manifest
    assert manifest.size_bytes == sum(map(len, FILES.values()))


def test_one_subdirectory_can_be_fetched_alone(store: LocalStore, directory: Path, tmp_path: Path) -> None:
    bundle.publish(store, "models/m", directory, metadata={})

    bundle.fetch(store, "models/m", tmp_path / "copy", under="sub")

    assert read_files(tmp_path / "copy") == {"empty": b"", "deep/notes.txt": b"text"}
    with pytest.raises(NotFoundError, match="no files below su/"):
        bundle.fetch(store, "models/m", tmp_path / "copy", under="su")


def test_publishing_twice_changes_nothing(store: LocalStore, directory: Path) -> None:
    first = bundle.publish(store, "models/m", directory, metadata={"name": "first"})
    objects = list(store.list(""))

    assert bundle.publish(store, "models/m", directory, metadata={"name": "second"}) == first
    assert list(store.list("")) == objects


def test_other_files_under_the_same_prefix_are_refused(store: LocalStore, directory: Path, tmp_path: Path) -> None:
    bundle.publish(store, "models/m", directory, metadata={})
    (directory / "config.json").write_bytes(b"[]")

    with pytest.raises(AlreadyExistsError, match="models/m"):
        bundle.publish(store, "models/m", directory, metadata={})
    bundle.fetch(store, "models/m", tmp_path / "copy")
    assert read_files(tmp_path / "copy") == FILES


@pytest.mark.parametrize("key", ["models/m/manifest.json", "models/m/config.json", "models/m/weights.safetensors"])
def test_publishing_again_repairs_a_truncated_bundle(
    store: LocalStore, directory: Path, tmp_path: Path, key: str
) -> None:
    bundle.publish(store, "models/m", directory, metadata={})
    store.put(key, store.get(key)[:-1])

    bundle.publish(store, "models/m", directory, metadata={})

    bundle.fetch(store, "models/m", tmp_path / "copy")
    assert read_files(tmp_path / "copy") == FILES


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1], lambda data: data + b"\n"])
@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "sub/deep/notes.txt", "manifest.json"])
def test_a_changed_object_is_refused_by_name(
    store: LocalStore, directory: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    bundle.publish(store, "models/m", directory, metadata={})
    store.put(f"models/m/{name}", damage(store.get(f"models/m/{name}")))

    with pytest.raises(CorruptObjectError, match=f"models/m/{name}"):
        bundle.fetch(store, "models/m", tmp_path / "copy")
    assert not (tmp_path / "copy" / name).exists()


def test_every_bit_of_a_manifest_counts(store: LocalStore, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.publish(store, "m", directory, metadata={"name": "café", "mean": 0.25, "none": None})
    intact = store.get("m/manifest.json")

    undetected = []
    for bit in range(len(intact) * 8):
        flipped = bytearray(intact)
        flipped[bit // 8] ^= 1 << bit % 8
        monkeypatch.setattr(store, "get", lambda key, data=bytes(flipped): data)
        try:
            bundle.read_manifest(store, "m")
            undetected.append(bit)
        except CorruptObjectError:
            pass

    assert undetected == []


def test_a_missing_object_is_corruption(store: LocalStore, directory: Path, tmp_path: Path) -> None:
    bundle.publish(store, "m", directory, metadata={})
    store.delete("m/config.json")

    with pytest.raises(CorruptObjectError, match=r"m/config\.json is missing"):
        bundle.fetch(store, "m", tmp_path / "copy")


def test_without_a_manifest_there_is_no_bundle(store: LocalStore, directory: Path, tmp_path: Path) -> None:
    bundle.publish(store, "m", directory, metadata={})
    store.delete("m/manifest.json")

    with pytest.raises(NotFoundError):
        bundle.read_manifest(store, "m")
    with pytest.raises(NotFoundError):
        bundle.fetch(store, "m", tmp_path / "copy")


def test_deleting_removes_the_manifest_first(
    store: LocalStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.publish(store, "m", directory, metadata={})
    deleted: list[str] = []
    original = store.delete
    monkeypatch.setattr(store, "delete", lambda key: (deleted.append(key), original(key)))

    bundle.delete(store, "m")

    assert deleted[0] == "m/manifest.json"
    assert list(store.list("")) == []


@pytest.mark.parametrize("name", ["manifest.json", ".hidden", "a b", "sub/-x", "ü"])
def test_names_that_cannot_be_stored_are_refused(store: LocalStore, directory: Path, name: str) -> None:
    write_files(directory, {name: b""})

    with pytest.raises(InvalidArgumentError, match=name):
        bundle.publish(store, "m", directory, metadata={})
    assert list(store.list("")) == []


@pytest.mark.parametrize("target", ["config.json", "sub", "/etc/passwd", "nowhere"])
def test_symbolic_links_are_refused(directory: Path, target: str) -> None:
    (directory / "link").symlink_to(target)

    with pytest.raises(InvalidArgumentError, match="link is no regular file"):
        bundle.describe(directory)


def test_a_pipe_is_refused(directory: Path) -> None:
    os.mkfifo(directory / "pipe")

    with pytest.raises(InvalidArgumentError, match="pipe is no regular file"):
        bundle.describe(directory)


def test_the_digest_covers_paths_contents_and_salt(tmp_path: Path) -> None:
    def digest(files: dict[str, bytes], salt: str = "") -> str:
        directory = write_files(tmp_path / f"{len(list(tmp_path.iterdir()))}", files)
        return bundle.digest(bundle.describe(directory), salt=salt)

    one = digest({"a": b"1", "b": b"2"})
    others = [digest({"a": b"2", "b": b"1"}), digest({"a": b"1", "c": b"2"}), digest({"a": b"1", "b": b"2"}, "salt")]

    assert digest({"b": b"2", "a": b"1"}) == one
    assert len({one, *others}) == 4
    assert len(one) == 32


def test_pages_run_from_newest_to_oldest_and_survive_changes(store: LocalStore, directory: Path) -> None:
    for name in ("c", "a", "d", "b"):
        bundle.publish(store, f"root/{name}", directory, metadata={})
    bundle.delete(store, "root/c")
    store.put("root/unfinished/file", b"")
    bundle.publish(store, "root/a/nested", directory, metadata={})

    first, token = list_newest(store, "root", page_size=2, page_token="")
    bundle.publish(store, "root/new", directory, metadata={})
    bundle.delete(store, "root/d")
    second, end = list_newest(store, "root", page_size=2, page_token=token)

    assert (first, second, end) == (["b", "d"], ["a"], "")


@pytest.mark.parametrize(("page_size", "page_token"), [(0, ""), (1, "nonsense/x")])
def test_wrong_pages_are_refused(store: LocalStore, page_size: int, page_token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_"):
        list_newest(store, "root", page_size=page_size, page_token=page_token)
