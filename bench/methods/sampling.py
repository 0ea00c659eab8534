"""Sampling responses with common random numbers, and what they are worth.

Policies that are compared draw with the same Gumbel noise for the same prompt and place, so that differences between
their rewards are not sampling noise as long as the policies agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention

from bench.methods.llama import Shape, Weights, after_attention, attention_inputs, logits, normalise, rotations


@dataclass(frozen=True, slots=True)
class Samples:
    """Prompts with their responses, right-padded."""

    rows: Tensor
    """[B, T]."""
    lengths: Tensor
    """Tokens of each row, [B]."""
    finished: Tensor
    """Whether the row ends in <eos>, [B]."""


@torch.no_grad()
def sample(
    weights: Weights,
    prompts: Tensor,
    shape: Shape,
    *,
    seed: int,
    max_tokens: int,
    eos: int,
    banned: tuple[int, ...],
) -> Samples:
    """One response to each prompt, at temperature 1.

    Args:
        weights: Of the policy.
        prompts: [B, P], all of the same length.
        shape: Of the model.
        seed: Of the noise; row b at place t meets the same noise whatever the policy.
        max_tokens: Prompt and response together.
        eos: Ends a response.
        banned: Tokens that are never drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    count, start = prompts.shape
    rows = torch.zeros(count, max_tokens, dtype=torch.int64)
    rows[:, :start] = prompts
    lengths = torch.full((count,), start)
    finished = torch.zeros(count, dtype=torch.bool)
    active = torch.arange(count)
    decoder = _Decoder(weights, shape, count, max_tokens)
    scores = decoder.read(prompts)
    for place in range(start, max_tokens):
        scores[:, list(banned)] = float("-inf")
        noise = torch.empty(count, scores.shape[1]).exponential_(generator=generator)
        tokens = (scores - noise[active].log_()).argmax(-1)
        rows[active, place] = tokens
        lengths[active] += 1
        going_on = tokens != eos
        finished[active[~going_on]] = True
        if not going_on.any() or place == max_tokens - 1:
            break
        if not going_on.all():
            active, tokens = active[going_on], tokens[going_on]
            decoder.keep(going_on)
        scores = decoder.read(tokens[:, None])
    return Samples(rows[:, : int(lengths.max())], lengths, finished)


class _Decoder:
    """Keys and values of what was read so far."""

    def __init__(self, weights: Weights, shape: Shape, rows: int, max_tokens: int) -> None:
        self._weights, self._shape, self._place = weights, shape, 0
        self._rotations = rotations(shape, max_tokens)
        self._head = weights["embedding"] * weights["norm"]
        size = (shape.layers, 2, rows, shape.heads, max_tokens, shape.head_size)
        self._cache = torch.empty(size)

    def read(self, tokens: Tensor) -> Tensor:
        """Next-token logits [B, V] behind [B, T] more tokens."""
        shape, end = self._shape, self._place + tokens.shape[1]
        hidden = embedding(tokens, self._weights["embedding"])
        for layer in range(shape.layers):
            q, k, v = attention_inputs(self._weights, layer, hidden, self._rotations[self._place : end], shape)
            keys, values = self._cache[layer]
            keys[:, :, self._place : end], values[:, :, self._place : end] = k, v
            mixed = scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=tokens.shape[1] > 1)
            hidden = after_attention(self._weights, layer, hidden, mixed, shape)
        self._place = end
        return linear(normalise(hidden[:, -1], shape), self._head)

    def keep(self, rows: Tensor) -> None:
        """Forget the other rows."""
        self._cache = self._cache[:, :, rows]


@torch.no_grad()
def exact_kl(
    weights: Weights, reference: Weights, samples: Samples, shape: Shape, *, prompt_tokens: int, group: int = 64
) -> Tensor:
    """KL to the reference of each response in nats, [B]: summed over the whole vocabulary, given each sampled prefix.

    Its mean over samples is an unbiased estimate of the policies' KL, without the heavy tail of the log-ratio.
    """
    order = samples.lengths.argsort(stable=True)
    parts = []
    for members in order.split(group):
        lengths = samples.lengths[members]
        rows = samples.rows[members, : int(lengths.max()) - 1]
        own, other = (
            logits(each, rows, shape, start=prompt_tokens - 1).log_softmax(-1) for each in (weights, reference)
        )
        divergence = (own.exp() * (own - other)).sum(-1)
        inside = torch.arange(prompt_tokens, rows.shape[1] + 1) < lengths[:, None]
        parts.append((divergence * inside).sum(1))
    return torch.cat(parts)[order.argsort()]
