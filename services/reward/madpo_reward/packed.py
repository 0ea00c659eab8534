"""Packed rows: many prompts with all their responses in one row, through variable-length attention on a GPU.

Nothing is padded and no prompt is computed twice. What is summed together depends on the company, so that scores agree
to a tolerance and not to the bit; a revision of this layout is never that of another one.

All but the kernel is tested on the CPU. Not yet seen on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.layout import PackedRow, pack, packed_length
from madpo.models.packed.logps import hidden_states
from madpo.models.packed.varlen import varlen_index, varlen_refusal
from madpo.models.scores import head_scores, inner_model
from madpo_reward.batcher import BatchShape, Unit
from madpo_reward.encoding import Tokens

_POSITIONS = 16_384
"""Of one forward pass, until memory runs out in one."""
_LEAST_POSITIONS = 512


class PackedRows:
    """Rows of prompts with their responses.

    Args:
        model: Of `load_reward_model`; `packed_refusal` has nothing against it.
        max_tokens: Longest text.
    """

    name = "packed, to a tolerance"
    keeps_bits = False
    prepares_ahead = True

    def __init__(self, model: Any, *, max_tokens: int) -> None:
        self._model, self.max_tokens = model, max_tokens
        self._positions = _POSITIONS

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """One unit per prompt; several where its responses are more than go into a row."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(texts):
            # Texts without a prompt share nothing; each stands for itself.
            places.setdefault(text.prompt or (-1, place), []).append(place)
        return [unit for group in places.values() for unit in self._units(texts, group)]

    def _units(self, texts: Sequence[Tokens], group: Sequence[int]) -> list[Unit[Tokens]]:
        parts: list[list[int]] = [[]]
        taken = prompt = len(texts[group[0]].prompt)
        for place in group:
            tokens = len(texts[place].response)
            if parts[-1] and taken + tokens > self._positions:
                parts.append([])
                taken = prompt
            parts[-1].append(place)
            taken += tokens
        units = []
        for part in parts:
            members = tuple(texts[place] for place in part)
            tokens = packed_length(_group(members))
            shape = BatchShape(None, self._positions)
            units.append(Unit(tuple(part), members, shape=shape, tokens=tokens, positions=tokens))
        return units

    def prepare(self, units: Sequence[Unit[Tokens]]) -> Callable[[], list[list[float]]]:
        """The row on the device, or on its way there; what is called with it computes it."""
        row = self.row(units)
        counts = [len(unit.texts) for unit in units]
        return lambda: self._read(row, counts)

    def row(self, units: Sequence[Unit[Tokens]]) -> PackedRow:
        """Units as one row on the model's device, and what its attention needs to know of it."""
        device = self._model.device
        row = pack([_group(unit.texts) for unit in units])
        if device.type == "cuda" and torch.cuda.is_available():
            row = row.pinned()
        varlen_index(row.segments, device)
        return row.to(device)

    @torch.inference_mode()
    def scores(self, row: PackedRow) -> Tensor:
        """Rewards [R] of all responses of a row."""
        hidden = hidden_states(inner_model(self._model), row)
        return head_scores(self._model, hidden.index_select(0, row.ends))

    def _read(self, row: PackedRow, counts: Sequence[int]) -> list[list[float]]:
        scores = iter(self.scores(row).tolist())
        return [[next(scores) for _ in range(count)] for count in counts]

    def shrink(self) -> bool:
        """Take half as many positions at a time from now on; whether that can be."""
        if self._positions <= _LEAST_POSITIONS:
            return False
        self._positions //= 2
        return True


def _group(texts: Sequence[Tokens]) -> ResponseGroup:
    """Texts of one prompt. Of a text without one, its first token is the prompt: a row needs one."""
    if prompt := texts[0].prompt:
        return ResponseGroup(prompt, tuple(text.response for text in texts))
    (text,) = texts
    return ResponseGroup(text.response[:1], (text.response[1:],))


def packed_refusal(model: Any) -> str:
    """Why packed rows are not for a model where it is; "" where they are, and then it has their attention."""
    config = inner_model(model).config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if refusal := varlen_refusal(model.device, model.dtype, size):
        return refusal
    layout = prepare_layout(model, needs_head=False)
    return "" if layout.name == "packed" else layout.reason
