"""From the spec of a policy job to its objective: rows, margins and their calibration, references."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from madpo.calibration.report import CalibrationReport
from madpo.data.order import Schedule
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs import MarginParameters, PolicyTrainingSpec
from madpo.losses.method import Method, MethodConfig, ReferenceUpdate, Requirements
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import number
from madpo.models.logps import ResponseGroup
from madpo.ports import ObjectStore
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.datasets import DatasetStore
from madpo.storage.references import resolve_model_id
from madpo.types import DatasetKind, PreferencePair
from madpo.worker.workspace import Run
from madpo_trainer import reference
from madpo_trainer.ledger import Ledger
from madpo_trainer.margins.calibration import calibrate, write_artifacts
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.remote import RemoteMargins, ask_scorer, unless_interrupted
from madpo_trainer.margins.shared import SharedMargins
from madpo_trainer.margins.source import DatasetMargins, MarginSource
from madpo_trainer.mismatched import Mismatched
from madpo_trainer.moving import MovingReference
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.ranks import Ranks
from madpo_trainer.reference import StoredLogps
from madpo_trainer.rows import PolicyRow, TrainingRows, require_columns
from madpo_trainer.running import ModelRunner
from madpo_trainer.settings import TrainerSettings
from madpo_trainer.state import TrainingState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What a policy's training starts from beside its data."""

    runner: ModelRunner
    """The policy, and how it is run."""
    tokenizer: Any
    rows: TrainingRows
    initial_model_id: str
    load_initial: Callable[[], nn.Module]
    """The initial policy once more, placed like the policy, for a reference that moves."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """What the checkpoint that the run goes on from holds beside model and optimizer; empty at the start."""
    ledger: Ledger


@dataclass(slots=True)
class PolicySetup:
    """Builds the objective of one attempt; all ranks do, in step."""

    spec: PolicyTrainingSpec
    run: Run
    settings: TrainerSettings
    ranks: Ranks
    store: ObjectStore
    state: TrainingState
    phase: Callable[[str], None]
    """Says what the attempt is doing."""
    datasets: DatasetStore = field(init=False)

    def __post_init__(self) -> None:
        self.datasets = DatasetStore(self.store)

    def build(self, inputs: PolicyInputs, schedule_of: Callable[[int], Schedule]) -> tuple[PolicyObjective, Schedule]:
        """The objective, and the order of its rows.

        Raises:
            Interrupted: The run was asked to stop meanwhile.
        """
        method = get_method(self.spec.method.name)
        config = parse_params(method.name, self.spec.method.params)
        requirements, update = method.requirements(config), config.reference_update()
        self._refuse(method, update)
        rows, held_out = self._read(inputs.rows, method, requirements)
        inputs.runner.settle([row.group for row in rows])
        schedule = schedule_of(len(rows))
        temperature, margins = 1.0, None
        if requirements.margin:
            margins = self._margins([row.pair for row in rows], schedule)
            config, temperature = self._calibrate(method, config, margins, rows, held_out)
        mismatched = None
        if requirements.mismatched:
            mismatched = self._mismatched(inputs, rows, schedule)
        objective = PolicyObjective(
            inputs.runner,
            rows=rows,
            held_out=held_out,
            method=method,
            config=config,
            reference=self._reference(inputs, rows, requirements, update),
            held_out_reference=self._stored(inputs, held_out, self.spec.eval_dataset_id) if held_out else None,
            mismatched=mismatched,
            margins=margins,
            margin_temperature=temperature,
            method_state=dict(inputs.tensors.get("method", {})),
            ledger=inputs.ledger,
            epoch_of=schedule.epoch,
            seed=self.spec.training.seed,
        )
        return objective, schedule

    def _refuse(self, method: Method, update: ReferenceUpdate | None) -> None:
        """Refuse what cannot be trained. The gateway has, before the job existed; specs may come from elsewhere.

        Raises:
            InvalidArgumentError: Names what and why.
        """
        if update is not None and update.extrapolation and self.spec.training.lora is not None:
            raise InvalidArgumentError(
                f"{method.name} moves the policy itself, which low-rank adapters cannot follow "
                "(leave out training.lora, or set method.params.alpha to 0)"
            )

    def _read(
        self, reader: TrainingRows, method: Method, requirements: Requirements
    ) -> tuple[list[PolicyRow], list[PolicyRow]]:
        """Training rows, and held-out pairs."""

        def read_both() -> tuple[list[PolicyRow], list[PolicyRow]]:
            kind = self.datasets.get(self.spec.dataset_id).kind
            if requirements.list and kind is not DatasetKind.LIST:
                raise InvalidArgumentError(
                    f"{method.name} needs a dataset of lists, {self.spec.dataset_id} is one of {kind} rows"
                )
            rows = reader.policy_rows(self.spec.dataset_id, lists=requirements.list, gold=requirements.gold)
            require_columns(rows, requirements)
            return rows, reader.policy_rows(self.spec.eval_dataset_id, lists=False, gold=False)

        return self.ranks.together(read_both)

    def _margins(self, pairs: Sequence[PreferencePair], schedule: Schedule) -> MarginSource:
        parameters = self.spec.margin
        if parameters is None:
            raise InvalidArgumentError(
                f"method {self.spec.method.name} needs reward margins "
                "(give margin.reward_model, or margin.source=dataset)"
            )
        if parameters.source == "dataset":
            return DatasetMargins(pairs, schedule)
        self.phase("waiting for a scorer")
        return SharedMargins(lambda: self._remote_margins(pairs, schedule, parameters), self.ranks)

    def _remote_margins(
        self, pairs: Sequence[PreferencePair], schedule: Schedule, parameters: MarginParameters
    ) -> RemoteMargins:
        if self.settings.reward_target is None:
            raise InvalidArgumentError("MADPO_TRAINER_REWARD_TARGET is not set: there is no reward service to ask")
        assert parameters.reward_model is not None
        model_id = resolve_model_id(parameters.reward_model, store=self.store)
        revision = asyncio.run(self._pin_revision(model_id, parameters))
        return RemoteMargins(
            pairs,
            schedule,
            connect=self._connect_scorer,
            model_id=model_id,
            revision=revision,
            journal=MarginJournal(self.store, job_id=self.run.job.job_id, attempt=self.run.attempt),
            parameters=parameters,
            interrupted=self._stop_requested,
        )

    def _connect_scorer(self) -> RewardClient:
        token = self.settings.reward_token
        return RewardClient(
            cast(str, self.settings.reward_target),
            token=token.get_secret_value() if token is not None else None,
            tls=client_tls(self.settings),
        )

    async def _pin_revision(self, model_id: str, parameters: MarginParameters) -> str:
        """The revision the job is pinned to; the scorer has loaded the model when this returns."""

        async def ask() -> None:
            async with self._connect_scorer() as client:
                info = await ask_scorer(lambda: client.get_reward_model(model_id), parameters)
            self.state.reward_revision = self.state.reward_revision or info.revision

        await unless_interrupted([ask()], self._stop_requested)
        return cast(str, self.state.reward_revision)

    def _stop_requested(self) -> bool:
        return self.run.stop_requested is not None

    def _calibrate(
        self,
        method: Method,
        config: MethodConfig,
        margins: MarginSource,
        rows: Sequence[PolicyRow],
        held_out: Sequence[PolicyRow],
    ) -> tuple[MethodConfig, float]:
        """The method's parameters, all numbers, and what margins are divided by: those the job first began with."""
        parameters = self.spec.margin
        assert parameters is not None
        if not self.state.calibration and self.state.step == 0:
            self.phase("calibrating the reward model")
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
                self.state.calibration = self.ranks.lead(lambda: self._announce(report))
        if not self.state.calibration:
            return config, number("margin.temperature", parameters.temperature)
        stored = CalibrationReport.model_validate(self.state.calibration)
        return parse_params(stored.method, stored.params), stored.temperature.value

    def _announce(self, report: CalibrationReport) -> dict[str, Any]:
        """Publish a report before the first step, and say what it says."""
        directory = self.run.directory / "calibration"
        directory.mkdir(exist_ok=True)
        write_artifacts(report, directory)
        publish_artifacts(self.store, self.run.job.job_id, directory, attempt=self.run.attempt, early=True)
        for warning in report.warnings:
            logger.warning(warning)
            self.phase(f"warning: {warning}")
        self.phase(f"calibrated: {report.headline()}")
        return report.model_dump(mode="json")

    def _reference(
        self,
        inputs: PolicyInputs,
        rows: Sequence[PolicyRow],
        requirements: Requirements,
        update: ReferenceUpdate | None,
    ) -> StoredLogps | MovingReference:
        if update is None:
            return self._stored(
                inputs, rows, self.spec.dataset_id, tokens=requirements.token_logps, gold=requirements.gold
            )
        self.phase("loading the reference")
        return MovingReference(
            self.ranks.together(inputs.load_initial),
            inputs.runner.model,
            update,
            run=inputs.runner.logps,
            rows=rows,
            tensors=inputs.tensors.get("reference", {}),
        )

    def _mismatched(self, inputs: PolicyInputs, rows: Sequence[PolicyRow], schedule: Schedule) -> Mismatched:
        max_tokens = self.spec.training.max_tokens
        mismatched = Mismatched(rows, schedule, max_tokens=max_tokens)
        order = {"seed": schedule.seed, "batch_size": schedule.batch_size, "rows": schedule.total_rows}
        mismatched.compute_reference(
            lambda groups: self._load_or_compute(
                inputs, groups, dataset=self.spec.dataset_id, mismatched={**order, "max_tokens": max_tokens}
            )
        )
        return mismatched

    def _stored(
        self,
        inputs: PolicyInputs,
        rows: Sequence[PolicyRow],
        dataset_id: str | None,
        *,
        tokens: bool = False,
        gold: bool = False,
    ) -> StoredLogps:
        groups = [row.group for row in rows]
        lists = any(row.scores for row in rows)
        return self._load_or_compute(inputs, groups, tokens=tokens, gold=gold, dataset=dataset_id, lists=lists)

    def _load_or_compute(
        self,
        inputs: PolicyInputs,
        groups: Sequence[ResponseGroup],
        *,
        tokens: bool = False,
        gold: bool = False,
        **parts: Any,
    ) -> StoredLogps:
        """Log-probs under the initial policy: the adapter switched off, or the weights before the first step."""
        self.phase("reference log-probs")
        training = self.spec.training
        if training.overlong != "error":  # rows may be cut or gone, also for their gold response
            parts |= {"overlong": training.overlong, "max_tokens": training.max_tokens, "gold": gold}
        digest = reference.reference_digest(
            model=inputs.initial_model_id,
            tokenizer=tokenizer_sha256(inputs.tokenizer),
            template=template_sha256(inputs.tokenizer),
            precision=self.spec.training.precision,
            layout=inputs.runner.layout.name,
            micro_batch_tokens=self.spec.training.micro_batch_tokens,
            tokens=tokens,
            **parts,
        )

        def compute() -> StoredLogps:
            disable = getattr(inputs.runner.model, "disable_adapter", None)
            if disable is not None:
                with disable():
                    return inputs.runner.all_logps(groups, tokens=tokens)
            if self.state.step > 0:
                raise FailedPreconditionError(
                    f"the reference log-probs {digest} of this job are gone from the object store and the initial "
                    "weights have moved on (start a new job)"
                )
            return inputs.runner.all_logps(groups, tokens=tokens)

        return reference.load_or_compute(self.store, digest, rows=len(groups), compute=compute, ranks=self.ranks)
