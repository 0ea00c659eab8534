"""Attention over a packed row as one call of torch's variable-length flash attention.

Every response is a sequence of its own whose queries are its own tokens (the first response's with the shared ones
before them) and whose keys are the shared tokens and its own. The kernel aligns causality at the last query and the
last key, which is just what a response behind a prompt needs; a window then counts tokens as positions do.

All but the kernel is tested on the CPU, against a slow one that does as it does. Not yet seen on a GPU.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from madpo.models.packed.layout import SegmentTable

_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
_LEAST_CAPABILITY = (8, 0)
_NEEDED = frozenset({"scale", "window_size"})
"""Of the kernel's options; torch 2.11 is the first that has them."""


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


def varlen_refusal(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Why the kernel cannot be used; "" where it can."""
    if device.type != "cuda":
        return "there is no GPU"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"the kernel is for half precision, not {dtype}".replace("torch.", "")
    if head_size > _LARGEST_HEAD:
        return f"the kernel takes heads of at most {_LARGEST_HEAD} numbers, not {head_size}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        name, least = torch.cuda.get_device_name(device), ".".join(map(str, _LEAST_CAPABILITY))
        return f"{name} has compute capability {'.'.join(map(str, capability))}, the kernel needs {least}"
    if not _kernel_options() >= _NEEDED:
        return f"torch {torch.__version__} has no varlen_attn with {' and '.join(sorted(_NEEDED))}: use 2.11 or newer"
    return ""


def _kernel() -> Callable[..., Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn  # type: ignore[return-value]


def _kernel_options() -> frozenset[str]:
    """Names of its arguments, which differ between versions of torch."""
    try:
        return frozenset(inspect.signature(_kernel()).parameters)
    except ImportError:
        return frozenset()


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, table: SegmentTable, *, scale: float, window: int | None
) -> Tensor:
    """Attention of a row on CUDA, [1, T, heads, size]; arguments as in `packed_attention`."""
    index = varlen_index(table, query.device)
    size = query.shape[-1]
    lacking = -size % _HEAD_MULTIPLE
    q, k, v = (F.pad(tensor[0].transpose(0, 1), (0, lacking)) for tensor in (query, key, value))
    if index.keys is not None:
        k, v = k.index_select(0, index.keys), v.index_select(0, index.keys)
    # Before it was an option, heads in groups were taken unasked.
    grouped = {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in _kernel_options() else {}
    attended = _kernel()(
        q,
        k,
        v,
        index.query_bounds,
        index.key_bounds,
        index.longest_query,
        index.longest_key,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return attended[None, ..., :size]
