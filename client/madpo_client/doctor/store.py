"""The object store: reachable, and as good as its word. Writes under `probes/`, and removes what it wrote."""

import base64
import filecmp
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING
from uuid import uuid4

from madpo.config import StoreSettings
from madpo.errors import InvalidArgumentError, MadpoError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo_client.doctor.clock import compare_clocks
from madpo_client.doctor.findings import Finding, error, ok, unchecked, warning
from madpo_client.doctor.settings import Service

if TYPE_CHECKING:
    from madpo.storage.s3 import S3Store

_WRITERS = 8
_ROOM_BYTES = 1 << 20
"""Small files may find room where no other does."""
_LARGE_BYTES = 33 << 20
"""One part and a bit."""
_TIMEOUT_S = 5.0
_ANOTHER = "use a server that keeps this promise, such as MinIO, SeaweedFS or S3 itself, or a newer version of this one"


def check_store(service: Service, settings: StoreSettings) -> Iterator[Finding]:
    """Everything about the object store of a service."""
    if skipped := unchecked("store", "minio"):
        yield skipped
        return
    from madpo.storage.open import named_store
    from madpo.storage.s3 import S3Store
    from madpo.storage.s3_errors import RefusedError

    try:
        store = named_store(settings)
    except InvalidArgumentError as wrong:
        yield error("store.reachable", str(wrong), f"correct {service.variable('store_url')} and what belongs to it")
        return
    folder = keys.probe(uuid4().hex)
    try:
        next(iter(store.list(f"{folder}/")), None)
    except MadpoError as failure:
        names = ", ".join(map(service.variable, ("store_url", "s3_endpoint", "s3_access_key", "s3_secret_key")))
        yield error("store.reachable", str(failure), f"is the store up, and are {names} right?")
        return
    yield ok("store.reachable", f"{settings.s3_endpoint or ''} {settings.store_url} answers".strip())
    if isinstance(store, S3Store) and settings.s3_endpoint is not None:
        yield _check_clock(settings.s3_endpoint)
    try:
        store.put(f"{folder}/rights", bytes(_ROOM_BYTES))
    except RefusedError as failure:
        yield warning(
            "store.contract",
            f"not checked, no right to write under probes/: {failure}",
            "let the user of these credentials read, write and delete probes/*, as deploy/minio/policies do",
        )
        return
    except MadpoError as failure:
        yield error(
            "store.room", f"takes no writes: {failure}", "make room in it; until then jobs wait for it, and go on"
        )
        return
    try:
        yield from check_contract(store, folder)
    finally:
        with suppress(MadpoError):
            _remove_all(store, folder)


def check_contract(store: ObjectStore, folder: str) -> Iterator[Finding]:
    """Try every promise the system relies on.

    Args:
        store: A store that can be reached and written to.
        folder: Prefix for the objects this makes.
    """
    from madpo.storage.s3 import S3Store

    yield _promise("create", f"of {_WRITERS} racing creations one wins", lambda: _create(store, folder))
    yield _promise("replace", f"of {_WRITERS} racing replacements one wins", lambda: _replace(store, folder))
    if isinstance(store, S3Store):
        yield _promise("checksum", "damaged uploads are refused", lambda: _checksum(store, folder))
        yield _promise("multipart", "a file in parts comes back whole", lambda: _multipart(store, folder))
        yield _promise("range", "a range of bytes is read", lambda: _range(store, folder))
    yield _promise("delete", "what is deleted is gone", lambda: _delete(store, folder))


def _promise(name: str, kept: str, broken: Callable[[], str | None]) -> Finding:
    """A finding about one promise, given what tells how it is broken."""
    try:
        complaint = broken()
    except MadpoError as failure:
        complaint = str(failure)
    check = f"store.{name}"
    return ok(check, kept) if complaint is None else error(check, complaint, _ANOTHER)


def _create(store: ObjectStore, folder: str) -> str | None:
    key = f"{folder}/create"
    return _one_wins(store, key, lambda data: store.put_if_absent(key, data), condition="If-None-Match")


def _replace(store: ObjectStore, folder: str) -> str | None:
    key = f"{folder}/replace"
    etag = store.put(key, b"before")
    return _one_wins(store, key, lambda data: store.put_if_match(key, data, etag) is not None, condition="If-Match")


def _one_wins(store: ObjectStore, key: str, write: Callable[[bytes], bool], *, condition: str) -> str | None:
    """Let writers start together, each with bytes of its own."""
    barrier = Barrier(_WRITERS)

    def run(writer: int) -> bool:
        barrier.wait()
        return write(b"%d" % writer)

    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(run, range(_WRITERS)))
    if won.count(True) != 1:
        return f"{won.count(True)} of {_WRITERS} racing writers won ({condition}): runs could overwrite each other"
    if store.get(key) != b"%d" % won.index(True):
        return f"a writer that lost a race overwrote the one that won ({condition})"
    return None


def _checksum(store: "S3Store", folder: str) -> str | None:
    def md5(data: bytes) -> dict[str, str]:
        return {"Content-MD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

    key = f"{folder}/checksum"
    store.request("PUT", key, body=b"whole", headers=md5(b"whole"))
    try:
        store.request("PUT", key, body=b"damaged", headers=md5(b"whole"))
    except MadpoError:
        return None if store.get(key) == b"whole" else "an upload with a wrong checksum was refused, but kept"
    return "an upload with a wrong checksum was taken: damage on the way would not be noticed"


def _multipart(store: "S3Store", folder: str) -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        sent, received = Path(directory) / "sent", Path(directory) / "received"
        sent.write_bytes(os.urandom(_LARGE_BYTES))
        store.put_file(f"{folder}/multipart", sent)
        store.get_file(f"{folder}/multipart", received)
        return None if filecmp.cmp(sent, received, shallow=False) else "a file uploaded in parts came back damaged"


def _range(store: "S3Store", folder: str) -> str | None:
    key, data = f"{folder}/range", bytes(range(256))
    store.put(key, data)
    read = store.request("GET", key, headers={"Range": "bytes=100-109"}).data
    return None if read == data[100:110] else f"asked for 10 bytes in the middle, it sent {len(read)} others"


def _delete(store: ObjectStore, folder: str) -> str | None:
    _remove_all(store, folder)
    left = [info.key for info in store.list(f"{folder}/")]
    return f"deleted, but still listed: {', '.join(left)}" if left else None


def _remove_all(store: ObjectStore, folder: str) -> None:
    for info in list(store.list(f"{folder}/")):
        store.delete(info.key)


def _check_clock(endpoint: str) -> Finding:
    """Compare clocks by the Date of any reply, which counts whole seconds."""
    import urllib3

    sent_time, start = time.time(), time.monotonic()
    try:
        reply = urllib3.request("HEAD", endpoint, timeout=_TIMEOUT_S, retries=False, redirect=False)
        server_time = parsedate_to_datetime(reply.headers["Date"]).timestamp()
    except (urllib3.exceptions.HTTPError, KeyError, ValueError) as failure:
        return warning(
            "store.clock", f"clock not checked: no Date from {endpoint} ({failure})", "compare `date -u` on both"
        )
    round_trip_s = time.monotonic() - start
    ahead_s = server_time + 0.5 - (sent_time + round_trip_s / 2)
    return compare_clocks("store.clock", f"the store at {endpoint}", ahead_s, uncertainty_s=0.5 + round_trip_s / 2)
