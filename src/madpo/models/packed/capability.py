"""What of packed rows a model can do, from its configuration and by proof on real tokens.

Sharing a prompt needs attention through transformers' interface with plain or sliding causal layers, positions that are
given and not counted, and no dropout: copies of a prompt would draw other masks, one prompt draws one. What is refused
here or fails the proof runs in a plainer layout, with the reason said.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from madpo.data.loss_mask import cut_mask
from madpo.models.logps import ResponseGroup
from madpo.models.memory import is_out_of_memory
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.head import head_of
from madpo.models.scores import inner_model, reads_last_token

LayoutName = Literal["packed", "unshared", "padded", "alone"]

_LAYERS = {"full_attention", "sliding_attention"}
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Kinds of rotary embeddings whose positions change with the longest text beside them."""
_DROPOUT_NAMES = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
_PROOF_GROUPS, _PROOF_TOKENS = 3, 16
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
"""Both of a difference over 1 + the size of the value."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model is run over groups of responses."""

    name: LayoutName
    """`packed`: prompts once, no padding; `unshared`: every response behind its own copy; `padded`: batches; `alone`:
    text by text."""
    reason: str = ""
    """Why it is not `packed`."""


def prepare_layout(model: Any, *, needs_head: bool) -> Layout:
    """The best layout the model's configuration allows; the model then runs it, and padded batches as before.

    Args:
        model: A transformers model in the state it will be trained in: dropout as configured.
        needs_head: Log-probs will be asked for, not rewards.
    """
    inner = inner_model(model)
    refusal = _refusal(inner, needs_head=needs_head)
    if refusal:
        return Layout("padded", refusal)
    use_packed_attention(inner)
    if _has_dropout(model):
        return Layout("unshared", "dropout is on, which would draw one mask for all copies of a prompt")
    return Layout("packed")


def prove(
    layout: Layout,
    model: Any,
    groups: Sequence[ResponseGroup],
    *,
    run: Callable[[Any, Sequence[ResponseGroup]], Tensor],
    reference: Callable[[Any, Sequence[ResponseGroup]], Tensor],
) -> Layout:
    """The layout, or `padded` where the model gives other values in it: by a forward pass over a few short groups.

    Args:
        layout: From `prepare_layout`.
        model: In evaluation mode, under the precision it will be trained in.
        groups: Real ones; the first few are taken, cut short.
        run: Values in that layout.
        reference: The same from padded batches.
    """
    if layout.name == "padded":
        return layout
    short = [_cut(group) for group in groups[:_PROOF_GROUPS]]
    try:
        with torch.no_grad():
            values, expected = run(model, short), reference(model, short)
    except (NotImplementedError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return Layout("padded", f"{type(inner_model(model)).__name__} cannot run packed rows: {error}")
    off = _off_by(values, expected, model)
    return (
        Layout("padded", f"{type(inner_model(model)).__name__} gives other values in packed rows{off}")
        if off
        else layout
    )


def prove_padding(
    layout: Layout,
    model: Any,
    groups: Sequence[ResponseGroup],
    *,
    scores: Callable[[Any, Sequence[ResponseGroup]], Tensor],
) -> Layout:
    """The layout, or `alone` where a reward model in padded batches scores a text by the padding behind it as well.

    So do convolutions over all positions (ConvBERT), and heads that read the end of the row (XLNet).

    Args:
        layout: From `prove`.
        model: As there.
        groups: Real ones; the ends of the first few are taken.
        scores: Of their responses, in one padded batch.
    """
    if layout.name != "padded":
        return layout
    texts = [[*group.prompt_ids, *ids] for group in groups[:_PROOF_GROUPS] for ids in group.responses]
    # Ends, since some models read their score at a closing EOS; each of another length, so that there is padding.
    lengths = [max(1, min(len(text), 2 * _PROOF_TOKENS) - 3 * place) for place, text in enumerate(texts)]
    ends = [ResponseGroup((), (text[-length:],)) for text, length in zip(texts, lengths, strict=True)]
    try:
        with torch.no_grad():
            together, alone = scores(model, ends), torch.cat([scores(model, [end]) for end in ends])
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return layout  # of what is cut short; whole texts may do
    off = _off_by(together, alone, model)
    return (
        Layout("alone", f"{type(inner_model(model)).__name__} lets padding change its scores{off}") if off else layout
    )


def _off_by(values: Tensor, expected: Tensor, model: Any) -> str:
    """How far values are off; "" where that is rounding."""
    dtype = next(model.parameters()).dtype
    is_half = dtype.itemsize < 4 or torch.is_autocast_enabled(values.device.type)
    tolerance = _HALF_TOLERANCE if is_half else _TOLERANCE[dtype]
    difference = float(((values - expected).abs() / (1 + expected.abs())).max())
    return "" if difference <= tolerance else f" (off by {difference:.2g})"


def _refusal(inner: Any, *, needs_head: bool) -> str:
    name = type(inner).__name__
    if refusal := attention_refusal(inner):
        return refusal
    if needs_head and head_of(inner) is None:
        return f"the head of {name} is not one linear layer"
    if not needs_head and not reads_last_token(inner):
        return f"{name} does not read its score off the last token"
    return ""


def attention_refusal(inner: Any) -> str:
    """Why a model cannot be given another attention, which goes by the places of tokens; "" where it may be."""
    config, name = inner.config.get_text_config(), type(inner).__name__
    if not inner._supports_attention_backend or not inner._can_set_attn_implementation():
        return f"{name} does not take its attention from transformers' interface"
    other = set(getattr(config, "layer_types", None) or _LAYERS) - _LAYERS
    if other:
        return f"{name} has layers of {', '.join(sorted(other))}, which run over the borders of a packed row"
    if rope_types(config) & BATCH_DEPENDENT_ROPE:
        return f"the positions of {name} change with the longest text beside it"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention scores"
    return ""


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary embeddings, of all layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    return {each["rope_type"] for each in nested if isinstance(each.get("rope_type"), str)}


def _has_dropout(model: Any) -> bool:
    config = inner_model(model).config.get_text_config()
    return any((getattr(config, name, 0.0) or 0.0) > 0 for name in _DROPOUT_NAMES) or any(
        module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout)
    )


def _cut(group: ResponseGroup) -> ResponseGroup:
    return ResponseGroup(
        group.prompt_ids[-_PROOF_TOKENS:],
        tuple(response[:_PROOF_TOKENS] for response in group.responses),
        tuple(cut_mask(mask, _PROOF_TOKENS) for mask in group.masks),
    )
