"""Loading Hugging Face model directories: local files, safetensors only, no code from the directory."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from madpo.data.limited import load_limited
from madpo.data.tokenizer import load_tokenizer
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.model_files.configs import check_config, label_count, read_config
from madpo.model_files.own_code import AUTO_MAP
from madpo.model_files.sizes import check_sizes
from madpo.model_files.weights_needed import layers_left_out
from madpo.models.adapter_layers import name_layers
from madpo.models.bounded_building import bounded_class
from madpo.models.memory import is_out_of_memory
from madpo.models.padding import closing_ids, padding_id
from madpo.models.parts import Divide, load_parts
from madpo.models.scores import reads_last_token
from madpo.spelling import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_config", "load_causal_lm", "load_reward_model", "load_tokenizer"]

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_HEADS = ("score.", "classifier.")
_ADAPTER_HEADS = tuple(f"base_model.model.{head}" for head in _HEADS)


def load_causal_lm(
    directory: Path,
    *,
    base_directory: Path | None = None,
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    divide: Divide | None = None,
) -> "PreTrainedModel":
    """A causal language model in evaluation mode.

    Args:
        directory: The model, or a LoRA adapter.
        base_directory: The model the adapter belongs to; None when `directory` is a whole model.
        dtype: Of the weights; adapter weights stay float32.
        trainable: Let the adapter's weights receive gradients.
        divide: Have each rank read only its part of what this divides, where the files allow it; see `load_parts`.

    Raises:
        InvalidArgumentError: The directory is refused by `check_config` or holds no such model.
        FailedPreconditionError: Weights are missing from it.
    """
    model, missing = _load(AutoModelForCausalLM, base_directory or directory, dtype=dtype, divide=divide)
    _refuse_missing(base_directory or directory, missing)
    return _with_adapter(model, directory, trainable=trainable) if base_directory else model


def load_reward_model(
    directory: Path,
    *,
    base_directory: Path | None = None,
    dtype: torch.dtype = torch.float32,
    new_head: bool = False,
    trainable: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    divide: Divide | None = None,
) -> "PreTrainedModel":
    """A model with one raw logit per sequence, in evaluation mode; see `reward_scores`.

    Args:
        directory: The model, or a LoRA adapter (which then holds the head).
        base_directory: The model the adapter belongs to; None when `directory` is a whole model.
        dtype: Of the weights.
        new_head: Build it from a causal language model with a fresh head, drawn from torch's global generator.
        trainable: Let the adapter's weights receive gradients.
        tokenizer: The model's, where it is loaded already; its template tells how texts end.
        divide: See `load_causal_lm`.

    Raises:
        InvalidArgumentError: The directory is refused by `check_config`, holds no such model, or has another number
            of labels than one.
        FailedPreconditionError: Weights are missing from it; the head above all.
    """
    body = base_directory or directory
    if not new_head and base_directory is None:
        _require_one_label(directory)
    model, missing = _load(AutoModelForSequenceClassification, body, dtype=dtype, divide=divide, num_labels=1)
    fresh_head = {key for key in missing if key.startswith(_HEADS)}
    _refuse_missing(body, missing - fresh_head)
    if tokenizer is None:
        tokenizer = load_limited(directory, base_directory=base_directory)
    _set_padding(model, tokenizer)
    if base_directory is not None:
        model = _with_adapter(model, directory, trainable=trainable)
        fresh_head -= {key.removeprefix("base_model.model.") for key in _adapter_keys(directory)}
    if fresh_head and not new_head:
        raise FailedPreconditionError(
            f"{directory.name} holds no scoring head ({', '.join(sorted(fresh_head))}): its scores would be random; "
            "train a reward model from it first"
        )
    return model


def _load(
    auto_class: Any, directory: Path, *, dtype: torch.dtype, divide: Divide | None, **options: Any
) -> tuple["PreTrainedModel", set[str]]:
    check_config(directory)
    transformers_logging.disable_progress_bar()  # bars do not belong in a service's log
    try:
        check_sizes(directory)
        config = AutoConfig.from_pretrained(directory, **_LOCAL, **options)
        # Whatever the file says: SDPA where the architecture has it, else eager.
        config._attn_implementation = None
        files = {"pretrained_model_name_or_path": directory, "use_safetensors": True, "output_loading_info": True}
        files |= {"dtype": dtype, "ignore_mismatched_sizes": True, **_LOCAL}  # refused below, by name
        model_class = bounded_class(auto_class, config, directory)
        found = None if divide is None else load_parts(model_class, config=config, divide=divide, **files)
        model, info = found or auto_class.from_pretrained(config=config, **files)
    except Exception as error:  # whatever the files made of the libraries
        if is_out_of_memory(error):
            raise  # says more of the machine than of the model
        what = str(error)
        if what.startswith("Unrecognized configuration class"):  # and a list of all that are known
            what = (
                f"transformers has no {auto_class.__name__.removeprefix('AutoModelFor')} of {config.model_type} models"
            )
        if isinstance(error, KeyError):
            what = f"its configuration names {what}, which this version of transformers does not know"
        raise InvalidArgumentError(f"cannot load the model in {directory.name}: {what}") from error
    _refuse_other_shapes(directory, info["mismatched_keys"])
    _refuse_left_out(directory, info["unexpected_keys"])
    if getattr(config, AUTO_MAP, None):
        _refuse_unread(directory, model, info["unexpected_keys"])
    # An embedding gives its padding token no gradient, which is wrong when EOS pads; padding has none anyway.
    model.get_input_embeddings().padding_idx = None
    _say_what_is_tied(model)
    return model.eval(), set(info["missing_keys"])


def _say_what_is_tied(model: "PreTrainedModel") -> None:
    """Files with a head of its own are loaded so, whatever their configuration says; transformers 4 goes by that."""
    head = model.get_output_embeddings()
    if getattr(head, "weight", None) is not None and head.weight is not model.get_input_embeddings().weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _set_padding(model: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Name a padding token that ends no text: whoever loads the model pools at the last token that differs from it."""
    config = model.config.get_text_config()
    closing = closing_ids(tokenizer)
    if not reads_last_token(model) and config.pad_token_id not in {None, *closing}:
        return  # an encoder may count positions from its padding
    chosen = padding_id(
        tokenizer,
        embeddings=model.get_input_embeddings().weight.shape[0],
        closing=closing,
        configured=config.pad_token_id,
    )
    config.pad_token_id = model.config.pad_token_id = chosen


