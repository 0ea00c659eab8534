"""Checkpoints of a job, and which attempt may still add to them.

A job may have a worker that was taken for dead and goes on. `owner.json` keeps its checkpoints out:

    {"attempt": 3, "holder": "...", "nonce": "...", "accepted_steps": {"2": 300, "3": 450}}

An attempt takes ownership in two compare-and-swap writes. The first raises `attempt`; from then on every older attempt
fails its next check. The second records, after a fresh listing, the newest step it found: older attempts' checkpoints
beyond that step do not count, for any reader. A publisher checks ownership once more after its manifest is written, so

- a publication that returned was visible before any later takeover listed, and is kept;
- one that was overtaken raises StaleAttemptError, and once the new owner has begun its checkpoint cannot become the
  latest.
"""

import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError, StaleAttemptError, UnknownFormatError
from madpo.ports import ObjectInfo, ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.checkpoint_parts import CheckpointParts
from madpo.storage.files import Transfer, unwatched
from madpo.storage.spared import spared_steps
from madpo.types import Checkpoint, FileEntry

logger = logging.getLogger(__name__)

_NOTHING = -1  # below every step
_KEY = re.compile(r".*/checkpoints/step-(\d{8,})/a(\d{5,})/(.+)")


class CheckpointStore:
    """Publishes, finds and fetches the checkpoints of one job, on behalf of one attempt at it.

    Args:
        store: Where they are.
        job_id: Of the job.
        attempt: The fencing token.
        holder: Which run of the attempt it is: the processes of one run share it. None for one of its own.

    Attributes:
        parts: What other processes of the run have stored with `upload`.
    """

    def __init__(self, store: ObjectStore, job_id: str, *, attempt: int, holder: str | None = None) -> None:
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        # A queue that was set back may give a number to two runs: of these the first is the attempt.
        self._holder = uuid4().hex if holder is None else holder
        self.parts = CheckpointParts(store, job_id, attempt=attempt, holder=self._holder)

    def take_ownership(self) -> None:
        """Shut out every older attempt; call before `latest`. Again it changes nothing.

        Raises:
            StaleAttemptError: A newer attempt owns the job, or another run of this number.
        """
        owner = self._swap_owner({})
        if self._attempt not in owner.accepted_steps:
            latest = self.latest()
            self._swap_owner({self._attempt: latest.step if latest else _NOTHING})

    def upload(self, step: int, directory: Path) -> tuple[FileEntry, ...]:
        """Store files of a checkpoint that another process of this run will publish; what they are.

        Args:
            step: Optimizer steps done.
            directory: The files.

        Raises:
            StaleAttemptError: A newer attempt owns the job, or another run of this number.
        """
        self._check_owner()
        return bundle.upload(self._store, keys.checkpoint(self._job_id, step=step, attempt=self._attempt), directory)

    def publish(
        self,
        step: int,
        directory: Path,
        *,
        metadata: Mapping[str, Any],
        others: Callable[[], Sequence[FileEntry]] = tuple,
    ) -> Checkpoint:
        """Store a checkpoint; it is real once this returns.

        Args:
            step: Optimizer steps done.
            directory: Its files.
            metadata: JSON that `fetch` gives back.
            others: Gives more of its files, once `upload` has stored them; called when those of `directory` are.

        Raises:
            StaleAttemptError: A newer attempt owns the job: stop.
            AlreadyExistsError: This attempt published the step with other files.
        """
        prefix = keys.checkpoint(self._job_id, step=step, attempt=self._attempt)
        guard = self._check_owner
        manifest = bundle.publish(self._store, prefix, directory, metadata=metadata, others=others, guard=guard)
        return Checkpoint(self._job_id, step, self._attempt, manifest.create_time, manifest.size_bytes)

    def is_published(self, step: int) -> bool:
        """Whether this attempt's checkpoint of a step is real."""
        prefix = keys.checkpoint(self._job_id, step=step, attempt=self._attempt)
        return self._store.head(f"{prefix}/{keys.MANIFEST}") is not None

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint of any attempt, or None."""
        return next(iter(list_checkpoints(self._store, self._job_id)), None)

    def of_step(self, step: int) -> Checkpoint:
        """The whole checkpoint of a step. Raises NotFoundError."""
        for checkpoint in list_checkpoints(self._store, self._job_id):
            if checkpoint.step == step:
                return checkpoint
        raise NotFoundError(f"{self._job_id} has no checkpoint of step {step}")

    def fetch(self, checkpoint: Checkpoint, directory: Path, *, transfer: Transfer = unwatched) -> Mapping[str, Any]:
        """Copy a checkpoint's files to `directory`, verified; returns its metadata.

        Args:
            checkpoint: Which.
            directory: Where to.
            transfer: Told of the bytes as they pass; may end it by raising.

        Raises:
            NotFoundError: It is gone.
            CorruptObjectError: A file does not match its digest; names the key.
        """
        prefix = keys.checkpoint(checkpoint.job_id, step=checkpoint.step, attempt=checkpoint.attempt)
        bundle.fetch(self._store, prefix, directory, transfer=transfer)
        return bundle.read_manifest(self._store, prefix).metadata

    def latest_valid(
        self, directory: Path, *, transfer: Transfer = unwatched
    ) -> tuple[Checkpoint, Mapping[str, Any]] | None:
        """Fetch the newest checkpoint that is intact, passing over corrupt ones; None when there is none.

        `directory` is removed first and holds the files of that checkpoint alone afterwards.
        """
        for checkpoint in list_checkpoints(self._store, self._job_id):
            shutil.rmtree(directory, ignore_errors=True)
            try:
                return checkpoint, self.fetch(checkpoint, directory, transfer=transfer)
            except (CorruptObjectError, NotFoundError, UnknownFormatError) as error:
                fields = {"job_id": self._job_id, "step": checkpoint.step, "error": str(error)}
                logger.error("checkpoint cannot be used, trying the one before", extra=fields)
        shutil.rmtree(directory, ignore_errors=True)
        return None

    def prune(self, keep: int, *, spared: Collection[int] = ()) -> None:
        """Remove all but the newest `keep` steps, those `spared` and those that other jobs name.

        What older attempts left unfinished goes as well.

        Raises:
            StaleAttemptError: A newer attempt owns the job.
        """
        if keep < 1:
            raise InvalidArgumentError(f"at least one checkpoint must be kept, got {keep}")
        self._check_owner()
        found = _scan(self._store, self._job_id)
        whole = list_checkpoints(self._store, self._job_id)
        newest = sorted({checkpoint.step for checkpoint in whole}, reverse=True)[:keep]
        kept_steps = {*newest, *spared, *spared_steps(self._store, self._job_id)}
        for step, attempt in found:
            counts = any((step, attempt) == (checkpoint.step, checkpoint.attempt) for checkpoint in whole)
            if counts and step not in kept_steps:
                self._remove_unless_named(step, attempt)
            elif not counts and attempt < self._attempt:
                bundle.delete(self._store, keys.checkpoint(self._job_id, step=step, attempt=attempt))

    def _remove_unless_named(self, step: int, attempt: int) -> None:
        """Who names a checkpoint says so before it looks for it; here it is out of sight before that is read again."""
        prefix = keys.checkpoint(self._job_id, step=step, attempt=attempt)
        manifest = self._store.get(f"{prefix}/{keys.MANIFEST}")
        self._store.delete(f"{prefix}/{keys.MANIFEST}")
        if step in spared_steps(self._store, self._job_id):
            self._store.put_if_absent(f"{prefix}/{keys.MANIFEST}", manifest)
            return
        for info in list(self._store.list(f"{prefix}/")):
            self._store.delete(info.key)

    def _check_owner(self) -> None:
        owner, _ = _read_owner(self._store, self._job_id)
        if (owner.attempt, owner.holder) != (self._attempt, self._holder):
            raise self._stale(owner)

    def _swap_owner(self, accepted_steps: Mapping[int, int]) -> "_Owner":
        """Make this attempt the owner, with more accepted steps; returns what is stored then."""
        key = keys.job_owner(self._job_id)
        while True:  # a lost race means that another attempt got further: finite
            owner, etag = _read_owner(self._store, self._job_id)
            is_another = owner.attempt == self._attempt and owner.holder != self._holder
            if owner.attempt > self._attempt or is_another:
                raise self._stale(owner)
            wanted = _Owner(self._attempt, {**owner.accepted_steps, **accepted_steps}, self._holder)
            if wanted == owner:
                return owner
            if etag is None:
                won = self._store.put_if_absent(key, wanted.encode())
            else:
                won = self._store.put_if_match(key, wanted.encode(), etag) is not None
            if won:
                return wanted

    def _stale(self, owner: "_Owner") -> StaleAttemptError:
        return StaleAttemptError(
            f"attempt {self._attempt} does not own {self._job_id}: attempt {owner.attempt}"
            f"{' of another worker' if owner.attempt == self._attempt else ''} does; this one must stop"
        )


def find_checkpoint(store: ObjectStore, job_id: str, step: int) -> str:
    """The prefix of a job's checkpoint of a step. Raises NotFoundError."""
    for checkpoint in list_checkpoints(store, job_id):
        if checkpoint.step == step:
            return keys.checkpoint(job_id, step=step, attempt=checkpoint.attempt)
    raise NotFoundError(f"{job_id} has no checkpoint of step {step}")


