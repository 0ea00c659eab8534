"""Loading and saving Hugging Face model directories: local files, safetensors only, no code from the directory."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from madpo.data.tokenize import pad_id
from madpo.data.tokenizer import load_tokenizer
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.model_files import check_config, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "check_config",
    "head_scores",
    "inner_model",
    "load_causal_lm",
    "load_reward_model",
    "load_tokenizer",
    "reward_scores",
    "save_model",
]

logger = logging.getLogger(__name__)

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_HEADS = ("score.", "classifier.")


def load_causal_lm(
    directory: Path,
    *,
    base_directory: Path | None = None,
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
) -> "PreTrainedModel":
    """A causal language model in evaluation mode.

    Args:
        directory: The model, or a LoRA adapter.
        base_directory: The model the adapter belongs to; None when `directory` is a whole model.
        dtype: Of the weights; adapter weights stay float32.
        trainable: Let the adapter's weights receive gradients.

    Raises:
        InvalidArgumentError: The directory is refused by `check_config` or holds no such model.
        FailedPreconditionError: Weights are missing from it.
    """
    model, missing = _load(AutoModelForCausalLM, base_directory or directory, dtype=dtype)
    _refuse_missing(base_directory or directory, missing)
    return _with_adapter(model, directory, trainable=trainable) if base_directory else model


def load_reward_model(
    directory: Path,
    *,
    base_directory: Path | None = None,
    dtype: torch.dtype = torch.float32,
    new_head: bool = False,
    trainable: bool = False,
) -> "PreTrainedModel":
    """A model with one raw logit per sequence, in evaluation mode; see `reward_scores`.

    Args:
        directory: The model, or a LoRA adapter (which then holds the head).
        base_directory: The model the adapter belongs to; None when `directory` is a whole model.
        dtype: Of the weights.
        new_head: Build it from a causal language model with a fresh head, drawn from torch's global generator.
        trainable: Let the adapter's weights receive gradients.

    Raises:
        InvalidArgumentError: The directory is refused by `check_config`, holds no such model, or has another number
            of labels than one.
        FailedPreconditionError: Weights are missing from it; the head above all.
    """
    body = base_directory or directory
    if not new_head and base_directory is None:
        _require_one_label(directory)
    model, missing = _load(AutoModelForSequenceClassification, body, dtype=dtype, num_labels=1)
    fresh_head = {key for key in missing if key.startswith(_HEADS)}
    _refuse_missing(body, missing - fresh_head)
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        # Without it the model cannot be used by others on a batch: they pool at the last token that is not padding.
        config.pad_token_id = pad_id(load_tokenizer(directory))
    if base_directory is not None:
        model = _with_adapter(model, directory, trainable=trainable)
        fresh_head -= {key.removeprefix("base_model.model.") for key in _adapter_keys(directory)}
    if fresh_head and not new_head:
        raise FailedPreconditionError(
            f"{directory.name} holds no scoring head ({', '.join(sorted(fresh_head))}): its scores would be random; "
            "train a reward model from it first"
        )
    return model


def reward_scores(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Raw reward logits, read at each row's last attended token.

    Transformers' own classification heads find that token by comparing ids with the padding id, which misses a closing
    EOS when EOS is also the padding; here the attention mask decides. The head runs in float32 also under autocast.

    Args:
        model: From `load_reward_model`.
        input_ids: [B, T], padded on the right.
        attention_mask: [B, T], 1 on tokens.

    Returns:
        Rewards [B], float32, with gradient when the model's weights want one.
    """
    inner = inner_model(model)
    if not hasattr(inner, "score"):  # encoders pool at their first token
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.float().squeeze(-1)
    hidden = inner.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    last = attention_mask.sum(dim=-1) - 1
    return head_scores(model, hidden[torch.arange(len(last), device=last.device), last])


def head_scores(model: Any, hidden: Tensor) -> Tensor:
    """What the scoring head makes of hidden states [R, hidden size]: rewards [R], in float32 or better."""
    weight = inner_model(model).score.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        # Not `linear`: with one output its kernels give a row other bits in another place of the batch.
        scores: Tensor = (hidden.to(dtype) * weight.to(dtype)).sum(dim=-1)
    return scores


def inner_model(model: Any) -> Any:
    """The transformers model, without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def save_model(
    model: Any, tokenizer: "PreTrainedTokenizerBase", directory: Path, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model (or adapter) and its tokenizer; the same weights give the same bytes.

    Args:
        state: The model's state dict, where its own tensors are not whole.
    """
    model.save_pretrained(directory, state_dict=None if state is None else dict(state))
    tokenizer.save_pretrained(directory)
    adapter_config = directory / "adapter_config.json"
    if adapter_config.exists():
        _normalise_adapter_config(adapter_config)
        (directory / "README.md").unlink(missing_ok=True)


def _load(
    auto_class: Any, directory: Path, *, dtype: torch.dtype, **options: Any
) -> tuple["PreTrainedModel", set[str]]:
    check_config(directory)
    transformers_logging.disable_progress_bar()  # bars do not belong in a service's log
    try:
        model, info = auto_class.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **_LOCAL,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidArgumentError(f"cannot load the model in {directory.name}: {error}") from error
    # An embedding gives its padding token no gradient, which is wrong when EOS pads; padding has none anyway.
    model.get_input_embeddings().padding_idx = None
    return model.eval(), set(info["missing_keys"])


def _refuse_missing(directory: Path, missing: set[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5])
        raise FailedPreconditionError(
            f"{directory.name} lacks {len(missing)} weights of its architecture ({names}): it is another kind of "
            "model, or not whole"
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
    labels = AutoConfig.from_pretrained(directory, **_LOCAL).num_labels
    if labels != 1:
        raise InvalidArgumentError(
            f"{directory.name} has {labels} labels: a reward model has exactly one (num_labels=1), a raw logit"
        )


def _with_adapter(model: "PreTrainedModel", directory: Path, *, trainable: bool) -> "PreTrainedModel":
    from peft import PeftModel, get_peft_model_state_dict

    check_config(directory)
    try:
        adapted = PeftModel.from_pretrained(model, directory, is_trainable=trainable)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidArgumentError(f"cannot load the adapter in {directory.name}: {error}") from error
    _refuse_missing(
        directory, get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - _adapter_keys(directory)
    )
    return adapted.train(mode=False)


def _adapter_keys(directory: Path) -> set[str]:
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        return set(file.keys())


def _normalise_adapter_config(path: Path) -> None:
    # peft writes sets in hash order, and the local path of the base model.
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config[key], list):
            config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
