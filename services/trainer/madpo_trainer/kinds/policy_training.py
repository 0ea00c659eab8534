"""Policy training: rows, margins and their calibration, references, and the method's loss."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

from madpo.calibration.report import CalibrationReport
from madpo.data.order import Schedule
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import FailedPreconditionError, InvalidArgumentError
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
from madpo_trainer import stored_reference
from madpo_trainer.kinds.base import TrainingInputs, TrainingKind
from madpo_trainer.margins.calibration import calibrate, write_artifacts
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.remote import RemoteMargins, ask_scorer, unless_interrupted
from madpo_trainer.margins.shared import SharedMargins
from madpo_trainer.margins.source import DatasetMargins, MarginSource
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.moving_reference import MovingReference
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.stored_reference import StoredLogps
from madpo_trainer.training_rows import PolicyRow, require_columns

logger = logging.getLogger(__name__)


class PolicyTraining:
    """Builds the objective of one attempt; all ranks do, in step."""

    def __init__(self, inputs: TrainingInputs) -> None:
        self._inputs = inputs
        self._spec: PolicyTrainingSpec = inputs.spec

    def build(self) -> tuple[PolicyObjective, Schedule]:
        """The objective, and the order of its rows.

        Raises:
            Interrupted: The run was asked to stop meanwhile.
        """
        inputs = self._inputs
        method = get_method(self._spec.method.name)
        config = parse_params(method.name, self._spec.method.params)
        requirements, update = method.requirements(config), config.reference_update()
        if self._spec.training.lora is not None and (conflict := config.adapter_conflict()):
            # The gateway has said so before the job existed; specs may come from elsewhere.
            raise InvalidArgumentError(f"{method.name} {conflict}")
        rows, held_out = self._read(method, requirements)
        inputs.runner.prove_layout([row.group for row in rows])
        schedule = inputs.schedule(len(rows))
        temperature, margins = 1.0, None
        if requirements.margin:
            margins = self._margins([row.pair for row in rows], schedule)
            config, temperature = self._calibrate(method, config, margins, rows, held_out)
        mismatched = None
        if requirements.mismatched:
            mismatched = self._mismatched(rows, schedule)
        objective = PolicyObjective(
            inputs.runner,
            rows=rows,
            held_out=held_out,
            method=method,
            config=config,
            reference=self._reference(rows, requirements, update),
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

    def _read(self, method: Method, requirements: Requirements) -> tuple[list[PolicyRow], list[PolicyRow]]:
        """Training rows, and held-out pairs."""
        reader = self._inputs.rows

        def read_both() -> tuple[list[PolicyRow], list[PolicyRow]]:
            kind = self._inputs.datasets.get(self._inputs.dataset_id).kind
            if requirements.list and kind is not DatasetKind.LIST:
                raise InvalidArgumentError(
                    f"{method.name} needs a dataset of lists, {self._inputs.dataset_id} is one of {kind} rows"
                )
            rows = reader.policy_rows(self._inputs.dataset_id, lists=requirements.list, gold=requirements.gold)
            require_columns(rows, requirements)
            return rows, reader.policy_rows(self._inputs.eval_dataset_id, lists=False, gold=False)

        return self._inputs.ranks.together(read_both)

    def _margins(self, pairs: Sequence[PreferencePair], schedule: Schedule) -> MarginSource:
        parameters = self._spec.margin
        if parameters is None:
            raise InvalidArgumentError(
                f"method {self._spec.method.name} needs reward margins "
                "(give margin.reward_model, or margin.source=dataset)"
            )
        if parameters.source == "dataset":
            return DatasetMargins(pairs, schedule)
        self._inputs.phase("waiting for a scorer")
        return SharedMargins(lambda: self._remote_margins(pairs, schedule, parameters), self._inputs.ranks)

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
        )

    async def _pin_revision(self, model_id: str, parameters: MarginParameters) -> str:
        """The revision the job is pinned to; the scorer has loaded the model when this returns."""

        async def ask() -> None:
            async with connect_scorer(self._inputs.settings) as client:
                info = await ask_scorer(lambda: client.get_reward_model(model_id), parameters)
            self._inputs.state.reward_revision = self._inputs.state.reward_revision or info.revision

        await unless_interrupted([ask()], self._stop_requested)
        return cast(str, self._inputs.state.reward_revision)

    def _stop_requested(self) -> bool:
        return self._inputs.run.stop_requested is not None

    def _calibrate(
        self,
        method: Method,
        config: MethodConfig,
        margins: MarginSource,
        rows: Sequence[PolicyRow],
        held_out: Sequence[PolicyRow],
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
                training=[row.pair for row in rows],
                held_out=[row.pair for row in held_out],
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
        write_artifacts(report, directory)
        publish_artifacts(
            self._inputs.store, self._inputs.run.job.job_id, directory, attempt=self._inputs.run.attempt, early=True
        )
        for warning in report.warnings:
            logger.warning(warning)
            self._inputs.phase(f"warning: {warning}")
        self._inputs.phase(f"calibrated: {report.headline()}")
        return report.model_dump(mode="json")

    def _reference(
        self,
        rows: Sequence[PolicyRow],
        requirements: Requirements,
        update: ReferenceUpdate | None,
    ) -> StoredLogps | MovingReference:
        if update is None:
            return self._stored(rows, self._inputs.dataset_id, tokens=requirements.token_logps, gold=requirements.gold)
        self._inputs.phase("loading the reference")
        return MovingReference(
            self._inputs.ranks.together(self._inputs.load_initial),
            self._inputs.runner.model,
            update,
            run=self._inputs.runner.logps,
            rows=rows,
            tensors=self._inputs.tensors.get("reference", {}),
        )

    def _mismatched(self, rows: Sequence[PolicyRow], schedule: Schedule) -> Mismatched:
        max_tokens = self._spec.training.max_tokens
        mismatched = Mismatched(rows, schedule, max_tokens=max_tokens)
        order = {"seed": schedule.seed, "batch_size": schedule.batch_size, "rows": schedule.total_rows}
        mismatched.compute_reference(
            lambda groups: self._load_or_compute(
                groups, dataset=self._inputs.dataset_id, mismatched={**order, "max_tokens": max_tokens}
            )
        )
        return mismatched

    def _stored(
        self,
        rows: Sequence[PolicyRow],
        dataset_id: str | None,
        *,
        tokens: bool = False,
        gold: bool = False,
    ) -> StoredLogps:
        groups = [row.group for row in rows]
        lists = any(row.scores for row in rows)
        return self._load_or_compute(groups, tokens=tokens, gold=gold, dataset=dataset_id, lists=lists)

    def _load_or_compute(
        self,
        groups: Sequence[ResponseGroup],
        *,
        tokens: bool = False,
        gold: bool = False,
        **parts: Any,
    ) -> StoredLogps:
        """Log-probs under the initial policy: the adapter switched off, or the weights before the first step."""
        training = self._spec.training
        if training.overlong != "error":  # rows may be cut or gone, also for their gold response
            parts |= {"overlong": training.overlong, "max_tokens": training.max_tokens, "gold": gold}
        if any(any(group.masks) for group in groups):
            parts |= {"counted": "assistant turns"}
        digest = stored_reference.reference_digest(
            model=self._inputs.initial_model_id,
            tokenizer=tokenizer_sha256(self._inputs.tokenizer),
            template=template_sha256(self._inputs.tokenizer),
            precision=self._spec.training.precision,
            layout=self._inputs.runner.layout.name,
            micro_batch_tokens=self._spec.training.micro_batch_tokens,
            tokens=tokens,
            **parts,
        )

        def compute() -> StoredLogps:
            phase = self._inputs.phase("reference log-probs", len(groups), unit="rows")
            disable = getattr(self._inputs.runner.model, "disable_adapter", None)
            if disable is not None:
                with disable():
                    return self._inputs.runner.all_logps(groups, phase, tokens=tokens)
            if self._inputs.state.step > 0:
                raise FailedPreconditionError(
                    f"the reference log-probs {digest} of this job are gone from the object store and the initial "
                    "weights have moved on (start a new job)"
                )
            return self._inputs.runner.all_logps(groups, phase, tokens=tokens)

        return stored_reference.load_or_compute(
            self._inputs.store, digest, rows=len(groups), compute=compute, ranks=self._inputs.ranks
        )


KIND = TrainingKind(JobKind.POLICY_TRAINING, lambda inputs: PolicyTraining(inputs).build())
