"""Batches of padded rows through transformers' own `generate`: for every model that has it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from madpo.models.scores import inner_model
from madpo.sampling.noise import perturbed


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    generators: Sequence[torch.Generator],
    *,
    temperature: float,
    ends: list[int],
    pad_id: int,
    max_new_tokens: int,
    check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """New tokens behind every prompt; what follows the end of a response is padding.

    Args:
        model: In evaluation mode.
        prompts: Token ids.
        generators: Random numbers of each response; not looked at where the temperature is 0.
        temperature: Divisor of the logits; 0 takes the likeliest token each time.
        ends: Tokens that end a response.
        pad_id: What to pad with.
        max_new_tokens: Of a response.
        check: Called before each token; it may raise.
    """
    # `generate` fills whatever a given configuration leaves open from the model's own, so that one is replaced.
    inner_model(model).generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad_id)
    width = max(map(len, prompts))
    padding = [width - len(ids) for ids in prompts]
    input_ids = torch.tensor([[pad_id] * pad + ids for pad, ids in zip(padding, prompts, strict=True)])
    attention_mask = torch.arange(width) >= torch.tensor(padding)[:, None]
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.long().to(model.device),
        max_new_tokens=max_new_tokens,
        logits_processor=LogitsProcessorList([_Draw(generators, temperature, check)]),
    )
    tokens: list[list[int]] = output[:, width:].tolist()
    return tokens


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy search into sampling: the argmax of its output is the draw."""

    def __init__(self, generators: Sequence[torch.Generator], temperature: float, check: Callable[[], None]) -> None:
        self._generators, self._temperature, self._check = generators, temperature, check

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check()
        if self._temperature == 0:
            return scores.float()
        return perturbed(scores, self._generators, temperature=self._temperature)
