"""What a kind of job is: one declaration, in the module of its spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from madpo.jobs.base import Spec
from madpo.types import DatasetKind, JobKind

Queue = Literal["train", "evaluate"]
"""`train` is served by trainers, `evaluate` by evaluators."""


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
    abilities_field: str | None = None
    """Field of the spec with the names of what not all workers of the queue can do; only one that can gets the job."""

    def needed_abilities(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """What the JSON form of a spec asks of its worker."""
        return tuple(spec.get(self.abilities_field) or ()) if self.abilities_field is not None else ()
