"""One job, and what can be asked about it."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from madpo.errors import CorruptObjectError, DeadlineExceededError, InvalidArgumentError, MadpoError, NotFoundError
from madpo.jobs.base import DatasetReference
from madpo.jobs.registry import parse_spec
from madpo.types import FileEntry, Job, JobEvent, JobState, LogLine, StateChange
from madpo_client.errors import JobFailedError
from madpo_client.progress import JobView
from madpo_client.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

    from madpo.calibration.report import CalibrationReport
    from madpo.data.check.report import CheckReport
    from madpo.evaluation.report import EvaluationReport


_REVISIT_S = 1.0
"""Wait before watching again a job whose events ended before it did."""


class JobHandle:
    """One job, and what can be asked about it.

    Attributes:
        job: The job as it was last seen.
    """

    def __init__(self, session: Session, job: Job) -> None:
        self._session = session
        self.job = job

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def state(self) -> JobState:
        """The state last seen; `refresh()` looks again."""
        return self.job.state

    def refresh(self) -> Job:
        """Look again."""
        self.job = self._session.run(self._session.gateway.get_job(self.id))
        return self.job

    def cancel(self) -> Job:
        """Cancel the job, or ask the running one to stop; a last checkpoint stays."""
        self.job = self._session.run(self._session.gateway.cancel_job(self.id))
        return self.job

    def resume(self) -> Job:
        """Take the job up again after it failed or was cancelled: as itself, from its newest checkpoint.

        Raises:
            FailedPreconditionError: It succeeded or is not over, or what it needs is gone or has failed.
        """
        self.job = self._session.run(self._session.gateway.resume_job(self.id, resumes=self.refresh().resumes))
        return self.job

    def delete(self) -> None:
        """Delete the job; see `Jobs.delete`."""
        self._session.run(self._session.gateway.delete_job(self.id))

    def watch(self, cursor: str = "", *, timeout_s: float | None = None) -> Iterator[JobEvent]:
        """Events after the cursor, then live ones until the job is over; survives lost connections.

        At the end `job` is the job as it ended.

        Raises:
            DeadlineExceededError: `timeout_s` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                for event in self._session.iterate(
                    self._session.gateway.watch_job(self.id, cursor=cursor), timeout_s=left_s
                ):
                    cursor = event.cursor
                    yield event
            except TimeoutError as error:
                if isinstance(error, MadpoError):
                    raise
                raise DeadlineExceededError(f"{self.id} is still {self.state} after {timeout_s:g} s") from error
            self.job = self._session.run(self._session.gateway.get_job(self.id, is_patient=True))
            if self.state.is_terminal:
                return
            time.sleep(_REVISIT_S)

    def events(self, cursor: str = "") -> list[JobEvent]:
        """What has happened so far, after the cursor; of a long job the oldest are gone."""
        events = self._session.gateway.watch_job(self.id, cursor=cursor, past_only=True)
        return list(self._session.iterate(events))

    def wait(
        self,
        *,
        progress: bool = False,
        timeout_s: float | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """Wait until the job has succeeded.

        Args:
            progress: Show a live line on a terminal, or now and then a plain one elsewhere.
            timeout_s: Give up waiting after this long; the job goes on.
            on_event: Given each event, from the first on.

        Raises:
            JobFailedError: It failed or was cancelled; carries the reason.
            DeadlineExceededError: `timeout_s` has passed.
        """
        with JobView(self.job, why=False) if progress else nullcontext() as view:
            for event in self.watch(timeout_s=timeout_s):
                if view is not None:
                    view.show(event)
                if on_event is not None:
                    on_event(event)
        if self.state is not JobState.SUCCEEDED:
            raise JobFailedError(_ending(self.job), self.job)
        return self.job

    def logs(self, attempt: int | None = None) -> str:
        """What an attempt has printed: its last mebibyte. Raises NotFoundError for one that printed nothing.

        Args:
            attempt: The newest where none is given.
        """
        text, _ = self._session.run(self._session.gateway.download_log(self.id, attempt=attempt))
        return text

    def follow_logs(self, *, tail: int | None = None) -> Iterator[str]:
        """Lines of the newest attempt, then those it prints, and those of later attempts, until the job is over.

        Args:
            tail: How many of the lines that are there already; None gives all.
        """
        text, cursor = self._session.run(self._session.gateway.download_log(self.id))
        lines = text.splitlines()
        yield from lines if tail is None else lines[max(0, len(lines) - tail) :]
        if not cursor:
            return
        for event in self.watch(cursor):
            match event.event:
                case LogLine(line):
                    yield line
                case StateChange(JobState.RUNNING, attempt):
                    yield f"--- attempt {attempt} ---"

    def artifacts(self) -> list[FileEntry]:
        """Files the job left: report, plots, metrics, ledger. A training has its metrics at each checkpoint."""
        return self._session.run(self._session.gateway.list_artifacts(self.id))

    def read_artifact(self, name: str) -> bytes:
        """One artifact, verified. Raises NotFoundError."""
        with tempfile.TemporaryDirectory(prefix="madpo-") as directory:
            return self._download(self._artifact(name), Path(directory)).read_bytes()

    def download_artifacts(self, directory: Path | str) -> Path:
        """Download all artifacts into a directory; files of the same names are replaced."""
        for entry in self.artifacts():
            self._download(entry, Path(directory))
        return Path(directory)

    def report(self) -> "EvaluationReport":
        """What an evaluation measured. Raises NotFoundError for a job without a report."""
        from madpo.evaluation.report import EvaluationReport

        return EvaluationReport.from_json(self.read_artifact("report.json"))

    def names_of(self, job_ids: Iterable[str]) -> dict[str, str]:
        """The names of jobs of the same gateway by their ids; deleted ones have none."""
        names = {}
        for job_id in dict.fromkeys(job_ids):
            with suppress(NotFoundError):
                names[job_id] = self._session.run(self._session.gateway.get_job(job_id)).display_name
        return names

    def ledger(self, *, with_text: bool = False) -> "pa.Table":
        """What each pair contributed to each step of a policy training; see `madpo_client.ledger.table` for columns.

        A job that is not over, or did not succeed, gives the rows up to its newest checkpoint. Needs `madpo[ledger]`.

        Args:
            with_text: Add the columns `prompt`, `chosen` and `rejected`.

        Raises:
            FailedPreconditionError: The job keeps no ledger, or has stored none of it yet.
            NotFoundError: The dataset with the texts was deleted.
        """
        from madpo_client.ledger import table as ledgers

        ledgers.require_ledger(self.refresh())
        try:
            if any(entry.path == ledgers.ARTIFACT for entry in self.artifacts()):
                parts = [self.read_artifact(ledgers.ARTIFACT)]
            else:
                parts = self._session.run(self._session.gateway.download_ledger_parts(self.id))
        except NotFoundError as error:
            raise ledgers.not_yet(self.refresh()) from error
        table = ledgers.join_parts(parts)
        return self.ledger_text(table) if with_text else table

    def ledger_text(self, ledger: "pa.Table") -> "pa.Table":
        """Rows of the job's ledger with their texts: `prompt`, `chosen` and `rejected`. Raises NotFoundError."""
        from madpo_client.ledger import table as ledgers

        return ledgers.add_text(self._session, ledger, self._dataset_id())

    def _dataset_id(self) -> str:
        """The dataset that the job was trained on."""
        dataset: DatasetReference = parse_spec(self.job.kind, self.job.spec).dataset  # type: ignore[attr-defined]
        if dataset.job_id is None:
            return dataset.dataset_id or ""
        result = self._session.run(self._session.gateway.get_job(dataset.job_id)).result
        return (result and result.dataset_id) or ""

    def calibration(self) -> "CalibrationReport":
        """The calibration a job began with, or was for; there before a training's first step. Raises NotFoundError."""
        from madpo.calibration.report import CalibrationReport

        return CalibrationReport.model_validate_json(self.read_artifact("calibration.json"))

    def dataset_check(self) -> "CheckReport":
        """The report of a dataset check. Raises NotFoundError."""
        from madpo.data.check.report import CheckReport

        return CheckReport.from_json(self.read_artifact("check.json"))

    def _artifact(self, name: str) -> FileEntry:
        entries = {entry.path: entry for entry in self.artifacts()}
        if name not in entries:
            raise NotFoundError(f"{self.id} has no artifact {name!r}; it has {', '.join(entries) or 'none'}")
        return entries[name]

    def _download(self, entry: FileEntry, directory: Path) -> Path:
        path = directory / entry.path
        if not path.resolve().is_relative_to(directory.resolve()):
            raise InvalidArgumentError(f"the artifact's name {entry.path!r} leads out of {directory}")
        try:
            return self._session.run(self._session.gateway.download_artifact(self.id, entry, path))
        except CorruptObjectError:
            newer = self._artifact(entry.path)  # a running job may have stored it anew meanwhile
            if newer == entry:
                raise
            return self._session.run(self._session.gateway.download_artifact(self.id, newer, path))

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, {self.job.kind.value}, {self.state.value})"


def _ending(job: Job) -> str:
    label = f"{job.job_id} ({job.display_name})" if job.display_name else job.job_id
    if job.state is JobState.CANCELLED:
        return f"{label} was cancelled{': ' + job.reason if job.reason else ''}"
    return f"{label} failed: {job.reason or 'no reason was given'}"
