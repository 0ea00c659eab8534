"""How token ids become forward passes whose bits do not depend on what else is being scored.

Floating-point sums change with the shape of what is summed, so a text must always be computed in the same shapes. Where
single texts keep the device busy (a CPU), each is computed alone at its own length, and `SharedPrompts` computes a
prompt once for all its responses. Where they do not (a GPU, a tiny model), `PaddedRows` fills batches of fixed shape;
`madpo_reward.packed` gives the bits up and pads nothing.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from madpo.models.packed.capability import BATCH_DEPENDENT_ROPE, rope_types
from madpo.models.scores import head_scores, inner_model, reads_last_token, reward_scores
from madpo_reward.batcher import BatchShape, Unit
from madpo_reward.encoding import Tokens

_BATCH_POSITIONS = 512
"""Of a batch of texts that are computed one by one anyway: enough to hide the way to the device's thread and back."""

_LADDER = (32, *(width for power in range(6, 30) for width in (1 << power, 3 << power - 1)))


class Layout(Protocol):
    """Cuts texts into units, and scores units."""

    name: str
    """Part of the revision."""
    max_tokens: int
    """Longest text that is scored whole."""
    keeps_bits: bool
    """Scores do not depend on the company to the last bit; else to a tolerance."""
    prepares_ahead: bool
    """A batch is prepared while the former one is computed."""

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """What is computed together of these texts; decides their shapes."""
        ...

    def prepare(self, units: Sequence[Unit[Tokens]]) -> Callable[[], list[list[float]]]:
        """What gives the raw logits of each unit's texts; the units have one shape and fit into one batch."""
        ...

    def shrink(self) -> bool:
        """Take half as much at a time from now on, since memory ran out; whether that can be."""
        ...


class _ExactLayout:
    """A layout whose batches need no preparation, and whose shapes are part of its bits."""

    keeps_bits = True
    prepares_ahead = False

    def forward(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        """Raw logits of each unit's texts."""
        raise NotImplementedError

    def prepare(self, units: Sequence[Unit[Tokens]]) -> Callable[[], list[list[float]]]:
        """See `Layout`."""
        return partial(self.forward, units)

    def shrink(self) -> bool:
        """See `Layout`."""
        return False


class WholeTexts(_ExactLayout):
    """Each text alone, unpadded.

    Args:
        model: Of `load_reward_model`.
        max_tokens: Longest text.
    """

    name = "whole"

    def __init__(self, model: Any, *, max_tokens: int) -> None:
        self._model, self.max_tokens = model, max_tokens

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """One unit per text."""
        return [
            Unit((place,), (text,), shape=BatchShape(None, _BATCH_POSITIONS), tokens=len(text), positions=len(text))
            for place, text in enumerate(texts)
        ]

    @torch.inference_mode()
    def forward(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        """One forward pass per text."""
        return [[self._score(text) for text in unit.texts] for unit in units]

    def _score(self, text: Tokens) -> float:
        input_ids = _row(text.ids, self._model.device)
        return float(reward_scores(self._model, input_ids, torch.ones_like(input_ids)))


class SharedPrompts(_ExactLayout):
    """Each prompt once, then each of its responses alone after it, through the model's own key-value cache.

    Also a single response comes in two passes, so that its score does not depend on whether others share its prompt.

    Args:
        model: Of `load_reward_model`; `may_share_prompts` holds.
        max_tokens: Longest text.
    """

    name = "shared"

    def __init__(self, model: Any, *, max_tokens: int) -> None:
        self._model, self.max_tokens = model, max_tokens
        self._body = inner_model(model).base_model

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """One unit per prompt."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text.prompt, []).append(place)
        units = []
        for prompt, group in places.items():
            tokens = len(prompt) + sum(len(texts[place].response) for place in group)
            shape = BatchShape(None, _BATCH_POSITIONS)
            members = tuple(texts[place] for place in group)
            units.append(Unit(tuple(group), members, shape=shape, tokens=tokens, positions=tokens))
        return units

    @torch.inference_mode()
    def forward(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        """One forward pass per prompt and one per response."""
        return [self._score(unit.texts) for unit in units]

    def _score(self, texts: Sequence[Tokens]) -> list[float]:
        after_prompt = DynamicCache(config=self._body.config)
        if prompt := texts[0].prompt:
            self._body(input_ids=_row(prompt, self._model.device), past_key_values=after_prompt, use_cache=True)
        ends = [self._last_hidden(text.response, _branch(after_prompt)) for text in texts]
        return [float(head_scores(self._model, end)) for end in ends]

    def _last_hidden(self, response: Sequence[int], cache: DynamicCache) -> Tensor:
        output = self._body(input_ids=_row(response, self._model.device), past_key_values=cache, use_cache=True)
        last: Tensor = output.last_hidden_state[:, -1]
        return last


class PaddedRows(_ExactLayout):
    """Batches of fixed shape: a text's length picks a width from a ladder, the width picks the number of rows.

    Rows nobody waits for are filled with dummies, so a row always has the same company in shape.

    Args:
        model: Of `load_reward_model`.
        pad_id: What to pad with.
        max_width: Of the widest row.
        batch_positions: Of one forward pass, padding included.
    """

    def __init__(self, model: Any, *, pad_id: int, max_width: int, batch_positions: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._batch_positions = batch_positions
        self._widths = batch_widths(max_width)
        # One column always stays padding: a batch without any would go to another attention kernel, with other bits.
        self.max_tokens = max_width - 1
        self.name = f"padded to {batch_positions} positions in widths {self._widths}"

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """One unit per text."""
        units = []
        for place, text in enumerate(texts):
            width, rows = self._size(len(text))
            shape = BatchShape(width, width * rows)
            units.append(Unit((place,), (text,), shape=shape, tokens=len(text), positions=width))
        return units

    @torch.inference_mode()
    def forward(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        """One forward pass for all."""
        shape = units[0].shape
        assert shape.width is not None
        input_ids = torch.full((shape.positions // shape.width, shape.width), self._pad_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        attention_mask[:, 0] = 1  # a dummy row attends to something: an empty one would be NaN
        for row, unit in enumerate(units):
            ids = unit.texts[0].ids
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        rewards = reward_scores(self._model, input_ids.to(self._model.device), attention_mask.to(self._model.device))
        return [[reward] for reward in rewards[: len(units)].tolist()]

    def _size(self, tokens: int) -> tuple[int, int]:
        """Width and rows of the one shape that texts of this length are scored in."""
        width = next(width for width in self._widths if width > tokens)
        rows = self._batch_positions // width
        # Matrix-vector kernels (a head with one label) treat rows past a multiple of four in another way.
        return width, rows - rows % 4 or 1


def may_share_prompts(model: Any) -> bool:
    """Whether responses may go on from the model's cache of their prompt; that they do so rightly is for a check."""
    config = model.config
    if not reads_last_token(model) or getattr(config, "is_encoder_decoder", False):
        return False
    if rope_types(config.get_text_config()) & BATCH_DEPENDENT_ROPE:
        return False  # a long text's positions differ from those its prompt had alone
    # Layers of other kinds (recurrent, linear attention) change in place what a branch shares with its trunk.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


def batch_widths(limit: int) -> tuple[int, ...]:
    """Widths of batches: 32, 64, 96, 128, 192, 256, 384, 512, ... below the limit, then the limit itself."""
    return (*itertools.takewhile(lambda width: width < limit, _LADDER), limit)


def _branch(cache: DynamicCache) -> DynamicCache:
    """A cache that goes on from this one and leaves it as it is: layers grow by replacing their tensors."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _row(ids: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([ids], device=device)
