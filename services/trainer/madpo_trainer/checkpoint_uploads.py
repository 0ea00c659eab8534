"""Checkpoints go to the store while training goes on: one at a time, in a thread of each rank that has files of it.

A checkpoint is real once the leader has written its manifest, for which the files of all ranks must be stored. The
threads make no calls to ranks: how far they are travels with what ranks gather between steps anyway, so that all know
the same at the same step, also of an error. What a rank has stored it tells the store as well: where a run ends by an
error, of one rank or of all, that checkpoint is still published.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from madpo.errors import MadpoError
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.ledger import LEDGER_PARTS
from madpo.types import FileEntry
from madpo.worker.workspace import Run
from madpo_trainer.ranks import Ranks, in_thread

logger = logging.getLogger(__name__)

_ASKED_EVERY_S = 1.0
_SETTLED_WITHIN_S = 120.0
"""How long a run that ends by an error waits for the files of other ranks, which may be gone."""
_LONGEST_SILENCE_S = 5.0
"""While a rank waits for its thread, the others hear from it this often, so that no collective of theirs times out."""


@dataclass(frozen=True, slots=True)
class Word:
    """How far a rank is with its part of the checkpoint that is being stored; travels by pickle."""

    is_over: bool = False
    """Its files are stored; those of the leader with the manifest."""
    has_failed: bool = False
    files: tuple[FileEntry, ...] = ()
    """Of a rank that does not lead, once they are stored."""


class CheckpointUploads:
    """Digests, stores and publishes the files of one checkpoint while the next steps are made.

    Args:
        checkpoints: Of the job; on all ranks on behalf of the same attempt and holder.
        run: Told of each checkpoint that is published.
        ranks: All of them.
        keep: Newest checkpoints kept.
        beside: Stores what goes with a checkpoint, before its manifest; called by the leader's thread.
        count: Told by name the seconds that a checkpoint took from its written files to the manifest
            (`checkpoint_upload_s`), and that training stood for it (`checkpoint_wait_s`).
        waiting: Told the step of a checkpoint that training stands for longer than a moment.

    Attributes:
        is_running: Whether a checkpoint is on its way; the same on all ranks.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        *,
        run: Run,
        ranks: Ranks,
        keep: int,
        beside: Callable[[], object],
        count: Callable[[str, float], object],
        waiting: Callable[[int], object],
    ) -> None:
        self._checkpoints, self._run, self._ranks, self._keep, self._beside = checkpoints, run, ranks, keep, beside
        self._count, self._waiting = count, waiting
        self.is_running = False
        self._step, self._upload_s = 0, 0.0
        self._work: Future[tuple[FileEntry, ...]] = Future()
        self._stored: Future[None] = Future()
        self._others: Future[tuple[FileEntry, ...]] = Future()

    def begin(
        self, step: int, directory: Path, *, is_dealt: bool, ledger_parts: Sequence[str], spared: Collection[int]
    ) -> None:
        """Store a checkpoint from now on; all ranks call, while none is running.

        Args:
            step: Optimizer steps done.
            directory: This rank's files; removed once they are stored.
            is_dealt: Whether ranks that do not lead have files, too.
            ledger_parts: Keys of the parts of the ledger up to the step.
            spared: Steps whose checkpoints are kept, however old.
        """
        self.is_running, self._step, self._upload_s = True, step, 0.0
        self._stored, self._others = Future(), Future()
        if not is_dealt:
            self._others.set_result(())
        if self._ranks.is_leader:
            work = partial(self._publish, step, directory, ledger_parts=ledger_parts, spared=spared)
        else:
            work = partial(self._upload, step, directory, is_empty=not is_dealt)
        self._work = in_thread(work, name="checkpoint")

    def word(self) -> Word:
        """What this rank has to say; to be gathered from all ranks, and heard by all."""
        if not self.is_running or not self._work.done():
            return Word()
        if self._work.exception() is not None:
            return Word(has_failed=True)
        return Word(is_over=True, files=self._work.result())

    def hear(self, words: Sequence[Word]) -> None:
        """Take note of what all ranks said, by rank.

        Raises:
            StaleAttemptError: A newer attempt owns the job: stop.
            MadpoError: What else a rank met, on all ranks.
        """
        if not self.is_running:
            return
        if any(word.has_failed for word in words):
            self.is_running = False
            self._ranks.together(self._raise)
        leader, *others = words
        if all(word.is_over for word in others) and not self._others.done():
            self._others.set_result(tuple(file for word in others for file in word.files))
        if leader.is_over:
            self.is_running = False
            self._count("checkpoint_upload_s", self._upload_s)

    def finish(self) -> float:
        """Wait until no checkpoint is on its way; for how many seconds. All ranks call. Raises what `hear` does."""
        start, is_said = time.monotonic(), False
        while self.is_running:
            self._wait()
            self.hear(self._ranks.gather(self.word()))
            if self.is_running and not is_said and time.monotonic() - start >= _LONGEST_SILENCE_S:
                self._waiting(self._step)
                is_said = True
        waited_s = time.monotonic() - start
        self._count("checkpoint_wait_s", waited_s)
        return waited_s

    def settle(self) -> None:
        """Before a run ends by an error: have the checkpoint published that is on its way, if its files come in time.

        Calls no ranks: they may be at other places, or gone. Those that do not lead wait for the leader, too: where one
        process of a run ends the others are ended.
        """
        if not self.is_running:
            return
        deadline = time.monotonic() + _SETTLED_WITHIN_S
        is_alone = not self._ranks.is_leader or self._others.done()
        wait([self._work], None if is_alone else _SETTLED_WITHIN_S)
        if self._ranks.is_leader or self._work.exception() is not None:
            return
        while time.monotonic() < deadline and not self._checkpoints.is_published(self._step):
            time.sleep(_ASKED_EVERY_S)

    def _wait(self) -> None:
        """For what only this rank can finish; each rank waits for the others in the collective that follows."""
        is_alone = not self._ranks.is_leader or self._others.done()
        awaited: list[Future[Any]] = [self._work] if is_alone else [self._work, self._stored]
        wait(awaited, _LONGEST_SILENCE_S, FIRST_COMPLETED)

    def _raise(self) -> None:
        if self._work.done():
            self._work.result()

    def _upload(self, step: int, directory: Path, *, is_empty: bool) -> tuple[FileEntry, ...]:
        files = () if is_empty else self._checkpoints.upload(step, directory)
        shutil.rmtree(directory)
        if not is_empty:
            self._checkpoints.parts.leave(step, self._ranks.rank, files)
        return files

    def _publish(
        self, step: int, directory: Path, *, ledger_parts: Sequence[str], spared: Collection[int]
    ) -> tuple[FileEntry, ...]:
        start = time.monotonic()
        self._beside()
        metadata = {"step": step, LEDGER_PARTS: [*ledger_parts]}
        self._checkpoints.publish(step, directory, metadata=metadata, others=partial(self._files_of_others, step))
        shutil.rmtree(directory)
        self._checkpoints.parts.remove(step)
        self._checkpoints.prune(self._keep, spared=spared)
        self._run.checkpoint_published(step)
        self._upload_s = time.monotonic() - start
        logger.info("checkpoint published", extra={"step": step, "upload_s": round(self._upload_s, 3)})
        return ()

    def _files_of_others(self, step: int) -> tuple[FileEntry, ...]:
        """As they say at the next step, or have left in the store, where that step never comes."""
        self._stored.set_result(None)
        while not wait([self._others], _ASKED_EVERY_S).done:
            with suppress(MadpoError):  # what they say then counts
                parts = self._checkpoints.parts.found(step)
                if len(parts) == self._ranks.size - 1:
                    return tuple(file for files in parts.values() for file in files)
        return self._others.result()


def checkpoint_times(counters: Mapping[str, float]) -> dict[str, float]:
    """What a training did for its checkpoints, for the record of the job, of all its attempts.

    Args:
        counters: Seconds by name: `step_s` of steps, and what `CheckpointUploads` and the loop count.

    Returns:
        `write_s` and `wait_s` that training stood, `upload_s` that files were stored, and `standing_share`: of the time
        of steps and checkpoints the part in which training stood.
    """
    times = {f"{name}_s": counters.get(f"checkpoint_{name}_s", 0.0) for name in ("write", "wait", "upload")}
    stood_s = times["write_s"] + times["wait_s"]
    all_s = stood_s + counters.get("step_s", 0.0)
    found = times | {"standing_share": stood_s / all_s if all_s else 0.0}
    return {name: round(value, 4) for name, value in found.items()}
