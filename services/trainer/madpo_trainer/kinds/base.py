"""What a kind of training is to the trainer, and what it is given to build its objective from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor, nn

from madpo.data.order import Schedule
from madpo.jobs.base import DatasetReference, ModelReference
from madpo.jobs.training import TrainingParameters
from madpo.ports import ObjectStore
from madpo.storage.datasets import DatasetStore
from madpo.types import JobKind
from madpo.worker.phase import BeginPhase
from madpo.worker.workspace import Run
from madpo_trainer.fitted_rows import FittedRows
from madpo_trainer.ledger import Ledger
from madpo_trainer.model_runner import ModelRunner
from madpo_trainer.objectives.base import Objective
from madpo_trainer.ranks import Ranks
from madpo_trainer.settings import TrainerSettings
from madpo_trainer.state import TrainingState
from madpo_trainer.training_rows import TrainingRows

T = TypeVar("T")


class TrainingSpec(Protocol):
    """What the specs of all trainings have."""

    @property
    def model(self) -> ModelReference:
        """The model to start from."""
        ...

    @property
    def dataset(self) -> DatasetReference:
        """Rows to train on."""
        ...

    @property
    def eval_dataset(self) -> DatasetReference | None:
        """Held-out rows."""
        ...

    @property
    def training(self) -> TrainingParameters:
        """How to train."""
        ...

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with other fields (of pydantic)."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """What the objective of one attempt is built from; all ranks have the same."""

    spec: Any
    """Of the job's kind."""
    run: Run
    settings: TrainerSettings
    ranks: Ranks
    store: ObjectStore
    datasets: DatasetStore
    state: TrainingState
    runner: ModelRunner
    """The model that is trained, and how it is run."""
    tokenizer: Any
    rows: TrainingRows
    dataset_id: str
    eval_dataset_id: str | None
    initial_model_id: str
    load_initial: Callable[[], nn.Module]
    """The initial model once more, placed like the one that is trained, for a reference that moves."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """What the checkpoint that the run goes on from holds beside model and optimizer; empty at the start."""
    ledger: Ledger
    phase: BeginPhase
    """Says what the attempt is doing; every rank begins the same phases."""

    def read(self, read: Callable[[str], FittedRows[T]]) -> tuple[FittedRows[T], Sequence[T]]:
        """Training and held-out rows, on every rank; none held out without a dataset of them."""
        held_out = self.eval_dataset_id
        return self.ranks.apart(lambda: (read(self.dataset_id), [] if held_out is None else read(held_out)))

    def schedule(self, rows: int) -> Schedule:
        """The order of that many training rows."""
        training: TrainingParameters = self.spec.training
        return Schedule.plan(
            rows=rows,
            batch_size=training.global_batch_size,
            seed=training.seed,
            epochs=training.epochs,
            max_steps=training.max_steps,
        )


@dataclass(frozen=True, slots=True)
class TrainingKind:
    """A kind of training; the registry finds it in its module."""

    name: JobKind
    build: Callable[[TrainingInputs], tuple[Objective, Schedule]]
    """The objective, and the order of its rows; all ranks call it. Raises Interrupted when the run is asked to stop."""