def _refuse_missing(directory: Path, missing: set[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5])
        raise FailedPreconditionError(
            f"{directory.name} lacks {number_of(len(missing), 'weight')} of its architecture ({names}): it is another"
            " kind of model, or not whole"
        )


def _refuse_other_shapes(directory: Path, mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]]) -> None:
    """Weights that do not fit the model that the configuration describes, which transformers would draw anew."""
    found = sorted((name, [*stored], [*expected]) for name, stored, expected in mismatched)
    if found:
        name, stored, expected = found[0]
        raise InvalidArgumentError(
            f"{directory.name} has {number_of(len(found), 'weight')} of other shapes than its config.json says "
            f"({name}: stored {stored}, described {expected}): give the configuration of these weights"
        )


def _refuse_left_out(directory: Path, keys: Iterable[str]) -> None:
    """Layers that are stored and that the configuration does not count: without them it is another model."""
    if beyond := layers_left_out(read_config(directory / "config.json"), keys):
        raise InvalidArgumentError(
            f"{directory.name} has layers that its config.json does not count (layer {beyond[0]} is the first), and "
            "that would be left out: give the configuration of these weights, or save the model without them"
        )


def _refuse_unread(directory: Path, model: "PreTrainedModel", keys: Iterable[str]) -> None:
    """Weights that only the model's own code has a place for: it is no model of transformers, whatever it is called."""
    unread = sorted(key for key in keys if key.startswith(f"{model.base_model_prefix}."))
    if unread:
        raise FailedPreconditionError(
            f"{directory.name} has {number_of(len(unread), 'weight')} ({', '.join(unread[:5])}) that "
            f"{type(model).__name__} of transformers has no place for: its own code ({AUTO_MAP}), which is never run, "
            "computes something else"
        )


def _require_one_label(directory: Path) -> None:
    check_config(directory)
    if not (directory / "config.json").is_file():
        raise InvalidArgumentError(f"{directory.name} is an adapter: give the model it belongs to as well")
    architecture = "".join(read_config(directory / "config.json").get("architectures") or ())
    if not architecture.endswith("ForSequenceClassification"):
        raise FailedPreconditionError(
            f"{directory.name} is a {architecture or 'model of unknown architecture'}, which has no scoring head: "
            "train a reward model from it first"
        )
    labels = label_count(read_config(directory / "config.json"))
    if labels != 1:
        raise InvalidArgumentError(
            f"{directory.name} has {labels} labels: a reward model has exactly one (num_labels=1), a raw logit"
        )


def _with_adapter(model: "PreTrainedModel", directory: Path, *, trainable: bool) -> "PreTrainedModel":
    from peft import PeftConfig, PeftModel, TaskType, get_peft_model_state_dict

    check_config(directory)
    try:
        check_sizes(directory)
        config = PeftConfig.from_pretrained(directory)
        if config.task_type is None and any(key.startswith(_ADAPTER_HEADS) for key in _adapter_keys(directory)):
            config.task_type = TaskType.SEQ_CLS  # without it peft leaves the head out
        name_layers(config, (name for name, _ in model.named_modules()))
        adapted = PeftModel.from_pretrained(model, directory, config=config, is_trainable=trainable)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InvalidArgumentError(f"cannot load the adapter in {directory.name}: {error}") from error
    _refuse_missing(
        directory, get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - _adapter_keys(directory)
    )
    return adapted.train(mode=False)


def _adapter_keys(directory: Path) -> set[str]:
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        return set(file.keys())
