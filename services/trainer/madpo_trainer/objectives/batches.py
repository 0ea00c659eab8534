"""From rows to what a method's loss reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from madpo.losses.method import LossBatch, Requirements
from madpo.models.logps import ResponseGroup, ResponseLogps
from madpo.types.columns import required_columns
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.model_runner import ModelRunner
from madpo_trainer.stored_reference import ReferenceSource

Margins = Mapping[int, float | None]
"""Reward margins by row; None where none could be had. Empty without a reward model."""


class BatchMaker:
    """Makes the `LossBatch` of a micro-batch: the log-probs of pairs, and all that the method requires beside them.

    Args:
        runner: Runs the policy.
        rows: Training rows.
        requirements: Of the method with its parameters.
        reference: Log-probs under the reference.
        mismatched: Responses under other prompts; None where the method does not ask for them.
        margin_temperature: What margins are divided by.
    """

    def __init__(
        self,
        runner: ModelRunner,
        rows: Sequence[PolicyRow],
        *,
        requirements: Requirements,
        reference: ReferenceSource,
        mismatched: Mismatched | None,
        margin_temperature: float,
    ) -> None:
        self._runner, self._rows, self._requirements = runner, rows, requirements
        self._reference, self._mismatched, self._margin_temperature = reference, mismatched, margin_temperature

    def batch(self, rows: Sequence[int], margins: Margins) -> LossBatch:
        """What a loss reads, with gradient."""
        return LossBatch(**self._fields(rows, self._policy(rows), margins))

    @torch.no_grad()
    def figures_batch(self, step: int, rows: Sequence[int], margins: Margins) -> LossBatch:
        """What `observe` reads: the policy is run only where the method's figures depend on it."""
        policy = self._policy(rows) if self._requirements.policy_figures else self._unknown(rows)
        return LossBatch(**self._fields(rows, policy, margins), **self._mismatched_fields(step, rows))

    def _policy(self, rows: Sequence[int]) -> ResponseLogps:
        return self._runner.logps(self._groups(rows), vocabulary=self._requirements.vocabulary)

    def _unknown(self, rows: Sequence[int]) -> ResponseLogps:
        lengths = [tokens for group in self._groups(rows) for tokens in group.counted]
        nothing = torch.full((sum(lengths),), torch.nan, device=self._runner.device)
        return ResponseLogps(nothing, torch.tensor(lengths, device=self._runner.device), nothing)

    def _groups(self, rows: Sequence[int]) -> list[ResponseGroup]:
        """The rows' responses, and where it is asked for the gold one behind them."""
        return [self._rows[row].asked(gold=self._requirements.gold) for row in rows]

    def _fields(self, rows: Sequence[int], policy: ResponseLogps, margins: Margins) -> dict[str, Tensor]:
        needs, device = self._requirements, policy.tokens.device
        wanted = [self._rows[row] for row in rows]
        layout = _Layout.of(wanted, gold=needs.gold, device=device)
        logps = policy.logps
        fields = self._of_responses(rows, policy, logps, layout)
        if needs.gold:
            fields |= {"gold_logps": logps[layout.gold], "gold_tokens": policy.tokens[layout.gold]}
        for column in required_columns(needs):
            if column.sort == "number":
                values = [getattr(row.pair, column.name) for row in wanted]
                fields[column.name] = torch.tensor(values, dtype=torch.float32, device=device)
        if margins:
            # A margin of 0 has weight 1: the neutral answer where none could be had.
            raw = torch.tensor([margins[row] or 0.0 for row in rows], dtype=torch.float32, device=device)
            fields["reward_margin"] = raw / self._margin_temperature
        return fields

    def _of_responses(
        self, rows: Sequence[int], policy: ResponseLogps, logps: Tensor, layout: "_Layout"
    ) -> dict[str, Tensor]:
        """Log-probs and lengths of pairs, of lists, of single tokens."""
        needs, device = self._requirements, logps.device
        reference = self._reference.logps(rows)
        own, tokens = logps[layout.own], policy.tokens[layout.own]
        ref_logps = reference.logps.to(device)
        fields: dict[str, Tensor] = {}
        for side, places in layout.sides.items():
            fields |= {f"policy_{side}_logps": own[places], f"ref_{side}_logps": ref_logps[places]}
            fields[f"{side}_tokens"] = tokens[places]
        if needs.list:
            fields |= {
                "list_logps": layout.listed(own),
                "ref_list_logps": layout.listed(ref_logps),
                "list_tokens": layout.listed(tokens),
                "list_scores": layout.listed(layout.scores.to(own.dtype)),
                "list_mask": layout.mask,
            }
        if needs.token_logps:
            assert reference.token_logps is not None
            theirs = ResponseLogps(reference.token_logps.to(device), tokens)
            fields |= _token_fields(policy, theirs, layout)
        return fields

    def _mismatched_fields(self, step: int, rows: Sequence[int]) -> dict[str, Tensor]:
        if self._mismatched is None:
            return {}
        logps = self._runner.logps(self._mismatched.groups(step, rows)).logps
        ref_logps = self._mismatched.reference_logps(step, rows).to(logps.device)
        return {"mismatched_logps": logps, "ref_mismatched_logps": ref_logps}


def _token_fields(policy: ResponseLogps, reference: ResponseLogps, layout: "_Layout") -> dict[str, Tensor]:
    longest = int(reference.tokens.max())  # a gold response may be longer
    values = {"token_logps": policy.padded(policy.token_logps), "token_mask": policy.mask}
    if policy.log_sum_p2 is not None:
        values["log_sum_p2"] = policy.padded(policy.log_sum_p2)
    theirs = reference.padded(reference.token_logps)
    fields: dict[str, Tensor] = {}
    for side, places in layout.sides.items():
        fields |= {f"{side}_{name}": value[layout.own[places], :longest] for name, value in values.items()}
        fields[f"ref_{side}_token_logps"] = theirs[places]
    return fields


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where responses of B rows are, one row after the other. Places are int64."""

    own: Tensor
    """Places of the R responses among those asked of the policy, where a gold one may stand behind each row's."""
    gold: Tensor
    """Places of the gold ones there, [B] or empty."""
    sides: Mapping[str, Tensor]
    """Places of the chosen and the rejected responses among the R, [B] each."""
    mask: Tensor
    """[B, K], True where a row has a response."""
    scores: Tensor
    """Of the responses of lists, [R]; of pairs none."""

    @classmethod
    def of(cls, rows: Sequence[PolicyRow], *, gold: bool, device: torch.device) -> Self:
        counts = torch.tensor([len(row.responses) for row in rows], device=device)
        first = counts.cumsum(0) - counts
        extra = torch.arange(len(rows), device=device) if gold else torch.zeros_like(counts)
        own = torch.arange(int(counts.sum()), device=device) + extra.repeat_interleave(counts)
        ends = torch.tensor([row.chosen_and_rejected for row in rows], device=device)
        return cls(
            own=own,
            gold=first + counts + extra if gold else first[:0],
            sides={"chosen": first + ends[:, 0], "rejected": first + ends[:, 1]},
            mask=torch.arange(int(counts.max()), device=device) < counts[:, None],
            scores=torch.tensor([score for row in rows for score in row.scores], dtype=torch.float64, device=device),
        )

    def listed(self, values: Tensor) -> Tensor:
        """Values of the R responses as rows, [B, K]; 0 where there is none."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)
