"""Policy training: rows, margins and their calibration, references, and the method's loss."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from madpo.calibration.report import CalibrationReport
from madpo.data.order import Schedule
from madpo.data.overlong import other_policy
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import FailedPreconditionError, InvalidArgumentError, InvalidPairError
from madpo.jobs.methods import MarginParameters
from madpo.jobs.policy_training import PolicyTrainingSpec
from madpo.losses.method import Method, MethodConfig, ReferenceUpdate, Requirements
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import number
from madpo.models.logps import ResponseGroup
from madpo.scoring.connection import connect_scorer, require_scorer
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.references import resolve_model_id
from madpo.types import DatasetKind, JobKind, PreferencePair
from madpo.worker.phase import Phase
from madpo.worker.tolerance import Tolerance
from madpo_trainer.fitted_rows import FittedRows, PolicyRow, require_columns, row_groups
from madpo_trainer.kinds.base import TrainingInputs, TrainingKind
from madpo_trainer.mapped_rows import LazyRows
from madpo_trainer.margins.calibration import calibrate, write_artifacts
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.reading import fetch_tokenizer, longer_than
from madpo_trainer.margins.remote import RemoteMargins, ask_scorer, unless_interrupted
from madpo_trainer.margins.shared import SharedMargins
from madpo_trainer.margins.source import DatasetMargins, MarginSource
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.moving_reference import MovingReference
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.stored_reference import ReferenceStore, StoredLogps, reference_digest, rows_digest

logger = logging.getLogger(__name__)

_CHUNK_MICRO_BATCHES = 32
"""Of reference log-probs that are stored together: enough for the ranks of several hosts, and soon done."""


class PolicyTraining:
    """Builds the objective of one attempt; all ranks do, in step."""

    def __init__(self, inputs: TrainingInputs) -> None:
        self._inputs = inputs
        self._spec: PolicyTrainingSpec = inputs.spec
        self._reward_limit = 0

    def build(self) -> tuple[PolicyObjective, Schedule]:
        """The objective, and the order of its rows.

        Raises:
            Interrupted: The run was asked to stop meanwhile.
        """
        inputs = self._inputs
        method = get_method(self._spec.method.name)
        config = parse_params(method.name, self._spec.method.params)
        requirements, update = method.requirements(config), config.reference_update()
        lora = self._spec.training.lora
        if lora is not None and (conflict := config.adapter_conflict(quantized=bool(lora.quantize_base))):
            # The gateway has said so before the job existed; specs may come from elsewhere.
            raise InvalidArgumentError(f"{method.name} {conflict}")
        rows, held_out = self._read(method, requirements)
        if requirements.margin and self._spec.margin is not None and self._spec.margin.reward_model is not None:
            rows, held_out = self._readable(rows, held_out, self._spec.margin)
        inputs.runner.prove_layout(row_groups(rows))
        schedule = inputs.schedule(len(rows))
        temperature, margins = 1.0, None
        if requirements.margin:
            margins = self._margins(rows, schedule)
            config, temperature = self._calibrate(method, config, margins, rows, held_out, schedule)
        mismatched = None
        if requirements.mismatched:
            mismatched = self._mismatched(rows, schedule)
        objective = PolicyObjective(
            inputs.runner,
            rows=rows,
            held_out=held_out,
            method=method,
            config=config,
            reference=self._reference(rows, requirements, update, schedule),
            held_out_reference=self._stored(held_out, self._inputs.eval_dataset_id) if held_out else None,
            mismatched=mismatched,
            margins=margins,
            margin_temperature=temperature,
            method_state=dict(inputs.tensors.get("method", {})),
            ledger=inputs.ledger,
            epoch_of=schedule.epoch,
            seed=self._spec.training.seed,
        )
        return objective, schedule

    def _read(self, method: Method, requirements: Requirements) -> tuple[FittedRows[PolicyRow], Sequence[PolicyRow]]:
        """Training rows, and held-out pairs."""
        reader = self._inputs.rows

        def read_both() -> tuple[FittedRows[PolicyRow], Sequence[PolicyRow]]:
            kind = self._inputs.datasets.get(self._inputs.dataset_id).kind
            if requirements.list and kind is not DatasetKind.LIST:
                raise InvalidArgumentError(
                    f"{method.name} needs a dataset of lists, {self._inputs.dataset_id} is one of {kind} rows"
                )
            rows = reader.policy_rows(self._inputs.dataset_id, lists=requirements.list, gold=requirements.gold)
            require_columns(rows, requirements)
            held_out_id = self._inputs.eval_dataset_id
            return rows, [] if held_out_id is None else reader.policy_rows(held_out_id, lists=False, gold=False)

        return self._inputs.ranks.apart(read_both)

    def _readable(
        self, rows: FittedRows[PolicyRow], held_out: Sequence[PolicyRow], parameters: MarginParameters
    ) -> tuple[FittedRows[PolicyRow], Sequence[PolicyRow]]:
        """The rows without those that the reward model cannot read whole, where the job leaves long ones out.

        Raises:
            InvalidPairError: There are some, and `training.overlong` is `error`; or no row is left.
        """
        overlong = self._spec.training.overlong
        if overlong not in ("error", "drop"):  # the scorer reads what fits, and it is counted
            return rows, held_out
        readable = self._left(rows, self._inputs.dataset_id, parameters)
        if self._inputs.eval_dataset_id is not None and isinstance(held_out, FittedRows):
            return readable, self._left(held_out, self._inputs.eval_dataset_id, parameters)
        return readable, held_out

    def _left(
        self, rows: FittedRows[PolicyRow], dataset_id: str, parameters: MarginParameters
    ) -> FittedRows[PolicyRow]:
        limit, places = self._inputs.ranks.lead(partial(self._too_long, rows, parameters))
        if not places:
            return rows
        if self._spec.training.overlong == "error" or len(places) == len(rows):
            named = ", ".join(str(rows.all_pairs[place].row) for place in places[:10])
            raise InvalidPairError(
                f"{len(places)} of {len(rows)} pairs of {dataset_id} are longer than the {limit} tokens that the "
                f"reward model reads; the first: {named} (take a reward model with a longer context, or "
                f"{other_policy(self._spec.training.overlong)})"
            )
        return self._inputs.rows.leave_out(dataset_id, rows, places)

    def _too_long(self, rows: FittedRows[PolicyRow], parameters: MarginParameters) -> tuple[int, list[int]]:
        """What the reward model reads, and places of the pairs that are longer."""
        inputs = self._inputs
        require_scorer(inputs.settings)
        assert parameters.reward_model is not None
        model_id = resolve_model_id(parameters.reward_model, store=inputs.store)
        asyncio.run(self._pin_revision(model_id, parameters))
        tokenizer = fetch_tokenizer(model_id, inputs.run.directory / "reward-tokenizer", store=inputs.store)
        return self._reward_limit, longer_than(self._reward_limit, rows.all_pairs, tokenizer, phase=inputs.phase)

    def _margins(self, rows: FittedRows[PolicyRow], schedule: Schedule) -> MarginSource:
        parameters = self._spec.margin
        if parameters is None:
            raise InvalidArgumentError(
                f"method {self._spec.method.name} needs reward margins "
                "(give margin.reward_model, or margin.source=dataset)"
            )
        if parameters.source == "dataset":
            return DatasetMargins(rows.numbers("reward_margin"), rows.numbers("row"), schedule)
        self._inputs.phase("waiting for a scorer")
        return SharedMargins(lambda: self._remote_margins(rows.all_pairs, schedule, parameters), self._inputs.ranks)

    def _remote_margins(
        self, pairs: Sequence[PreferencePair], schedule: Schedule, parameters: MarginParameters
    ) -> RemoteMargins:
        require_scorer(self._inputs.settings)
        assert parameters.reward_model is not None
        model_id = resolve_model_id(parameters.reward_model, store=self._inputs.store)
        revision = asyncio.run(self._pin_revision(model_id, parameters))
        return RemoteMargins(
            pairs,
            schedule,
            connect=lambda: connect_scorer(self._inputs.settings),
            model_id=model_id,
            revision=revision,
            journal=MarginJournal(
                self._inputs.store, job_id=self._inputs.run.job.job_id, attempt=self._inputs.run.attempt
            ),
            parameters=parameters,
            interrupted=self._stop_requested,
            phase=self._inputs.phase,
            overlong=self._spec.training.overlong,
        )

    async def _pin_revision(self, model_id: str, parameters: MarginParameters) -> str:
        """The revision the job is pinned to; the scorer has loaded the model when this returns."""

        async def ask() -> None:
            async with connect_scorer(self._inputs.settings) as client:
                info = await ask_scorer(lambda: client.get_reward_model(model_id), parameters)
            self._inputs.state.reward_revision = self._inputs.state.reward_revision or info.revision
            self._reward_limit = info.max_tokens

        await unless_interrupted([ask()], self._stop_requested)
        return cast(str, self._inputs.state.reward_revision)

    def _stop_requested(self) -> bool:
        return self._inputs.run.stop_requested is not None

    def _calibrate(
        self,
        method: Method,
        config: MethodConfig,
        margins: MarginSource,
        rows: FittedRows[PolicyRow],
        held_out: Sequence[PolicyRow],
        schedule: Schedule,
    ) -> tuple[MethodConfig, float]:
        """The method's parameters, all numbers, and what margins are divided by: those the job first began with."""
        parameters = self._spec.margin
        assert parameters is not None
        if not self._inputs.state.calibration and self._inputs.state.step == 0:
            self._inputs.phase("calibrating the reward model")
            report = calibrate(
                method,
                config,
                margins,
                parameters=parameters,
                training=rows.all_pairs.only(schedule.asked),
                held_out=LazyRows(len(held_out), lambda row: held_out[row].pair),
            )
            if report is not None:
                # All ranks go by the leader's figures, to the last bit.
                self._inputs.state.calibration = self._inputs.ranks.lead(lambda: self._announce(report))
        if not self._inputs.state.calibration:
            return config, number("margin.temperature", parameters.temperature)
        stored = CalibrationReport.model_validate(self._inputs.state.calibration)
        return parse_params(stored.method, stored.params), stored.temperature.value

    def _announce(self, report: CalibrationReport) -> dict[str, Any]:
        """Publish a report before the first step, and say what it says."""
        directory = self._inputs.run.directory / "calibration"
        directory.mkdir(exist_ok=True)
        write_artifacts(report, directory, Tolerance())
        publish_artifacts(
            self._inputs.store, self._inputs.run.job.job_id, directory, attempt=self._inputs.run.attempt, early_step=0
        )
        for warning in report.warnings:
            logger.warning(warning)
            self._inputs.phase(f"warning: {warning}")
        self._inputs.phase(f"calibrated: {report.headline()}")
        return report.model_dump(mode="json")

    def _reference(
        self,
        rows: FittedRows[PolicyRow],
        requirements: Requirements,
        update: ReferenceUpdate | None,
        schedule: Schedule,
    ) -> StoredLogps | MovingReference:
        if update is None:
            tokens, gold = requirements.token_logps, requirements.gold
            return self._stored(rows, self._inputs.dataset_id, asked=schedule.asked, tokens=tokens, gold=gold)
        self._inputs.phase("loading the reference")
        return MovingReference(
            self._inputs.ranks.together(self._inputs.load_initial),
            self._inputs.runner.model,
            update,
            run=self._inputs.runner.logps,
            rows=rows,
            tensors=self._inputs.tensors.get("reference", {}),
        )

    def _mismatched(self, rows: FittedRows[PolicyRow], schedule: Schedule) -> Mismatched:
        max_tokens = self._inputs.rows.max_tokens
        mismatched = Mismatched(rows, schedule, max_tokens=max_tokens)
        order = {"seed": schedule.seed, "batch_size": schedule.batch_size, "rows": schedule.total_rows}
        mismatched.compute_reference(
            lambda groups, tokens: self._load_or_compute(
                groups,
                np.arange(len(groups)),
                tokens,
                has_masks=rows.has_masks,
                dataset=self._inputs.dataset_id,
                mismatched={**order, "max_tokens": max_tokens},
                **_identity(rows),
            )
        )
        return mismatched

    def _stored(
        self,
        rows: Sequence[PolicyRow],
        dataset_id: str | None,
        *,
        asked: NDArray[np.int64] | None = None,
        tokens: bool = False,
        gold: bool = False,
    ) -> StoredLogps:
        """Of the rows asked for, or of all."""
        assert isinstance(rows, FittedRows)
        chosen = np.arange(len(rows)) if asked is None else asked
        return self._load_or_compute(
            row_groups(rows),
            chosen,
            rows.lengths.together[chosen],
            tokens=tokens,
            gold=gold,
            has_masks=rows.has_masks,
            dataset=dataset_id,
            lists=rows.lists,
            rows=None if len(chosen) == len(rows) else rows_digest(chosen),
            **_identity(rows),
        )

    def _load_or_compute(
        self,
        groups: Sequence[ResponseGroup],
        asked: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        has_masks: bool,
        tokens: bool = False,
        gold: bool = False,
        **parts: Any,
    ) -> StoredLogps:
        """Log-probs under the initial policy: the adapter switched off, or the weights before the first step."""
        training = self._spec.training
        if training.overlong != "error":  # rows may be cut or gone, also for their gold response
            parts |= {"overlong": training.overlong, "max_tokens": training.max_tokens, "gold": gold}
        if has_masks:
            parts |= {"counted": "assistant turns"}
        digest = reference_digest(
            model=self._inputs.initial_model_id,
            tokenizer=tokenizer_sha256(self._inputs.tokenizer),
            template=template_sha256(self._inputs.tokenizer),
            precision=self._spec.training.precision,
            layout=self._inputs.runner.layout.name,
            micro_batch_tokens=self._spec.training.micro_batch_tokens,
            tokens=tokens,
            **parts,
        )

        runner, inputs = self._inputs.runner, self._inputs

        def compute(groups: Sequence[ResponseGroup], phase: Phase) -> StoredLogps:
            disable = getattr(runner.model, "disable_adapter", None)
            if disable is not None:
                with disable():
                    return runner.all_logps(groups, phase, tokens=tokens)
            if self._inputs.state.step > 0:
                raise FailedPreconditionError(
                    f"the reference log-probs {digest} of this job are gone from the object store and the initial "
                    "weights have moved on (start a new job)"
                )
            return runner.all_logps(groups, phase, tokens=tokens)

        store = ReferenceStore(
            store=inputs.store,
            copies=inputs.rows.copies,
            ranks=inputs.ranks,
            begin=inputs.phase,
            chunk_tokens=_CHUNK_MICRO_BATCHES * training.micro_batch_tokens,
        )
        return store.load_or_compute(digest, groups, rows=asked, lengths=lengths, compute=compute)


def _identity(rows: FittedRows[PolicyRow]) -> dict[str, Any]:
    """What names the rows of a dataset beside the training's parameters: those that a reward model left."""
    return {} if rows.chosen is None else {"chosen": rows_digest(rows.chosen)}


KIND = TrainingKind(JobKind.POLICY_TRAINING, lambda inputs: PolicyTraining(inputs).build())
