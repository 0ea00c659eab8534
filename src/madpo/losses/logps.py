"""Log-probabilities of responses under a causal language model."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class TokenRows(Protocol):
    """Right-padded rows, all [B, T]; `madpo.data.collate` makes them."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, int64."""
        ...

    @property
    def attention_mask(self) -> Tensor:
        """1 on tokens, 0 on padding."""
        ...

    @property
    def response_mask(self) -> Tensor:
        """True on the response's tokens."""
        ...


class PairLogps(NamedTuple):
    """Summed response log-probs of B pairs, in nats, float32 or better; gradient flows to the model."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    """Response tokens summed over, int64 [B]."""
    rejected_tokens: Tensor


def pair_logps(model: Any, batch: TokenRows) -> PairLogps:
    """Log-probs of chosen and rejected responses in one forward pass.

    Args:
        model: Causal language model.
        batch: 2B rows, all chosen responses first, then the rejected ones in the same order.
    """
    logps, tokens = response_logps(model, batch)
    chosen, rejected = logps.chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return PairLogps(chosen, rejected, chosen_tokens, rejected_tokens)


def response_logps(model: Any, batch: TokenRows) -> tuple[Tensor, Tensor]:
    """Sum of log p(token | all before it) over each row's response tokens, with their number.

    A row's first token is never counted: nothing predicts it. The log-softmax runs in float32 or better whatever the
    model computes in, and only at response positions, which keeps its copy of the logits small.

    Returns:
        Log-probs [B] in nats, and token counts [B], int64.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    targets, mask = batch.input_ids[:, 1:], batch.response_mask[:, 1:]
    selected = logits[mask].to(torch.promote_types(logits.dtype, torch.float32))
    token_logps = -cross_entropy(selected, targets[mask], reduction="none")
    logps = token_logps.new_zeros(mask.shape).masked_scatter(mask, token_logps).sum(dim=-1)
    return logps, mask.sum(dim=-1)
