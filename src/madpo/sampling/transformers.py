"""Responses drawn with transformers: in slots where the model can, else with its own `generate`."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from madpo.data.tokenize import pad_id
from madpo.jobs.sampling import SamplingParameters
from madpo.models.memory import is_out_of_memory
from madpo.models.packed.capability import attention_refusal
from madpo.models.scores import inner_model
from madpo.sampling.engine import Draw, Response, turns
from madpo.sampling.noise import generator_of, perturbed
from madpo.sampling.padded import generate
from madpo.sampling.responses import end_ids, read_response
from madpo.sampling.room import rows_in_memory
from madpo.sampling.slots import Row, decode

logger = logging.getLogger(__name__)

_ROWS = {"cuda": 256}
_ROWS_ELSEWHERE = 64
_TURN = {"cuda": 4}
"""Responses of a turn over those at work. On a GPU a step takes as long for few rows as for many, so that waiting ones
begin where others ended; elsewhere a step costs what its rows do, and a kill costs a turn."""
_PROOF_PROMPTS, _PROOF_PROMPT_TOKENS, _PROOF_TOKENS = 3, 16, 4
_MOST_APART = {torch.float64: 1e-6, torch.float32: 1e-3}
_MOST_APART_IN_HALF = 0.1
"""Of the chances of the next token, in total variation: the share of draws that may come out otherwise."""


class TransformersEngine:
    """Runs the policy with transformers; implements `SamplingEngine`.

    Where memory runs out, the turn is drawn again with half as many responses at work, and so are those that follow.

    Args:
        model: In evaluation mode.
        tokenizer: The model's own.
        rows: Responses at work at a time; None for what memory has room for, at most 256 on a GPU and 64 elsewhere.
        check: Called before each token; it may raise to end the sampling.
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._tokenizer, self._rows, self._check = model, tokenizer, rows, check
        self._uses_slots: bool | None = None

    @cached_property
    def _ends(self) -> list[int]:
        return end_ids(self._tokenizer, inner_model(self._model).generation_config.eos_token_id)

    def sample(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParameters,
        *,
        temperature: float,
        drawn: Collection[Draw] = (),
    ) -> Iterator[list[Response]]:
        """See `SamplingEngine`."""
        if not prompts:
            return
        if self._uses_slots is None:
            self._uses_slots = self._prepare_slots(prompts)
        device = self._model.device
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        most = _ROWS.get(device.type, _ROWS_ELSEWHERE)
        rows = self._rows or rows_in_memory(self._model, tokens=longest, most=most)
        responses = rows * _TURN.get(device.type, 1)
        for turn in turns(prompts, sampling.samples_per_prompt, responses=responses, drawn=drawn):
            while (tokens := self._draw(prompts, turn, sampling, temperature, rows=rows)) is None:
                rows = max(1, rows // 2)
                logger.warning("memory ran out, sampling %d responses at a time", rows)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            yield [
                read_response(self._tokenizer, draw, prompts[draw.prompt_index], ids, self._ends)
                for draw, ids in zip(turn, tokens, strict=True)
            ]

    def _draw(
        self,
        prompts: Sequence[list[int]],
        turn: Sequence[Draw],
        sampling: SamplingParameters,
        temperature: float,
        *,
        rows: int,
    ) -> list[list[int]] | None:
        """What was drawn behind each prompt; None where memory ran out and fewer at a time may do."""
        way = self._draw_in_slots if self._uses_slots else self._draw_padded
        try:
            return way(prompts, turn, sampling, temperature, rows)
        except Exception as error:
            if not is_out_of_memory(error) or rows == 1:
                raise
            return None

    def _draw_in_slots(
        self,
        prompts: Sequence[list[int]],
        turn: Sequence[Draw],
        sampling: SamplingParameters,
        temperature: float,
        rows: int,
    ) -> list[list[int]]:
        def choose(logits: Tensor, at_work: Sequence[Row]) -> Tensor:
            if temperature == 0:
                return logits.float().argmax(dim=-1)
            return perturbed(logits, [row.generator for row in at_work], temperature=temperature).argmax(dim=-1)

        drawn = [
            Row(prompts[draw.prompt_index], generator_of(sampling.seed, draw, self._model.device)) for draw in turn
        ]
        decode(
            self._model,
            drawn,
            slots=rows,
            ends=self._ends,
            max_new_tokens=sampling.max_new_tokens,
            choose=choose,
            check=self._check,
        )
        return [row.response for row in drawn]

    def _draw_padded(
        self,
        prompts: Sequence[list[int]],
        turn: Sequence[Draw],
        sampling: SamplingParameters,
        temperature: float,
        rows: int,
    ) -> list[list[int]]:
        tokens: list[list[int]] = []
        for start in range(0, len(turn), rows):
            batch = turn[start : start + rows]
            tokens += generate(
                self._model,
                [prompts[draw.prompt_index] for draw in batch],
                [generator_of(sampling.seed, draw, self._model.device) for draw in batch],
                temperature=temperature,
                ends=self._ends,
                pad_id=pad_id(self._tokenizer),
                max_new_tokens=sampling.max_new_tokens,
                check=self._check,
            )
        return tokens

    def _prepare_slots(self, prompts: Sequence[list[int]]) -> bool:
        """Whether the model draws in slots, by its configuration and by proof."""
        inner = inner_model(self._model)
        if refusal := attention_refusal(inner):
            logger.info("sampling in padded batches: %s", refusal)
            return False
        before = inner.config._attn_implementation
        if refusal := _disproof(self._model, [prompt[-_PROOF_PROMPT_TOKENS:] for prompt in prompts[:_PROOF_PROMPTS]]):
            inner.set_attn_implementation(before)
            logger.warning("sampling in padded batches: %s %s", type(inner).__name__, refusal)
            return False
        return True


@torch.inference_mode()
def _disproof(model: Any, prompts: Sequence[list[int]]) -> str:
    """Why slots do not do for a model: its chances there of the next tokens are others; "" where they are the same."""
    seen: dict[int, list[Tensor]] = {}

    def likeliest(logits: Tensor, at_work: Sequence[Row]) -> Tensor:
        for row, of_row in zip(at_work, logits, strict=True):
            seen.setdefault(id(row), []).append(of_row)
        return logits.argmax(dim=-1)

    rows = [Row(prompt) for prompt in prompts for _ in range(2)]
    try:
        decode(model, rows, slots=3, ends=(), max_new_tokens=_PROOF_TOKENS, choose=likeliest)
    except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return f"cannot decode in slots: {error}"
    apart = 0.0
    for row in rows:
        input_ids = torch.tensor([[*row.prompt, *row.response[:-1]]], device=model.device)
        plain = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits[0]
        found, expected = (
            torch.softmax(logits.float(), dim=-1) for logits in (torch.stack(seen[id(row)]), plain[-_PROOF_TOKENS:])
        )
        apart = max(apart, float((found - expected).abs().sum(dim=-1).max() / 2))
    return (
        "" if apart <= _MOST_APART.get(model.dtype, _MOST_APART_IN_HALF) else f"draws otherwise in slots ({apart:.2g})"
    )
