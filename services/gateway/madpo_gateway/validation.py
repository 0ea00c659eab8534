"""What a job refers to must be there and of the right kind before the job exists.

Everything wrong is found and named at once, in field violations; only what depends on time (a job that has failed) is
a FailedPreconditionError.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from madpo.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, NotFoundError
from madpo.jobs import (
    JOB_ID_PATTERN,
    SPEC_TYPES,
    CalibrationSpec,
    DatasetCheckSpec,
    EvaluationSpec,
    JobSpec,
    ModelReference,
    PolicyTrainingSpec,
    PreferenceMethod,
    RewardTrainingSpec,
    referenced_job_ids,
)
from madpo.losses.method import MethodConfig, Requirements
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import fitted_names
from madpo.ports import JobQueue, ObjectStore
from madpo.storage.checkpoints import list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.types import Dataset, DatasetKind, Job, JobKind, JobState
from madpo_gateway.method_inputs import missing_inputs
from madpo_gateway.requests import require_match, violation

MAX_JOB_REFERENCES = 100
"""Jobs one job may wait for."""

MODEL_KINDS = {
    JobKind.SUPERVISED_TRAINING: "causal_lm",
    JobKind.POLICY_TRAINING: "causal_lm",
    JobKind.REWARD_TRAINING: "reward",
}
"""What a job's model is; jobs of other kinds leave none."""

POLICY = frozenset({"causal_lm"})
REWARD = frozenset({"reward"})
ANY_MODEL = POLICY | REWARD
ANY_DATASET = frozenset(DatasetKind)
TRAINING_DATA = {
    JobKind.SUPERVISED_TRAINING: frozenset({DatasetKind.COMPLETION}),
    JobKind.REWARD_TRAINING: frozenset({DatasetKind.PREFERENCE}),
    # Methods of pairs take of a list its best response against its worst.
    JobKind.POLICY_TRAINING: frozenset({DatasetKind.PREFERENCE, DatasetKind.LIST}),
}


def with_method_defaults(spec: JobSpec) -> JobSpec:
    """The spec with all parameters of its method written out, so that the job records what it ran with.

    Raises:
        InvalidArgumentError: No such method, or wrong parameters.
    """
    if not isinstance(spec, (PolicyTrainingSpec, CalibrationSpec)):
        return spec
    kind = next(kind for kind, schema in SPEC_TYPES.items() if type(spec) is schema)
    config = parse_params(spec.method.name, spec.method.params, path=f"spec.{kind.value}.method")
    method = PreferenceMethod(name=spec.method.name, params=config.model_dump(mode="json"))
    return spec.model_copy(update={"method": method})


def all_dependencies(spec: JobSpec, depends_on: Sequence[str]) -> tuple[str, ...]:
    """The jobs named by the request and those the spec refers to, each once. Raises InvalidArgumentError."""
    for index, job_id in enumerate(depends_on):
        require_match(job_id, JOB_ID_PATTERN, field=f"depends_on.{index}")
    dependencies = tuple(dict.fromkeys([*depends_on, *referenced_job_ids(spec)]))
    if len(dependencies) > MAX_JOB_REFERENCES:
        raise violation("depends_on", f"must be at most {MAX_JOB_REFERENCES} jobs, got {len(dependencies)}")
    return dependencies


