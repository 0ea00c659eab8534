"""Files a job leaves for people: report, plots, metrics, ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.types import FileEntry


def publish_artifacts(store: ObjectStore, job_id: str, directory: Path, *, attempt: int, early: bool = False) -> None:
    """Store the files of a directory as the artifacts of an attempt; the same files again change nothing.

    Args:
        store: Where to.
        job_id: Of the job.
        directory: All files; what was published early is named again at the end, or hidden.
        attempt: Of the job.
        early: Files to be read while the attempt still runs; those of its end take their place.

    Raises:
        AlreadyExistsError: The attempt published other files before.
        InvalidArgumentError: See `bundle.describe`.
    """
    bundle.publish(store, keys.artifacts(job_id, attempt=attempt, early=early), directory, metadata={})


def list_artifacts(store: ObjectStore, job_id: str) -> list[FileEntry]:
    """The artifacts of the newest attempt that published any, sorted by path."""
    prefix = _newest_prefix(store, job_id)
    return list(bundle.read_manifest(store, prefix).files) if prefix else []


@contextmanager
def open_artifact(store: ObjectStore, job_id: str, name: str) -> Iterator[BinaryIO]:
    """One artifact of `list_artifacts` as a stream. Raises NotFoundError."""
    prefix = _newest_prefix(store, job_id)
    if not prefix or all(file.path != name for file in bundle.read_manifest(store, prefix).files):
        raise NotFoundError(f"job {job_id} has no artifact {name!r}")
    with store.open_read(f"{prefix}/{name}") as file:
        yield file


def _newest_prefix(store: ObjectStore, job_id: str) -> str | None:
    root = keys.all_artifacts(job_id)
    names = [name for name, _ in bundle.list_bundles(store, root)]
    return f"{root}/{max(names, key=keys.artifacts_order)}" if names else None
