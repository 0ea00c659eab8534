"""A bundle that is stored while it is removed: whoever works on it can be stopped between any two operations."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle
from madpo.storage.local import LocalStore
from madpo.storage.withdrawals import Withdrawal, store_again, withdraw, withdrawn

PREFIX, OTHER = "datasets/d", "tokens/d"
FILES = {"a": b"1" * 1000, "b": b"2", "c": b"3" * 5000}


def store_it(store: ObjectStore, directory: Path) -> bool:
    return store_again(store, PREFIX, directory, metadata={"name": "first"})[1]


def stored_time(store: ObjectStore) -> float:
    return bundle.read_manifest(store, PREFIX).stored_time


def take_out(store: ObjectStore) -> Withdrawal:
    return withdraw(store, PREFIX, stored_time=stored_time(store), along=[OTHER])


def objects(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("")}


def require_whole(store: ObjectStore, path: Path) -> None:
    bundle.fetch(store, PREFIX, path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == FILES
    assert list(withdrawn(store)) == []


class SteppingStore(LocalStore):
    """Does something once, right before the so-manieth operation."""

    def __init__(self, root: Path, number: int, action: Callable[[], object]) -> None:
        super().__init__(root)
        self._number, self._action, self.ended = number, action, threading.Event()

    def _step(self) -> None:
        self._number -= 1
        if self._number == 0:
            self._action()
            self.ended.set()

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        self._step()
        return super().get_with_etag(key)

    def open_read(self, key: str) -> Any:
        self._step()
        return super().open_read(key)

    def head(self, key: str) -> Any:
        self._step()
        return super().head(key)

    def list(self, prefix: str) -> Any:
        self._step()
        return super().list(prefix)

    def put_file(self, key: str, path: Path) -> str:
        self._step()
        return super().put_file(key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._step()
        return super().put_if_absent(key, data)

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        self._step()
        return super().put_if_match(key, data, etag)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)


class KilledError(Exception):
    pass


def die() -> None:
    raise KilledError


def halt_both(
    root: Path,
    directory: Path,
    *,
    upload_step: int,
    removal_step: int,
    remove: Callable[[ObjectStore], object],
    runs_on_s: float,
) -> None:
    """The upload halts, the removal begins and halts, the upload goes on as far as it can, then the removal does.

    Args:
        root: Of the local store.
        directory: What is uploaded.
        upload_step: Before which operation the upload halts.
        removal_step: The same of the removal.
        remove: The removal; it may be refused.
        runs_on_s: How long the upload has until the removal goes on, in seconds.
    """
    halted, go_on = threading.Event(), threading.Event()

    def halt() -> None:
        halted.set()
        go_on.wait(30)

    def remove_slowly() -> None:
        with suppress(FailedPreconditionError, NotFoundError):
            remove(SteppingStore(root, removal_step, halt))
        halted.set()

    with ThreadPoolExecutor(2) as pool:
        removals: list[Future[None]] = []

        def begin_removal() -> None:
            removals.append(pool.submit(remove_slowly))
            halted.wait(30)

        upload = pool.submit(store_it, SteppingStore(root, upload_step, begin_removal), directory)
        with suppress(TimeoutError):
            upload.result(runs_on_s)
        go_on.set()
        upload.result(30)
        for removal in removals:
            removal.result(30)
