"""Log-probabilities of responses under a causal language model.

Whoever trains or measures asks for groups: prompts with one or several responses each. How the model is run over them
is a `LogpsFunction`; `padded_logps` is the plainest, by which any other is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from madpo.data.collate import collate_responses
from madpo.data.loss_mask import LossMask, counted_tokens
from madpo.data.tokenize import Encoded


class ResponseGroup(NamedTuple):
    """A prompt with responses to it, as token ids, none of them empty."""

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]
    masks: Sequence[LossMask] = ()
    """Which tokens of each response count; none where all of all do."""

    @property
    def sequences(self) -> list[Encoded]:
        """The prompt with each response."""
        prompt_ids = list(self.prompt_ids)
        return [Encoded(prompt_ids, list(ids), mask) for ids, mask in self.masked]

    @property
    def masked(self) -> list[tuple[Sequence[int], LossMask]]:
        """Each response with its mask."""
        return list(zip(self.responses, self.masks or [()] * len(self.responses), strict=True))

    @property
    def counted(self) -> list[int]:
        """Number of tokens of each response that count."""
        return [counted_tokens(mask, len(ids)) for ids, mask in self.masked]


@dataclass(frozen=True, slots=True)
class ResponseLogps:
    """Log-probs of R responses: all of the first group in their order, then those of the second, and so on.

    Response tokens are those that count, by the masks of the groups. In nats and float32 or better, whatever the model
    computes in.
    """

    token_logps: Tensor
    """log p(token | all before it) of every response token, one response after the other, [sum of tokens]; gradient
    flows to the model."""
    tokens: Tensor
    """Tokens of each response, int64 [R]."""
    log_sum_p2: Tensor | None = None
    """Log of the sum over the vocabulary of squared probabilities at each response token, no gradient; where asked
    for."""

    @property
    def logps(self) -> Tensor:
        """Sum over the tokens of each response, [R]."""
        return self.padded(self.token_logps).sum(dim=1)

    @property
    def mask(self) -> Tensor:
        """True on the tokens of each response, [R, T], T being the longest's."""
        return torch.arange(int(self.tokens.max()), device=self.tokens.device) < self.tokens[:, None]

    def padded(self, values: Tensor) -> Tensor:
        """Values of single tokens as rows of responses, [R, T], padded on the right with 0."""
        mask = self.mask
        return values.new_zeros(mask.shape).masked_scatter(mask, values)


class LogpsFunction(Protocol):
    """A way to run a model over groups."""

    def __call__(self, model: Any, groups: Sequence[ResponseGroup], *, vocabulary: bool = False) -> ResponseLogps:
        """Log-probs of all responses of the groups.

        Args:
            model: Causal language model; the device is that of its weights.
            groups: At least one.
            vocabulary: Give `log_sum_p2` as well.
        """
        ...


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
        """True on the response's tokens that count."""
        ...


def padded_logps(model: Any, groups: Sequence[ResponseGroup], *, vocabulary: bool = False) -> ResponseLogps:
    """Each response a row of its own behind its prompt, padded to the longest. A `LogpsFunction`."""
    rows = [sequence for group in groups for sequence in group.sequences]
    # Padding is masked, so any id will do.
    batch = collate_responses(rows, pad_id=0).to(next(model.parameters()).device)
    return row_logps(model, batch, vocabulary=vocabulary)


def row_logps(model: Any, rows: TokenRows, *, vocabulary: bool = False) -> ResponseLogps:
    """Log-probs of padded rows, one response each.

    A row's first token is never counted: nothing predicts it. The log-softmax runs only at response positions, which
    keeps its copy of the logits small.
    """
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits[:, :-1]
    targets, mask = rows.input_ids[:, 1:], rows.response_mask[:, 1:]
    selected = logits[mask].to(torch.promote_types(logits.dtype, torch.float32))
    return ResponseLogps(
        token_logps=-cross_entropy(selected, targets[mask], reduction="none"),
        tokens=mask.sum(dim=-1),
        log_sum_p2=log_sum_p2(selected) if vocabulary else None,
    )


@torch.no_grad()
def log_sum_p2(logits: Tensor) -> Tensor:
    """Log of the sum over the vocabulary of squared probabilities, [N] from logits [N, V]; no gradient."""
    return (2 * logits).logsumexp(dim=-1) - 2 * logits.logsumexp(dim=-1)
