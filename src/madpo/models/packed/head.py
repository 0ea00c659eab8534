"""Log-probs of single tokens from hidden states, without ever holding [tokens, vocabulary].

The head runs over chunks of tokens. The backward pass computes the logits of a chunk again, except for the first
chunks, whose probabilities fit in a fixed budget. A head that is not trained needs no second look: its forward pass
leaves the gradient of every log-prob by its hidden state, W[y] - p W.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 << 20
"""Logits of one chunk, at most, unless a single token has more."""
KEPT_BYTES = 64 << 20
"""Probabilities kept for the backward pass instead of being computed twice, at most."""


class Head(NamedTuple):
    """How a causal language model turns hidden states into logits."""

    weight: Tensor
    """[V, hidden size]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    """What logits are multiplied by."""
    softcap: float | None = None
    """The limit that scaled logits approach, by tanh."""


def head_of(model: Any) -> Head | None:
    """The head of a transformers causal language model; None where it is not one linear layer."""
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return Head(linear.weight, linear.bias, scale / divisor, getattr(config, "final_logit_softcapping", None))


def token_logps(head: Head, hidden: Tensor, targets: Tensor, *, vocabulary: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probs of tokens, in float32 or better, with gradient to `hidden` and to the head's weights.

    Args:
        head: Of the model.
        hidden: States that predict the tokens, [N, hidden size].
        targets: The tokens, int64 [N].
        vocabulary: Give the second result.

    Returns:
        Log-probs [N]; and the log of the sum over the vocabulary of squared probabilities [N], without gradient, or
        nothing [0].
    """
    results: tuple[Tensor, Tensor] = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, _Computation(head, hidden, vocabulary=vocabulary)
    )
    return results


def working_bytes(head: Head, tokens: int) -> int:
    """What log-probs and their backward pass take at one time beside hidden states, under the present autocast.

    Args:
        head: Of the model, as it is trained.
        tokens: Whose log-probs, or more: beyond a chunk and what is kept, more tokens take no more.
    """
    this = _Computation(head, head.weight, vocabulary=False)
    vocabulary, width = head.weight.shape
    wide, narrow = this.sum_dtype.itemsize, 0 if this.dtype == this.sum_dtype else this.dtype.itemsize
    size = max(1, min(tokens, CHUNK_BYTES // (vocabulary * wide)))
    copy = 0 if this.dtype == head.weight.dtype else this.dtype.itemsize * head.weight.numel()
    one_chunk = (wide + 2 * narrow) * size * vocabulary
    if not head.weight.requires_grad:
        return one_chunk + copy
    kept = min(-(-tokens // size), KEPT_BYTES // (wide * size * vocabulary)) + (0 if narrow else 1)
    return one_chunk + copy + kept * wide * size * vocabulary + (wide + narrow) * vocabulary * width


class _Computation:
    """What does not change from chunk to chunk. Knows the kind of the tensors, but none of their values."""

    def __init__(self, head: Head, hidden: Tensor, *, vocabulary: bool) -> None:
        device = hidden.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        self.sum_dtype = torch.promote_types(self.dtype, torch.float32)
        self.scale, self.softcap, self.vocabulary = head.scale, head.softcap, vocabulary
        self.has_backward = torch.is_grad_enabled()
        row_bytes = len(head.weight) * self.sum_dtype.itemsize
        self.size = max(1, min(len(hidden), CHUNK_BYTES // row_bytes))
        self.kept = KEPT_BYTES // (self.size * row_bytes)
        """Number of chunks whose probabilities are kept."""

    def chunks(self, tokens: int) -> list[slice]:
        """Which tokens are looked at together."""
        return [slice(first, min(first + self.size, tokens)) for first in range(0, tokens, self.size)]

    def buffer(self, weight: Tensor) -> Tensor:
        """Room for the logits of a chunk: taken once, since fresh pages are dear."""
        return weight.new_empty(self.size, len(weight), dtype=self.dtype)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
        """Logits of a chunk, in the buffer where its dtype will do."""
        logits = torch.mm(hidden, weight.t(), out=buffer[: len(hidden)]).to(self.sum_dtype)
        if bias is not None:
            logits += bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slopes(self, probabilities: Tensor, targets: Tensor, logps: Tensor, normaliser: Tensor, by: Tensor) -> Tensor:
        """Gradient of `by` times the log-probs by the head's output before `scale`; takes the probabilities' place."""
        by = by * self.scale
        at_target = by
        if self.softcap is not None:
            capped = (probabilities.log() + normaliser[:, None]).clamp_(min=-self.softcap)
            probabilities.mul_(1 - (capped / self.softcap).square_())
            at_target = by * (1 - ((logps + normaliser) / self.softcap).square())
        probabilities.mul_(-by[:, None]).scatter_add_(1, targets[:, None], at_target[:, None])
        return probabilities.to(self.dtype)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, this: _Computation
    ) -> tuple[Tensor, Tensor]:
        states, matrix, buffer = hidden.to(this.dtype), weight.to(this.dtype), this.buffer(weight)
        logps, normaliser = (hidden.new_empty(len(hidden), dtype=this.sum_dtype) for _ in range(2))
        log_sum_p2 = torch.empty_like(logps) if this.vocabulary else logps.new_empty(0)
        is_frozen = this.has_backward and not any(ctx.needs_input_grad[1:3])
        by_hidden = torch.empty_like(states) if is_frozen else None
        kept: list[Tensor] = []
        for chunk in this.chunks(len(hidden)):
            powers = this.logits(states[chunk], matrix, bias, buffer)
            chosen = powers.gather(1, targets[chunk, None])[:, 0]
            largest = powers.amax(dim=1)
            powers.sub_(largest[:, None]).exp_()
            sums = powers.sum(dim=1)
            normaliser[chunk] = sums.log() + largest
            logps[chunk] = chosen - normaliser[chunk]
            if this.vocabulary:
                log_sum_p2[chunk] = 2 * (torch.linalg.vector_norm(powers, dim=1) / sums).log()
            if by_hidden is not None:
                probabilities = powers.div_(sums[:, None])
                one = torch.ones_like(sums)
                slopes = this.slopes(probabilities, targets[chunk], logps[chunk], normaliser[chunk], one)
                torch.mm(slopes, matrix, out=by_hidden[chunk])
            elif this.has_backward and len(kept) < this.kept:
                kept.append(powers / sums[:, None])
        ctx.mark_non_differentiable(log_sum_p2)
        ctx.this = this
        ctx.save_for_backward(hidden, weight, bias, targets, logps, normaliser, by_hidden, *kept)
        return logps, log_sum_p2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, logps, normaliser, by_hidden, *kept = ctx.saved_tensors
        this: _Computation = ctx.this
        if by_hidden is not None:
            return (by_hidden * gradient[:, None]).to(hidden.dtype), None, None, None, None
        states, matrix, buffer = hidden.to(this.dtype), weight.to(this.dtype), this.buffer(weight)
        d_hidden = torch.empty_like(states)
        d_weight = weight.new_zeros(weight.shape, dtype=this.sum_dtype) if ctx.needs_input_grad[1] else None
        d_bias = weight.new_zeros(len(weight), dtype=this.sum_dtype) if ctx.needs_input_grad[2] else None
        for number, chunk in enumerate(this.chunks(len(hidden))):
            if number < len(kept):
                probabilities = kept[number].clone()
            else:
                probabilities = this.logits(states[chunk], matrix, bias, buffer).sub_(normaliser[chunk, None]).exp_()
            slopes = this.slopes(probabilities, targets[chunk], logps[chunk], normaliser[chunk], gradient[chunk])
            torch.mm(slopes, matrix, out=d_hidden[chunk])
            if d_weight is not None:
                if slopes.dtype == d_weight.dtype:
                    d_weight.addmm_(slopes.t(), states[chunk])
                else:
                    d_weight += slopes.t() @ states[chunk]
            if d_bias is not None:
                d_bias += slopes.sum(dim=0)
        return (
            d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )
