"""What the attempts of a job printed: the end of each, stored when it has ended."""

from pathlib import PurePosixPath

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo.storage.content_names import get_verified, sha256_of

LOG_BYTES = 1 << 20
"""Kept of an attempt."""


def write_log(store: ObjectStore, job_id: str, text: str, *, attempt: int) -> None:
    """Keep the end of an attempt's log."""
    data = text.encode()[-LOG_BYTES:]
    stored = keys.log(job_id, attempt=attempt, sha256=sha256_of(data))
    store.put(stored, data)
    for key in _found(store, job_id).get(attempt, []):
        if key != stored:
            store.delete(key)


def read_log(store: ObjectStore, job_id: str, *, attempt: int) -> bytes:
    """UTF-8, at most `LOG_BYTES`.

    Raises:
        NotFoundError: There is none; names the attempts that have a log.
        CorruptObjectError: It was changed.
    """
    found = _found(store, job_id)
    if attempt not in found:
        stored = ", ".join(map(str, found)) or "none"
        raise NotFoundError(f"{job_id} has no log of attempt {attempt}; attempts with one: {stored}")
    return get_verified(store, found[attempt][-1])


def _found(store: ObjectStore, job_id: str) -> dict[int, list[str]]:
    """Keys by attempt, the newest last: an attempt has two while the second is being stored."""
    found: dict[int, list[str]] = {}
    for info in sorted(store.list(keys.logs(job_id)), key=lambda info: (info.key.split("-")[0], info.modified_time)):
        attempt = PurePosixPath(info.key).stem.split("-")[0].removeprefix("a")
        found.setdefault(int(attempt), []).append(info.key)
    return found
