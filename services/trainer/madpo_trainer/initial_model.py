"""The model a training job starts from, ready for full fine-tuning or LoRA."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType
from torch import Tensor, nn

from madpo.jobs.training import LoraParameters
from madpo.model_files import model_kind
from madpo.models.load import load_causal_lm, load_reward_model, load_tokenizer, save_model
from madpo.storage.models import ModelStore
from madpo.storage.references import ResolvedModel
from madpo_trainer.adapters import with_adapters


@dataclass(frozen=True, slots=True)
class InitialModel:
    """A full model in the model store: its files, its id and its kind (`causal_lm` or `reward`)."""

    directory: Path
    model_id: str
    kind: str


def prepare_initial(resolved: ResolvedModel, *, models: ModelStore, scratch: Path) -> InitialModel:
    """Turn what a reference resolved to into a full, stored model.

    An adapter is merged into its base first, and a bare checkpoint is stored as a model, so that everything trained
    from it can name its base by id. Content addressing makes this idempotent over attempts.
    """
    if resolved.base_directory is None and resolved.model_id is not None:
        kind, _ = model_kind(resolved.directory)
        return InitialModel(resolved.directory, resolved.model_id, kind)
    directory = scratch / "initial"
    shutil.rmtree(directory, ignore_errors=True)
    if resolved.base_directory is None:
        shutil.copytree(resolved.directory, directory)
        kind, _ = model_kind(directory)
    else:
        kind, _ = model_kind(resolved.directory)
        load = load_causal_lm if kind == "causal_lm" else load_reward_model
        merged = load(resolved.directory, base_directory=resolved.base_directory).merge_and_unload()
        save_model(merged, load_tokenizer(resolved.directory), directory)
    model, _ = models.publish(directory, display_name="initial policy", kind=kind)
    return InitialModel(models.fetch(model.model_id), model.model_id, kind)


def load_trainable(initial: InitialModel, *, kind: str, lora: LoraParameters | None, checkpoint: Path | None) -> Any:
    """The model to train: fresh from the initial one, or from a checkpoint's `model/` directory.

    Args:
        kind: What to train, `causal_lm` or `reward`; a reward model on a causal one gets a new head.
        lora: Adapter shape, or None for full fine-tuning.
        checkpoint: The checkpoint's model directory, or None at the start.
    """
    new_head = kind == "reward" and initial.kind == "causal_lm"
    if lora is None:
        directory = checkpoint or initial.directory
        if kind == "causal_lm":
            return load_causal_lm(directory)
        return load_reward_model(directory, new_head=new_head and checkpoint is None)
    if kind == "causal_lm":
        if checkpoint is not None:
            return load_causal_lm(checkpoint, base_directory=initial.directory, trainable=True)
        return with_adapters(load_causal_lm(initial.directory), lora, TaskType.CAUSAL_LM)
    if checkpoint is not None:
        return load_reward_model(checkpoint, base_directory=initial.directory, trainable=True)
    body = load_reward_model(initial.directory, new_head=new_head)
    return with_adapters(body, lora, TaskType.SEQ_CLS)


def save_trained(
    model: nn.Module, tokenizer: Any, directory: Path, *, state: Mapping[str, Tensor], initial: InitialModel, lora: bool
) -> None:
    """Write the weights that were trained: the whole model, or the adapter with the id of its base."""
    save_model(model, tokenizer, directory, state=state)
    if lora:
        (directory / "madpo.json").write_text(json.dumps({"base_model_id": initial.model_id}))
