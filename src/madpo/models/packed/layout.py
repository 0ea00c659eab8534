"""Prompts with their responses laid out as one row of tokens, without padding: `[p a b | p a | p a b c | ...]`.

All responses to a prompt follow it, and positions start again at its end for each of them, so that the model sees every
response as if it came right behind the prompt. What the responses have in common from their first token on is laid out
once as well: the border between shared and own tokens is the end of the common prefix of the token sequences, never a
place inside a token. `SegmentTable` tells the attention (`madpo.models.packed.attention`) who may see whom.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from madpo.data.loss_mask import counted_places
from madpo.models.logps import ResponseGroup


class Segment(NamedTuple):
    """Tokens of one group in a row: the shared ones, then each response's own, in this order."""

    start: int
    """Place of the first token in the row."""
    shared: int
    """Number of tokens that all responses continue."""
    own: tuple[int, ...]
    """Number of own tokens of each response."""

    @property
    def end(self) -> int:
        """Place behind the last token."""
        return self.start + self.shared + sum(self.own)


class Block(NamedTuple):
    """Queries of a row that see some of its keys."""

    queries: slice
    keys: slice
    causal: bool
    """Query i sees keys 0 to i; else it sees all of them."""
    merged: bool
    """The queries see the keys of earlier blocks too: the softmax runs over all together."""
    mask: Tensor | None = None
    """Which keys each query sees, bool, where `causal` cannot say it."""


@dataclass(frozen=True)
class SegmentTable:
    """Where each group lies in a row; one object for all layers, opaque to compilers and to sharding."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class PackedRow:
    """A row of T tokens, with what is to be read off it for R responses of N tokens that count."""

    input_ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T]."""
    segments: SegmentTable
    predictors: Tensor
    """Place in the row of the token before each response token that counts, int64 [N], response by response."""
    targets: Tensor
    """Those response tokens, int64 [N]."""
    tokens: Tensor
    """Number of each response's, int64 [R]."""
    ends: Tensor
    """Place in the row of each response's last token, int64 [R]."""

    def to(self, device: torch.device | str) -> Self:
        """The same row on another device."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def pinned(self) -> Self:
        """The same row in memory from which copies to a GPU need no waiting."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        kept: dict[str, Any] = {name: value.pin_memory() for name, value in values if isinstance(value, Tensor)}
        return replace(self, **kept)


def pack(groups: Sequence[ResponseGroup], *, share: bool = True) -> PackedRow:
    """Lay groups out as one row.

    Args:
        groups: Prompts of at least one token, with their responses.
        share: Lay prompts out once; else once for each response. The order of responses is the same either way.
    """
    if not share:
        groups = [
            ResponseGroup(group.prompt_ids, (response,), (mask,)) for group in groups for response, mask in group.masked
        ]
    input_ids: list[int] = []
    position_ids: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    targets: list[int] = []
    ends: list[int] = []
    for group in groups:
        prompt, responses = group.prompt_ids, group.responses
        start, common = len(input_ids), common_prefix(responses)
        shared = len(prompt) + common
        segments.append(Segment(start, shared, tuple(len(response) - common for response in responses)))
        input_ids += (*prompt, *responses[0][:common])
        position_ids += range(shared)
        for response, mask in group.masked:
            first = len(input_ids)
            input_ids += response[common:]
            position_ids += range(shared, len(prompt) + len(response))
            before = [*range(start + len(prompt) - 1, start + shared), *range(first, len(input_ids) - 1)]
            counted = counted_places(mask, len(response))
            predictors += [before[place] for place in counted]
            targets += [response[place] for place in counted]
            ends.append(len(input_ids) - 1)
    return PackedRow(
        input_ids=torch.tensor([input_ids]),
        position_ids=torch.tensor([position_ids]),
        segments=SegmentTable(tuple(segments)),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        tokens=torch.tensor([tokens for group in groups for tokens in group.counted]),
        ends=torch.tensor(ends),
    )


def packed_length(group: ResponseGroup, *, share: bool = True) -> int:
    """Tokens a group takes in a row."""
    prompt, responses = group.prompt_ids, group.responses
    tokens = sum(map(len, responses))
    if not share:
        return len(prompt) * len(responses) + tokens
    return len(prompt) + tokens - (len(responses) - 1) * common_prefix(responses)


def common_prefix(responses: Sequence[Sequence[int]]) -> int:
    """First tokens that all responses have in common; each keeps at least one of its own. None for a single one."""
    if len(responses) == 1:
        return 0
    shortest = min(map(len, responses)) - 1
    first = responses[0]
    same = (all(other[place] == first[place] for other in responses[1:]) for place in range(shortest))
    return next((place for place, agree in enumerate(same) if not agree), shortest)


@lru_cache(maxsize=4)
def attention_blocks(table: SegmentTable, window: int | None = None) -> list[Block]:
    """The attention of a row in pieces; a block that is `merged` stands behind one of the same queries that is not.

    Args:
        table: Of the row.
        window: A token sees itself and the `window - 1` tokens before it; None for all before it.
    """
    return [block for segment in table.segments for block in _segment_blocks(segment, window)]


def _segment_blocks(segment: Segment, window: int | None) -> Iterable[Block]:
    start, shared, own = segment
    if window is not None and shared + max(own) > window:
        whole = slice(start, segment.end)
        return [Block(whole, whole, causal=False, merged=False, mask=segment_mask(segment, window))]
    if len(own) == 1:
        whole = slice(start, segment.end)
        return [Block(whole, whole, causal=True, merged=False)]
    first = start + shared
    prompt = slice(start, first)
    # All responses look at what they share in one go, then each at itself.
    blocks = [Block(prompt, prompt, causal=True, merged=False)]
    blocks.append(Block(slice(first, segment.end), prompt, causal=False, merged=False))
    for left, right in pairwise(accumulate(own, initial=first)):
        blocks.append(Block(slice(left, right), slice(left, right), causal=True, merged=True))
    return blocks


def segment_mask(segment: Segment, window: int | None = None) -> Tensor:
    """Which tokens of a segment each of them sees, bool [tokens, tokens]."""
    lengths = torch.tensor([segment.shared, *segment.own])
    branch = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    before_own = torch.tensor([0, *accumulate(segment.own[:-1], initial=0)])
    position = torch.arange(len(branch)) - before_own[branch]
    distance = position[:, None] - position[None, :]
    visible = ((branch[None, :] == 0) | (branch[None, :] == branch[:, None])) & (distance >= 0)
    return visible if window is None else visible & (distance < window)
