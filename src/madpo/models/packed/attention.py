"""Attention over packed rows, as one function in transformers' attention interface: model code stays untouched.

A model prepared by `use_packed_attention` runs packed rows when it is called with `segments=` (a `SegmentTable`) and
without an attention mask, and ordinary padded batches as before when it is called with one. The table travels as a
keyword argument through the layers, not as global state, so that layers may be recomputed in the backward pass.

On the CPU a row is computed block by block with torch's flash kernel, merging blocks of the same queries by their
log-sum-exp; the backward pass calls the kernel's own backward with the merged result, which is exact. On CUDA in half
precision it is one call of variable-length attention (`madpo.models.packed.varlen`); elsewhere SDPA block by block.
"""

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from madpo.models.packed.layout import Block, SegmentTable, attention_blocks, segment_mask
from madpo.models.packed.varlen import varlen_attention, varlen_refusal

logger = logging.getLogger(__name__)

NAME = "madpo_packed"

# Named arguments of attention that change its result and that blocks do not know; the proof of capability meets them.
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias", "cache")


def use_packed_attention(model: Any) -> None:
    """Have a transformers model use this attention from now on; its results on padded batches do not change."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, padding_mask)
    model.set_attn_implementation(NAME)


@torch.compiler.disable  # type: ignore[untyped-decorator] # a table is another in every row: nothing to specialise on
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: SegmentTable | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of the interface.

    Args:
        module: Attention layer that asks.
        query: [1, heads, T, size]; padded batches have any first dimension.
        key: [1, groups, T, size], each for `heads / groups` query heads.
        value: Like `key`; its size may differ.
        attention_mask: None for packed rows.
        dropout: Of the attention probabilities.
        scaling: Of the scores; None for 1 / sqrt(size).
        sliding_window: A token sees itself and the `sliding_window - 1` tokens before it; None for all.
        segments: The row's table; None for padded batches.
        options: What else the interface passes.

    Returns:
        [1, T, heads, size of values], and no probabilities.

    Raises:
        NotImplementedError: The layer asks for something that blocks cannot do.
    """
    if segments is None:
        if attention_mask is None and sliding_window is not None and query.shape[2] > sliding_window:
            raise NotImplementedError("a window needs an attention mask: give the model the batch's attention_mask")
        if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
            # Without a mask SDPA would take the new tokens for the first ones.
            raise NotImplementedError("tokens behind a cache need an attention mask: give the model attention_mask")
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    unknown = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention over packed rows has no {' or '.join(unknown) or 'attention mask'}")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    size = value.shape[-1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if size < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - size))
    refusal = "dropout is on" if dropout else varlen_refusal(query.device, query.dtype, query.shape[-1])
    if not refusal:
        return varlen_attention(query, key, value, segments, scale=scale, window=sliding_window)[..., :size], None
    key, value = (_repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    if device == "cpu" and not dropout:
        blocks = attention_blocks(segments, sliding_window)
        attended: Tensor = _BlockAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    else:
        _say_slow(refusal)
        attended = _sdpa(query, key, value, segments, window=sliding_window, scale=scale, dropout=dropout)
    return attended.transpose(1, 2)[..., :size].contiguous(), None


@lru_cache(maxsize=8)
def _say_slow(why: str) -> None:
    """Once."""
    logger.warning("attention over packed rows runs segment by segment, which is slow: %s", why)


def padding_mask(*args: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Packed rows come without a mask and get none, padded batches the one of SDPA."""
    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **options)
    return mask


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    groups = tensor.shape[1]
    return tensor if groups == heads else tensor.repeat_interleave(heads // groups, dim=1)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: SegmentTable,
    *,
    window: int | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Segment by segment through SDPA with a mask: any device, any option of SDPA."""
    parts = []
    for segment in segments.segments:
        place = slice(segment.start, segment.end)
        mask = segment_mask(segment, window).to(query.device)
        q, k, v = (tensor[:, :, place] for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, dropout_p=dropout))
    return torch.cat(parts, dim=2)


class _BlockAttention(torch.autograd.Function):
    """Attention of all blocks of a row on the CPU, each [1, heads, T, size].

    One function for the row, since autograd would pad the gradient of every slice to the whole row.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float
    ) -> Tensor:
        out = torch.empty_like(query)
        lse = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for block in blocks:
            q, k, v = query[:, :, block.queries], key[:, :, block.keys], value[:, :, block.keys]
            part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, block.causal, attn_mask=_additive(block.mask, q.dtype), scale=scale
            )
            if block.merged:
                before, before_lse = out[:, :, block.queries], lse[:, :, block.queries]
                total = torch.logaddexp(before_lse, part_lse)
                weights = ((each - total).exp()[..., None] for each in (before_lse, part_lse))
                part, part_lse = sum(each * w for each, w in zip((before, part), weights, strict=True)), total
            out[:, :, block.queries], lse[:, :, block.queries] = part, part_lse
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.blocks, ctx.scale = blocks, scale  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        d_query, d_key, d_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for block in ctx.blocks:
            # With the output and normaliser of all blocks of these queries, a block's gradient is its exact share.
            d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, block.queries],
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                out[:, :, block.queries],
                lse[:, :, block.queries],
                0.0,
                block.causal,
                attn_mask=_additive(block.mask, query.dtype),
                scale=ctx.scale,
            )
            d_query[:, :, block.queries] += d_q
            d_key[:, :, block.keys] += d_k
            d_value[:, :, block.keys] += d_v
        return d_query, d_key, d_value, None, None


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bool mask as the kernel takes it."""
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))
