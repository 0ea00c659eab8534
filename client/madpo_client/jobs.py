"""Jobs: asking for training and evaluation, and following what was asked for."""

import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madpo.errors import DeadlineExceededError, InvalidArgumentError, MadpoError, NotFoundError
from madpo.jobs import (
    MarginParameters,
    ModelReference,
    SamplingParameters,
    Spec,
    TrainingParameters,
    parse_spec,
    validate,
)
from madpo.types import Dataset, FileEntry, Job, JobEvent, JobKind, JobState, Model
from madpo_client.errors import JobFailedError
from madpo_client.progress import JobView
from madpo_client.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

    from madpo.calibration.report import CalibrationReport
    from madpo.data.check.report import CheckReport

_PAGE_SIZE = 100
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

    def watch(self, cursor: str = "", *, timeout_s: float | None = None) -> Iterator[JobEvent]:
        """Events after the cursor, then live ones until the job is over; survives lost connections.

        Raises:
            DeadlineExceededError: `timeout_s` has passed.
        """
        try:
            yield from self._session.iterate(
                self._session.gateway.watch_job(self.id, cursor=cursor), timeout_s=timeout_s
            )
        except TimeoutError as error:
            if isinstance(error, MadpoError):
                raise
            raise DeadlineExceededError(f"{self.id} is still {self.state} after {timeout_s:g} s") from error

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Job:
        """Wait until the job has succeeded.

        Args:
            progress: Show a live line on a terminal, or now and then a plain one elsewhere.
            timeout_s: Give up waiting after this long; the job goes on.

        Raises:
            JobFailedError: It failed or was cancelled; carries the reason.
            DeadlineExceededError: `timeout_s` has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        cursor = ""
        with JobView(self.job) if progress else nullcontext() as view:
            while True:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                for event in self.watch(cursor, timeout_s=left_s):
                    cursor = event.cursor
                    if view is not None:
                        view.show(event)
                if self.refresh().state.is_terminal:
                    break
                time.sleep(_REVISIT_S)
        if self.state is not JobState.SUCCEEDED:
            raise JobFailedError(_ending(self.job), self.job)
        return self.job

    def artifacts(self) -> list[FileEntry]:
        """Files the job left: report, plots, metrics, ledger."""
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

    def report(self) -> dict[str, Any]:
        """An evaluation's `report.json`. Raises NotFoundError for a job without one."""
        report: dict[str, Any] = json.loads(self.read_artifact("report.json"))
        return report

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

        return ledgers.add_text(self._session, ledger, self.job.spec["dataset_id"])

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
        return self._session.run(self._session.gateway.download_artifact(self.id, entry, path))

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r}, {self.job.kind.value}, {self.state.value})"


ModelLike = Model | ModelReference | JobHandle | tuple[JobHandle, int] | str
"""A model; its id; a job, whose output is meant; a job with the step of one of its checkpoints; `JOB_ID@STEP`."""


