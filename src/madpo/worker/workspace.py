"""The directory a supervisor and the run it started share; files are their only channel.

job.json       the job and its attempt; written before the run starts
events.jsonl   what the run reports, one `[type, data]` a line; the supervisor relays it
run.log        the run's output and error streams; relayed too
stop           `cancel` or `drain`: the run writes a checkpoint and ends
outcome.json   how the run ended, its last word; without it the run crashed
failure-*.json what ended a process of the run, by its id
lifeline       locked by the supervisor while it lives: a run that can lock it has been orphaned and exits
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, Self

from madpo.background import exit_after
from madpo.ports import Claim
from madpo.queue.records import (
    RunEvent,
    event_from_json,
    event_to_json,
    job_from_json,
    job_to_json,
    result_from_json,
    result_to_json,
)
from madpo.types import WAITING_FOR_STORE, CheckpointPublished, Job, JobProgress, JobResult, LogLine
from madpo.worker.credentials import without_credentials
from madpo.worker.failure import Failure, first_failure
from madpo.worker.files import write_whole

logger = logging.getLogger(__name__)

StopReason = Literal["cancel", "drain"]

ORPHANED_EXIT_CODE = 75
LOG_LINE_CHARS = 2000
_READ_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16
# Terminal escapes first: without their ESC they would leave "[31m" behind.
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run says it ended. `stopped` means as it was asked to, with its checkpoint written."""

    kind: Literal["succeeded", "failed", "stopped"]
    result: JobResult | None = None
    reason: str = ""


