"""The toy reviews' Llama as a function of its weights, for CPUs: a training step in well under half of the time.

The same function as `transformers.LlamaForCausalLM`, to rounding. Rotary embeddings are complex products (the rows of
the query and key projections are permuted for that), the gain of a norm is folded into the projections behind it, and
sampling keeps its own key-value cache. Rows are right-padded, so a causal mask suffices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, scaled_dot_product_attention, silu
from transformers import LlamaConfig, LlamaForCausalLM

Weights = dict[str, Tensor]

_ATTENTION = ("q", "k", "v", "o")
_MLP = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class Shape:
    """What the weights do not say themselves."""

    layers: int
    heads: int
    head_size: int
    epsilon: float
    rope_theta: float

    @classmethod
    def of(cls, config: LlamaConfig) -> "Shape":
        """The shape of a model."""
        assert config.num_key_value_heads == config.num_attention_heads, "grouped queries are not built"
        return cls(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            config.rms_norm_eps,
            config.rope_parameters["rope_theta"],
        )


def from_transformers(model: LlamaForCausalLM) -> Weights:
    """Copies of a model's weights, queries and keys with the two halves of each head interleaved."""
    state = model.state_dict()
    shape = Shape.of(model.config)
    weights = {"embedding": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name in _ATTENTION:
            value = state[f"{prefix}self_attn.{name}_proj.weight"]
            weights[f"{layer}.{name}"] = _interleave(value, shape) if name in "qk" else value
        for name in _MLP:
            weights[f"{layer}.{name}"] = state[f"{prefix}mlp.{name}_proj.weight"]
        weights[f"{layer}.attention_norm"] = state[f"{prefix}input_layernorm.weight"]
        weights[f"{layer}.mlp_norm"] = state[f"{prefix}post_attention_layernorm.weight"]
    return {name: value.detach().clone().contiguous() for name, value in weights.items()}


def _interleave(rows: Tensor, shape: Shape) -> Tensor:
    halves = rows.view(shape.heads, 2, shape.head_size // 2, -1)
    return halves.transpose(1, 2).reshape(rows.shape)


def copy(weights: Mapping[str, Tensor]) -> Weights:
    """Trainable copies."""
    return {name: value.detach().clone().requires_grad_() for name, value in weights.items()}


def rotations(shape: Shape, length: int) -> Tensor:
    """exp(i * position * frequency), complex [length, 1, head_size / 2]."""
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    angles = torch.arange(length, dtype=torch.float32)[:, None] / shape.rope_theta**exponents
    return torch.polar(torch.ones_like(angles), angles)[:, None]


class _Normalise(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) over the last dimension, in fewer passes than autograd's own derivative takes."""

    @staticmethod
    def forward(ctx, x, epsilon):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normalised = x * scale
        ctx.save_for_backward(normalised, scale)
        return normalised

    @staticmethod
    def backward(ctx, gradient):
        normalised, scale = ctx.saved_tensors
        along = (gradient * normalised).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normalised, along, value=-1).mul_(scale), None


def normalise(x: Tensor, shape: Shape) -> Tensor:
    """The norm without its gain."""
    return _Normalise.apply(x, shape.epsilon)


def _rotate(x: Tensor, rotation: Tensor, shape: Shape) -> Tensor:
    """Heads of [B, T, d] turned by their positions, [B, heads, T, head_size]."""
    pairs = torch.view_as_complex(x.view(*x.shape[:2], shape.heads, shape.head_size // 2, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).transpose(1, 2)


def attention_inputs(
    weights: Weights, layer: int, hidden: Tensor, rotation: Tensor, shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [B, heads, T, head_size]."""
    normalised = normalise(hidden, shape)
    gain = weights[f"{layer}.attention_norm"]
    q, k, v = (linear(normalised, weights[f"{layer}.{name}"] * gain) for name in "qkv")
    values = v.view(*v.shape[:2], shape.heads, shape.head_size).transpose(1, 2)
    return _rotate(q, rotation, shape), _rotate(k, rotation, shape), values


def after_attention(weights: Weights, layer: int, hidden: Tensor, mixed: Tensor, shape: Shape) -> Tensor:
    """The rest of a layer, given what attention mixed."""
    hidden = hidden + linear(mixed.transpose(1, 2).flatten(-2), weights[f"{layer}.o"])
    normalised, gain = normalise(hidden, shape), weights[f"{layer}.mlp_norm"]
    gate = linear(normalised, weights[f"{layer}.gate"] * gain)
    up = linear(normalised, weights[f"{layer}.up"] * gain)
    return hidden + linear(silu(gate) * up, weights[f"{layer}.down"])


def hidden_states(weights: Weights, input_ids: Tensor, shape: Shape) -> Tensor:
    """Normalised last hidden states without their gain, [B, T, d]."""
    hidden = embedding(input_ids, weights["embedding"])
    rotation = rotations(shape, input_ids.shape[1])
    for layer in range(shape.layers):
        q, k, v = attention_inputs(weights, layer, hidden, rotation, shape)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = after_attention(weights, layer, hidden, mixed, shape)
    return normalise(hidden, shape)


def logits(weights: Weights, input_ids: Tensor, shape: Shape, *, start: int = 0) -> Tensor:
    """Next-token logits [B, T - start, V], from position `start` on."""
    return linear(hidden_states(weights, input_ids, shape)[:, start:], weights["embedding"] * weights["norm"])


def response_logps(weights: Weights, rows: Tensor, lengths: Tensor, shape: Shape, *, prompt_tokens: int) -> Tensor:
    """Summed log-probs of the tokens behind the prompt, in nats, [B].

    Args:
        rows: [B, T], right-padded; nothing behind `lengths` is read.
        lengths: Tokens of each row, [B].
        prompt_tokens: Of every row.
    """
    rows = rows[:, : int(lengths.max())]
    targets = rows[:, prompt_tokens:].masked_fill(torch.arange(prompt_tokens, rows.shape[1]) >= lengths[:, None], -100)
    scores = logits(weights, rows[:, :-1], shape, start=prompt_tokens - 1)
    nll = cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    return -nll.view(targets.shape).sum(1)


def grouped_response_logps(
    weights: Weights, rows: Tensor, lengths: Tensor, shape: Shape, *, prompt_tokens: int, group: int = 16
) -> Tensor:
    """`response_logps` in groups of rows of like length: less padding, and activations that stay in the cache."""
    order = lengths.argsort(stable=True)
    parts = [
        response_logps(weights, rows[members], lengths[members], shape, prompt_tokens=prompt_tokens)
        for members in order.split(group)
    ]
    return torch.cat(parts)[order.argsort()]