class Jobs:
    """Jobs of a gateway. Every call that makes a job returns at once; `JobHandle.wait` waits for it.

    A job named as an argument (a model, a reward model, a baseline) must succeed before the new one starts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def train_supervised(
        self,
        *,
        model: ModelLike,
        dataset: Dataset | str,
        eval_dataset: Dataset | str | None = None,
        training: TrainingParameters | Mapping[str, Any] | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Fine-tune a language model on completions.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = _training_spec(model, dataset, eval_dataset, training)
        return self.create(JobKind.SUPERVISED_TRAINING, spec, name=name, depends_on=depends_on)

    def train_reward(
        self,
        *,
        model: ModelLike,
        dataset: Dataset | str,
        eval_dataset: Dataset | str | None = None,
        training: TrainingParameters | Mapping[str, Any] | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Train a Bradley-Terry reward model on preference pairs.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = _training_spec(model, dataset, eval_dataset, training)
        return self.create(JobKind.REWARD_TRAINING, spec, name=name, depends_on=depends_on)

    def train_policy(
        self,
        *,
        model: ModelLike,
        dataset: Dataset | str,
        method: str = "madpo",
        params: Mapping[str, Any] | None = None,
        reward_model: ModelLike | None = None,
        margin: MarginParameters | Mapping[str, Any] | None = None,
        eval_dataset: Dataset | str | None = None,
        training: TrainingParameters | Mapping[str, Any] | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Train a policy on preference pairs; the reference is the initial policy.

        Args:
            model: The initial policy.
            dataset: Preference pairs.
            method: Name of a method (`madpo methods` lists them).
            params: The method's parameters; what is not given takes its default.
            reward_model: Where margins come from, for methods that need them.
            margin: How margins are got; `{"source": "dataset"}` takes those the dataset brought along.
            eval_dataset: Held-out pairs, measured before and after.
            training: Steps, batch sizes, optimizer and so on.
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = _training_spec(model, dataset, eval_dataset, training)
        spec["method"] = {"name": method, "params": dict(params or {})}
        if margin is not None or reward_model is not None:
            spec["margin"] = _given(margin)
            if reward_model is not None:
                spec["margin"]["reward_model"] = _given(model_reference(reward_model))
        return self.create(JobKind.POLICY_TRAINING, spec, name=name, depends_on=depends_on)

    def evaluate(
        self,
        *,
        model: ModelLike,
        prompts: Dataset | str,
        reference: ModelLike | None = None,
        reward_model: ModelLike | None = None,
        pairs: Dataset | str | None = None,
        baselines: Sequence[JobHandle | str] = (),
        metrics: Sequence[str] = (),
        sampling: SamplingParameters | Mapping[str, Any] | None = None,
        max_prompts: int | None = None,
        batch_size: int | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Generate from a model and measure what it says; `JobHandle.report` has the figures.

        Args:
            model: The policy.
            prompts: A dataset of any kind; its prompts are used.
            reference: What KL is measured to.
            reward_model: Scores the responses.
            pairs: Held-out pairs for the accuracy of the implicit reward; needs `reference`.
            baselines: Evaluations over the same prompts and sampling to compare with.
            metrics: Names of registered text metrics.
            sampling: Temperatures, samples per prompt, length, seed.
            max_prompts: Use the first prompts only.
            batch_size: Responses generated at a time.
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {
            "model": _given(model_reference(model)),
            "prompt_dataset_id": _dataset_id(prompts),
            "reference": None if reference is None else _given(model_reference(reference)),
            "reward_model": None if reward_model is None else _given(model_reference(reward_model)),
            "preference_dataset_id": None if pairs is None else _dataset_id(pairs),
            "baseline_job_ids": [job_id_of(baseline) for baseline in baselines],
            "metrics": list(metrics),
            "sampling": None if sampling is None else _given(sampling),
            "max_prompts": max_prompts,
            "batch_size": batch_size,
        }
        return self.create(JobKind.EVALUATION, spec, name=name, depends_on=depends_on)

    def calibrate(
        self,
        *,
        dataset: Dataset | str,
        reward_model: ModelLike | None = None,
        training_dataset: Dataset | str | None = None,
        method: str = "madpo",
        params: Mapping[str, Any] | None = None,
        temperature: float | str = 1.0,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Measure the scale of a reward model's margins, before any training; `JobHandle.calibration` has the figures.

        Args:
            dataset: Held-out pairs: such as the reward model was not trained on.
            reward_model: Whose margins; None takes those the datasets brought along.
            training_dataset: The pairs to be trained on, for quantiles and weights; None takes the held-out ones.
            method: What reads the margins.
            params: Its parameters; `{"tau": "auto"}` or `{"tau": {"quantile": 0.9}}` has them found.
            temperature: What margins are divided by, or "fit".
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {
            "dataset_id": _dataset_id(dataset),
            "reward_model": None if reward_model is None else _given(model_reference(reward_model)),
            "temperature": temperature,
            "method": {"name": method, "params": dict(params or {})},
            "training_dataset_id": None if training_dataset is None else _dataset_id(training_dataset),
        }
        return self.create(JobKind.CALIBRATION, spec, name=name, depends_on=depends_on)

    def check_dataset(
        self,
        *,
        dataset: Dataset | str,
        model: ModelLike,
        held_out: Dataset | str | None = None,
        max_tokens: int = 1024,
        overlong: str = "error",
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Look at a stored dataset through a model's tokenizer; `JobHandle.dataset_check` has the report.

        The tokens are kept, so that trainings find them made.

        Args:
            dataset: What to look at.
            model: Whose tokenizer and chat template.
            held_out: A dataset whose prompts should not be in it.
            max_tokens: Longest prompt plus response.
            overlong: What a training would do with longer rows.
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {
            "dataset_id": _dataset_id(dataset),
            "model": _given(model_reference(model)),
            "held_out_dataset_id": None if held_out is None else _dataset_id(held_out),
            "max_tokens": max_tokens,
            "overlong": overlong,
        }
        return self.create(JobKind.DATASET_CHECK, spec, name=name, depends_on=depends_on)

    def create(
        self, kind: JobKind, spec: Mapping[str, Any], *, name: str = "", depends_on: Sequence[JobHandle | str] = ()
    ) -> JobHandle:
        """Create a job from the JSON form of its spec; what is None or not given takes its default.

        A lost reply is asked for again under the same request id, so it never makes a second job.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {field: value for field, value in spec.items() if value is not None}
        checked = parse_spec(kind, spec)
        call = self._session.gateway.create_job(
            kind,
            _given(checked),
            request_id=uuid.uuid4().hex,
            display_name=name,
            depends_on=[job_id_of(job) for job in depends_on],
        )
        return JobHandle(self._session, self._session.run(call))

    def get(self, job_id: str) -> JobHandle:
        """Raises NotFoundError."""
        return JobHandle(self._session, self._session.run(self._session.gateway.get_job(job_id)))

    def ledger(self, job: JobHandle | str, *, with_text: bool = False) -> "pa.Table":
        """What each pair contributed to each step of a policy training; see `JobHandle.ledger`."""
        return (self.get(job) if isinstance(job, str) else job).ledger(with_text=with_text)

    def list(self, *, limit: int | None = None) -> list[JobHandle]:
        """Jobs, newest first; all of them, or the newest `limit`."""
        return [JobHandle(self._session, job) for job in islice(self._newest_first(), limit)]

    def _newest_first(self) -> Iterator[Job]:
        token = ""
        while True:
            fetch = self._session.gateway.list_jobs(page_size=_PAGE_SIZE, page_token=token)
            page, token = self._session.run(fetch)
            yield from page
            if not token:
                return


