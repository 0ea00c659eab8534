"""Attention over a packed row as one call of torch's variable-length flash attention.

Every response is a sequence of its own whose queries are its own tokens (the first response's with the shared ones
before them) and whose keys are the shared tokens and its own. The kernel aligns causality at the last query and the
last key, which is just what a response behind a prompt needs; a window then counts tokens as positions do.

Its index arithmetic is tested on the CPU. Not yet seen on a GPU.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from madpo.models.packed.layout import SegmentTable

_LARGEST_HEAD = 256


class VarlenIndex(NamedTuple):
    """A row as sequences of queries and keys; queries keep the order of the row."""

    query_bounds: Tensor
    """First query of each sequence, and the number of all, int32 [sequences + 1]."""
    key_bounds: Tensor
    """The same for keys."""
    keys: Tensor | None
    """Place in the row of every key, int64; None where keys are the row as it is."""
    longest_query: int
    longest_key: int


@lru_cache(maxsize=4)
def varlen_index(table: SegmentTable, device: torch.device) -> VarlenIndex:
    """The sequences of a row's segments."""
    queries, keys, places = [0], [0], []
    for start, shared, own in table.segments:
        first = start + shared
        for number, length in enumerate(own):
            queries.append(queries[-1] + length + (shared if number == 0 else 0))
            keys.append(keys[-1] + shared + length)
            places += [torch.arange(start, start + shared), torch.arange(first, first + length)]
            first += length
    query_bounds, key_bounds = (torch.tensor(bounds, dtype=torch.int32) for bounds in (queries, keys))
    return VarlenIndex(
        query_bounds.to(device),
        key_bounds.to(device),
        None if queries == keys else torch.cat(places).to(device),
        int(query_bounds.diff().max()),
        int(key_bounds.diff().max()),
    )


def can_use_varlen(query: Tensor) -> bool:
    """Whether the kernel takes such queries."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and query.shape[-1] <= _LARGEST_HEAD


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, table: SegmentTable, *, scale: float, window: int | None
) -> Tensor:
    """Attention of a row on CUDA, [1, T, heads, size]; arguments as in `packed_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    index = varlen_index(table, query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if index.keys is not None:
        k, v = k.index_select(0, index.keys), v.index_select(0, index.keys)
    attended = varlen_attn(
        q,
        k,
        v,
        index.query_bounds,
        index.key_bounds,
        index.longest_query,
        index.longest_key,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None]
