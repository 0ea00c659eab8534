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
from madpo_examples.experiment import Experiment, submit, wait
from madpo_examples.stages import Stages
from madpo_examples.toy_reviews.language import PROMPT_WORDS, negative_openings, split_review, write_review
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_base_model
from madpo_examples.toy_reviews.preferences import candidate_pairs, noiseless_label, noisy_label

_CANDIDATES_PER_PROMPT = 8
"""Four pairs from every prompt: there are fewer different prompts than pairs are wanted."""


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
    policy_epochs: float = 1.0
    policy_learning_rate: float = 3e-4
    policy_warmup_ratio: float = 0.4
    """A long one: at 5e-4 behind a short one the gradient grows fourfold by step 15, and grammar may be lost."""
    beta: float = 0.5
    """Keeps both policies near enough to the reference policy to stay grammatical."""
    evaluation_prompts: int = 400
    samples_per_prompt: int = 4
    """In the evaluations."""
    seed: int = 0


SCALES: Mapping[str, Settings] = {
    "full": Settings(),
    "smoke": Settings(
        reviews=2_000,
        supervised_steps=150,
        train_pairs=64,
        held_out_pairs=16,
        reward_epochs=1.0,
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
        data = _upload(client, settings, rng)
    supervised, generations = _submit_supervised(client, settings, data)
    stages.wait("supervised training", supervised)
    stages.wait("responses sampled", generations)
    with stages.work("pairs labelled and uploaded"):
        pairs, held_out = _label(client, settings, generations, rng)
    experiment = _experiment(settings, data, supervised, pairs, held_out)
    jobs = submit(client, experiment)
    wait(stages, jobs)
    write_report(
        console,
        out,
        experiment=experiment,
        jobs=jobs,
        stages=stages,
        settings={"scale": scale, **asdict(settings)},
    )


def _upload(client: Client, settings: Settings, rng: random.Random) -> Data:
    reviews = [split_review(write_review(rng)) for _ in range(settings.reviews)]
    evaluation_prompts = negative_openings(settings.evaluation_prompts, rng)
    # Not every two samples make a pair (see candidate_pairs), so there are some to spare.
    samples = 2.2 * (settings.train_pairs + settings.held_out_pairs)
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


def _submit_supervised(client: Client, settings: Settings, data: Data) -> tuple[JobHandle, JobHandle]:
    supervised = client.jobs.train_supervised(
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
    generations = client.jobs.evaluate(
        model=supervised,
        prompts=data.training_prompts,
        sampling=_sampling(samples_per_prompt=_CANDIDATES_PER_PROMPT, seed=settings.seed),
        generation_batch_size=512,
        name="toy-reviews: candidate responses",
    )
    return supervised, generations


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


def _experiment(settings: Settings, data: Data, supervised: JobHandle, pairs: Dataset, held_out: Dataset) -> Experiment:
    return Experiment(
        title="toy-reviews",
        start=supervised,
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
        ),
        beta=settings.beta,
        metrics={"toy_reward": "true reward", "toy_grammatical": "grammatical"},
        sampling=_sampling(samples_per_prompt=settings.samples_per_prompt, seed=settings.seed + 1),
        batch_size=400,
    )


def _training(
    settings: Settings, *, learning_rate: float, warmup_ratio: float = 0.03, **extra: Any
) -> TrainingParameters:
    return TrainingParameters(
        max_tokens=MAX_TOKENS,
        seed=settings.seed,
        optimizer=OptimizerParameters(learning_rate=learning_rate, warmup_ratio=warmup_ratio),
        **extra,
    )


def _sampling(*, samples_per_prompt: int, seed: int) -> SamplingParameters:
    # What fits beside <bos> and the prompt, so that every finished response can be trained on.
    return SamplingParameters(
        samples_per_prompt=samples_per_prompt, max_new_tokens=MAX_TOKENS - PROMPT_WORDS - 1, seed=seed
    )