def model_reference(model: ModelLike) -> ModelReference:
    """What a model argument refers to.

    Raises:
        InvalidArgumentError: Text that is neither a model id nor `JOB_ID` nor `JOB_ID@STEP`.
    """
    match model:
        case ModelReference():
            return model
        case Model():
            return ModelReference(model_id=model.model_id)
        case JobHandle():
            return ModelReference(job_id=model.id)
        case (JobHandle() as job, int(step)):
            return validate(ModelReference, {"job_id": job.id, "step": step}, path="model")
        case str() if model.startswith("job-"):
            job_id, _, checkpoint = model.partition("@")
            return validate(ModelReference, {"job_id": job_id, "step": checkpoint or None}, path="model")
        case str():
            return validate(ModelReference, {"model_id": model}, path="model")
    raise InvalidArgumentError(f"a model is a Model, its id, a job or (job, step), not {model!r:.80}")


def job_id_of(job: JobHandle | str) -> str:
    """The id of a job given either way."""
    return job.id if isinstance(job, JobHandle) else job


def _dataset_id(dataset: Dataset | str) -> str:
    return dataset.dataset_id if isinstance(dataset, Dataset) else dataset


def _training_spec(
    model: ModelLike,
    dataset: Dataset | str,
    eval_dataset: Dataset | str | None,
    training: TrainingParameters | Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "model": _given(model_reference(model)),
        "dataset_id": _dataset_id(dataset),
        "eval_dataset_id": None if eval_dataset is None else _dataset_id(eval_dataset),
        "training": _given(training),
    }


def _given(parameters: Spec | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that were given, as JSON; the others are left to the gateway's defaults."""
    if isinstance(parameters, Spec):
        return parameters.model_dump(mode="json", exclude_unset=True)
    return dict(parameters or {})


def _ending(job: Job) -> str:
    label = f"{job.job_id} ({job.display_name})" if job.display_name else job.job_id
    if job.state is JobState.CANCELLED:
        return f"{label} was cancelled{': ' + job.reason if job.reason else ''}"
    return f"{label} failed: {job.reason or 'no reason was given'}"
