"""Asking for jobs: a method for each kind, which writes its spec."""

from collections.abc import Mapping, Sequence
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import Spec
from madpo.jobs.judge import JudgeParameters
from madpo.jobs.methods import MarginParameters
from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import TrainingParameters
from madpo.types import JobKind
from madpo_client.deprecation import renamed, warn_renamed
from madpo_client.job import JobHandle
from madpo_client.references import DatasetLike, ModelLike, dataset_reference, model_reference
from madpo_client.written import arguments

_OF_METHODS = {"method.name": "method", "method.params": "params"}
_OF_PROMPTS = {"prompt_dataset": "prompts", "baseline_job_ids": "baselines"}
_OF_PAIRS = {**_OF_PROMPTS, "pairing.params": "params", "pairing.name": "rule", "pairing": "rule"}
_OF_MARGINS = {"margin.reward_model": "reward_model"}


class AskedJobs:
    """What `Jobs` can be asked for, by kind."""

    def create(
        self,
        kind: JobKind | str,
        spec: Mapping[str, Any],
        *,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
        request_id: str | None = None,
    ) -> JobHandle:
        """See `Jobs.create`."""
        raise NotImplementedError

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
            spec["margin"] = given(margin)
            if reward_model is not None:
                spec["margin"]["reward_model"] = _model(reward_model)
        with arguments(_OF_METHODS if reward_model is None else _OF_METHODS | _OF_MARGINS):
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
        judge: JudgeParameters | Mapping[str, Any] | str | None = None,
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
            judge: Who compares the responses with those of the baselines, by the name it has on the evaluator, or with
                `against_chosen` with the dataset's chosen ones.
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
            "judge": {"name": judge} if isinstance(judge, str) else None if judge is None else given(judge),
            "sampling": None if sampling is None else given(sampling),
            "max_prompts": max_prompts,
            "generation_batch_size": renamed("batch_size", batch_size, "generation_batch_size", generation_batch_size),
        }
        with arguments(_OF_PROMPTS):
            return self.create(JobKind.EVALUATION, spec, name=name, depends_on=depends_on)

    def sample(
        self,
        *,
        model: ModelLike,
        prompts: DatasetLike,
        reward_model: ModelLike,
        sampling: SamplingParameters | Mapping[str, Any] | None = None,
        rule: str | None = None,
        params: Mapping[str, Any] | None = None,
        labels: str | None = None,
        label_temperature: float | None = None,
        max_similarity: float | None = None,
        keep_unfinished: bool | None = None,
        mixed_dataset: DatasetLike | None = None,
        mixed_pairs: int | None = None,
        max_prompts: int | None = None,
        generation_batch_size: int | None = None,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Sample responses from a policy, score them, and leave pairs of them: the job can be trained on as a dataset.

        Args:
            model: The policy.
            prompts: A dataset of any kind; its prompts are answered.
            reward_model: Scores the responses.
            sampling: Temperatures, samples per prompt (4 where it is not given), length, seed.
            rule: Which responses to a prompt are compared: `best_vs_worst`, `random_pair`, `threshold`, `rejection`,
                `least_sure`, `all_as_list`.
            params: Its parameters.
            labels: "hard", "sampled" or "soft".
            label_temperature: Divides differences of rewards, for sampled and soft labels.
            max_similarity: Share of word trigrams in common, over which a response is left out.
            keep_unfinished: Whether responses that were cut off are compared.
            mixed_dataset: Pairs to add, such as labelled ones.
            mixed_pairs: How many of them; None for all.
            max_prompts: Use the first prompts only.
            generation_batch_size: Responses generated at a time; None for what memory has room for.
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        pairing: dict[str, Any] = {} if rule is None else {"name": rule}
        if params is not None:
            pairing["params"] = dict(params)
        spec = {
            "model": _model(model),
            "prompt_dataset": _dataset(prompts),
            "reward_model": _model(reward_model),
            "sampling": None if sampling is None else given(sampling),
            "pairing": pairing or None,
            "labels": labels,
            "label_temperature": label_temperature,
            "max_similarity": max_similarity,
            "keep_unfinished": keep_unfinished,
            "mixed_dataset": _dataset(mixed_dataset),
            "mixed_pairs": mixed_pairs,
            "max_prompts": max_prompts,
            "generation_batch_size": generation_batch_size,
        }
        with arguments(_OF_PAIRS):
            return self.create(JobKind.SAMPLING, spec, name=name, depends_on=depends_on)

    def score(
        self,
        *,
        dataset: DatasetLike,
        reward_model: ModelLike,
        name: str = "",
        depends_on: Sequence[JobHandle | str] = (),
    ) -> JobHandle:
        """Score a stored dataset; the job leaves it with rewards: margins of its pairs, scores of its lists.

        Args:
            dataset: Pairs or lists.
            reward_model: Whose rewards.
            name: A label.
            depends_on: More jobs that must succeed first.

        Raises:
            InvalidArgumentError: With one violation per wrong field.
        """
        spec = {"dataset": _dataset(dataset), "reward_model": _model(reward_model)}
        return self.create(JobKind.SCORING, spec, name=name, depends_on=depends_on)

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
        with arguments(_OF_METHODS):
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
        "training": given(training),
    }


def _dataset(dataset: DatasetLike | None) -> dict[str, Any] | str | None:
    """A reference as specs read it; text is theirs to judge, so that an error names the field."""
    return dataset if dataset is None or isinstance(dataset, str) else given(dataset_reference(dataset))


def _job(job: JobHandle | str) -> str:
    return job.id if isinstance(job, JobHandle) else job


def _model(model: ModelLike | None) -> dict[str, Any] | str | None:
    return model if model is None or isinstance(model, str) else given(model_reference(model))


def given(parameters: Spec | Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that were given, as JSON; the others are left to the gateway's defaults."""
    if isinstance(parameters, Spec):
        return parameters.model_dump(mode="json", exclude_unset=True)
    return dict(parameters or {})
