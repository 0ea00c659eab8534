"""An object store that is waited for while it cannot be used: away, failing, or full."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from madpo.errors import OverloadedError, UnavailableError
from madpo.ports import ObjectInfo, ObjectStore

T = TypeVar("T")

_OUTAGE = (UnavailableError, OverloadedError)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 60.0


class PatientStore:
    """Repeats what another store could not do, with longer and longer pauses; for whoever would lose work by an error.

    Every call may be sent again: writes of the port are idempotent. A stream that breaks off while it is read is an
    error all the same.

    Args:
        store: The other store.
        waiting: Told why there is a wait, at once and every minute; and "" when it is over; by any thread.
        gives_up: Whether nobody wants to wait any more: errors are then raised as they come.
    """

    def __init__(
        self, store: ObjectStore, *, waiting: Callable[[str], object], gives_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._waiting, self._gives_up = store, waiting, gives_up
        self._lock = threading.Lock()
        self._waiters = 0
        self._told: float | None = None

    def check(self) -> None:
        """See `ObjectStore.check`."""
        self._answer(self._store.check)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self._answer(lambda: self._store.get(key))

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_with_etag`."""
        return self._answer(lambda: self._store.get_with_etag(key))

    @contextmanager
    def open_read(self, key: str) -> Iterator[BinaryIO]:
        """See `ObjectStore.open_read`."""
        with ExitStack() as stack:
            yield self._answer(lambda: stack.enter_context(self._store.open_read(key)))

    def put(self, key: str, data: bytes) -> str:
        """See `ObjectStore.put`."""
        return self._answer(lambda: self._store.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `ObjectStore.put_if_absent`."""
        return self._answer(lambda: self._store.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """See `ObjectStore.put_if_match`."""
        return self._answer(lambda: self._store.put_if_match(key, data, etag))

    def put_file(self, key: str, path: Path) -> str:
        """See `ObjectStore.put_file`."""
        return self._answer(lambda: self._store.put_file(key, path))

    def get_file(self, key: str, path: Path, *, passed: Callable[[int], None] = lambda count: None) -> str:
        """See `ObjectStore.get_file`."""
        return self._answer(lambda: self._store.get_file(key, path, passed=passed))

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        return self._answer(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        yield from self._answer(lambda: [*self._store.list(prefix)])

    def list_names(self, folder: str) -> Iterator[str]:
        """See `ObjectStore.list_names`."""
        yield from self._answer(lambda: [*self._store.list_names(folder)])

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._answer(lambda: self._store.delete(key))

    def _answer(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except _OUTAGE as error:
            if self._gives_up():
                raise
            with self._one_more_waits():
                return self._ask_again(call, error)

    def _ask_again(self, call: Callable[[], T], error: Exception) -> T:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._tell(str(error))
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                return call()
            except _OUTAGE as again:
                if self._gives_up():
                    raise
                error = again

    @contextmanager
    def _one_more_waits(self) -> Iterator[None]:
        with self._lock:
            self._waiters += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiters -= 1
                if not self._waiters:
                    self._told = None
                    self._waiting("")

    def _tell(self, reason: str) -> None:
        with self._lock:
            now = time.monotonic()
            if self._told is None or now - self._told >= _TELL_EVERY_S:
                self._told = now
                self._waiting(reason)

    def _pause(self, span_s: float) -> None:
        end = time.monotonic() + span_s
        while (left_s := end - time.monotonic()) > 0 and not self._gives_up():
            time.sleep(min(left_s, _LOOK_EVERY_S))
