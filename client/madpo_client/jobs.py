"""Jobs of a gateway: asking for training, evaluation, calibration and checks."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import ModelReference, Spec
from madpo.jobs.methods import MarginParameters
from madpo.jobs.registry import kind_named, parse_spec
from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import TrainingParameters
from madpo.types import Job, JobKind, JobState
from madpo_client.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

from madpo_client.deprecation import renamed, warn_renamed
from madpo_client.job import JobHandle
from madpo_client.lookup import References
from madpo_client.references import DatasetLike, ModelLike, dataset_reference, model_reference

_WITH_LEDGER = frozenset({JobKind.POLICY_TRAINING})


class Jobs:
    """Jobs of a gateway. Every call that makes a job returns at once; `JobHandle.wait` waits for it.

    A job named as an argument (a model, a reward model, a baseline) must succeed before the new one starts. Text may be
    an id or what stands for one: its beginning, a name, or `@last`; see `madpo_client.references`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def train_supervised(
        self,
        *,
        model: ModelLike,
        dataset: DatasetLike,
        eval_dataset: DatasetLike | None = None,
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
        dataset: DatasetLike,
        eval_dataset: DatasetLike | None = None,
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
        dataset: DatasetLike,
        method: str = "madpo",
        params: Mapping[str, Any] | None = None,
        reward_model: ModelLike | None = None,
        margin: MarginParameters | Mapping[str, Any] | None = None,
        eval_dataset: DatasetLike | None = None,
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
                spec["margin"]["reward_model"] = _model(reward_model)
        return self.create(JobKind.POLICY_TRAINING, spec, name=name, depends_on=depends_on)

    def evaluate(
        self,
        *,
        model: ModelLike,
        prompts: DatasetLike,
        reference: ModelLike | None = None,
        reward_model: ModelLike | None = None,
        eval_dataset: DatasetLike | None = None,
        baselines: Sequence[JobHandle | str] = (),
        metrics: Sequence[str] = (),
        sampling: SamplingParameters | Mapping[str, Any] | None = None,
        max_prompts: int | None = None,
        generation_batch_size: int | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
        pairs: DatasetLike | None = None,
        batch_size: int | None = None,
    ) -> JobHandle:
        """Generate from a model and measure what it says; `JobHandle.report` has the figures.

        Args:
            model: The policy.
            prompts: A dataset of any kind; its prompts are used.
            reference: What KL is measured to.
            reward_model: Scores the responses.
            eval_dataset: Held-out pairs for the accuracy of the implicit reward; needs `reference`.
            baselines: Evaluations over the same prompts and sampling to compare with.
            metrics: Names of registered text metrics.
            sampling: Temperatures, samples per prompt, length, seed.
            max_prompts: Use the first prompts only.
            generation_batch_size: Responses generated at a time; None for what memory has room for.
            name: A label.
            depends_on: More jobs that must succeed first.
            pairs: The old name of `eval_dataset`.
            batch_size: The old name of `generation_batch_size`.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {
            "model": _model(model),
            "prompt_dataset": _dataset(prompts),
            "reference": _model(reference),
            "reward_model": _model(reward_model),
            "eval_dataset": _dataset(renamed("pairs", pairs, "eval_dataset", eval_dataset)),
            "baseline_job_ids": [_job(baseline) for baseline in baselines],
            "metrics": list(metrics),
            "sampling": None if sampling is None else _given(sampling),
            "max_prompts": max_prompts,
            "generation_batch_size": renamed("batch_size", batch_size, "generation_batch_size", generation_batch_size),
        }
        return self.create(JobKind.EVALUATION, spec, name=name, depends_on=depends_on)

    def calibrate(
        self,
        *,
        eval_dataset: DatasetLike | None = None,
        reward_model: ModelLike | None = None,
        dataset: DatasetLike | None = None,
        method: str = "madpo",
        params: Mapping[str, Any] | None = None,
        temperature: float | str = 1.0,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
        training_dataset: DatasetLike | None = None,
    ) -> JobHandle:
        """Measure the scale of a reward model's margins, before any training; `JobHandle.calibration` has the figures.

        Args:
            eval_dataset: Held-out pairs: such as the reward model was not trained on.
            reward_model: Whose margins; None takes those the datasets brought along.
            dataset: The pairs to be trained on, for quantiles and weights; None takes the held-out ones.
            method: What reads the margins.
            params: Its parameters; `{"tau": "auto"}` or `{"tau": {"quantile": 0.9}}` has them found.
            temperature: What margins are divided by, or "fit".
            name: A label.
            depends_on: More jobs that must succeed first.
            training_dataset: The old name of `dataset`, when `dataset` named the held-out pairs.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        if eval_dataset is None:
            if dataset is None:
                raise InvalidArgumentError("give eval_dataset: the held-out pairs whose margins are measured")
            warn_renamed("dataset and training_dataset", "eval_dataset and dataset")
            eval_dataset, dataset = dataset, training_dataset
        else:
            dataset = renamed("training_dataset", training_dataset, "dataset", dataset)
        spec = {
            "eval_dataset": _dataset(eval_dataset),
            "reward_model": _model(reward_model),
            "temperature": temperature,
            "method": {"name": method, "params": dict(params or {})},
            "dataset": _dataset(dataset),
        }
        return self.create(JobKind.CALIBRATION, spec, name=name, depends_on=depends_on)

    def check_dataset(
        self,
        *,
        dataset: DatasetLike,
        model: ModelLike,
        eval_dataset: DatasetLike | None = None,
        max_tokens: int | None = None,
        overlong: str | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
        held_out: DatasetLike | None = None,
    ) -> JobHandle:
        """Look at a stored dataset through a model's tokenizer; `JobHandle.dataset_check` has the report.

        The tokens are kept, so that trainings find them made.

        Args:
            dataset: What to look at.
            model: Whose tokenizer and chat template.
            eval_dataset: A dataset whose prompts should not be in it.
            max_tokens: Longest prompt plus response.
            overlong: What a training would do with longer rows.
            name: A label.
            depends_on: More jobs that must succeed first.
            held_out: The old name of `eval_dataset`.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {
            "dataset": _dataset(dataset),
            "model": _model(model),
            "eval_dataset": _dataset(renamed("held_out", held_out, "eval_dataset", eval_dataset)),
            "max_tokens": max_tokens,
            "overlong": overlong,
        }
        return self.create(JobKind.DATASET_CHECK, spec, name=name, depends_on=depends_on)

    def create(
        self,
        kind: JobKind | str,
        spec: Mapping[str, Any],
        *,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Create a job from the JSON form of its spec; what is None or not given takes its default.

        A lost reply is asked for again under the same request id, so it never makes a second job.

        Raises:
            InvalidArgumentError: With one violation per wrong field, or there is no such kind.
        """
        kind = kind_named(kind).name
        spec = {field: value for field, value in spec.items() if value is not None}
        checked = parse_spec(kind, self._references.in_spec(kind, spec))
        call = self._session.gateway.create_job(
            kind,
            _given(checked),
            request_id=uuid.uuid4().hex,
            display_name=name,
            depends_on=[self._references.job_id(job) for job in depends_on],
        )
        return JobHandle(self._session, self._session.run(call))

    def get(self, job_id: str) -> JobHandle:
        """A job by its id, or what stands for one. Raises NotFoundError."""
        return JobHandle(
            self._session, self._session.run(self._session.gateway.get_job(self._references.job_id(job_id)))
        )

    def delete(self, job: JobHandle | str) -> None:
        """Delete a job that is over, with its checkpoints, artifacts and events; a model it has made stays.

        Raises:
            NotFoundError: There is no such job.
            FailedPreconditionError: It is not over, or another job needs it; names that one.
        """
        self._session.run(self._session.gateway.delete_job(self._references.job_id(job)))

    def ledger(self, job: JobHandle | str, *, with_text: bool = False) -> "pa.Table":
        """What each pair contributed to each step of a policy training; see `JobHandle.ledger`."""
        handle = job if isinstance(job, JobHandle) else self.get(self._references.job_id(job, kinds=_WITH_LEDGER))
        return handle.ledger(with_text=with_text)

    def list(
        self,
        *,
        limit: int | None = None,
        states: Collection[JobState] = (),
        kinds: Collection[JobKind] = (),
        method: str | None = None,
        model: ModelLike | None = None,
        name: str | None = None,
        since: float | None = None,
    ) -> list[JobHandle]:
        """Jobs, newest first; without arguments all of them.

        Args:
            limit: The newest so many of those that match.
            states: In one of these states.
            kinds: Of one of these kinds.
            method: With this method.
            model: That begin with this model, or have made it; a job stands for its model.
            name: With this in the name, or matching it where it has `*` or `?`.
            since: Created at this time or later, in seconds since the epoch.
        """
        models = None if model is None else self._same_model(self._references.model(model))

        def matches(job: Job) -> bool:
            return (
                (not states or job.state in states)
                and (not kinds or job.kind in kinds)
                and (method is None or (job.spec.get("method") or {}).get("name") == method)
                and (models is None or not models.isdisjoint(_models_of(job)))
                and (name is None or fnmatchcase(job.display_name, name if set(name) & set("*?") else f"*{name}*"))
            )

        newest_first: Iterator[Job] = self._session.each(self._session.gateway.list_jobs)
        if since is not None:
            newest_first = takewhile(lambda job: job.create_time >= since, newest_first)
        return [JobHandle(self._session, job) for job in islice(filter(matches, newest_first), limit)]

    def _same_model(self, reference: ModelReference) -> set[str]:
        """The ids of a model, and of the job that has made it."""
        if reference.job_id is not None:
            result = self._session.run(self._session.gateway.get_job(reference.job_id)).result
            return {reference.job_id, *([result.model_id] if result and result.model_id else [])}
        model = self._session.run(self._session.gateway.get_model(reference.model_id or ""))
        return {model.model_id, *([str(model.metadata["job_id"])] if "job_id" in model.metadata else [])}


def _models_of(job: Job) -> Iterator[str]:
    """Ids of the model that a job begins with, and of what it has made."""
    for part in ("model", "reward_model"):
        reference = job.spec.get(part)
        if isinstance(reference, Mapping):
            yield from (str(reference[key]) for key in ("model_id", "job_id") if reference.get(key))
    yield job.job_id
    if job.result is not None and job.result.model_id is not None:
        yield job.result.model_id


def _training_spec(
    model: ModelLike,
    dataset: DatasetLike,
    eval_dataset: DatasetLike | None,
    training: TrainingParameters | Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "model": _model(model),
        "dataset": _dataset(dataset),
        "eval_dataset": _dataset(eval_dataset),
        "training": _given(training),
    }


def _dataset(dataset: DatasetLike | None) -> dict[str, Any] | str | None:
    """A reference as specs read it; text is theirs to judge, so that an error names the field."""
    return dataset if dataset is None or isinstance(dataset, str) else _given(dataset_reference(dataset))


def _job(job: JobHandle | str) -> str:
    return job.id if isinstance(job, JobHandle) else job


def _model(model: ModelLike | None) -> dict[str, Any] | str | None:
    return model if model is None or isinstance(model, str) else _given(model_reference(model))


def _given(parameters: Spec | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that were given, as JSON; the others are left to the gateway's defaults."""
    if isinstance(parameters, Spec):
        return parameters.model_dump(mode="json", exclude_unset=True)
    return dict(parameters or {})
