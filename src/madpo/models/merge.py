"""Merging a LoRA adapter into its base, such that the whole model says what base and adapter said."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from madpo.errors import FailedPreconditionError
from madpo.models.dtypes import stored_dtypes
from madpo.models.load import load_causal_lm, load_reward_model
from madpo.models.save import save_model
from madpo.models.scores import inner_model, reward_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_ROWS, _PROBE_TOKENS = 4, 16
_TOLERANCE = 1e-4
"""Of a logit's difference in float32, over 1 + the largest logit."""


def load_merged(directory: Path, *, base_directory: Path, kind: str) -> "PreTrainedModel":
    """The whole model that an adapter and its base are, in float32.

    Where embeddings and head are one tensor and the adapter changes either, they are separate in the merged model.

    Args:
        directory: The adapter.
        base_directory: Its base.
        kind: `causal_lm` or `reward`.

    Raises:
        FailedPreconditionError: The merged model gives other values than the two did.
        InvalidArgumentError: They cannot be loaded.
    """
    load = load_causal_lm if kind == "causal_lm" else load_reward_model
    adapted: Any = load(directory, base_directory=base_directory)
    ids = _probe(adapted)
    before = _values(adapted, ids, kind)
    _untie_what_is_adapted(adapted)
    merged: PreTrainedModel = adapted.merge_and_unload()
    difference = float((_values(merged, ids, kind) - before).abs().max() / (1 + before.abs().max()))
    if not difference <= _TOLERANCE:
        raise FailedPreconditionError(
            f"the adapter {directory.name} cannot be merged into its base: the merged model's "
            f"{'logits' if kind == 'causal_lm' else 'scores'} differ by {difference:.2g} of their size, at most "
            f"{_TOLERANCE:g} is rounding (merge it with the tool that made it, and upload the whole model)"
        )
    return merged


def write_merged(directory: Path, into: Path, *, base_directory: Path, kind: str, exact: bool = True) -> None:
    """Write the whole model that an adapter and its base are.

    Args:
        directory: The adapter, whose tokenizer, template and generation settings are taken.
        into: Where to; made when missing.
        base_directory: Its base.
        kind: `causal_lm` or `reward`.
        exact: Keep float32 what would not be exact in the base's dtype; else all is rounded to it.

    Raises:
        FailedPreconditionError: See `load_merged`.
    """
    merged: Any = load_merged(directory, base_directory=base_directory, kind=kind)
    dtypes = stored_dtypes(base_directory)
    save_model(
        merged,
        into,
        source=base_directory,
        dtypes=dtypes.widened(merged.state_dict()) if exact else dtypes,
        companions=directory,
    )


def _probe(model: Any) -> Tensor:
    """Token ids from all over the vocabulary, [4, 16]; each row ends with its one EOS, where T5 and BART score."""
    embeddings = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, embeddings - 1, _PROBE_ROWS * _PROBE_TOKENS).long().view(_PROBE_ROWS, _PROBE_TOKENS)
    eos = inner_model(model).config.eos_token_id
    if isinstance(eos, int) and 0 <= eos < embeddings:
        ids[ids == eos] = (eos + 1) % embeddings
        ids[:, -1] = eos
    return ids


@torch.no_grad()
def _values(model: Any, ids: Tensor, kind: str) -> Tensor:
    mask = torch.ones_like(ids)
    if kind == "reward":
        return reward_scores(model, ids, mask)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.float()


def _untie_what_is_adapted(model: Any) -> None:
    """Give modules that share a weight one each, where an adapter changes one of them: merging would change both."""
    owners: dict[int, list[tuple[nn.Module, str, bool]]] = defaultdict(list)
    for module, is_adapted in _modules(model, is_adapted=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append((module, name, is_adapted))
    for places in owners.values():
        if len(places) > 1 and any(is_adapted for _, _, is_adapted in places):
            for module, name, _ in places[1:]:
                setattr(module, name, nn.Parameter(getattr(module, name).detach().clone(), requires_grad=False))
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False


def _modules(module: nn.Module, *, is_adapted: bool) -> Iterator[tuple[nn.Module, bool]]:
    """All modules, each with whether it is part of a layer that an adapter changes."""
    is_adapted = is_adapted or isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    yield module, is_adapted
    for child in module.children():
        yield from _modules(child, is_adapted=is_adapted)
