"""The models of an evaluation: the policy, and the reference it is measured against."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from madpo.data.limited import load_limited
from madpo.data.tokenize import tokenizer_sha256
from madpo.errors import FailedPreconditionError
from madpo.models.device import DTYPES, precision_on
from madpo.models.load import load_causal_lm
from madpo.storage.references import ResolvedModel

Reference = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Lends the reference for the length of a `with` block; it may be the policy itself in another state."""


@dataclass(frozen=True, slots=True)
class Models:
    """The policy with its tokenizer, and its reference when there is one."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference | None


def load_models(
    policy: ResolvedModel, reference: ResolvedModel | None, *, precision: Literal["auto", "fp32", "bf16"] = "auto"
) -> Models:
    """Load the policy, and of the reference only what does not come with it.

    Args:
        policy: The model that is evaluated.
        reference: What it is measured against; may be its base, or itself.
        precision: Of both; see `EvaluatorSettings`.

    Raises:
        FailedPreconditionError: Policy and reference do not share a tokenizer.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = partial(_load, device=device, dtype=DTYPES[precision_on(device, precision)])
    model, tokenizer = load(policy), _load_tokenizer(policy)
    if reference is None:
        return Models(model, tokenizer, None)
    if reference.directory == policy.directory:
        return Models(model, tokenizer, separate_model(model))
    if tokenizer_sha256(_load_tokenizer(reference)) != tokenizer_sha256(tokenizer):
        raise FailedPreconditionError(
            "policy and reference have different tokenizers, so KL between them has no meaning "
            "(name the model the policy was trained from as reference)"
        )
    if reference.directory == policy.base_directory:
        return Models(model, tokenizer, adapter_off(model))
    return Models(model, tokenizer, separate_model(load(reference)))


def separate_model(model: PreTrainedModel) -> Reference:
    """A reference that is a model of its own."""
    return lambda: nullcontext(model)


def adapter_off(policy: Any) -> Reference:
    """The base model of a LoRA policy, without a second copy: the policy with its adapter switched off."""

    @contextmanager
    def lend() -> Iterator[PreTrainedModel]:
        with policy.disable_adapter():
            yield policy

    return lend


def _load_tokenizer(resolved: ResolvedModel) -> PreTrainedTokenizerBase:
    return load_limited(resolved.directory, base_directory=resolved.base_directory)


def _load(resolved: ResolvedModel, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    model = load_causal_lm(resolved.directory, base_directory=resolved.base_directory, dtype=dtype)
    return model.to(device)
