"""The model a training leaves: what is written, in which dtype, and what its user is told."""

import json
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from madpo.data.turn_end import turn_end_id
from madpo.jobs.training import TrainingParameters
from madpo.model_files.companions import MODEL_RECORD, add_end_tokens
from madpo.models.device import DTYPES
from madpo.models.dtypes import WeightDtypes
from madpo.models.save import finish_model, save_adapter
from madpo.models.scores import inner_model
from madpo.types import DatasetRow
from madpo_trainer.initial_model import InitialModel
from madpo_trainer.model_runner import ModelRunner
from madpo_trainer.ranks import Ranks
from madpo_trainer.trained_weights import saved_state
from madpo_trainer.written_parts import write_weights

_ROWS_TOLD_BY = 100
"""Rows of a dataset that tell whether it holds chats."""


def output_dtypes(parameters: TrainingParameters, initial: InitialModel) -> WeightDtypes | None:
    """Dtypes of the model that a training leaves; None for those it was trained in, as adapters have them."""
    if parameters.save_dtype != "base":
        return WeightDtypes(DTYPES[parameters.save_dtype])
    return initial.dtypes if parameters.lora is None else None


def save_trained(
    model: nn.Module,
    directory: Path,
    ranks: Ranks,
    *,
    initial: InitialModel,
    lora: bool,
    dtypes: WeightDtypes | None = None,
    end_ids: Collection[int] = (),
    is_dealt: bool = False,
) -> tuple[int, ...]:
    """Write what was trained: the whole model, or the adapter with the names of its base. All ranks must call.

    Args:
        model: Trained, from `load_trainable`; may be sharded.
        directory: Of this rank, where to.
        ranks: All of them.
        initial: What it was trained from.
        lora: It is an adapter.
        dtypes: Of the files; None keeps every bit, for a checkpoint.
        end_ids: Tokens that it learnt to end with.
        is_dealt: Ranks take turns with the files of a whole model; else the leader writes all.

    Returns:
        Those of `end_ids` that the initial model's generation settings did not name.
    """
    files = [] if lora else write_weights(model, directory, ranks, dtypes=dtypes, is_dealt=is_dealt)
    state = saved_state(model, keep=ranks.is_leader) if lora else {}

    def finish() -> tuple[int, ...]:
        if lora:
            base = (initial.name, initial.revision)
            save_adapter(model, directory, source=initial.directory, base=base, state=state, dtypes=dtypes)
            (directory / MODEL_RECORD).write_text(json.dumps({"base_model_id": initial.model_id}))
        else:
            finish_model(model, directory, source=initial.directory, files=files)
        return add_end_tokens(directory, end_ids, config=initial.directory / "config.json")

    return ranks.lead(finish)


def learnt_ends(tokenizer: Any, rows: Iterable[DatasetRow]) -> list[int]:
    """The token with which a policy trained on chats learnt to end its turns; none where the first rows are text."""
    end = turn_end_id(tokenizer)
    if end is None or all(isinstance(row.prompt, str) for row in islice(rows, _ROWS_TOLD_BY)):
        return []
    return [end]


def describe_output(
    runner: ModelRunner, tokenizer: Any, *, dtypes: WeightDtypes | None, added_ends: Collection[int], is_reward: bool
) -> dict[str, Any]:
    """What a job's result says of the model's files."""
    dtype = torch.float32 if dtypes is None else dtypes.default
    said: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    if added_ends:
        said["added_end_tokens"] = {str(token): tokenizer.convert_ids_to_tokens(token) for token in added_ends}
    if is_reward:
        pad_id = inner_model(runner.model).config.get_text_config().pad_token_id
        said["pad_token_id"] = pad_id
        if runner.layout.name == "alone":
            said["warning"] = "in plain transformers score one text at a time: padding changes the scores of this model"
        elif pad_id is None:
            said["warning"] = (
                "every token of the vocabulary may end a text: in plain transformers score one text at a time, a batch "
                "cannot be padded"
            )
        elif pad_id != tokenizer.pad_token_id:
            theirs = tokenizer.pad_token
            why = "the tokenizer has none" if theirs is None else f"texts may end with that of the tokenizer ({theirs})"
            said["warning"] = (
                f"in plain transformers pad batches with the model's pad_token_id ({pad_id}): it scores the last token "
                f"that differs from it, and {why}"
            )
    return said
