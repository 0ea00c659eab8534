"""Responses drawn from a policy's own distribution, with randomness that depends on nothing but the seed."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from madpo.data.tokenize import Encoded, encode_prompt, pad_id
from madpo.data.turn_end import turn_end_id
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.jobs.sampling import SamplingParameters
from madpo.model_files.context_limit import context_limit
from madpo.sampling.engine import Response
from madpo.types import PromptOnly


class TransformersEngine:
    """Runs the policy with transformers' own `generate`; implements `SamplingEngine`.

    Args:
        model: In evaluation mode.
        tokenizer: The model's own.
        batch_size: Sequences per batch.
        check: Called before each token; it may raise to end the sampling.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._tokenizer, self._batch_size, self._check = model, tokenizer, batch_size, check

    def encode(self, prompts: Sequence[PromptOnly], *, max_new_tokens: int) -> list[list[int] | None]:
        """See `encode_prompts`."""
        limit = context_limit(self._model.config.to_dict())
        return encode_prompts(self._tokenizer, prompts, limit=limit, max_new_tokens=max_new_tokens)

    def sample(
        self, prompts: Sequence[list[int]], sampling: SamplingParameters, *, temperature: float, first: int = 0
    ) -> Iterator[Sequence[Response]]:
        """See `generate`."""
        return generate(
            self._model,
            self._tokenizer,
            prompts,
            sampling=sampling,
            temperature=temperature,
            batch_size=self._batch_size,
            first=first,
            check=self._check,
        )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[PromptOnly], *, limit: int | None, max_new_tokens: int
) -> list[list[int] | None]:
    """Token ids of every prompt, None where it leaves no room for `max_new_tokens` within `limit`.

    Chat prompts are rendered with the tokenizer's template.

    Raises:
        InvalidPairError: The chat template refuses a prompt; names its row.
        InvalidArgumentError: A prompt is a chat and the tokenizer has no template; or none leaves room.
    """
    encoded = [_encode(tokenizer, asked) for asked in prompts]
    room = sys.maxsize if limit is None else limit - max_new_tokens
    if encoded and min(map(len, encoded)) > room:
        raise InvalidArgumentError(
            f"the shortest prompt has {min(map(len, encoded))} tokens; with max_new_tokens={max_new_tokens} every one "
            f"exceeds the {limit} tokens that the model can read (lower sampling.max_new_tokens)"
        )
    return [ids if len(ids) <= room else None for ids in encoded]


def _encode(tokenizer: PreTrainedTokenizerBase, asked: PromptOnly) -> list[int]:
    try:
        return encode_prompt(tokenizer, asked.prompt, asked.options)
    except InvalidPairError as error:
        raise InvalidPairError.in_field(f"row {asked.row}" if asked.row else "prompt", str(error)) from error


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    sampling: SamplingParameters,
    temperature: float,
    batch_size: int,
    first: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Iterator[list[Response]]:
    """Draw `samples_per_prompt` responses to every prompt, batch by batch, in the order of prompts, then samples.

    The whole vocabulary is sampled: defaults the model brings along (top-k, repetition penalty) are not used. A token
    is the argmax of `logits / temperature + Gumbel noise`, the noise being a function of (seed, prompt, sample,
    position) alone. So an evaluation can be repeated, whatever its batch size (up to rounding), and two policies that
    answer the same prompts share their random numbers, which makes paired comparisons sharp.

    Args:
        model: In evaluation mode.
        tokenizer: The model's own.
        prompts: Token ids from `encode_prompts`.
        sampling: Seed, samples per prompt and token limit; its `temperatures` are not looked at.
        temperature: Divisor of the logits; 0 takes the likeliest token each time.
        batch_size: Sequences per batch.
        first: Responses of the first batches, which were drawn before and are left out.
        check: Called before each token; it may raise to end the sampling.
    """
    rows = [(index, sample) for index in range(len(prompts)) for sample in range(sampling.samples_per_prompt)]
    config = _plain_generation(model, tokenizer)
    for start in range(first, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        seeds = [np.random.SeedSequence((sampling.seed, *row)) for row in batch]
        draw: LogitsProcessor = _Greedy(check)
        if temperature > 0:
            draw = _SeededDraw(seeds, temperature=temperature, device=model.device, check=check)
        tokens = _continue(
            model, [prompts[index] for index, _ in batch], config, draw, max_new_tokens=sampling.max_new_tokens
        )
        yield [
            _response(tokenizer, row, prompts[row[0]], ids, config.eos_token_id)
            for row, ids in zip(batch, tokens.tolist(), strict=True)
        ]


class _SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy search into sampling: the argmax of its output is a draw from softmax(logits / temperature)."""

    def __init__(
        self,
        seeds: Sequence[np.random.SeedSequence],
        *,
        temperature: float,
        device: torch.device,
        check: Callable[[], None],
    ) -> None:
        self._temperature, self._check = temperature, check
        self._generators = [
            torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0])) for seed in seeds
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check()
        exponential = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(exponential, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self._temperature - exponential.log()


class _Greedy(LogitsProcessor):  # type: ignore[misc]
    """Leaves the likeliest token the likeliest."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._check()
        return scores.float()


def _plain_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Make the model generate without its own defaults, apart from the tokens that end a response.

    A chat model may end its turns with other tokens than the tokenizer's EOS: those that its settings name, and the one
    of its template, with which it was trained.
    """
    configured = model.generation_config.eos_token_id
    extra = configured if isinstance(configured, list) else [configured]
    ends = sorted(
        {int(token) for token in (tokenizer.eos_token_id, turn_end_id(tokenizer), *extra) if token is not None}
    )
    config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad_id(tokenizer))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # `generate` fills whatever a given configuration leaves open from the model's own, so that one is replaced.
    inner.generation_config = config
    return config


@torch.inference_mode()
def _continue(
    model: Any, prompts: list[list[int]], config: GenerationConfig, draw: LogitsProcessor, *, max_new_tokens: int
) -> Tensor:
    """New tokens [B, at most max_new_tokens]; rows that ended are filled with padding."""
    width = max(map(len, prompts))
    padding = [width - len(ids) for ids in prompts]
    input_ids = torch.tensor([[config.pad_token_id] * pad + ids for pad, ids in zip(padding, prompts, strict=True)])
    attention_mask = torch.arange(width) >= torch.tensor(padding)[:, None]
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.long().to(model.device),
        max_new_tokens=max_new_tokens,
        logits_processor=LogitsProcessorList([draw]),
    )
    tokens: Tensor = output[:, width:]
    return tokens.cpu()


def _response(
    tokenizer: PreTrainedTokenizerBase, row: tuple[int, int], prompt: list[int], ids: list[int], eos_ids: list[int]
) -> Response:
    end = next((position for position, token in enumerate(ids) if token in eos_ids), None)
    response_ids = ids if end is None else ids[: end + 1]
    text = tokenizer.decode(response_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Response(*row, Encoded(prompt, response_ids), str(text), finished=end is not None)
