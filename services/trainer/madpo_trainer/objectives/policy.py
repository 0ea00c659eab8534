"""Preference optimisation: any method of the registry against a frozen reference, with reward margins ahead of need."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from madpo.losses.method import LossBatch, LossContext, LossOutput, Method, MethodConfig
from madpo.models.logps import LogpsFunction, ResponseGroup, ResponseLogps, padded_logps
from madpo_trainer.ledger import Ledger, LedgerRow
from madpo_trainer.margins import MarginSource
from madpo_trainer.ranks import Ranks
from madpo_trainer.reference import ReferenceLogps, gather
from madpo_trainer.rows import EncodedPair, chunks, token_count


class PolicyObjective:
    """One method of the registry over preference pairs.

    Args:
        pairs: Training pairs with the tokens of both sequences.
        held_out: The same for evaluation.
        margins: Gives reward margins; None for methods that need none.
        margin_temperature: What the method reads margins divided by; ledger and metrics keep them as they are.
        ledger: Filled on the leader.
        epoch_of: Epoch of a row by step and place in its batch, for the ledger.
        ranks: Who shares the work.
        logps_of: How the model is run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pairs: Sequence[EncodedPair],
        held_out: Sequence[EncodedPair],
        method: Method,
        config: MethodConfig,
        margins: MarginSource | None,
        margin_temperature: float,
        ledger: Ledger,
        epoch_of: Callable[[int, int], int],
        micro_batch_size: int,
        ranks: Ranks,
        logps_of: LogpsFunction = padded_logps,
    ) -> None:
        self.model, self.ranks, self._logps_of = model, ranks, logps_of
        self.method, self.config, self.margins, self.ledger, self.epoch_of = method, config, margins, ledger, epoch_of
        self.margin_temperature = margin_temperature
        self.method_state: dict[str, Tensor] = {}
        self.reference: ReferenceLogps | None = None
        self.held_out_reference: ReferenceLogps | None = None
        self._pairs, self._held_out, self.micro_batch_size = pairs, held_out, micro_batch_size
        self.lengths = [token_count(chosen, rejected) for _, chosen, rejected in pairs]

    def start(self, step: int) -> None:
        """Begin to look ahead for margins."""
        if self.margins is not None:
            self.margins.start(step)

    def begin(self, step: int, rows: Sequence[int]) -> "PolicyStep":
        """Wait for the step's margins."""
        start = time.monotonic()
        margins = self.margins.take(step) if self.margins is not None else None
        return PolicyStep(self, step, rows, margins, margin_wait_s=time.monotonic() - start)

    def idle(self) -> Tensor:
        """Zero times the log-probs of the first pair."""
        return 0.0 * self.logps([self.pair(0)]).logps.sum()

    def evaluate(self) -> dict[str, float]:
        """Implicit-reward accuracy and margin on the held-out pairs, relative to the reference."""
        if not self._held_out or self.held_out_reference is None:
            return {}
        now = self.all_logps(self._held_out)
        reference = self.held_out_reference
        log_ratio_diff = (now.chosen - reference.chosen) - (now.rejected - reference.rejected)
        return {
            "rewards/accuracy": float(((log_ratio_diff > 0).float() + 0.5 * (log_ratio_diff == 0).float()).mean()),
            "log_ratio_diff/mean": float(log_ratio_diff.mean()),
            "logps/chosen": float(now.chosen.mean()),
            "logps/rejected": float(now.rejected.mean()),
            "pairs": float(len(self._held_out)),
        }

    def all_logps(self, pairs: Sequence[EncodedPair]) -> ReferenceLogps:
        """Log-probs of the present weights for many pairs, without gradient."""
        order = sorted(range(len(pairs)), key=lambda index: token_count(*pairs[index][1:]))

        def compute(indices: Sequence[int]) -> tuple[Sequence[int], Tensor, Tensor]:
            logps = self.logps([pairs[index] for index in indices]).logps.float().cpu()
            return indices, logps[0::2], logps[1::2]

        with torch.no_grad():
            results = self.ranks.map(compute, list(chunks(order, self.micro_batch_size)))
        return gather(results, len(pairs))

    def compute_reference(self, pairs: Sequence[EncodedPair]) -> ReferenceLogps:
        """Log-probs under the reference: the adapter switched off, or the initial weights (before the first step)."""
        disable = getattr(self.model, "disable_adapter", None)
        if disable is None:
            return self.all_logps(pairs)
        context: AbstractContextManager[None] = disable()
        with context:
            return self.all_logps(pairs)

    def summary(self) -> dict[str, Any]:
        """Where margins came from, and the method with all its parameters."""
        summary: dict[str, Any] = {"method": {"name": self.method.name, "params": self.config.model_dump(mode="json")}}
        if self.margins is not None:
            summary["margins"] = self.margins.summary()
        return summary

    def close(self) -> None:
        """Stop looking ahead."""
        if self.margins is not None:
            self.margins.close()

    def logps(self, pairs: Sequence[EncodedPair]) -> ResponseLogps:
        """Policy log-probs of some pairs: chosen and rejected response of the first, of the second..."""
        groups = [
            ResponseGroup(chosen.prompt_ids, (chosen.response_ids, rejected.response_ids))
            for _, chosen, rejected in pairs
        ]
        return self._logps_of(self.model, groups)

    def pair(self, index: int) -> EncodedPair:
        """A training pair."""
        return self._pairs[index]


