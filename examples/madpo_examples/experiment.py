"""The comparison both demos make: a reward model, then DPO and MADPO on the same pairs, then each policy evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import TrainingParameters
from madpo.types import Dataset, Model
from madpo_client import Client
from madpo_client.job import JobHandle
from madpo_client.references import ModelLike
from madpo_examples.stages import Stages


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared on what.

    Attributes:
        title: Prefix of the jobs' names.
        start: Where both policies and the reward model's body start; also the reference policy.
        start_name: What the starting policy is called in the results.
        pairs: For reward model and policies.
        held_out: Pairs with noiseless labels.
        prompts: To evaluate on.
        beta: Of both methods; MADPO's other parameters are its defaults, the constants of arXiv:2510.05342.
        metrics: Text metrics and what they are called; the first is the reward.
        batch_size: Sequences sampled at once.
        frontier_checkpoints: Of each policy, its first so many checkpoints are evaluated too; its training keeps them.
        frontier_prompts: So many of the prompts are used for that.
    """

    title: str
    start: Model | JobHandle
    start_name: str
    pairs: Dataset
    held_out: Dataset
    prompts: Dataset
    reward_training: TrainingParameters
    policy_training: TrainingParameters
    beta: float
    metrics: Mapping[str, str]
    sampling: SamplingParameters
    batch_size: int
    frontier_checkpoints: int = 0
    frontier_prompts: int = 0


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of an experiment, policies and evaluations by policy name, the starting policy's evaluation first."""

    reward: JobHandle
    policies: Mapping[str, JobHandle]
    evaluations: Mapping[str, JobHandle]
    checkpoint_evaluations: dict[str, dict[int, JobHandle]] = field(default_factory=dict)
    """By policy name and step; submitted while waiting, once the checkpoints are there."""


def submit(client: Client, experiment: Experiment) -> Jobs:
    """Submit all jobs at once; each waits for those it depends on, so trainer and evaluator work side by side."""
    reward = client.jobs.train_reward(
        model=experiment.start,
        dataset=experiment.pairs,
        eval_dataset=experiment.held_out,
        training=experiment.reward_training,
        name=f"{experiment.title}: reward model",
    )
    policies = {
        "dpo": _train_policy(client, experiment, "dpo"),
        "madpo": _train_policy(client, experiment, "madpo", reward_model=reward),
    }
    evaluations: dict[str, JobHandle] = {}
    models: dict[str, ModelLike] = {experiment.start_name: experiment.start, **policies}
    for name, model in models.items():
        evaluations[name] = _evaluate(
            client,
            experiment,
            model,
            name=name,
            reward_model=reward,
            baselines=list(evaluations.values()),
        )
    return Jobs(reward, policies, evaluations)


def wait(client: Client, experiment: Experiment, stages: Stages, jobs: Jobs) -> None:
    """Wait for all jobs, in the order they are likely to end, and evaluate the policies' earlier checkpoints.

    Raises:
        JobFailedError: One did not succeed.
    """
    start_name, *_ = jobs.evaluations
    stages.wait("reward model training", jobs.reward)
    stages.wait(f"{start_name} evaluation", jobs.evaluations[start_name])
    for name, handle in jobs.policies.items():
        stages.wait(f"{name} training", handle)
        every = experiment.policy_training.checkpoint_every_steps
        jobs.checkpoint_evaluations[name] = {
            step: _evaluate(
                client,
                experiment,
                (handle, step),
                name=f"{name} at step {step}",
                max_prompts=experiment.frontier_prompts,
            )
            for step in range(every, (experiment.frontier_checkpoints + 1) * every, every)
        }
    for name in jobs.policies:
        stages.wait(f"{name} evaluation", jobs.evaluations[name])
        for step, handle in jobs.checkpoint_evaluations[name].items():
            stages.wait(f"{name} evaluation at step {step}", handle)


def _evaluate(client: Client, experiment: Experiment, model: ModelLike, *, name: str, **options: Any) -> JobHandle:
    return client.jobs.evaluate(
        model=model,
        prompts=experiment.prompts,
        reference=experiment.start,
        metrics=tuple(experiment.metrics),
        sampling=experiment.sampling,
        generation_batch_size=experiment.batch_size,
        name=f"{experiment.title}: evaluation of {name}",
        **options,
    )


def _train_policy(client: Client, experiment: Experiment, method: str, **options: Any) -> JobHandle:
    return client.jobs.train_policy(
        model=experiment.start,
        dataset=experiment.pairs,
        eval_dataset=experiment.held_out,
        method=method,
        params={"beta": experiment.beta},
        training=experiment.policy_training,
        name=f"{experiment.title}: {method}",
        **options,
    )
