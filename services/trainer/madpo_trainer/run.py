"""One training attempt, in each process torchrun starts: `python -m madpo_trainer.run WORKSPACE`.

Reads the job from the workspace, resumes from the newest whole checkpoint, trains, publishes model and artifacts, and
leaves its outcome for the supervisor. All ranks run the same program; the leader alone has the job's workspace, writes
to the object store and asks the reward service. The others have a workspace of their host, and get the job from it.
"""

import asyncio
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import structlog
import torch
from torch import nn
from transformers import logging as transformers_logging

from madpo.calibration.report import CalibrationReport
from madpo.config import load_settings
from madpo.data.order import Schedule
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import RETRYABLE, FailedPreconditionError, InvalidArgumentError, MadpoError
from madpo.jobs import MarginParameters, PolicyTrainingSpec, RewardTrainingSpec, SupervisedTrainingSpec, parse_spec
from madpo.losses.method import Method, MethodConfig
from madpo.losses.registry import get_method, parse_params
from madpo.losses.scales import number
from madpo.models.load import load_tokenizer
from madpo.ports import ObjectStore
from madpo.queue.workspace import Run, watch_lifeline
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.datasets import DatasetStore
from madpo.storage.files import fetch_once
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.storage.references import resolve_model, resolve_model_id
from madpo.telemetry.logging import configure_logging
from madpo.types import Checkpoint, JobProgress, JobResult, PreferencePair
from madpo_trainer import reference
from madpo_trainer.blocks import prepare_blocks
from madpo_trainer.calibration import calibrate, write_artifacts
from madpo_trainer.initial import InitialModel, load_trainable, prepare_initial, save_trained
from madpo_trainer.ledger import Ledger
from madpo_trainer.loop import TrainingLoop, write_metrics
from madpo_trainer.margins import DatasetMargins, MarginJournal, MarginSource, RemoteMargins, SharedMargins, outlast
from madpo_trainer.objectives.base import Objective
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.objectives.reward import RewardObjective
from madpo_trainer.objectives.supervised import SupervisedObjective
from madpo_trainer.ranks import Interrupted, Ranks, open_ranks, run_rank
from madpo_trainer.rows import EncodedPair, read_completions, read_pairs
from madpo_trainer.settings import TrainerSettings
from madpo_trainer.sharding import shard, whole_state
from madpo_trainer.state import TrainingState, load_state

logger = logging.getLogger(__name__)

T = TypeVar("T")

TrainingSpec = SupervisedTrainingSpec | RewardTrainingSpec | PolicyTrainingSpec


def main(workspace: Path) -> int:
    """Run the attempt; the exit code is 0 whenever an outcome was left."""
    watch_lifeline(workspace)
    settings = load_settings(TrainerSettings)
    configure_logging(service="trainer-run", level=settings.log_level, format=settings.log_format)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a new head is expected to be missing from the base model
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    _make_deterministic(settings.threads)
    with open_ranks(timeout_s=settings.collective_timeout_s) as ranks:
        if ranks.size > 1:
            structlog.contextvars.bind_contextvars(rank=ranks.rank)
        run = Run(workspace, ranks.lead(lambda: Run.open(workspace).job))
        try:
            TrainingRun(run, settings, ranks).execute()
        except RETRYABLE:
            raise
        except MadpoError as error:
            if ranks.is_leader:
                logger.exception("the job cannot go on")
                run.fail(str(error))
            else:
                logger.warning("the job cannot go on: %s", error)
    return 0


def _make_deterministic(threads: int | None) -> None:
    """Bit-equal results on the same machine: what a resumed run is compared by."""
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