def list_checkpoints(store: ObjectStore, job_id: str) -> list[Checkpoint]:
    """The whole checkpoints of a job, newest step first, the newest attempt first within a step."""
    found = _scan(store, job_id)
    owner, _ = _read_owner(store, job_id)  # after the listing, so that what it shuts out is not given
    return [
        Checkpoint(job_id, step, attempt, files.pop(keys.MANIFEST).modified_time, _size_bytes(files.values()))
        for (step, attempt), files in sorted(found.items(), reverse=True)
        if keys.MANIFEST in files and owner.accepts(step, attempt)
    ]


def checkpoint_prefixes(store: ObjectStore, job_id: str, step: int) -> list[str]:
    """Key prefixes of what the attempts at a job have stored of a checkpoint, whole or not."""
    attempts = [attempt for found_step, attempt in _scan(store, job_id) if found_step == step]
    return [keys.checkpoint(job_id, step=step, attempt=attempt) for attempt in attempts]


def owning_attempt(store: ObjectStore, job_id: str) -> int:
    """The newest attempt that took ownership of the job; 0 before the first."""
    return _read_owner(store, job_id)[0].attempt


@dataclass(frozen=True, slots=True)
class _Owner:
    """Content of `owner.json`; attempt 0 before the first."""

    attempt: int
    accepted_steps: Mapping[int, int]
    """By taking attempt: the newest step of older attempts that counts."""
    holder: str = ""
    """Which run it is."""

    def accepts(self, step: int, attempt: int) -> bool:
        return all(step <= accepted for taker, accepted in self.accepted_steps.items() if attempt < taker)

    def encode(self) -> bytes:
        steps = {str(attempt): step for attempt, step in self.accepted_steps.items()}
        # The nonce makes every version unlike all others, so that no etag comes twice.
        return documents.seal(
            {"attempt": self.attempt, "holder": self.holder, "accepted_steps": steps, "nonce": uuid4().hex}
        )


def _read_owner(store: ObjectStore, job_id: str) -> tuple[_Owner, str | None]:
    key = keys.job_owner(job_id)
    try:
        data, etag = store.get_with_etag(key)
    except NotFoundError:
        return _Owner(0, {}), None
    body = documents.unseal(data, key=key)
    with documents.reading(key):
        steps = {int(attempt): step for attempt, step in body["accepted_steps"].items()}
        return _Owner(body["attempt"], steps, body.get("holder", "")), etag


def _scan(store: ObjectStore, job_id: str) -> dict[tuple[int, int], dict[str, ObjectInfo]]:
    """All checkpoint objects, whole or not, by (step, attempt) and path."""
    found: dict[tuple[int, int], dict[str, ObjectInfo]] = defaultdict(dict)
    for info in store.list(f"{keys.checkpoints(job_id)}/"):
        if match := _KEY.fullmatch(info.key):
            found[int(match[1]), int(match[2])][match[3]] = info
    return found


def _size_bytes(files: Iterable[ObjectInfo]) -> int:
    return sum(info.size_bytes for info in files)
