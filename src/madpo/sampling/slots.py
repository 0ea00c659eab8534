"""Decoding in slots: a response that ends makes room for the next one, and nothing is padded on the left.

A slot is a row of every layer's keys and values, at the columns of their positions. A prompt goes through the model
once for all its samples, all but its last token; from there on a step draws one token for every slot at work. Where a
row ended, the last one takes its slot, and waiting responses begin behind them.

A model that is called with `slots=` reads and writes them in the attention function of transformers' interface, as with
packed rows (`madpo.models.packed.attention`); model code stays untouched, and no cache of transformers' is involved.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, AttentionMaskInterface

from madpo.models.packed.attention import UNKNOWN_OPTIONS, packed_attention, padding_mask
from madpo.models.scores import inner_model

NAME = "madpo_slots"

_PREFILL_POSITIONS = 8192
"""Of prompts that go through the model together, padding included."""
_REFILL = 8
"""New responses begin when one slot in so many is free: their prompts' forward pass keeps all others waiting."""


@dataclass(slots=True, eq=False)
class Row:
    """One response on its way."""

    prompt: Sequence[int]
    generator: torch.Generator = field(default_factory=torch.Generator)
    """Its random numbers."""
    response: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The token whose successor is drawn next."""
        return self.response[-1] if self.response else self.prompt[-1]

    @property
    def position(self) -> int:
        """Of the last token."""
        return len(self.prompt) + len(self.response) - 1


class Slots:
    """Keys and values of the responses at work.

    Args:
        rows: Responses at work at most.
        columns: Tokens of the longest, its prompt included.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, module: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [rows, groups, columns, size], made when first asked for."""
        if module.layer_idx not in self._layers:
            self._layers[module.layer_idx] = self._empty(key), self._empty(value)
        return self._layers[module.layer_idx]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3])

    def move(self, places: Sequence[tuple[int, int]], columns: int) -> None:
        """Copy the first columns of rows, given as (from, to)."""
        if places:
            sources, targets = map(list, zip(*places, strict=True))
            for tensors in self._layers.values():
                for tensor in tensors:
                    tensor[targets, :, :columns] = tensor[sources, :, :columns]


class _Pass(Protocol):
    """What a forward pass does with the slots."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """What the queries find [B, heads, T, size of values]."""
        ...


class _Prefill(_Pass):
    """Prompts [P, T], padded on the right, from the start; each is kept in the slots of all its samples."""

    def __init__(self, slots: Slots, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._slots, self._sources, self._targets = slots, list(sources), list(targets)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        length = key.shape[2]
        for kept, new in zip(self._slots.layer(module, key, value), (key, value), strict=True):
            kept[self._targets, :, :length] = new[self._sources]
        mask = None
        if window is not None and length > window:
            place = torch.arange(length, device=query.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance < window)
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )


class _Step(_Pass):
    """One token of each of the first slots."""

    def __init__(self, slots: Slots, positions: Sequence[int], device: torch.device) -> None:
        self._slots, self._width = slots, max(positions) + 1
        self.positions = torch.tensor(positions, device=device)
        self._rows = torch.arange(len(positions), device=device)
        self._seen = torch.arange(self._width, device=device) <= self.positions[:, None]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        count, heads, _, size = query.shape
        groups = key.shape[1]
        keys, values = self._slots.layer(module, key, value)
        keys[self._rows, :, self.positions], values[self._rows, :, self.positions] = key[:, :, 0], value[:, :, 0]
        keys, values = keys[:count, :, : self._width], values[:count, :, : self._width]
        seen = self._seen
        if window is not None and self._width > window:
            seen = seen & (torch.arange(self._width, device=query.device) > self.positions[:, None] - window)
        # The heads of a group are queries of one row: keys and values are read once, and never copied for each head.
        grouped = query.reshape(count, groups, heads // groups, size)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen[:, None, None], scale=scale)
        return attended.reshape(count, heads, 1, -1)


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slots: _Pass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of the interface; arguments as in `packed_attention`, which it is without `slots`.

    Raises:
        NotImplementedError: The layer asks for something that slots cannot do.
    """
    if slots is None:
        result: tuple[Tensor, None] = packed_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **options,
        )
        return result
    unknown = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention over slots has no {' or '.join(unknown) or 'attention mask'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = slots.attend(module, query, key, value, scale, sliding_window)
    return attended.transpose(1, 2).contiguous(), None


def use_slots(model: Any) -> None:
    """Have a transformers model use this attention from now on; its results on padded batches do not change."""
    AttentionInterface.register(NAME, slot_attention)
    AttentionMaskInterface.register(NAME, padding_mask)
    inner_model(model).set_attn_implementation(NAME)


Choose = Callable[[Tensor, Sequence[Row]], Tensor]
"""The next token [B] of rows, by their logits [B, V]."""


@torch.inference_mode()
def decode(
    model: Any,
    rows: Sequence[Row],
    *,
    slots: int,
    ends: Sequence[int],
    max_new_tokens: int,
    choose: Choose,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Draw the responses of all rows, each to one of the tokens that end it or to the limit.

    Args:
        model: In evaluation mode; it has this attention from now on.
        rows: Those of one prompt next to each other.
        slots: Rows at work at a time.
        ends: Tokens that end a response.
        max_new_tokens: Of a response.
        choose: Its next token.
        check: Called before each step; it may raise.
    """
    use_slots(model)
    waiting, active = deque(rows), list[Row]()
    columns = max(len(row.prompt) for row in rows) + max_new_tokens
    kept = Slots(min(slots, len(rows)), columns)
    while waiting or active:
        check()
        free = kept.rows - len(active)
        if waiting and free >= min(len(waiting), -(-kept.rows // _REFILL)):
            new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            _prefill(model, new, kept, first=len(active))
            active += new
        tokens = choose(_step(model, active, kept), active).tolist()
        for row, token in zip(active, tokens, strict=True):
            row.response.append(token)
        active = _without_ended(active, kept, ends=frozenset(ends), max_new_tokens=max_new_tokens)


def _prefill(model: Any, rows: Sequence[Row], kept: Slots, *, first: int) -> None:
    """Put the prompts of rows in their slots, all but the last token."""
    body = inner_model(model).base_model
    for prompts in _together(rows):
        width = len(prompts[0][0]) - 1
        if not width:
            continue
        ids = [[*prompt[:-1], *[prompt[-1]] * (width - len(prompt) + 1)] for prompt, _ in prompts]
        sources = [number for number, (_, places) in enumerate(prompts) for _ in places]
        targets = [first + place for _, places in prompts for place in places]
        input_ids = torch.tensor(ids, device=model.device)
        position_ids = torch.arange(width, device=model.device).expand_as(input_ids)
        body(input_ids=input_ids, position_ids=position_ids, use_cache=False, slots=_Prefill(kept, sources, targets))


def _together(rows: Sequence[Row]) -> Iterator[list[tuple[Sequence[int], list[int]]]]:
    """Prompts with the places of their rows, the longest first, as many as go through the model together."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(id(row.prompt), []).append(place)
    prompts = sorted(((rows[each[0]].prompt, each) for each in places.values()), key=lambda each: -len(each[0]))
    while prompts:
        count = max(1, _PREFILL_POSITIONS // len(prompts[0][0]))
        yield prompts[:count]
        prompts = prompts[count:]


def _step(model: Any, active: Sequence[Row], kept: Slots) -> Tensor:
    """Logits [B, V] of what follows each row."""
    step = _Step(kept, [row.position for row in active], model.device)
    input_ids = torch.tensor([[row.last] for row in active], device=model.device)
    logits: Tensor = model(
        input_ids=input_ids, position_ids=step.positions[:, None], use_cache=False, slots=step
    ).logits
    return logits[:, -1]


def _without_ended(active: list[Row], kept: Slots, *, ends: frozenset[int], max_new_tokens: int) -> list[Row]:
    """Rows that go on, in the first slots."""
    going = [row.response[-1] not in ends and len(row.response) < max_new_tokens for row in active]
    count = sum(going)
    holes = [place for place in range(count) if not going[place]]
    movers = [place for place in range(count, len(active)) if going[place]]
    kept.move(list(zip(movers, holes, strict=True)), max((active[place].position for place in movers), default=0))
    for source, target in zip(movers, holes, strict=True):
        active[target] = active[source]
    return active[:count]
