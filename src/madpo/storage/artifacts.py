"""Files a job leaves for people: report, plots, metrics, ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.content_names import open_verified
from madpo.types import FileEntry


def publish_artifacts(
    store: ObjectStore, job_id: str, directory: Path, *, attempt: int, early_step: int | None = None
) -> None:
    """Store the files of a directory as the artifacts of an attempt; the same files again change nothing.

    What the attempt published before is removed, but for the newest of it, which somebody may be reading.

    Args:
        store: Where to.
        job_id: Of the job.
        directory: All files; what was published before is named again, or gone.
        attempt: Of the job.
        early_step: Of files to be read while the attempt still runs: the step they tell of.

    Raises:
        AlreadyExistsError: The attempt published other files at that step, or at its end, before.
        InvalidArgumentError: See `bundle.describe`.
    """
    prefix = keys.artifacts(job_id, attempt=attempt, early_step=early_step)
    bundle.publish(store, prefix, directory, metadata={})
    root, own = keys.all_artifacts(job_id), keys.artifacts(job_id, attempt=attempt)
    names = [name for name, _ in bundle.list_bundles(store, root) if f"{root}/{name}".startswith(own)]
    before = [name for name in names if keys.artifacts_order(name) < keys.artifacts_order(_last(prefix))]
    for name in sorted(before, key=keys.artifacts_order)[:-1]:
        bundle.delete(store, f"{root}/{name}")


def list_artifacts(store: ObjectStore, job_id: str) -> list[FileEntry]:
    """The artifacts of the newest attempt that published any, sorted by path."""
    prefix = _newest_prefix(store, job_id)
    return list(bundle.read_manifest(store, prefix).files) if prefix else []


@contextmanager
def open_artifact(store: ObjectStore, job_id: str, name: str) -> Iterator[BinaryIO]:
    """One artifact of `list_artifacts` as a stream, verified at its end. Raises NotFoundError, CorruptObjectError."""
    prefix = _newest_prefix(store, job_id)
    files = bundle.read_manifest(store, prefix).files if prefix else ()
    for file in files:
        if file.path == name:
            with open_verified(store, f"{prefix}/{name}", file.sha256) as stream:
                yield stream
            return
    raise NotFoundError(f"job {job_id} has no artifact {name!r}")


def _last(prefix: str) -> str:
    return prefix.rpartition("/")[2]


def _newest_prefix(store: ObjectStore, job_id: str) -> str | None:
    root = keys.all_artifacts(job_id)
    names = [name for name, _ in bundle.list_bundles(store, root)]
    return f"{root}/{max(names, key=keys.artifacts_order)}" if names else None
