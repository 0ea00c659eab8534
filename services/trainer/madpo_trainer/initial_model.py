"""The model a training job starts from, ready for full fine-tuning or LoRA."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import TaskType

from madpo.jobs.training import LoraParameters
from madpo.model_files.configs import model_kind
from madpo.models.dtypes import WeightDtypes, stored_dtypes
from madpo.models.load import load_causal_lm, load_reward_model
from madpo.models.merge import write_merged
from madpo.models.parts import Divide
from madpo.models.text_part import freeze_outside_text
from madpo.storage.models import ModelStore
from madpo.storage.references import ResolvedModel
from madpo_trainer.adapters import with_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class InitialModel:
    """A full model in the model store."""

    directory: Path
    model_id: str
    kind: str
    """`causal_lm` or `reward`."""
    dtypes: WeightDtypes
    """Those of the model as it came, which what is trained from it gets: of a merged adapter its base's."""
    name: str
    """Under which others find the model: its id on the hub, or its id here."""
    revision: str | None = None
    """Its commit on the hub."""


def prepare_initial(resolved: ResolvedModel, *, models: ModelStore, scratch: Path) -> InitialModel:
    """Turn what a reference resolved to into a full, stored model.

    An adapter is merged into its base first, exactly, and a bare checkpoint is stored as a model, so that everything
    trained from it can name its base by id. Content addressing makes this idempotent over attempts.

    Raises:
        FailedPreconditionError: The adapter cannot be merged without changing what the model says.
    """
    base_kind = "causal_lm" if resolved.base_directory is None else model_kind(resolved.base_directory)[0]
    kind, _ = model_kind(resolved.directory, base_kind=base_kind)
    dtypes = stored_dtypes(resolved.base_directory or resolved.directory)
    if resolved.base_directory is None and resolved.model_id is not None:
        metadata = models.get(resolved.model_id).metadata
        name, revision = metadata.get("hub_id", resolved.model_id), metadata.get("commit")
        return InitialModel(resolved.directory, resolved.model_id, kind, dtypes, name, revision)
    directory = scratch / "initial"
    shutil.rmtree(directory, ignore_errors=True)
    if resolved.base_directory is None:
        shutil.copytree(resolved.directory, directory)
    else:
        write_merged(resolved.directory, directory, base_directory=resolved.base_directory, kind=kind)
    model, _ = models.publish(directory, display_name="initial policy", kind=kind)
    return InitialModel(models.fetch(model.model_id), model.model_id, kind, dtypes, model.model_id)


def load_trainable(
    initial: InitialModel,
    *,
    kind: str,
    lora: LoraParameters | None,
    checkpoint: Path | None,
    divide: Divide | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Any:
    """The model to train: fresh from the initial one, or from a checkpoint's `model/` directory.

    Of a model of more than text only what text goes through is trained.

    Args:
        kind: What to train, `causal_lm` or `reward`; a reward model on a causal one gets a new head.
        lora: Adapter shape, or None for full fine-tuning.
        checkpoint: The checkpoint's model directory, or None at the start.
        divide: See `load_causal_lm`.
        tokenizer: The initial model's, where it is loaded already.
    """
    new_head = kind == "reward" and initial.kind == "causal_lm"
    if lora is None:
        directory = checkpoint or initial.directory
        if kind == "causal_lm":
            model = load_causal_lm(directory, divide=divide)
        else:
            fresh = new_head and checkpoint is None
            model = load_reward_model(directory, new_head=fresh, divide=divide, tokenizer=tokenizer)
        freeze_outside_text(model)
        return model
    if kind == "causal_lm":
        if checkpoint is not None:
            return load_causal_lm(checkpoint, base_directory=initial.directory, trainable=True, divide=divide)
        return with_adapters(load_causal_lm(initial.directory, divide=divide), lora, TaskType.CAUSAL_LM)
    if checkpoint is not None:
        base = initial.directory
        return load_reward_model(checkpoint, base_directory=base, trainable=True, divide=divide, tokenizer=tokenizer)
    body = load_reward_model(initial.directory, new_head=new_head, divide=divide, tokenizer=tokenizer)
    return with_adapters(body, lora, TaskType.SEQ_CLS)