class Run:
    """The run's side. All ranks have one, those on other hosts over a directory of theirs; only the first reports."""

    def __init__(self, directory: Path, job: Job) -> None:
        self.directory, self.job = directory, job
        self._stop = directory / "stop"
        self._progress = JobProgress()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Read what the supervisor wrote."""
        return cls(directory, job_from_json((directory / "job.json").read_text()))

    @property
    def attempt(self) -> int:
        """The fencing token of everything this run writes."""
        return self.job.attempt

    @property
    def stop_requested(self) -> StopReason | None:
        """Whether to write a checkpoint and end now; cheap enough to ask before every micro-batch."""
        try:
            text = self._stop.read_text()
        except FileNotFoundError:
            return None
        return "cancel" if text == "cancel" else "drain"

    def progress(self, progress: JobProgress) -> None:
        """Report where the run stands."""
        self._progress = progress
        self._report(progress)

    def wait_for_store(self, reason: str) -> None:
        """Report that the run waits for the object store, and why; with "" that it goes on."""
        # Figures of a step are reported once: whoever adds them up would count them again.
        known = replace(self._progress, metrics={})
        if not reason:
            self.log("the object store can be used again")
            self._report(known)
            return
        self.log(f"waiting for the object store: {reason}")
        self._report(replace(known, remaining_s=None, phase=WAITING_FOR_STORE, phase_done=0, phase_total=0))

    def checkpoint_published(self, step: int) -> None:
        """Report a checkpoint in the object store; it clears the job's crash count."""
        self._report(CheckpointPublished(step))

    def log(self, line: str) -> None:
        """Report one line for people who watch the job."""
        self._report(LogLine(clean_line(line)))

    def succeed(self, result: JobResult) -> None:
        """Last word: the job is done."""
        self._end(Outcome("succeeded", result=result))

    def stop(self) -> None:
        """Last word: stopped as asked, with a checkpoint to go on from."""
        self._end(Outcome("stopped"))

    def fail(self, reason: str) -> None:
        """Last word: the job cannot be done, and another attempt would not help."""
        self._end(Outcome("failed", reason=reason))

    def watch_lifeline(self) -> None:
        """Exit the process, from a daemon thread, the moment the supervisor is gone."""
        watch_lifeline(self.directory)

    def _report(self, event: RunEvent) -> None:
        line = json.dumps(event_to_json(event)) + "\n"
        with (self.directory / "events.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def _end(self, outcome: Outcome) -> None:
        value = {"kind": outcome.kind, "reason": outcome.reason}
        if outcome.result is not None:
            value["result"] = result_to_json(outcome.result)
        write_whole(self.directory / "outcome.json", json.dumps(value))


def hold_lifeline(directory: Path) -> BinaryIO:
    """Keep the processes that watch the lifeline of a directory alive until the file is closed."""
    lifeline = (directory / "lifeline").open("wb")
    fcntl.flock(lifeline, fcntl.LOCK_EX)
    return lifeline


def watch_lifeline(directory: Path) -> None:
    """Exit the process, from a daemon thread, the moment nobody holds the lifeline of the directory."""
    lifeline = (directory / "lifeline").open("rb")
    # Shared, so that all ranks wake together.
    exit_after(lambda: fcntl.flock(lifeline, fcntl.LOCK_SH), name="lifeline", exit_code=ORPHANED_EXIT_CODE)


class Workspace:
    """The supervisor's side; holds the lifeline until closed."""

    def __init__(self, directory: Path, claim: Claim) -> None:
        """Make the directory; one that is there is wiped.

        Args:
            directory: Of this job alone. The attempt gets a folder in it, so that a run of an older attempt that is
                still alive cannot be mistaken for this one.
            claim: The attempt.
        """
        shutil.rmtree(directory, ignore_errors=True)
        self.directory = directory / f"a{claim.attempt:05d}"
        self.directory.mkdir(parents=True, mode=0o700)
        self.log_path = self.directory / "run.log"
        self._events = LineReader(self.directory / "events.jsonl")
        self._log = LineReader(self.log_path)
        self._lifeline = hold_lifeline(self.directory)
        write_whole(self.directory / "job.json", job_to_json(claim.job))

    def close(self) -> None:
        """Let go of the lifeline and remove what is this attempt's; a newer one may have moved in beside it."""
        self._lifeline.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def request_stop(self, reason: StopReason) -> None:
        """Ask the run to end; `cancel` overrules an earlier `drain`."""
        write_whole(self.directory / "stop", reason)

    def said_bytes(self) -> int:
        """How much the run has said so far, in reports and print: it grows while the run is alive."""
        sizes = (path.stat().st_size for path in (self.directory / "events.jsonl", self.log_path) if path.exists())
        return sum(sizes)

    def outcome(self) -> Outcome | None:
        """The run's last word, if it has spoken."""
        try:
            value = json.loads((self.directory / "outcome.json").read_text())
        except FileNotFoundError:
            return None
        result = result_from_json(value["result"]) if "result" in value else None
        return Outcome(value["kind"], result=result, reason=value["reason"])

    def failure(self) -> Failure | None:
        """What ended the first process of the run that failed, if one said so."""
        return first_failure(self.directory)

    def new_events(self) -> list[RunEvent]:
        """What the run reported since the last call; lines that are not events are logged and skipped."""
        events: list[RunEvent] = []
        for line in self._events.read():
            try:
                event = event_from_json(*json.loads(line))
                if not isinstance(event, RunEvent):
                    raise ValueError("runs do not report state changes")
                events.append(event)
            except (KeyError, TypeError, ValueError) as error:
                logger.warning("not an event of a run", extra={"line": line[:200], "error": str(error)})
        return events

    def new_log_lines(self, *, ended: bool = False) -> list[str]:
        """Lines of the run's output since the last call; with `ended` also an unfinished last one."""
        return [clean_line(line) for line in self._log.read(ended=ended) if line.strip()]

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the run's output."""
        return read_tail(self.log_path, lines)

    def log_text(self, max_bytes: int) -> str:
        """The end of the run's output, in whole lines."""
        return read_tail(self.log_path, None, max_bytes=max_bytes)


class LineReader:
    """Complete lines of a file that is still being written, or not even made yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self, *, ended: bool = False) -> list[str]:
        """Lines finished since the last call, at most a mebibyte; with `ended` also an unfinished last one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        at_end = len(data) < _READ_BYTES
        if not (ended and at_end):
            whole = data.rfind(b"\n") + 1
            # A line longer than the buffer is cut: waiting for its end could take for ever.
            data = data[:whole] if whole or at_end else data
        self._offset += len(data)
        return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []


def read_tail(path: Path, lines: int | None, *, max_bytes: int = _TAIL_BYTES) -> str:
    """The last lines of a file, or with None all of its last bytes, fit for a terminal."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - max_bytes)
        file.seek(start)
        text = file.read().decode(errors="replace")
    last = text.splitlines()[1 if start else 0 :]
    return "\n".join(clean_line(line) for line in (last if lines is None else last[-lines:])).strip()


def clean_line(line: str) -> str:
    """A line fit for a terminal and an event: what a progress bar last drew, bounded, no controls, no secrets."""
    drawn = line.rstrip("\r\n").rpartition("\r")[2]
    return without_credentials(_UNPRINTABLE.sub("", drawn))[:LOG_LINE_CHARS]
