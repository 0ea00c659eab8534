"""One writer at a time to a place of backups, from whichever host: a lease, kept in the place itself.

Its holder writes it anew every so often. Who finds it old, by the clock of the place, takes it over; a holder that was
asleep for so long finds that out before it does anything that cannot be undone.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from madpo.errors import FailedPreconditionError, MadpoError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import documents

logger = logging.getLogger(__name__)

KEY = "lock.json"
LEASE_S = 180.0
_RENEWALS_PER_LEASE = 9


class PlaceLock:
    """The lock of one place. Blocking; thread-safe once it is held.

    Args:
        place: Where.
        lease_s: For how long a holder may be silent, in seconds.
    """

    def __init__(self, place: ObjectStore, *, lease_s: float = LEASE_S) -> None:
        self._place, self._lease_s = place, lease_s
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._nonce = uuid4().hex
        self._renewing = threading.Lock()
        self._etag: str | None = None
        self._renewed = 0.0

    @contextmanager
    def held(self) -> Iterator["PlaceLock"]:
        """Take it, and keep it until the block ends.

        Raises:
            FailedPreconditionError: Another has it; says who, and for how long it has been silent.
        """
        self._take()
        ended = threading.Event()
        beat = threading.Thread(target=self._keep, args=(ended,), name="place-lock", daemon=True)
        beat.start()
        try:
            yield self
        finally:
            ended.set()
            beat.join()
            self._release()

    def require(self) -> None:
        """Make sure that it is still held, before what cannot be undone. Raises FailedPreconditionError."""
        if _awake_s() - self._renewed > self._lease_s / _RENEWALS_PER_LEASE * 2:
            self._renew()
        if self._etag is None:
            raise FailedPreconditionError("another backup has taken the place over, since this one was silent too long")

    def _take(self) -> None:
        started = _awake_s()
        if not self._place.put_if_absent(KEY, self._body()):
            self._take_over()
        else:
            self._etag = self._place.get_with_etag(KEY)[1]
        self._renewed = started

    def _take_over(self) -> None:
        try:
            data, etag = self._place.get_with_etag(KEY)
            written = self._place.head(KEY)
        except NotFoundError:
            written = None
        if written is None:
            raise FailedPreconditionError("another backup to this place has just ended: try again")
        silent_s = max(0.0, self._now() - written.modified_time)
        if silent_s >= self._lease_s:
            self._etag = self._place.put_if_match(KEY, self._body(), etag)
        if self._etag is None:
            raise FailedPreconditionError(
                f"another backup to this place goes on, of {_holder_of(data)}, heard of {silent_s:.0f} s ago: wait for "
                f"its end (one that was killed is passed over after {self._lease_s:.0f} s)"
            )
        logger.warning("took over from a backup that has ended without saying so", extra={"holder": _holder_of(data)})

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._lease_s / _RENEWALS_PER_LEASE):
            try:
                self._renew()
            except MadpoError as error:
                logger.warning("the lock of the place could not be renewed", extra={"error": str(error)})

    def _renew(self) -> None:
        with self._renewing:
            if self._etag is not None:
                started = _awake_s()
                if renewed := self._place.put_if_match(KEY, self._body(), self._etag):
                    self._renewed = started
                self._etag = renewed or self._unheard_etag()

    def _unheard_etag(self) -> str | None:
        """Of what was written here without the answer having come; None where another has written."""
        with suppress(NotFoundError):
            data, etag = self._place.get_with_etag(KEY)
            if str(documents.decode(data, key=KEY).get("nonce")).startswith(self._nonce):
                return etag
        return None

    def _release(self) -> None:
        with self._renewing, suppress(MadpoError):  # then it is passed over in time
            if self._etag is not None and (found := self._place.head(KEY)) and found.etag == self._etag:
                self._place.delete(KEY)

    def _now(self) -> float:
        """The time by the clock that stamps the place's objects."""
        key = f"probes/{self._nonce}"
        try:
            self._place.put(key, b"")
            written = self._place.head(key)
        finally:
            self._place.delete(key)
        return written.modified_time if written else time.time()

    def _body(self) -> bytes:
        # Another nonce each time, so that another etag: some servers make it of the content.
        return documents.seal({"holder": self._holder, "nonce": f"{self._nonce}-{uuid4().hex}"})


def _awake_s() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _holder_of(data: bytes) -> str:
    try:
        return str(documents.decode(data, key=KEY).get("holder", "somebody"))
    except MadpoError:
        return "somebody"
