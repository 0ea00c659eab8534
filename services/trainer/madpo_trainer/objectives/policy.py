"""Preference optimisation: any method of the registry against a reference, with reward margins ahead of need."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from madpo.losses.method import LossContext, LossOutput, Method, MethodConfig
from madpo.worker.phase import Phase
from madpo_trainer.fitted_rows import PolicyRow, lengths_of, row_groups
from madpo_trainer.ledger import Ledger, LedgerRow
from madpo_trainer.mapped_rows import LazyRows
from madpo_trainer.margins.source import MarginSource
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.model_runner import ModelRunner, evaluating
from madpo_trainer.moving_reference import MovingReference
from madpo_trainer.objectives.batches import BatchMaker, Margins
from madpo_trainer.objectives.figures import StepFigures, wins
from madpo_trainer.stored_reference import StoredLogps


class PolicyObjective:
    """One method of the registry over pairs or lists of responses.

    Args:
        runner: The policy, and how it is run.
        rows: Training rows.
        held_out: Pairs for evaluation.
        method: What is minimised.
        config: The method's parameters, all numbers.
        reference: Log-probs of the training rows, or a reference that moves.
        held_out_reference: Log-probs of the held-out pairs under the initial policy.
        mismatched: Responses under other prompts, for a method that asks for them.
        margins: Gives reward margins; None for methods that need none.
        margin_temperature: What the method reads margins divided by; ledger and metrics keep them as they are.
        method_state: Running statistics that the method left at the end of the step before.
        ledger: Filled on the leader.
        epoch_of: Epoch of a row by step and place in its batch, for the ledger.
        seed: Of the job.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        rows: Sequence[PolicyRow],
        held_out: Sequence[PolicyRow],
        method: Method,
        config: MethodConfig,
        reference: StoredLogps | MovingReference,
        held_out_reference: StoredLogps | None,
        mismatched: Mismatched | None,
        margins: MarginSource | None,
        margin_temperature: float,
        method_state: dict[str, Tensor],
        ledger: Ledger,
        epoch_of: Callable[[int, int], int],
        seed: int,
    ) -> None:
        self.runner, self.rows, self._held_out = runner, rows, held_out
        self.method, self.config, self.requirements = method, config, method.requirements(config)
        self.reference, self._held_out_reference = reference, held_out_reference
        self.margins, self.method_state, self.ledger = margins, method_state, ledger
        self.epoch_of, self.seed = epoch_of, seed
        asked = LazyRows(len(rows), lambda row: rows[row].asked(gold=self.requirements.gold))
        self.lengths = LazyRows(len(rows), lambda row: runner.micro_batches.length(asked[row]))
        self.longest = runner.micro_batches.longest(lengths_of(rows, asked))
        self.batches = BatchMaker(
            runner,
            rows,
            requirements=self.requirements,
            reference=reference,
            mismatched=mismatched,
            margin_temperature=margin_temperature,
        )

    @property
    def model(self) -> nn.Module:
        """The policy."""
        return self.runner.model

    def start(self, step: int) -> None:
        """Begin to look ahead for margins."""
        if self.margins is not None:
            self.margins.start(step)

    def begin(self, step: int, rows: Sequence[int]) -> "PolicyStep":
        """Wait for the step's margins."""
        start = time.monotonic()
        margins = dict(zip(rows, self.margins.take(step), strict=True)) if self.margins is not None else {}
        return PolicyStep(self, step, rows, margins, margin_wait_s=time.monotonic() - start)

    def idle(self, row: int = 0) -> Tensor:
        """Zero times the log-probs of a row, and a moving reference's of it."""
        logps = self.runner.logps([self.rows[row].group]).logps
        if isinstance(self.reference, MovingReference):
            # After the policy, as in a step: sharded models gather their weights in the order they are run.
            self.reference.logps([row])
        return 0.0 * logps.sum()

    @property
    def held_out_rows(self) -> int:
        """Rows for evaluation."""
        return len(self._held_out)

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """How the implicit reward does on the held-out pairs, relative to the initial policy.

        The loss is that of DPO at the method's beta, whatever the method: the negative log-likelihood of the
        preferences, in nats per pair.
        """
        if not self._held_out or self._held_out_reference is None:
            return {}
        logps = self.runner.all_logps(row_groups(self._held_out), phase).values.view(-1, 2)
        chosen, rejected = (logps - self._held_out_reference.values.view(-1, 2)).unbind(dim=1)
        log_ratio_diff = chosen - rejected
        implicit_margin = self.config.reward_scale() * log_ratio_diff
        return {
            "loss": float(softplus(-implicit_margin).mean()),
            "rewards/implicit_margin": float(implicit_margin.mean()),
            "rewards/accuracy": float(wins(log_ratio_diff).mean()),
            "log_ratio_diff/mean": float(log_ratio_diff.mean()),
            "logps/chosen": float(logps[:, 0].mean()),
            "logps/rejected": float(logps[:, 1].mean()),
            "pairs": float(len(self._held_out)),
        }

    def summary(self) -> dict[str, Any]:
        """Where margins came from, and the method with all its parameters."""
        summary: dict[str, Any] = {"method": {"name": self.method.name, "params": self.config.model_dump(mode="json")}}
        if self.margins is not None:
            summary["margins"] = self.margins.summary()
        return summary

    def with_source(self, row: LedgerRow) -> LedgerRow:
        """A ledger row with what the leader's source of margins knows of the pair."""
        is_cut = self.margins is not None and self.margins.was_truncated(row.pair_id)
        return replace(row, truncated=True) if is_cut else row

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The method's running statistics, and a reference that has moved."""
        moved = self.reference.tensors() if isinstance(self.reference, MovingReference) else {}
        return {"method": dict(self.method_state), "reference": moved}

    def close(self) -> None:
        """Stop looking ahead."""
        if self.margins is not None:
            self.margins.close()


