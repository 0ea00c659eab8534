"""The whole product on a language whose true reward is known: from an untrained model to compared policies in minutes.

A tiny model learns to write toy reviews, its own samples are labelled by the true reward with Bradley-Terry noise, a
reward model learns from those labels, and two policies are trained on the same pairs in the same order: `dpo`, and
`madpo` with live margins from the reward service. All work is done by jobs; this file makes data and a recipe for them.
"""

import math
import random
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from transformers.utils import logging as transformers_logging

from madpo.errors import FailedPreconditionError
from madpo.evaluation.verdict import Verdict
from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import OptimizerParameters, TrainingParameters
from madpo.types import Dataset, Model
from madpo_client import Client
from madpo_client.align.chain import Found
from madpo_client.align.recipe import Data as RecipeData
from madpo_client.align.recipe import Measured, Policy, Recipe, RewardModel
from madpo_client.job import JobHandle
from madpo_client.references import dataset_reference, model_reference
from madpo_examples.run_recipe import report, run_recipe
from madpo_examples.stages import Stages
from madpo_examples.toy_reviews.language import PROMPT_WORDS, negative_openings, split_review, write_review
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_base_model
from madpo_examples.toy_reviews.preferences import candidate_pairs, noiseless_label, noisy_label

_CANDIDATES_PER_PROMPT = 8
"""Four pairs from every prompt: there are fewer different prompts than pairs are wanted."""
_BATCH_SIZE = 32
"""Rows a step."""
_GENERATION_BATCH_SIZE = 400
"""Responses at a time, in the evaluations."""


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
    """Of the policies, which are evaluated at each."""
    checkpoint_prompts: int = 100
    """What policies are asked there."""
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
        checkpoint_prompts=16,
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
    """Run the demo on a running system; print the verdict and write its page.

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
    report(console, compare_policies(client, settings, data, supervised, stages, rng), out, stages)


def compare_policies(
    client: Client, settings: Settings, data: Data, start: Model | JobHandle, stages: Stages, rng: random.Random
) -> Verdict:
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
    found = Found(
        base=model_reference(start),
        pairs=dataset_reference(pairs),
        held_out=dataset_reference(held_out),
        prompts=dataset_reference(data.evaluation_prompts),
        fresh_prompts=dataset_reference(data.training_prompts),
        completions=None,
        reward_model=None,
    )
    return run_recipe(client, _recipe(settings), found, stages)


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


def _recipe(settings: Settings) -> Recipe:
    """What is compared, and how: as a file for `madpo align` would say it."""
    params = {"beta": settings.beta}
    return Recipe(
        name="toy-reviews",
        data=RecipeData(pairs="pairs", held_out="held-out", prompts="evaluation prompts"),
        base="supervised",
        reward_model=RewardModel(
            training=_training(settings, learning_rate=settings.reward_learning_rate, epochs=settings.reward_epochs)
        ),
        training=_training(
            settings,
            learning_rate=settings.policy_learning_rate,
            warmup_ratio=settings.policy_warmup_ratio,
            epochs=settings.policy_epochs,
            checkpoint_every_steps=settings.checkpoint_every_steps,
        ),
        policies=(Policy(method="dpo", params=params), Policy(method="madpo", params=params)),
        evaluation=Measured(
            sampling=_sampling(samples_per_prompt=settings.samples_per_prompt, seed=settings.seed + 1),
            metrics=("toy_reward", "toy_grammatical"),
            compared_by="toy_reward",
            evaluate_checkpoints=True,
            checkpoint_prompts=settings.checkpoint_prompts,
            generation_batch_size=_GENERATION_BATCH_SIZE,
        ),
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
