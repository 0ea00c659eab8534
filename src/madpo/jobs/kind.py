"""What a kind of job is: one declaration, in the module of its spec."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from madpo.jobs.base import Spec
from madpo.types import DatasetKind, JobKind

Queue = Literal["train", "evaluate"]
"""`train` is served by trainers, `evaluate` by evaluators."""


@dataclass(frozen=True, slots=True)
class Ability:
    """A field of a spec with names of what not all workers of the queue can do; only one that can gets the job."""

    field: str
    """`metrics`, with a list of names, or `judge.name`, with one."""
    noun: str
    """What is named, for people."""
    prefix: str = ""
    """Stands before the names where workers say what they can do, so that a judge is no metric."""

    def asked(self, spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The names in the JSON form of a spec, each with the path of its field: `metrics.0`."""
        value: Any = spec
        for part in self.field.split("."):
            value = (value or {}).get(part)
        if isinstance(value, str):
            yield self.field, value
        else:
            yield from ((f"{self.field}.{index}", name) for index, name in enumerate(value or ()))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. The registry finds it in its module; everything that depends on the kind follows from it."""

    name: JobKind
    spec: type[Spec]
    queue: Queue
    noun: str
    """What it makes, in the names of jobs that were given none: `reward` of `qwen-reward`."""
    is_training: bool = False
    """Whether it makes optimizer steps: these are counted, and its checkpoints are models."""
    held_out_figures: tuple[str, ...] = ()
    """Of a training: what it measures on held-out rows, for `training.best_metric`."""
    leaves_model: Literal["causal_lm", "reward"] | None = None
    """The kind of the model it leaves."""
    leaves_dataset: frozenset[DatasetKind] = frozenset()
    """The kinds of dataset it may leave."""
    abilities: tuple[Ability, ...] = ()
    """What it asks of its worker beyond what all of the queue can do."""

    def needed_abilities(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """What the JSON form of a spec asks of its worker."""
        return tuple(ability.prefix + name for ability in self.abilities for _, name in ability.asked(spec))