class PolicyStep:
    """One step of policy training."""

    def __init__(
        self, objective: PolicyObjective, step: int, rows: Sequence[int], margins: Margins, *, margin_wait_s: float
    ) -> None:
        self._objective, self._step, self._rows, self._margin_wait_s = objective, step, rows, margin_wait_s
        self._margins, self._count = margins, len(rows)
        self._state: dict[str, Tensor] | None = None
        self._figures = StepFigures(
            [objective.rows[index] for index in rows],
            indices=rows,
            step=step,
            epoch_of=lambda place: objective.epoch_of(step, place),
            margins=margins,
            beta=objective.config.reward_scale(),
        )
        self._observed = self._observe(rows) if objective.requirements.global_batch else {}

    def loss(self, places: Sequence[int]) -> Tensor:
        """The micro-batch's share of the method's objective over the global batch."""
        objective, rows = self._objective, [self._rows[place] for place in places]
        batch = objective.batches.batch(rows, self._margins)
        context = LossContext(
            stats=self._observed,
            rows=torch.tensor(places, device=batch.policy_chosen_logps.device),
            pairs=self._count,
            state=objective.method_state,
            generator=self._generator(),
        )
        output = self._weighted(objective.method.loss(objective.config, batch, context), rows)
        if output.state is not None:
            self._state = {name: value.detach().cpu() for name, value in output.state.items()}
        self._figures.add(places, batch, output)
        return output.total(self._count)

    def finish(self) -> dict[str, float]:
        """Enter the pairs in the ledger, keep the method's state, move the reference; means over the step."""
        objective = self._objective
        ledger_rows: list[tuple[int, LedgerRow]] = []
        metrics: dict[str, float] = {}
        mine = (self._figures.ledger_rows, self._figures.sums, self._state)
        for rows, sums, state in objective.runner.ranks.gather(mine):
            ledger_rows += rows
            if state is not None:  # a rank without pairs in this step has none
                objective.method_state.update(state)
            for name, total in sums.items():
                metrics[name] = metrics.get(name, 0.0) + total / self._count
        if objective.runner.ranks.is_leader:
            ordered = [row for _, row in sorted(ledger_rows, key=lambda entry: entry[0])]
            objective.ledger.extend([objective.with_source(row) for row in ordered])
        if isinstance(objective.reference, MovingReference):
            moved = objective.reference.advance(self._step + 1, metrics["log_ratio/mean"])
            metrics["reference/moved"] = float(moved)
        return metrics | ({"time/margin_wait_s": self._margin_wait_s} if self._margins else {})

    def row_ids(self, places: Sequence[int]) -> list[str]:
        """Pair ids."""
        offending = self._figures.offending()
        ordered = sorted(places, key=lambda place: place not in offending)
        return [self._objective.rows[self._rows[place]].row_id for place in ordered]

    def _weighted(self, output: LossOutput, rows: Sequence[int]) -> LossOutput:
        """Losses times the weights that the dataset gives its rows."""
        given = [self._objective.rows[row].pair.weight for row in rows]
        if all(weight is None for weight in given):
            return output
        weight = output.weight.new_tensor([1.0 if weight is None else weight for weight in given])
        return replace(output, per_pair=output.per_pair * weight, weight=output.weight * weight)

    def _generator(self) -> torch.Generator:
        """The same chance in every micro-batch of the step, on every rank."""
        return torch.Generator().manual_seed((self._objective.seed * 1_000_003 + self._step) % 2**63)

    def _observe(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """First phase of methods with batch statistics: figures of all pairs of the global batch, without gradient."""
        objective, runner = self._objective, self._objective.runner

        def observe(indices: Sequence[int]) -> dict[str, Tensor]:
            assert objective.method.observe is not None
            batch = objective.batches.figures_batch(self._step, indices, self._margins)
            return {name: values.cpu() for name, values in objective.method.observe(objective.config, batch).items()}

        with torch.no_grad(), evaluating(runner.model, runner.precision):
            # By place: a batch that straddles two epochs may hold a row twice.
            split = runner.micro_batches.split(range(len(rows)), [objective.lengths[row] for row in rows])
            parts = runner.ranks.map(lambda places: observe([rows[place] for place in places]), split)
        order = torch.tensor([place for places in split for place in places]).argsort()
        return {name: torch.cat([part[name] for part in parts])[order].to(runner.device) for name in parts[0]}
