"""Models on the devices of the ranks: the one that is trained, and the initial one beside it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madpo.jobs.training import TrainingParameters
from madpo.models.load import load_causal_lm
from madpo.models.parts import Divide
from madpo_trainer.blocks import prepare_blocks
from madpo_trainer.frozen_base import settle_base
from madpo_trainer.initial_model import InitialModel, load_trainable
from madpo_trainer.model_runner import ModelRunner, choose_layout
from madpo_trainer.ranks import Ranks
from madpo_trainer.sharding import divide, shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_device(ranks: Ranks) -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")


class ModelPlacing:
    """Loads models, and places them on this rank's device.

    Args:
        parameters: Of the job.
        ranks: All of them; whether they must keep in step is written down there.
        kind: Of the model that is trained, `causal_lm` or `reward`.

    Attributes:
        tokenizer: Of the initial model, where it is loaded already.
    """

    def __init__(self, parameters: TrainingParameters, ranks: Ranks, *, kind: str) -> None:
        self._parameters, self._ranks, self._kind = parameters, ranks, kind
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._device = training_device(ranks)

    def runner(self, initial: InitialModel, checkpoint: Path | None) -> ModelRunner:
        """The model to train and how it is run; a new head or adapter is the same on all ranks."""
        torch.manual_seed(self._parameters.seed)
        model = self._trainable(initial, checkpoint)
        layout = choose_layout(model, self._parameters, needs_head=self._kind == "causal_lm")
        prepare_blocks(model, self._parameters)
        scores = self._kind == "reward"
        return ModelRunner(
            self._place(model), layout, parameters=self._parameters, ranks=self._ranks, gives_scores=scores
        )

    def at_checkpoint(self, initial: InitialModel, checkpoint: Path) -> Any:
        """The model as a checkpoint has it, placed as the one that is trained."""
        return self._place(self._trainable(initial, checkpoint))

    def initial(self, initial: InitialModel) -> Any:
        """The initial policy, to be run as the policy is."""
        model = load_causal_lm(initial.directory, divide=self._divide)
        choose_layout(model, self._parameters, needs_head=True)
        return self._place(model)

    @property
    def _is_sharded(self) -> bool:
        return self._parameters.sharding == "fsdp" and self._ranks.size > 1

    @property
    def _divide(self) -> Divide | None:
        return partial(divide, device=self._device) if self._is_sharded else None

    def _trainable(self, initial: InitialModel, checkpoint: Path | None) -> Any:
        """The model to train, as it begins or as a checkpoint has it, on the CPU: whole, or this rank's part."""
        directory = checkpoint / "model" if checkpoint else None
        kind, lora = self._kind, self._parameters.lora
        model = load_trainable(
            initial, kind=kind, lora=lora, checkpoint=directory, divide=self._divide, tokenizer=self.tokenizer
        )
        settle_base(model, self._parameters, self._device)
        return model

    def _place(self, model: Any) -> Any:
        """A model on this rank's device, or this rank's part of it."""
        if self._is_sharded:
            shard(model, self._device, precision=self._parameters.precision)
            self._ranks.in_step = True
        return model.to(self._device)