class PolicyStep:
    """One step of policy training."""

    def __init__(
        self,
        objective: PolicyObjective,
        step: int,
        rows: Sequence[int],
        margins: Sequence[float | None] | None,
        *,
        margin_wait_s: float,
    ) -> None:
        self._objective, self._step, self._count, self._margin_wait_s = objective, step, len(rows), margin_wait_s
        self._margins = dict(zip(rows, margins, strict=True)) if margins is not None else {}
        # Not by row alone: a batch that straddles two epochs may hold a pair twice.
        self._ledger_rows: list[tuple[int, LedgerRow]] = []
        self._sums: dict[str, float] = {}
        self._state: dict[str, Tensor] | None = None
        self._place = {index: place for place, index in enumerate(rows)}
        needs_figures = objective.method.requirements(objective.config).global_batch
        self._figures = self._observe(rows) if needs_figures else {}

    def loss(self, rows: Sequence[int]) -> Tensor:
        """The micro-batch's share of the method's objective over the global batch."""
        objective = self._objective
        batch = self._batch(rows)
        context = LossContext(
            stats=self._figures,
            rows=torch.tensor([self._place[index] for index in rows], device=batch.policy_chosen_logps.device),
            pairs=self._count,
            state=objective.method_state,
            # The loop has seeded torch with the step: the same chance in every micro-batch, on every rank.
            generator=torch.Generator().manual_seed(torch.initial_seed()),
        )
        output = objective.method.loss(objective.config, batch, context)
        if output.state is not None:
            self._state = {name: value.detach().cpu() for name, value in output.state.items()}
        self._record(rows, batch, output)
        return output.total(self._count)

    def finish(self) -> dict[str, float]:
        """Enter the pairs in the ledger and keep the method's state; means over the step."""
        objective = self._objective
        ledger_rows: list[tuple[int, LedgerRow]] = []
        metrics: dict[str, float] = {}
        for rows, sums, state in objective.ranks.gather((self._ledger_rows, self._sums, self._state)):
            ledger_rows += rows
            if state is not None:  # a rank without pairs in this step has none
                objective.method_state.update(state)
            for name, total in sums.items():
                metrics[name] = metrics.get(name, 0.0) + total / self._count
        if objective.ranks.is_leader:
            objective.ledger.extend([row for _, row in sorted(ledger_rows, key=lambda entry: entry[0])])
        return metrics | ({"time/margin_wait_s": self._margin_wait_s} if self._margins else {})

    def row_ids(self, rows: Sequence[int]) -> list[str]:
        """Pair ids."""
        offending = {index for index, row in self._ledger_rows if not math.isfinite(row.loss)}
        ordered = sorted(rows, key=lambda index: index not in offending)
        return [self._objective.pair(index)[0].pair_id for index in ordered]

    def _observe(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """First phase of methods with batch statistics: figures of all pairs of the global batch, without gradient."""
        objective = self._objective

        def observe(indices: Sequence[int]) -> dict[str, Tensor]:
            assert objective.method.observe is not None
            figures = objective.method.observe(objective.config, self._batch(indices))
            return {name: values.cpu() for name, values in figures.items()}

        with torch.no_grad():
            parts = objective.ranks.map(observe, list(chunks(rows, objective.micro_batch_size)))
        device = next(objective.model.parameters()).device
        return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}

    def _batch(self, rows: Sequence[int]) -> LossBatch:
        objective = self._objective
        responses = objective.logps([objective.pair(index) for index in rows])
        logps, device = responses.logps, responses.tokens.device
        reference = objective.reference
        assert reference is not None
        margins = None
        if self._margins:
            # A margin of 0 has weight 1: the neutral answer where none could be had.
            margins = torch.tensor([self._margins[index] or 0.0 for index in rows], dtype=torch.float32, device=device)
            margins = margins / objective.margin_temperature
        return LossBatch(
            policy_chosen_logps=logps[0::2],
            policy_rejected_logps=logps[1::2],
            ref_chosen_logps=reference.chosen[list(rows)].to(device),
            ref_rejected_logps=reference.rejected[list(rows)].to(device),
            chosen_tokens=responses.tokens[0::2],
            rejected_tokens=responses.tokens[1::2],
            reward_margin=margins,
        )

    def _record(self, rows: Sequence[int], batch: LossBatch, output: LossOutput) -> None:
        objective = self._objective
        assert batch.ref_chosen_logps is not None
        assert batch.ref_rejected_logps is not None
        beta = float(getattr(objective.config, "beta", 1.0))
        chosen = beta * (batch.policy_chosen_logps.detach() - batch.ref_chosen_logps)
        rejected = beta * (batch.policy_rejected_logps.detach() - batch.ref_rejected_logps)
        implicit_margin = (chosen - rejected).tolist()
        losses, weights = output.per_pair.detach().tolist(), output.weight.tolist()
        figures = {name: values.detach().tolist() for name, values in output.metrics.items()}
        if output.mask is not None:
            figures["kept"] = output.mask.tolist()
        for position, index in enumerate(rows):
            pair, chosen_tokens, rejected_tokens = objective.pair(index)
            row = LedgerRow(
                pair_id=pair.pair_id,
                row=pair.row,
                epoch=objective.epoch_of(self._step, self._place[index]),
                step=self._step + 1,
                reward_margin=self._margins.get(index),
                weight=weights[position],
                implicit_margin=implicit_margin[position],
                loss=losses[position],
                tokens=len(chosen_tokens.response_ids) + len(rejected_tokens.response_ids),
                neutral=bool(self._margins) and self._margins[index] is None,
                figures={name: values[position] for name, values in figures.items()},
            )
            self._ledger_rows.append((index, row))
        for name, values in output.metrics.items():
            self._add(name, values)
        if output.mask is not None:
            self._add("pairs/kept_ratio", output.mask.to(output.weight.dtype))
        for name, term in output.aux.items():
            self._add(f"loss/{name}", term * self._count)
        # The same sum that is minimised, times the count that the mean divides by again.
        self._add("loss", output.total(self._count) * self._count)
        self._add("weight/mean", output.weight)
        self._add("rewards/chosen", chosen)
        self._add("rewards/rejected", rejected)
        self._add("rewards/implicit_margin", chosen - rejected)
        self._add("rewards/accuracy", (chosen > rejected).float() + 0.5 * (chosen == rejected).float())
        self._add("logps/chosen", batch.policy_chosen_logps)
        self._add("logps/rejected", batch.policy_rejected_logps)
        if batch.reward_margin is not None:
            self._add("reward_margin/mean", batch.reward_margin * objective.margin_temperature)

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.detach().sum())
