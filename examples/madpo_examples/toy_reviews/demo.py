"""The whole product on a language whose true reward is known: from an untrained model to compared policies in minutes.

A tiny model learns to write toy reviews, its own samples are labelled by the true reward with Bradley-Terry noise, a
reward model learns from those labels, and two policies are trained on the same pairs in the same order: `dpo`, and
`madpo` with live margins from the reward service. All work is done by jobs; this file only makes data.
"""

import math
import random
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from transformers.utils import logging as transformers_logging

from madpo.errors import FailedPreconditionError
from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import OptimizerParameters, TrainingParameters
from madpo.types import Dataset, Model
from madpo_client import Client
from madpo_client.job import JobHandle
from madpo_examples.demo_report import write_report
from madpo_examples.experiment import Experiment, Jobs, submit, wait
from madpo_examples.stages import Stages
from madpo_examples.toy_reviews.language import PROMPT_WORDS, negative_openings, split_review, write_review
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_base_model
from madpo_examples.toy_reviews.preferences import candidate_pairs, noiseless_label, noisy_label

_CANDIDATES_PER_PROMPT = 8
"""Four pairs from every prompt: there are fewer different prompts than pairs are wanted."""
_BATCH_SIZE = 32
"""Rows a step."""
_FRONTIER_CHECKPOINTS = 2
"""The first ones of each policy: the reward rises fastest then."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and step counts of a run; one seed fixes data, labels, training and sampling."""

    reviews: int = 20_000
    supervised_steps: int = 600
    supervised_learning_rate: float = 2e-3
    train_pairs: int = 4096
    held_out_pairs: int = 512
    reward_epochs: float = 2.0
    reward_learning_rate: float = 1e-3
    policy_epochs: float = 2.0
    policy_learning_rate: float = 7e-5
    """Slow: from 1e-4 on single steps may throw a policy off the language, and a rounding decides which."""
    policy_warmup_ratio: float = 0.1
    beta: float = 0.1
    checkpoint_every_steps: int = 64
    """Of the policies, which keep them all."""
    frontier_prompts: int = 100
    """What policies are asked at their earlier checkpoints."""
    evaluation_prompts: int = 400
    samples_per_prompt: int = 4
    """In the evaluations."""
    seed: int = 0


