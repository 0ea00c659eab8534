"""A store that is waited for: what it could not do is done in the end, and whoever waits says so."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import NotFoundError, OverloadedError, UnavailableError
from madpo.ports import ObjectStore
from madpo.storage import patient
from madpo.storage.local import LocalStore
from madpo.storage.patient import PatientStore


class Failing:
    """A store that fails a number of times at every call."""

    def __init__(self, store: ObjectStore, error: Exception, *, times: int) -> None:
        self._store, self._error, self._times = store, error, times
        self._left: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            left = self._left.setdefault(name, self._times)
            if left:
                self._left[name] = left - 1
                raise self._error
            return getattr(self._store, name)(*arguments, **named)

        return call


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    store.put("jobs/a", b"before")
    return store


CALLS: dict[str, Callable[[ObjectStore, Path], Any]] = {
    "check": lambda store, path: store.check(),
    "get": lambda store, path: store.get("jobs/a"),
    "get_with_etag": lambda store, path: store.get_with_etag("jobs/a")[0],
    "open_read": lambda store, path: read(store),
    "put": lambda store, path: bool(store.put("jobs/a", b"after")),
    "put_if_absent": lambda store, path: (store.put_if_absent("jobs/b", b"b"), store.put_if_absent("jobs/a", b"b")),
    "put_if_match": lambda store, path: bool(store.put_if_match("jobs/a", b"after", store.get_with_etag("jobs/a")[1])),
    "put_file": lambda store, path: bool(store.put_file("jobs/c", path)),
    "get_file": lambda store, path: store.get_file("jobs/a", path),
    "head": lambda store, path: (store.head("jobs/a") is not None, store.head("jobs/none")),
    "list": lambda store, path: [info.key for info in store.list("jobs/")],
    "list_names": lambda store, path: list(store.list_names("jobs")),
    "delete": lambda store, path: store.delete("jobs/a"),
}


def read(store: ObjectStore) -> bytes:
    with store.open_read("jobs/a") as stream:
        return stream.read()


def test_every_call_of_a_store_is_tried() -> None:
    calls = {name for name in vars(ObjectStore) if not name.startswith("_")}
    assert calls == CALLS.keys()
    assert calls <= vars(PatientStore).keys()


@pytest.mark.promise("D4")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [UnavailableError("503"), OverloadedError("it is full")])
def test_what_a_store_could_not_do_is_done_once_it_can(
    store: LocalStore, tmp_path: Path, name: str, error: Exception
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"file")
    told: list[str] = []
    waited = PatientStore(Failing(store, error, times=3), waiting=told.append)  # type: ignore[arg-type]
    twin = LocalStore(tmp_path / "twin")
    twin.put("jobs/a", b"before")

    assert CALLS[name](waited, path) == CALLS[name](twin, path)

    assert {info.key for info in store.list("")} == {info.key for info in twin.list("")}
    assert told[:2] == [str(error), ""]


def test_other_errors_are_raised_at_once(store: LocalStore) -> None:
    told: list[str] = []
    with pytest.raises(NotFoundError):
        PatientStore(store, waiting=told.append).get("jobs/none")
    assert told == []


def test_whoever_is_asked_to_stop_waits_no_longer(store: LocalStore) -> None:
    stop = threading.Event()
    failing: Any = Failing(store, UnavailableError("503"), times=10**9)
    waited = PatientStore(failing, waiting=lambda reason: stop.set(), gives_up=stop.is_set)
    with pytest.raises(UnavailableError, match="503"):
        waited.put("jobs/a", b"after")


def test_it_is_said_once_that_many_wait_and_once_that_all_go_on(store: LocalStore) -> None:
    told: list[str] = []
    entered, full = threading.Barrier(5), threading.Event()

    class Full(LocalStore):
        def put(self, key: str, data: bytes) -> str:
            if not full.is_set():
                if key not in tried:
                    tried.add(key)
                    entered.wait()
                raise OverloadedError("it is full")
            return super().put(key, data)

    tried: set[str] = set()
    waited = PatientStore(Full(store._root), waiting=told.append)
    threads = [threading.Thread(target=waited.put, args=(f"jobs/{n}", b"x")) for n in range(4)]
    for thread in threads:
        thread.start()
    entered.wait()
    assert waited.get("jobs/a") == b"before"  # what can be done meanwhile does not end the wait
    full.set()
    for thread in threads:
        thread.join()
    assert told[0] == "it is full"
    assert told[-1] == ""
    assert len(list(store.list("jobs/"))) == 5
