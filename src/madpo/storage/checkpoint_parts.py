"""What ranks that do not lead have stored of a checkpoint, so that it becomes real whatever becomes of them.

    jobs/{job_id}/checkpoint_parts/step-00000003-a00001-rank-00001.json    {"holder": "...", "files": [...]}

Ranks that can no longer speak with one another, since one met an error, still have this. It goes once the checkpoint is
real.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.types import FileEntry

_RANK = re.compile(r".*-rank-(\d+)\.json")


class CheckpointParts:
    """The parts of the checkpoints of one run of an attempt.

    Args:
        store: Where they are.
        job_id: Of the job.
        attempt: At it.
        holder: Which run of the attempt it is, see `CheckpointStore`: parts of another do not count.
    """

    def __init__(self, store: ObjectStore, job_id: str, *, attempt: int, holder: str) -> None:
        self._store, self._job_id, self._attempt, self._holder = store, job_id, attempt, holder

    def leave(self, step: int, rank: int, files: Sequence[FileEntry]) -> None:
        """Say what a rank has stored of the checkpoint of a step, all that it will."""
        key = keys.checkpoint_part(self._job_id, step=step, attempt=self._attempt, rank=rank)
        body = {"holder": self._holder, "files": [asdict(file) for file in files]}
        self._store.put(key, documents.seal(body))

    def found(self, step: int) -> dict[int, tuple[FileEntry, ...]]:
        """By rank what was left for a step. Raises CorruptObjectError and UnknownFormatError."""
        parts = {}
        for key in self._keys(step):
            with suppress(NotFoundError):
                body = documents.unseal(self._store.get(key), key=key)
                with documents.reading(key):
                    if body["holder"] == self._holder and (match := _RANK.fullmatch(key)):
                        fields = (documents.known_fields(FileEntry, file) for file in body["files"])
                        parts[int(match[1])] = tuple(FileEntry(**each) for each in fields)
        return parts

    def remove(self, step: int) -> None:
        """Remove those of a step, whose checkpoint is real or given up."""
        for key in self._keys(step):
            self._store.delete(key)

    def _keys(self, step: int) -> list[str]:
        key = keys.checkpoint_part(self._job_id, step=step, attempt=self._attempt, rank=0)
        return [info.key for info in self._store.list(key.removesuffix("00000.json"))]