SCALES: Mapping[str, Settings] = {
    "full": Settings(),
    "smoke": Settings(
        reviews=2_000,
        supervised_steps=300,
        train_pairs=64,
        held_out_pairs=16,
        reward_epochs=1.0,
        checkpoint_every_steps=1,
        frontier_prompts=16,
        evaluation_prompts=16,
        samples_per_prompt=1,
    ),
}
"""`smoke` shows that everything works together; its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Data:
    """What is uploaded before any job runs."""

    base: Model
    corpus: Dataset
    training_prompts: Dataset
    evaluation_prompts: Dataset


def main(*, client: Client, out: Path, scale: Literal["full", "smoke"] = "full") -> None:
    """Run the demo on a running system; print the comparison and write plots and `demo.json`.

    Args:
        client: Connected to a stack with a trainer, an evaluator and a reward service.
        out: Directory of the results; made if absent.
        scale: `smoke` does everything in a small size.

    Raises:
        JobFailedError: A job did not succeed.
    """
    transformers_logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    console, settings = Console(), SCALES[scale]
    stages, rng = Stages(console), random.Random(settings.seed)
    with stages.work("data made and uploaded"):
        data = upload(client, settings, rng)
    supervised = submit_supervised(client, settings, data)
    experiment, jobs = compare_policies(client, settings, data, supervised, stages, rng)
    write_report(
        console,
        out,
        experiment=experiment,
        jobs=jobs,
        stages=stages,
        settings={"scale": scale, **asdict(settings)},
    )


def compare_policies(
    client: Client, settings: Settings, data: Data, start: Model | JobHandle, stages: Stages, rng: random.Random
) -> tuple[Experiment, Jobs]:
    """Everything after supervised training, to the end of the last evaluation.

    Args:
        client: Of a running stack.
        settings: Sizes and step counts.
        data: From `upload`.
        start: The supervised policy, or the job that leaves it.
        stages: Told of every stage.
        rng: Of the labels' noise.
    """
    generations = client.jobs.evaluate(
        model=start,
        prompts=data.training_prompts,
        sampling=_sampling(samples_per_prompt=_CANDIDATES_PER_PROMPT, seed=settings.seed),
        generation_batch_size=512,
        name="toy-reviews: candidate responses",
    )
    if isinstance(start, JobHandle):
        stages.wait("supervised training", start)
    stages.wait("responses sampled", generations)
    with stages.work("pairs labelled and uploaded"):
        pairs, held_out = _label(client, settings, generations, rng)
    experiment = _experiment(settings, data, start, pairs, held_out)
    jobs = submit(client, experiment)
    wait(client, experiment, stages, jobs)
    return experiment, jobs


def upload(client: Client, settings: Settings, rng: random.Random) -> Data:
    """Make the base model, the corpus and the prompts, and upload them."""
    reviews = [split_review(write_review(rng)) for _ in range(settings.reviews)]
    evaluation_prompts = negative_openings(settings.evaluation_prompts, rng)
    # Not every two samples make a pair (see candidate_pairs), so there are some to spare.
    samples = 2.6 * (settings.train_pairs + settings.held_out_pairs)
    training_prompts = negative_openings(
        math.ceil(samples / _CANDIDATES_PER_PROMPT) + 16, rng, exclude=set(evaluation_prompts)
    )
    with tempfile.TemporaryDirectory() as directory:
        make_base_model(Path(directory), seed=settings.seed)
        base = client.models.upload(Path(directory), name="toy-reviews: untrained model")
    corpus = ({"prompt": prompt, "completion": completion} for prompt, completion in reviews)
    return Data(
        base=base,
        corpus=client.datasets.upload(corpus, name="toy-reviews: corpus"),
        training_prompts=_upload_prompts(client, training_prompts, "toy-reviews: training prompts"),
        evaluation_prompts=_upload_prompts(client, evaluation_prompts, "toy-reviews: evaluation prompts"),
    )


def _upload_prompts(client: Client, prompts: Iterable[str], name: str) -> Dataset:
    return client.datasets.upload(({"prompt": prompt} for prompt in prompts), name=name)


def submit_supervised(client: Client, settings: Settings, data: Data) -> JobHandle:
    """Submit the job that teaches the base model the language."""
    return client.jobs.train_supervised(
        model=data.base,
        dataset=data.corpus,
        training=_training(
            settings,
            learning_rate=settings.supervised_learning_rate,
            max_steps=settings.supervised_steps,
            log_every_steps=10,
        ),
        name="toy-reviews: supervised",
    )


def _label(client: Client, settings: Settings, generations: JobHandle, rng: random.Random) -> tuple[Dataset, Dataset]:
    """Noisily labelled training pairs, and held-out pairs labelled as the true reward says."""
    candidates = candidate_pairs(generations.read_artifact("generations.jsonl").decode().splitlines())
    train = candidates[: settings.train_pairs]
    held_out = [pair for pair in candidates[settings.train_pairs :] if pair.rewards[0] != pair.rewards[1]]
    if len(held_out) < settings.held_out_pairs:
        raise FailedPreconditionError(
            f"{len(candidates)} pairs of different whole responses are too few for {settings.train_pairs} training "
            f"and {settings.held_out_pairs} held-out pairs (train the supervised model longer)"
        )
    return (
        client.datasets.upload((noisy_label(pair, rng) for pair in train), name="toy-reviews: pairs"),
        client.datasets.upload(map(noiseless_label, held_out[: settings.held_out_pairs]), name="toy-reviews: held-out"),
    )


def _experiment(
    settings: Settings, data: Data, start: Model | JobHandle, pairs: Dataset, held_out: Dataset
) -> Experiment:
    return Experiment(
        title="toy-reviews",
        start=start,
        start_name="sft",
        pairs=pairs,
        held_out=held_out,
        prompts=data.evaluation_prompts,
        reward_training=_training(settings, learning_rate=settings.reward_learning_rate, epochs=settings.reward_epochs),
        policy_training=_training(
            settings,
            learning_rate=settings.policy_learning_rate,
            warmup_ratio=settings.policy_warmup_ratio,
            epochs=settings.policy_epochs,
            checkpoint_every_steps=settings.checkpoint_every_steps,
            keep_checkpoints=math.ceil(settings.policy_epochs * settings.train_pairs / _BATCH_SIZE),
        ),
        beta=settings.beta,
        metrics={"toy_reward": "true reward", "toy_grammatical": "grammatical"},
        sampling=_sampling(samples_per_prompt=settings.samples_per_prompt, seed=settings.seed + 1),
        batch_size=400,
        frontier_checkpoints=_FRONTIER_CHECKPOINTS,
        frontier_prompts=settings.frontier_prompts,
    )


def _training(
    settings: Settings, *, learning_rate: float, warmup_ratio: float = 0.03, **extra: Any
) -> TrainingParameters:
    return TrainingParameters(
        max_tokens=MAX_TOKENS,
        seed=settings.seed,
        global_batch_size=_BATCH_SIZE,
        optimizer=OptimizerParameters(learning_rate=learning_rate, warmup_ratio=warmup_ratio),
        **extra,
    )


def _sampling(*, samples_per_prompt: int, seed: int) -> SamplingParameters:
    # What fits beside <bos> and the prompt, so that every finished response can be trained on.
    return SamplingParameters(
        samples_per_prompt=samples_per_prompt, max_new_tokens=MAX_TOKENS - PROMPT_WORDS - 1, seed=seed
    )