@dataclass(slots=True)
class SpecValidator:
    """Looks up what specs refer to."""

    store: ObjectStore
    datasets: DatasetStore
    models: ModelStore
    queue: JobQueue

    async def validate(self, spec: JobSpec, *, depends_on: Sequence[str]) -> None:
        """Check a spec and its dependencies.

        Args:
            spec: With its method's defaults.
            depends_on: All jobs it waits for, those it refers to included.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
            FailedPreconditionError: A dependency has failed or was cancelled.
        """
        kind = next(kind for kind, schema in SPEC_TYPES.items() if type(spec) is schema)
        check = _Check(self, path=f"spec.{kind.value}")
        if isinstance(spec, EvaluationSpec):
            await check.evaluation(spec)
        elif isinstance(spec, CalibrationSpec):
            await check.calibration(spec)
        elif isinstance(spec, DatasetCheckSpec):
            await check.model("model", spec.model, ANY_MODEL)
            await check.dataset("dataset_id", spec.dataset_id, ANY_DATASET)
            await check.dataset("held_out_dataset_id", spec.held_out_dataset_id, ANY_DATASET)
        else:
            allowed = ANY_MODEL if isinstance(spec, RewardTrainingSpec) else POLICY
            await check.model("model", spec.model, allowed)
            dataset = await check.dataset("dataset_id", spec.dataset_id, TRAINING_DATA[kind])
            held_out = await check.dataset("eval_dataset_id", spec.eval_dataset_id, TRAINING_DATA[kind])
            if isinstance(spec, PolicyTrainingSpec):
                await check.method_inputs(spec, dataset, held_out)
        dependencies = [job for job_id in depends_on if (job := await check.job("depends_on", job_id))]
        check.finish()
        for job in dependencies:
            if job.state in (JobState.FAILED, JobState.CANCELLED):
                raise FailedPreconditionError(f"{job.job_id} is {job.state}, so this job could never start")