class TrainingRun:
    """Everything one attempt needs on one rank, built from the job's spec."""

    def __init__(self, run: Run, settings: TrainerSettings, ranks: Ranks) -> None:
        self._run, self._settings, self._ranks = run, settings, ranks
        self._store: ObjectStore = open_store(settings)
        self._models = ModelStore(self._store, settings.workspace / "cache")
        self._datasets = DatasetStore(self._store)
        self._spec = cast(TrainingSpec, parse_spec(run.job.kind, dict(run.job.spec)))
        self._parameters = self._spec.training
        self._checkpoints = CheckpointStore(self._store, run.job.job_id, attempt=run.attempt)
        self._device = torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self._state = TrainingState(seed=self._parameters.seed)
        self._metrics: list[dict[str, Any]] = []
        self._method_state: dict[str, torch.Tensor] = {}

    def execute(self) -> None:
        """Train to the end, or to the point where the run was asked to stop."""
        self._phase("loading")
        checkpoint = self._resume()
        initial = self._initial()
        model, tokenizer = self._ranks.together(lambda: self._load(initial, checkpoint))
        ledger = Ledger(
            self._store, job_id=self._run.job.job_id, attempt=self._run.attempt, parts=self._state.ledger_parts
        )
        try:
            objective, schedule = self._build(model, tokenizer, initial, ledger)
        except Interrupted:
            self._stop()
            return
        lora = self._parameters.lora is not None

        def save(directory: Path, state: Mapping[str, torch.Tensor]) -> None:
            save_trained(model, tokenizer, directory, state=state, initial=initial, lora=lora)

        def flush(step: int) -> list[str]:
            ledger.flush(step)
            return list(ledger.parts)

        loop = TrainingLoop(
            run=self._run,
            ranks=self._ranks,
            objective=objective,
            parameters=self._parameters,
            schedule=schedule,
            state=self._state,
            metrics=self._metrics,
            checkpoints=self._checkpoints,
            save_model=save,
            method_state=self._method_state,
            flush=flush,
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
        try:
            if not self._state.initial_eval:
                self._state.initial_eval = self._evaluate(objective)
            if not loop.execute():
                self._stop()
                return
            self._finish(objective, ledger, initial, save)
        finally:
            objective.close()

    def _stop(self) -> None:
        if self._ranks.is_leader:
            self._run.stop()

    def _resume(self) -> Path | None:
        """Fetch the checkpoint the leader chose and take its state; None at the first attempt."""
        directory = self._run.directory / "resume"
        chosen = self._ranks.lead(lambda: self._newest_checkpoint(directory))
        if chosen is None:
            return None
        self._ranks.together(lambda: fetch_once(directory, lambda into: self._checkpoints.fetch(chosen, into)))
        self._state, self._method_state, self._metrics = load_state(directory)
        logger.info("resuming", extra={"step": self._state.step})
        return directory

    def _newest_checkpoint(self, directory: Path) -> Checkpoint | None:
        """The newest whole checkpoint, fetched, once no older attempt can add another."""
        self._checkpoints.take_ownership()
        found = self._checkpoints.latest_valid(directory)
        return found[0] if found is not None else None

    def _initial(self) -> InitialModel:
        """The model to start from, fetched."""

        def prepare() -> tuple[str, str]:
            resolved = resolve_model(self._spec.model, store=self._store, models=self._models)
            initial = prepare_initial(resolved, models=self._models, scratch=self._run.directory)
            return initial.model_id, initial.kind

        model_id, kind = self._ranks.lead(prepare)
        return InitialModel(self._ranks.together(lambda: self._models.fetch(model_id)), model_id, kind)

    def _load(self, initial: InitialModel, checkpoint: Path | None) -> tuple[nn.Module, Any]:
        """Model and tokenizer; a new head or adapter is the same on all ranks."""
        tokenizer = load_tokenizer(initial.directory)
        kind = "reward" if isinstance(self._spec, RewardTrainingSpec) else "causal_lm"
        torch.manual_seed(self._parameters.seed)
        model = load_trainable(
            initial, kind=kind, lora=self._parameters.lora, checkpoint=checkpoint / "model" if checkpoint else None
        )
        prepare_blocks(model, self._parameters)
        if self._parameters.sharding == "fsdp" and self._ranks.size > 1:
            shard(model, self._device)
            self._ranks.in_step = True
        return model.to(self._device), tokenizer

    def _build(
        self, model: nn.Module, tokenizer: Any, initial: InitialModel, ledger: Ledger
    ) -> tuple[Objective, Schedule]:
        """The objective of the job's kind, and the order of its rows."""
        self._phase("reading data")
        micro_batch_size = self._parameters.micro_batch_size
        if isinstance(self._spec, SupervisedTrainingSpec):
            rows, held_out = self._read(read_completions, tokenizer)
            supervised = SupervisedObjective(
                model,
                rows=rows,
                held_out=held_out,
                micro_batch_size=micro_batch_size,
                ranks=self._ranks,
            )
            return supervised, self._schedule(len(rows))
        pairs, held_out_pairs = self._read(read_pairs, tokenizer)
        schedule = self._schedule(len(pairs))
        if isinstance(self._spec, RewardTrainingSpec):
            reward = RewardObjective(
                model,
                tokenizer,
                pairs=pairs,
                held_out=held_out_pairs,
                micro_batch_size=micro_batch_size,
                ranks=self._ranks,
            )
            return reward, schedule
        method = get_method(self._spec.method.name)
        config = parse_params(method.name, self._spec.method.params)
        temperature, margins = 1.0, None
        if method.requirements(config).margin:
            margins = self._margins([pair for pair, _, _ in pairs], schedule)
            config, temperature = self._calibrate(method, config, margins, pairs, held_out_pairs)
        policy = PolicyObjective(
            model,
            pairs=pairs,
            held_out=held_out_pairs,
            method=method,
            config=config,
            margins=margins,
            margin_temperature=temperature,
            ledger=ledger,
            epoch_of=schedule.epoch,
            micro_batch_size=micro_batch_size,
            ranks=self._ranks,
        )
        policy.method_state = self._method_state
        policy.reference = self._reference(policy, pairs, initial, tokenizer, self._spec.dataset_id)
        if held_out_pairs:
            dataset_id = cast(str, self._spec.eval_dataset_id)
            policy.held_out_reference = self._reference(policy, held_out_pairs, initial, tokenizer, dataset_id)
        return policy, schedule

    def _read(self, read: Callable[..., list[T]], tokenizer: Any) -> tuple[list[T], list[T]]:
        """Training and held-out rows."""
        dataset_ids = (self._spec.dataset_id, self._spec.eval_dataset_id)
        max_tokens = self._parameters.max_tokens
        rows, held_out = self._ranks.together(
            lambda: [read(self._datasets, each, tokenizer, max_tokens=max_tokens) for each in dataset_ids]
        )
        return rows, held_out

    def _schedule(self, rows: int) -> Schedule:
        return Schedule.plan(
            rows=rows,
            batch_size=self._parameters.global_batch_size,
            seed=self._parameters.seed,
            epochs=self._parameters.epochs,
            max_steps=self._parameters.max_steps,
        )

    def _margins(self, pairs: Sequence[PreferencePair], schedule: Schedule) -> MarginSource:
        assert isinstance(self._spec, PolicyTrainingSpec)
        parameters = self._spec.margin
        if parameters is None:
            raise InvalidArgumentError(
                f"method {self._spec.method.name} needs reward margins "
                "(give margin.reward_model, or margin.source=dataset)"
            )
        if parameters.source == "dataset":
            return DatasetMargins(pairs, schedule)
        self._phase("waiting for a scorer")
        return SharedMargins(lambda: self._remote_margins(pairs, schedule, parameters), self._ranks)

    def _remote_margins(
        self, pairs: Sequence[PreferencePair], schedule: Schedule, parameters: MarginParameters
    ) -> RemoteMargins:
        if self._settings.reward_target is None:
            raise InvalidArgumentError("MADPO_TRAINER_REWARD_TARGET is not set: there is no reward service to ask")
        assert parameters.reward_model is not None
        model_id = resolve_model_id(parameters.reward_model, store=self._store)
        revision = asyncio.run(self._pin_revision(model_id, parameters))
        return RemoteMargins(
            pairs,
            schedule,
            connect=self._connect_scorer,
            model_id=model_id,
            revision=revision,
            journal=MarginJournal(self._store, job_id=self._run.job.job_id, attempt=self._run.attempt),
            parameters=parameters,
            interrupted=lambda: self._run.stop_requested is not None,
        )

    def _connect_scorer(self) -> RewardClient:
        token = self._settings.reward_token
        return RewardClient(
            cast(str, self._settings.reward_target),
            token=token.get_secret_value() if token is not None else None,
            tls=client_tls(self._settings),
        )

    async def _pin_revision(self, model_id: str, parameters: MarginParameters) -> str:
        """The revision the job is pinned to; the scorer has loaded the model when this returns."""
        client = self._connect_scorer()
        try:
            info = await outlast(lambda: client.get_reward_model(model_id), parameters)
        finally:
            await client.close()
        self._state.reward_revision = self._state.reward_revision or info.revision
        return self._state.reward_revision

    def _calibrate(
        self,
        method: Method,
        config: MethodConfig,
        margins: MarginSource,
        pairs: Sequence[EncodedPair],
        held_out: Sequence[EncodedPair],
    ) -> tuple[MethodConfig, float]:
        """The method's parameters, all numbers, and what margins are divided by: those the job first began with."""
        assert isinstance(self._spec, PolicyTrainingSpec)
        parameters = self._spec.margin
        assert parameters is not None
        if not self._state.calibration and self._state.step == 0:
            self._phase("calibrating the reward model")
            report = calibrate(
                method,
                config,
                margins,
                parameters=parameters,
                training=[pair for pair, _, _ in pairs],
                held_out=[pair for pair, _, _ in held_out],
            )
            if report is not None:
                # All ranks go by the leader's figures, to the last bit.
                self._state.calibration = self._ranks.lead(lambda: self._announce(report))
        if not self._state.calibration:
            return config, number("margin.temperature", parameters.temperature)
        stored = CalibrationReport.model_validate(self._state.calibration)
        return parse_params(stored.method, stored.params), stored.temperature.value

    def _announce(self, report: CalibrationReport) -> dict[str, Any]:
        """Publish a report before the first step, and say what it says."""
        directory = self._run.directory / "calibration"
        directory.mkdir(exist_ok=True)
        write_artifacts(report, directory)
        publish_artifacts(self._store, self._run.job.job_id, directory, attempt=self._run.attempt, early=True)
        for warning in report.warnings:
            logger.warning(warning)
            self._phase(f"warning: {warning}")
        self._phase(f"calibrated: {report.headline()}")
        return report.model_dump(mode="json")

    def _reference(
        self,
        policy: PolicyObjective,
        pairs: Sequence[EncodedPair],
        initial: InitialModel,
        tokenizer: Any,
        dataset_id: str,
    ) -> reference.ReferenceLogps:
        self._phase("reference log-probs")
        digest = reference.reference_digest(
            model=initial.model_id,
            dataset=dataset_id,
            tokenizer=tokenizer_sha256(tokenizer),
            template=template_sha256(tokenizer),
            precision=self._parameters.precision,
            micro_batch_size=self._parameters.micro_batch_size,
        )

        def compute() -> reference.ReferenceLogps:
            if self._state.step > 0 and self._parameters.lora is None:
                raise FailedPreconditionError(
                    f"the reference log-probs {digest} of this job are gone from the object store and the initial "
                    "weights have moved on (start a new job)"
                )
            with evaluating(policy.model, self._parameters.precision):
                return policy.compute_reference(pairs)

        return reference.load_or_compute(self._store, digest, rows=len(pairs), compute=compute, ranks=self._ranks)

    def _evaluate(self, objective: Objective) -> dict[str, float]:
        self._phase("held-out evaluation")
        with evaluating(objective.model, self._parameters.precision):
            return objective.evaluate()

    def _finish(
        self,
        objective: Objective,
        ledger: Ledger,
        initial: InitialModel,
        save: Callable[[Path, Mapping[str, torch.Tensor]], None],
    ) -> None:
        """Measure the model, then publish it."""
        held_out = self._evaluate(objective)
        summary = self._summary(objective, held_out)
        self._phase("publishing")
        state = whole_state(objective.model)
        # All wait for the leader: a host that left before would ask to join the next attempt while this one lives.
        self._ranks.lead(lambda: self._publish(summary, ledger, initial, lambda directory: save(directory, state)))

    def _summary(self, objective: Objective, held_out: dict[str, float]) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "steps": self._state.step,
            "final": self._metrics[-1] if self._metrics else {},
            "eval_before": self._state.initial_eval,
            "eval": held_out,
            "train_seconds": self._state.counters.get("step_s", 0.0),
            **objective.summary(),
        }
        if self._state.calibration:
            summary["calibration"] = CalibrationReport.model_validate(self._state.calibration).summary()
        if "margins" in summary:
            wait_s, step_s = self._state.counters.get("margin_wait_s", 0.0), self._state.counters.get("step_s", 0.0)
            summary["margins"] |= {"wait_s": wait_s, "wait_share": wait_s / step_s if step_s else 0.0}
        return summary

    def _publish(
        self, summary: dict[str, Any], ledger: Ledger, initial: InitialModel, save: Callable[[Path], None]
    ) -> None:
        """Store model, ledger and metrics, then report the result."""
        directory = self._run.directory / "final"
        save(directory)
        kind = "reward" if isinstance(self._spec, RewardTrainingSpec) else "causal_lm"
        model, _ = self._models.publish(
            directory,
            display_name=self._run.job.display_name or self._run.job.kind.value,
            kind=kind,
            base_model_id=initial.model_id if self._parameters.lora is not None else None,
            metadata={"job_id": self._run.job.job_id, "initial_model_id": initial.model_id, "eval": summary["eval"]},
        )
        artifacts = self._run.directory / "artifacts"
        artifacts.mkdir(exist_ok=True)
        write_metrics(artifacts / "metrics.jsonl", self._metrics)
        if self._state.calibration:
            write_artifacts(CalibrationReport.model_validate(self._state.calibration), artifacts)
        if ledger.parts:
            ledger.join(artifacts / "ledger.parquet")
        publish_artifacts(self._store, self._run.job.job_id, artifacts, attempt=self._run.attempt)
        self._run.succeed(JobResult(model_id=model.model_id, summary=summary))

    def _phase(self, phase: str) -> None:
        if self._ranks.is_leader:
            self._run.progress(JobProgress(step=self._state.step, phase=phase))
            logger.info(phase)


@contextmanager
def evaluating(model: nn.Module, precision: str) -> Iterator[None]:
    """No dropout, the job's precision; training mode comes back after."""
    was_training = model.training
    model.eval()
    device_type = next(model.parameters()).device.type
    try:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        model.train(was_training)


if __name__ == "__main__":
    run_rank(lambda: main(Path(sys.argv[1])))
