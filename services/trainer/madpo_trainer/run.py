"""One training attempt, on each of its ranks (a process each, by `madpo.worker.program`).

Reads the job from the workspace, resumes from the newest whole checkpoint, trains, publishes model and artifacts, and
leaves its outcome for the supervisor. All ranks run the same program; the leader alone has the job's workspace, writes
to the object store and asks the reward service. The others have a workspace of their host, and get the job from it.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast
from uuid import uuid4

import structlog
import torch
from transformers import logging as transformers_logging

from madpo.config import load_settings
from madpo.data.limited import load_limited
from madpo.data.other_cut import TAKE_THE_FILE, cut_otherwise
from madpo.data.tokenize import template_sha256
from madpo.errors import RETRYABLE, MadpoError
from madpo.jobs.registry import KINDS, parse_spec
from madpo.model_files.context_limit import directory_limit
from madpo.models.device import bound_gpu_memory, precision_on
from madpo.models.dtypes import WeightDtypes, round_weights
from madpo.ports import ObjectStore
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.datasets import DatasetStore
from madpo.storage.files import fetch_once
from madpo.storage.models import ModelStore
from madpo.storage.references import resolve_dataset_id, resolve_model
from madpo.storage.tokens import TokenStore
from madpo.telemetry.logging import configure_logging
from madpo.types import Checkpoint, JobKind, JobResult
from madpo.worker.failure import telling
from madpo.worker.phase import Interrupted, Phase, transfers
from madpo.worker.store import open_run_store
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run, watch_lifeline
from madpo_trainer.adam import require_libraries
from madpo_trainer.artifacts import RecordSoFar, leave_artifacts
from madpo_trainer.held_out import HeldOutEvaluation, describe_publication, take_weights
from madpo_trainer.initial_model import InitialModel, prepare_initial
from madpo_trainer.job_summary import summarise_job
from madpo_trainer.kinds.base import TrainingInputs, TrainingSpec
from madpo_trainer.kinds.registry import training_kind
from madpo_trainer.last_evaluation import evaluate_last
from madpo_trainer.ledger import Ledger
from madpo_trainer.loop import TrainingLoop
from madpo_trainer.memory import note_shortage, usable_shortage
from madpo_trainer.model_placing import ModelPlacing, training_device
from madpo_trainer.model_runner import evaluating
from madpo_trainer.objectives.base import Objective
from madpo_trainer.output_model import describe_output, learnt_ends, output_dtypes, save_trained
from madpo_trainer.ranks import Ranks, open_ranks, run_rank
from madpo_trainer.settings import RankEnvironment, TrainerSettings
from madpo_trainer.state import TrainingState, load_state, settle_determinism
from madpo_trainer.trained_weights import fingerprints, refuse_non_finite_weights, summarise_training
from madpo_trainer.training_rows import TrainingRows

logger = logging.getLogger(__name__)


def main(workspace: Path, place: RankEnvironment | None = None) -> NoReturn:
    """Run the attempt and end the process; the exit code is 0 whenever an outcome was left.

    Args:
        workspace: Of the attempt on this host.
        place: Of this process among the ranks; None for one that torchrun has told.
    """

    def program() -> int:
        with telling(workspace):
            return _attempt(workspace, place or RankEnvironment())

    run_rank(program)


def _attempt(workspace: Path, place: RankEnvironment) -> int:
    watch_lifeline(workspace)
    settings = load_settings(TrainerSettings)
    configure_logging(service="trainer-run", level=settings.log_level, format=settings.log_format)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # a new head is expected to be missing from the base model
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with open_ranks(place, timeout_s=settings.collective_timeout_s) as ranks:
        if ranks.size > 1:
            structlog.contextvars.bind_contextvars(rank=ranks.rank)
        bound_gpu_memory(settings, ranks.local_rank)
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


def _model_kind(kind: JobKind) -> str:
    left = KINDS[kind].leaves_model
    assert left is not None, "a training leaves a model"
    return left


class TrainingRun:
    """Everything one attempt needs on one rank, built from the job's spec."""

    def __init__(self, run: Run, settings: TrainerSettings, ranks: Ranks) -> None:
        self._run, self._settings, self._ranks = run, settings, ranks
        self._store: ObjectStore = open_run_store(settings, run, reports=ranks.is_leader)
        self._transfer = transfers(self._phase)
        self._models = ModelStore(self._store, settings.copies, transfer=self._transfer)
        self._datasets = DatasetStore(self._store)
        self._kind = training_kind(run.job.kind)
        self._model_kind = _model_kind(run.job.kind)
        self._spec = cast(TrainingSpec, parse_spec(run.job.kind, dict(run.job.spec)))
        self._parameters = self._spec.training
        holder = ranks.lead(lambda: uuid4().hex)
        self._checkpoints = CheckpointStore(self._store, run.job.job_id, attempt=run.attempt, holder=holder)
        self._state = TrainingState(seed=self._parameters.seed)
        self._is_deterministic = settle_determinism(settings.threads, training_device(ranks), self._parameters)
        require_libraries(self._parameters)
        self._total_steps = 0
        self._metrics: list[dict[str, Any]] = []
        self._tolerance = Tolerance()
        self._tensors: Mapping[str, Mapping[str, torch.Tensor]] = {}

    def execute(self) -> None:
        """Train to the end, or to the point where the run was asked to stop."""
        try:
            self._execute()
        except Interrupted:
            self._stop()

    def _execute(self) -> None:
        self._phase("loading")
        checkpoint = self._resume()
        self._settle_precision()
        self._apply_shortage()
        initial = self._initial()
        inputs = self._inputs(initial, checkpoint)
        objective, schedule = self._kind.build(inputs)
        self._total_steps = schedule.total_steps
        lora, ends = self._parameters.lora is not None, self._ranks.lead(lambda: self._learnt_ends(inputs))
        save = partial(save_trained, inputs.runner.model, ranks=self._ranks, initial=initial, lora=lora, end_ids=ends)

        record = RecordSoFar(self._run, self._store, inputs.ledger)
        held_out = HeldOutEvaluation(
            lambda: self._evaluate(objective),
            parameters=self._parameters,
            state=self._state,
            total_steps=schedule.total_steps,
        )
        dtypes = output_dtypes(self._parameters, initial) or WeightDtypes()
        loop = TrainingLoop(
            run=self._run,
            ranks=self._ranks,
            objective=objective,
            micro_batches=inputs.runner.micro_batches,
            parameters=self._parameters,
            schedule=schedule,
            state=self._state,
            metrics=self._metrics,
            held_out=held_out,
            checkpoints=self._checkpoints,
            save_model=partial(save, is_dealt=True),
            take_record=lambda step: record.take(step, metrics=self._metrics, calibration=self._state.calibration),
            store_record=record.store,
            note_shortage=partial(note_shortage, self._store, self._run.job.job_id),
            checkpoint_every_s=self._settings.checkpoint_every_s,
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
        try:
            if not self._state.initial_eval:
                self._state.initial_eval = self._evaluate(objective)
            held_out.require_metric(self._state.initial_eval)
            if self._state.step == 0:
                self._state.initial_weights = fingerprints(objective.model, self._ranks, dtypes=dtypes)
            loop.estimate_memory()
            if not loop.execute():
                raise Interrupted
            about = {
                "trained": summarise_training(objective.model, self._ranks, state=self._state, dtypes=dtypes),
                "execution": {
                    "precision": self._parameters.precision,
                    "deterministic": self._is_deterministic,
                    **inputs.runner.micro_batches.summary(),
                    **loop.summary(),
                },
                **describe_publication(self._state, self._parameters),
            }
            self._take_best(objective.model, initial)
            self._finish(objective, inputs, output_dtypes(self._parameters, initial), about, save)
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
        fetch = partial(self._checkpoints.fetch, chosen, transfer=self._transfer)
        self._ranks.apart(lambda: fetch_once(directory, fetch))
        self._state, self._tensors, self._metrics = load_state(directory)
        logger.info("resuming", extra={"step": self._state.step})
        return directory

    def _settle_precision(self) -> None:
        """Compute as the first attempt did, or as the leader's device does best."""
        asked, decided = self._parameters.precision, self._state.precision
        self._state.precision = decided or self._ranks.lead(lambda: precision_on(training_device(self._ranks), asked))
        self._parameters = self._parameters.model_copy(update={"precision": self._state.precision})
        self._spec = self._spec.model_copy(update={"training": self._parameters})
        self._placing = ModelPlacing(self._parameters, self._ranks, kind=self._model_kind)

    def _apply_shortage(self) -> None:
        """Begin in smaller pieces when an earlier attempt ran out of memory and could not go on by itself."""
        shortage = self._ranks.lead(lambda: usable_shortage(self._store, self._run.job.job_id))
        if shortage:
            self._state.memory_shortage = shortage
            logger.warning("memory ran out in an earlier attempt: half as many tokens a micro-batch", extra=shortage)

    def _newest_checkpoint(self, directory: Path) -> Checkpoint | None:
        """The newest whole checkpoint, fetched, once no older attempt can add another."""
        self._checkpoints.take_ownership()
        found = self._checkpoints.latest_valid(directory, transfer=self._transfer)
        return found[0] if found is not None else None

    def _initial(self) -> InitialModel:
        """The model to start from, fetched."""

        def prepare() -> InitialModel:
            resolved = resolve_model(self._spec.model, store=self._store, models=self._models)
            return prepare_initial(resolved, models=self._models, scratch=self._run.directory)

        initial = self._ranks.lead(prepare)
        return replace(initial, directory=self._ranks.apart(lambda: self._models.fetch(initial.model_id)))

    def _inputs(self, initial: InitialModel, checkpoint: Path | None) -> TrainingInputs:
        """What the objective is built from: the model, and readers of rows with their tokens."""
        tokenizer = self._ranks.together(lambda: load_limited(initial.directory))
        if self._ranks.is_leader and (others := cut_otherwise(tokenizer, initial.directory)):
            logger.warning("%s: %s", others, TAKE_THE_FILE)
        self._placing.tokenizer = tokenizer
        runner = self._ranks.together(lambda: self._placing.runner(initial, checkpoint))
        dataset_id = resolve_dataset_id(self._spec.dataset, store=self._store)
        held_out = self._spec.eval_dataset
        eval_dataset_id = None if held_out is None else resolve_dataset_id(held_out, store=self._store)
        rows = TrainingRows(
            self._datasets,
            TokenStore(self._store),
            copies=self._models.copies,
            transfer=self._transfer,
            directory=initial.directory,
            tokenizer=tokenizer,
            max_tokens=min(self._parameters.max_tokens, directory_limit(initial.directory) or sys.maxsize),
            overlong=self._parameters.overlong,
        )

        def tokenize() -> None:
            for each in filter(None, (dataset_id, eval_dataset_id)):
                rows.prepare(each, scratch=self._run.directory / "tokens", phase=self._phase)

        self._phase("tokenizing")
        self._ranks.lead(tokenize)
        self._phase("reading data")
        job_id, attempt = self._run.job.job_id, self._run.attempt
        return TrainingInputs(
            spec=self._spec,
            run=self._run,
            settings=self._settings,
            ranks=self._ranks,
            store=self._store,
            datasets=self._datasets,
            state=self._state,
            runner=runner,
            tokenizer=tokenizer,
            rows=rows,
            dataset_id=dataset_id,
            eval_dataset_id=eval_dataset_id,
            initial_model_id=initial.model_id,
            load_initial=lambda: self._placing.initial(initial),
            tensors=self._tensors,
            ledger=Ledger(self._store, job_id=job_id, attempt=attempt, parts=self._state.ledger_parts),
            phase=self._phase,
        )

    def _take_best(self, model: torch.nn.Module, initial: InitialModel) -> None:
        """Go back to the weights of the best step where they are the ones to be left."""
        best, directory = self._state.best.get("step"), self._run.directory / "best"
        if best in (None, self._state.step) or not self._parameters.publishes_best:
            return
        self._phase(f"going back to step {best}")

        def fetch() -> None:
            found = self._checkpoints.of_step(best)
            fetch_once(directory, partial(self._checkpoints.fetch, found, transfer=self._transfer))

        self._ranks.apart(fetch)
        self._ranks.together(lambda: take_weights(model, self._placing.at_checkpoint(initial, directory)))

    def _evaluate(self, objective: Objective) -> dict[str, float]:
        phase = self._phase("held-out evaluation", objective.held_out_rows, unit="rows")
        with evaluating(objective.model, self._parameters.precision):
            return objective.evaluate(phase)

    def _finish(
        self,
        objective: Objective,
        inputs: TrainingInputs,
        dtypes: WeightDtypes | None,
        about: Mapping[str, Any],
        save: Callable[..., tuple[int, ...]],
    ) -> None:
        """Measure the model as it will be left, then publish it; `about` says what was trained, and how."""
        if dtypes is not None:
            round_weights(objective.model, dtypes)
        held_out = evaluate_last(
            lambda: self._evaluate(objective), self._run, self._store, self._ranks, self._tolerance
        )
        told = summarise_job(objective, inputs, held_out, metrics=self._metrics, tolerance=self._tolerance)
        self._phase("publishing")
        refuse_non_finite_weights(objective.model, self._ranks, step=self._state.step)
        ends, is_reward = save(self._run.directory / "final", dtypes=dtypes), self._model_kind == "reward"
        output = describe_output(inputs.runner, inputs.tokenizer, dtypes=dtypes, added_ends=ends, is_reward=is_reward)
        # All wait for the leader: a host that left before would ask to join the next attempt while this one lives.
        self._ranks.lead(lambda: self._publish({**told, **about}, inputs, output))

    def _learnt_ends(self, inputs: TrainingInputs) -> list[int]:
        """Tokens that the model learns to end with; a reward model says nothing."""
        if self._model_kind == "reward":
            return []
        return learnt_ends(inputs.tokenizer, self._datasets.read(inputs.dataset_id))

    def _publish(self, summary: dict[str, Any], inputs: TrainingInputs, output: dict[str, Any]) -> None:
        """Store the model, then what tells of it, then report the result."""
        self._tolerance.warnings += [output.pop("warning")] if "warning" in output else []
        summary = self._tolerance.finite(summary | {"output": output})
        model, _ = self._models.publish(
            self._run.directory / "final",
            display_name=self._run.job.display_name or self._run.job.kind.value,
            kind=self._model_kind,
            base_model_id=inputs.initial_model_id if self._parameters.lora is not None else None,
            metadata={
                "job_id": self._run.job.job_id,
                "initial_model_id": inputs.initial_model_id,
                "template_sha256": template_sha256(inputs.tokenizer),
                "eval": summary["eval"],
            },
        )
        leave_artifacts(
            self._run,
            self._store,
            self._tolerance,
            metrics=self._metrics,
            initial_eval=self._state.initial_eval,
            calibration=self._state.calibration,
            ledger=inputs.ledger,
        )
        self._run.succeed(JobResult(model.model_id, summary, warnings=tuple(self._tolerance.warnings)))

    def _phase(self, name: str, total: int = 0, *, unit: str = "", done: int = 0) -> Phase:
        leads = self._ranks.is_leader
        return Phase(
            self._run,
            name,
            total,
            unit=unit,
            done=done,
            step=self._state.step,
            total_steps=self._total_steps,
            reports=leads,
        )
