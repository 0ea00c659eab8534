"""What the attempts of a job printed: the end of each, stored when it has ended."""

from pathlib import PurePosixPath

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import keys

LOG_BYTES = 1 << 20
"""Kept of an attempt."""


def write_log(store: ObjectStore, job_id: str, text: str, *, attempt: int) -> None:
    """Keep the end of an attempt's log."""
    store.put(keys.log(job_id, attempt=attempt), text.encode()[-LOG_BYTES:])


def read_log(store: ObjectStore, job_id: str, *, attempt: int) -> bytes:
    """UTF-8, at most `LOG_BYTES`. Raises NotFoundError, which names the attempts that have a log."""
    try:
        return store.get(keys.log(job_id, attempt=attempt))
    except NotFoundError:
        names = (PurePosixPath(info.key).stem for info in store.list(keys.logs(job_id)))
        stored = ", ".join(str(int(name[1:])) for name in names) or "none"
        raise NotFoundError(f"{job_id} has no log of attempt {attempt}; attempts with one: {stored}") from None
