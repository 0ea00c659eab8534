"""What an evaluation measured, sample by sample; stored so that later evaluations can be compared with it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.evaluation.report import EvaluationReport
from madpo.jobs.evaluation import REWARD_METRIC
from madpo.jobs.sampling import SamplingParameters
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.artifacts import open_artifact
from madpo.storage.growing import GrowingBundle
from madpo.types import NO_OPTIONS, ChatOptions, Content, Message, PromptOnly, content_from_json, content_to_json

GENERATIONS = "generations.jsonl"
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled response with everything measured on it."""

    prompt_index: int
    prompt: Content
    sample: int
    temperature: float
    response: str
    tokens: int
    finished: bool
    kl: float | None = None
    """KL to the reference along the response, in nats."""
    options: ChatOptions = NO_OPTIONS
    """What the chat template was given beside the prompt."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def content(self) -> Content:
        """The response in the form of its prompt: text, or an assistant's turn."""
        return self.response if isinstance(self.prompt, str) else (Message("assistant", self.response),)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All generations of a policy, ordered by temperature, prompt and sample, and how they came about."""

    name: str
    sampling: SamplingParameters
    reward_model_id: str | None
    generations: Sequence[Generation]
    engine: str = "transformers"
    """What drew the responses."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """In the order asked for, without repetition."""
        return tuple(dict.fromkeys(self.sampling.temperatures))

    @property
    def prompts(self) -> list[PromptOnly]:
        """Every prompt once."""
        first = self.temperatures[0]
        return [
            PromptOnly(generation.prompt, options=generation.options)
            for generation in self.generations
            if generation.temperature == first and generation.sample == 0
        ]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What was measured on every response."""
        return tuple(self.generations[0].metrics)

    @property
    def has_kl(self) -> bool:
        """Whether there was a reference."""
        return self.generations[0].kl is not None

    def at(self, temperature: float) -> list[Generation]:
        """The generations of one temperature."""
        return [generation for generation in self.generations if generation.temperature == temperature]

    def values(self, temperature: float, read: Callable[[Generation], float]) -> NDArray[np.float64]:
        """One figure of every generation [prompts, samples per prompt]."""
        values = np.array([read(generation) for generation in self.at(temperature)], dtype=np.float64)
        return values.reshape(-1, self.sampling.samples_per_prompt)

    def metric(self, temperature: float, name: str) -> NDArray[np.float64]:
        """A metric of every generation [prompts, samples per prompt]."""
        return self.values(temperature, lambda generation: generation.metrics[name])


def write_generations(generations: Sequence[Generation], path: Path) -> None:
    """One JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for generation in generations:
            value = asdict(generation) | {"prompt": content_to_json(generation.prompt)}
            if generation.options == NO_OPTIONS:
                del value["options"]
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_generations(path: Path) -> list[Generation]:
    """What `write_generations` wrote."""
    with path.open("rb") as file:
        return [_generation(json.loads(line)) for line in file]


class KeptGenerations:
    """The batches that a job has drawn, stored one by one: another attempt goes on behind them.

    Args:
        store: Where to.
        job_id: Whose they are.
        engine: What draws them, with its version: another one draws others, and an evaluation is of one alone.
        scratch: Local directory for files on their way.
    """

    def __init__(self, store: ObjectStore, job_id: str, *, engine: str, scratch: Path) -> None:
        self._store, self._job_id = store, job_id
        self._parts = GrowingBundle(store, keys.generations_by(job_id, engine=engine), suffix="jsonl")
        self._path = scratch / "generations-part.jsonl"

    def read(self) -> list[Generation]:
        """All of them, in the order they were added."""
        kept: list[Generation] = []
        for file in self._parts.files:
            self._parts.fetch(file, self._path)
            kept += read_generations(self._path)
        return kept

    def add(self, batch: Sequence[Generation]) -> None:
        """Keep a batch."""
        write_generations(batch, self._path)
        self._parts.add(self._path)

    def remove(self) -> None:
        """They are part of a finished evaluation; what other engines drew is of no more use."""
        bundle.delete(self._store, keys.generations(self._job_id))


def read_evaluation(store: ObjectStore, job_id: str) -> Evaluation:
    """An earlier evaluation from its artifacts.

    Raises:
        FailedPreconditionError: The job left no evaluation.
    """
    try:
        with open_artifact(store, job_id, REPORT) as stream:
            report = EvaluationReport.from_json(stream.read())
        with open_artifact(store, job_id, GENERATIONS) as stream:
            rows = [json.loads(line) for line in stream]
        return Evaluation(
            name=report.name or job_id[:12],
            sampling=report.sampling,
            reward_model_id=report.reward_model_id,
            generations=[_generation(row) for row in rows],
            engine=report.engine,
        )
    except (NotFoundError, KeyError, TypeError, ValueError) as error:
        raise FailedPreconditionError(f"baseline {job_id} left no evaluation to compare with: {error}") from error


def _generation(row: Mapping[str, Any]) -> Generation:
    options = ChatOptions(**row.get("options", {}))
    fields = documents.known_fields(Generation, row)
    return Generation(**{**fields, "prompt": content_from_json(row["prompt"]), "options": options})


def check_comparable(
    baseline: Evaluation,
    job_id: str,
    *,
    prompts: Sequence[PromptOnly],
    sampling: SamplingParameters,
    reward_model_id: str | None,
) -> None:
    """Refuse a baseline whose samples do not pair up with ours; only the seed may differ.

    Raises:
        FailedPreconditionError: Says what differs.
    """
    ours, theirs = sampling.model_dump(exclude={"seed"}), baseline.sampling.model_dump(exclude={"seed"})
    for name, value in ours.items():
        if theirs[name] != value:
            raise FailedPreconditionError(
                f"baseline {job_id} was evaluated with sampling.{name}={theirs[name]}, this evaluation uses {value}"
            )
    if len(baseline.prompts) != len(prompts):
        raise FailedPreconditionError(
            f"baseline {job_id} answered {len(baseline.prompts)} prompts, this evaluation has {len(prompts)} "
            "(use the same prompt dataset and max_prompts)"
        )
    for index, (theirs_prompt, prompt) in enumerate(zip(baseline.prompts, prompts, strict=True)):
        if theirs_prompt != prompt:
            raise FailedPreconditionError(f"baseline {job_id} answered another prompt {index}: use the same prompts")
    if None not in (reward_model_id, baseline.reward_model_id) and reward_model_id != baseline.reward_model_id:
        raise FailedPreconditionError(
            f"baseline {job_id} was scored by {baseline.reward_model_id}, this evaluation uses {reward_model_id}: "
            f"their {REWARD_METRIC!r} values cannot be compared"
        )