@dataclass(slots=True)
class _Check:
    """The checks of one spec and what they found. `path` is where the spec's fields are in the request."""

    lookup: SpecValidator
    path: str
    violations: list[FieldViolation] = field(default_factory=list)
    jobs: dict[str, Job | None] = field(default_factory=dict)

    async def evaluation(self, spec: EvaluationSpec) -> None:
        await self.model("model", spec.model, POLICY)
        await self.model("reference", spec.reference, POLICY)
        await self.served_model("reward_model", spec.reward_model)
        await self.dataset("prompt_dataset_id", spec.prompt_dataset_id, ANY_DATASET)
        await self.dataset("preference_dataset_id", spec.preference_dataset_id, {DatasetKind.PREFERENCE})
        for index, job_id in enumerate(spec.baseline_job_ids):
            name = f"{self.path}.baseline_job_ids.{index}"
            job = await self.job(name, job_id)
            if job is not None and job.kind is not JobKind.EVALUATION:
                self.add(name, f"{job_id} is a {job.kind} job; give evaluation jobs")

    async def calibration(self, spec: CalibrationSpec) -> None:
        _, requirements = _requirements(spec.method)
        if not requirements.margin:
            self.add(
                f"{self.path}.method.name", f"{spec.method.name} reads no margins, so none can be calibrated for it"
            )
        await self.served_model("reward_model", spec.reward_model)
        for name, dataset_id in (("dataset_id", spec.dataset_id), ("training_dataset_id", spec.training_dataset_id)):
            dataset = await self.dataset(name, dataset_id, {DatasetKind.PREFERENCE})
            if spec.reward_model is None and _lacks_margins(dataset):
                self.add(f"{self.path}.{name}", "not every row of it has a margin; give reward_model")

    async def method_inputs(self, spec: PolicyTrainingSpec, dataset: Dataset | None, held_out: Dataset | None) -> None:
        config, requirements = _requirements(spec.method)
        for name, description in missing_inputs(spec, config, requirements, dataset):
            self.add(f"{self.path}.{name}", description)
        if requirements.margin:
            self.held_out_margins(spec, config, held_out)
        await self.margin(spec, dataset, needed=requirements.margin)

    async def margin(self, spec: PolicyTrainingSpec, dataset: Dataset | None, *, needed: bool) -> None:
        name = f"{self.path}.margin"
        if spec.margin is None:
            if needed:
                self.add(
                    name,
                    f"{spec.method.name} needs reward margins: give reward_model, or source=dataset with a dataset "
                    "that has a margin column",
                )
        elif spec.margin.source == "dataset":
            if dataset is not None and "reward_margin" not in dataset.columns:
                self.add(f"{name}.source", f"not every row of {dataset.dataset_id} has a margin; give reward_model")
        else:
            await self.served_model("margin.reward_model", spec.margin.reward_model)

    def held_out_margins(self, spec: PolicyTrainingSpec, config: MethodConfig, held_out: Dataset | None) -> None:
        """What is fitted on held-out pairs needs some, with margins."""
        temperature = 1.0 if spec.margin is None else spec.margin.temperature
        names = ", ".join(fitted_names(temperature, config.margin_scales()))
        if not names:
            return
        field_name = f"{self.path}.eval_dataset_id"
        if spec.eval_dataset_id is None:
            self.add(
                field_name,
                f"{names} would be found on held-out pairs, and none are given; give a dataset the reward model was "
                'not trained on, or a number (for tau also {"quantile": q})',
            )
        elif spec.margin is not None and spec.margin.source == "dataset" and _lacks_margins(held_out):
            self.add(field_name, f"{names} would be found on its margins, and not every row of it has one")

    async def dataset(
        self, name: str, dataset_id: str | None, kinds: set[DatasetKind] | frozenset[DatasetKind]
    ) -> Dataset | None:
        if dataset_id is None:
            return None
        name = f"{self.path}.{name}"
        try:
            dataset = await asyncio.to_thread(self.lookup.datasets.get, dataset_id)
        except NotFoundError:
            self.add(name, f"there is no dataset {dataset_id}; upload it first")
            return None
        if dataset.kind not in kinds:
            self.add(name, f"{dataset_id} is a {dataset.kind} dataset; give a {' or '.join(sorted(kinds))} dataset")
            return None
        return dataset

    async def served_model(self, name: str, reference: ModelReference | None) -> None:
        if reference is not None and reference.step is not None:
            self.add(f"{self.path}.{name}.step", "the reward service serves stored models only; leave step out")
        else:
            await self.model(name, reference, REWARD)

    async def model(self, name: str, reference: ModelReference | None, kinds: frozenset[str]) -> None:
        if reference is None:
            return
        name = f"{self.path}.{name}"
        if reference.job_id is not None:
            await self._job_output(name, reference.job_id, reference.step, kinds)
            return
        assert reference.model_id is not None
        try:
            model = await asyncio.to_thread(self.lookup.models.get, reference.model_id)
        except NotFoundError:
            self.add(f"{name}.model_id", f"there is no model {reference.model_id}; upload it first")
            return
        if model.kind not in kinds:
            self.add(f"{name}.model_id", f"{model.model_id} is a {model.kind} model; give {_one_of(kinds)}")

    async def _job_output(self, name: str, job_id: str, step: int | None, kinds: frozenset[str]) -> None:
        job = await self.job(f"{name}.job_id", job_id)
        if job is None:
            return
        if MODEL_KINDS.get(job.kind) not in kinds:
            self.add(f"{name}.job_id", f"{job_id} is a {job.kind} job; give one that trains {_one_of(kinds)}")
        elif step is not None:
            checkpoints = await asyncio.to_thread(list_checkpoints, self.lookup.store, job_id)
            steps = sorted({checkpoint.step for checkpoint in checkpoints})
            if step not in steps:
                kept = ", ".join(map(str, steps)) or "none"
                self.add(f"{name}.step", f"{job_id} has no checkpoint of step {step}; it has {kept}")

    async def job(self, name: str, job_id: str) -> Job | None:
        if job_id not in self.jobs:
            try:
                self.jobs[job_id] = await self.lookup.queue.get(job_id)
            except NotFoundError:
                self.jobs[job_id] = None
                self.add(name, f"there is no job {job_id}")
        return self.jobs[job_id]

    def add(self, name: str, description: str) -> None:
        self.violations.append(FieldViolation(name, description))

    def finish(self) -> None:
        if self.violations:
            text = "; ".join(f"{violation.field}: {violation.description}" for violation in self.violations)
            raise InvalidArgumentError(text, self.violations)


def _requirements(method: PreferenceMethod) -> tuple[MethodConfig, Requirements]:
    """A method's parameters, and what it needs with them."""
    found, config = get_method(method.name), parse_params(method.name, method.params)
    return config, found.requirements(config)


def _one_of(kinds: frozenset[str]) -> str:
    return " or ".join(f"a {kind} model" for kind in sorted(kinds))


def _lacks_margins(dataset: Dataset | None) -> bool:
    """Whether a dataset that was found has rows without a margin."""
    return dataset is not None and "reward_margin" not in dataset.columns
