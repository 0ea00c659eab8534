"""The one training loop: plan, micro-batches, finite checks, optimizer, checkpoints, progress.

The gradient of a step is that of the whole global batch: every micro-batch loss is a sum divided by the global
denominator, micro-batches are dealt to the ranks, and gradients are summed over them. Every rank then takes the same
optimizer step. A non-finite loss or gradient norm, on any rank, is refused before the weights move on any;
weights that a step itself made non-finite are refused before they are saved.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madpo.data.order import Schedule
from madpo.errors import NonFiniteError
from madpo.jobs.training import TrainingParameters
from madpo.models.memory import is_out_of_memory
from madpo.spelling import number_of
from madpo.storage.checkpoints import CheckpointStore
from madpo.types import JobProgress
from madpo.worker.phase import Interrupted
from madpo.worker.workspace import Run
from madpo_trainer import memory
from madpo_trainer.checkpoint_uploads import CheckpointUploads, checkpoint_times
from madpo_trainer.held_out import HeldOutEvaluation
from madpo_trainer.micro_batches import MicroBatches
from madpo_trainer.objectives.base import Objective, StepWork
from madpo_trainer.optimizer import Optimizer
from madpo_trainer.precision import training_autocast
from madpo_trainer.ranks import OutOfMemory, Ranks
from madpo_trainer.state import TrainingState, save_state, seed_micro_batch
from madpo_trainer.step_memory import StepMemory, settle_step_memory
from madpo_trainer.throughput import Throughput
from madpo_trainer.trained_weights import non_finite_weights, refuse_non_finite_weights
from madpo_trainer.written_parts import write_tensors

logger = logging.getLogger(__name__)

_LONGEST_SILENCE_S = 60.0
"""However seldom figures are logged, the step is reported this often: a run that says nothing is taken for hung."""
_LEAST_WORK = 19
"""How many times as long as it stood for a checkpoint training must go on, where time alone asks for the next."""


class TrainingLoop:
    """Runs an objective from its state's step to the end of the schedule; the leader alone reports and saves.

    Training stands while a checkpoint is written, and goes on while its files are stored. There is one at a time: one
    that is due by steps, as the best or as the last waits for the one before; one due by time comes after it.

    Args:
        run: On ranks that do not lead, only its wish to stop is looked at.
        ranks: Among whom the work of a step is shared.
        micro_batches: Splits a step's rows; its budget is halved when memory runs out.
        save_model: Writes this rank's files of the model, which all together are a Hugging Face directory.
        held_out: Looks at the held-out rows when that is due.
        take_record: Called at each checkpoint with its step; returns keys of ledger parts.
        store_record: Stores what was taken, in another thread, before the checkpoint becomes real.
        note_shortage: Called when memory ran out and only another attempt can go on, with smaller micro-batches.
        checkpoint_every_s: Longest time between two checkpoints, as long as training stands for a twentieth of it at
            most.
    """

    def __init__(
        self,
        *,
        run: Run,
        ranks: Ranks,
        objective: Objective,
        micro_batches: MicroBatches,
        parameters: TrainingParameters,
        schedule: Schedule,
        state: TrainingState,
        metrics: list[dict[str, Any]],
        held_out: HeldOutEvaluation,
        checkpoints: CheckpointStore,
        save_model: Callable[[Path], object],
        take_record: Callable[[int], list[str]],
        store_record: Callable[[], object],
        note_shortage: Callable[[Mapping[str, int]], None],
        checkpoint_every_s: float = math.inf,
    ) -> None:
        self._run, self._ranks, self._objective, self._micro_batches = run, ranks, objective, micro_batches
        self._parameters, self._schedule = parameters, schedule
        self.state, self.metrics, self._held_out = state, metrics, held_out
        self._save_model, self._take_record, self._note_shortage = save_model, take_record, note_shortage
        self._uploads = CheckpointUploads(
            checkpoints,
            run=run,
            ranks=ranks,
            keep=parameters.keep_checkpoints,
            beside=store_record,
            count=self._count,
            waiting=self._say_what_it_waits_for,
        )
        self._optimizer = Optimizer(objective.model, parameters.optimizer, total_steps=schedule.total_steps)
        self._saved_step = state.step
        self._checkpoint_every_s = checkpoint_every_s
        self._checkpoint_due = math.inf
        self._memory: StepMemory | None = None
        self._throughput = Throughput(objective.model, precision=parameters.precision, ranks=ranks)
        if state.memory_shortage:
            micro_batches.budget_tokens = state.memory_shortage["after"]
        self._reported = self._totals()
        self._report_time = time.monotonic()

    def restore(self, directory: Path) -> None:
        """Take what the optimizer remembers back from a checkpoint."""
        self._optimizer.restore(directory)

    def execute(self) -> bool:
        """Train; True when training is over, False when the run was asked to stop. The last checkpoint is published."""
        try:
            is_over = self._train()
            self._uploads.finish()
        except Exception:
            self._uploads.settle()
            raise
        return is_over

    def _train(self) -> bool:
        self._objective.model.train()
        self._objective.start(self.state.step)
        self._throughput.start()
        started, first = time.monotonic(), self.state.step
        self._checkpoint_due = started + self._checkpoint_every_s
        try:
            self._look_at_held_out()  # where the run was stopped meanwhile
            while not self._is_over:
                row = self._step()
                self._report(row, (time.monotonic() - started) / (self.state.step - first))
                is_best = self._look_at_held_out()
                if is_best or self._is_over or self.state.step % self._parameters.checkpoint_every_steps == 0:
                    self.save()
        except Interrupted:
            self._optimizer.drop_gradients()
            self.save()
            return False
        return True

    @property
    def _is_over(self) -> bool:
        return self.state.stopped_early or self.state.step == self._schedule.total_steps

    def _look_at_held_out(self) -> bool:
        """Evaluate where that is due; whether the step is the best so far."""
        if not self._held_out.is_due:
            return False
        figures = {f"eval/{name}": value for name, value in self._held_out.look().items()}
        step = self.state.step
        if not self.metrics or self.metrics[-1]["step"] != step:
            self.metrics.append({"step": step, "epoch": self._schedule.passes(step)})
        self.metrics[-1] |= figures
        if self._ranks.is_leader:
            total = self._schedule.total_steps
            self._run.progress(JobProgress(step=step, total_steps=total, metrics=figures, phase="training"))
        if self._held_out.should_stop and step < self._schedule.total_steps:
            self.state.stopped_early = True
            logger.info("stopping early: the best step is %d", self._held_out.best_step, extra={"step": step})
        return self._held_out.best_step == step

    def save(self) -> None:
        """Write a checkpoint of the last finished step, and begin to store it."""
        if self.state.step != self._saved_step:
            start = time.monotonic()
            refuse_non_finite_weights(self._objective.model, self._ranks, step=self.state.step)
            waited_s = self._uploads.finish()  # before the next is written: on the disk there is one at a time
            self._write()
            self._saved_step = self.state.step
            now = time.monotonic()
            self._count("checkpoint_write_s", now - start - waited_s)
            self._checkpoint_due = now + max(self._checkpoint_every_s, _LEAST_WORK * (now - start))

    def _write(self) -> None:
        """Each rank writes its files of the checkpoint; a thread of each stores them."""
        step, ranks = self.state.step, self._ranks
        directory = self._run.directory / (f"checkpoint-{step}" + f"-of-rank-{ranks.rank}" * (not ranks.is_leader))
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._save_model(directory / "model")
        for name, tensors in {"optimizer": self._optimizer.tensors(), **self._objective.tensors()}.items():
            write_tensors(name, tensors, directory, ranks)
        is_dealt = any(ranks.gather(not ranks.is_leader and any(path.is_file() for path in directory.rglob("*"))))
        ranks.lead(lambda: self._write_state(directory))
        best = self._held_out.best_step  # of now: by the time older ones are removed another may be, not yet stored
        self._uploads.begin(
            step,
            directory,
            is_dealt=is_dealt,
            ledger_parts=self.state.ledger_parts,
            spared=() if best is None else (best,),
        )

    def _write_state(self, directory: Path) -> None:
        self.state.ledger_parts = self._take_record(self.state.step)
        save_state(directory, state=self.state, metrics=self.metrics)

    def _say_what_it_waits_for(self, step: int) -> None:
        """Only of a wait that people may notice."""
        if self._ranks.is_leader:
            at, total = self.state.step, self._schedule.total_steps
            self._run.progress(JobProgress(at, total, phase=f"storing the checkpoint of step {step}"))

    def _step(self) -> dict[str, Any]:
        self._agree()
        start = time.monotonic()
        step = self.state.step
        rows = self._schedule.batch(step)
        work = self._work(step, rows)
        self._ranks.sum_gradients(self._optimizer.trainable)
        norm = self._optimizer.clip()
        self._refuse_non_finite("gradient norm", norm, work, range(len(rows)))
        learning_rate = self._optimizer.step(step)
        self.state.step += 1
        figures = {**work.finish(), "grad_norm": float(norm), "learning_rate": learning_rate}
        step_s = time.monotonic() - start
        self._count("step_s", step_s)
        self._count("rows", len(rows))
        tokens = sum(self._objective.lengths[row] for row in rows)
        self._count("tokens", tokens)
        self._count("margin_wait_s", figures.get("time/margin_wait_s", 0.0))
        for name, value in figures.items():
            self.state.largest[name] = max(self.state.largest.get(name, 0.0), abs(value))
        return {
            "step": self.state.step,
            "epoch": self._schedule.passes(self.state.step),
            **figures,
            "time/step_s": step_s,
            "rows_per_s": len(rows) / step_s,
            **self._throughput.figures(tokens=tokens, seconds=step_s),
            "peak_memory_gib": self._throughput.peak_memory_gib(),
        }

    def _agree(self) -> None:
        """Between two steps hear from all ranks whether to stop, to write a checkpoint, and how far the last one is."""
        is_due = time.monotonic() >= self._checkpoint_due
        wishes = self._ranks.gather((self._run.stop_requested, is_due, self._uploads.word()))
        self._uploads.hear([word for *_, word in wishes])
        if any(stop for stop, *_ in wishes):
            raise Interrupted
        if wishes[0][1] and not self._uploads.is_running:  # clocks of ranks differ
            self.save()

    def _work(self, step: int, rows: Sequence[int]) -> StepWork:
        """The step's gradients; when memory runs out, once more in pieces half as large, down to single rows."""
        while True:
            try:
                return self._gradients(step, rows)
            except OutOfMemory as error:
                self._optimizer.drop_gradients()
                shortage = self._shortage(rows)
                if not shortage["after"]:
                    raise memory.shortage_error(shortage, f": {error}") from error
            before = self.state.memory_shortage.get("before", shortage["before"])
            self.state.memory_shortage = shortage | {"before": before}
            self._micro_batches.budget_tokens = shortage["after"]
            logger.warning("memory ran out: half as many tokens in a micro-batch from now on", extra=shortage)

    def _gradients(self, step: int, rows: Sequence[int]) -> StepWork:
        work = self._objective.begin(step, rows)
        self._ranks.together(lambda: self._accumulate(work, rows))
        return work

    def _shortage(self, rows: Sequence[int]) -> dict[str, int]:
        """The budget of a micro-batch that was too large, and the next to try: 0 where rows go alone already."""
        before = self._micro_batches.budget_tokens
        can_be_less = any(len(micro_batch) > 1 for micro_batch in self._split(rows))
        return {"step": self.state.step + 1, "before": before, "after": before // 2 if can_be_less else 0}

    def _split(self, rows: Sequence[int]) -> list[list[int]]:
        """Places in the batch by micro-batch."""
        return self._micro_batches.split(range(len(rows)), [self._objective.lengths[row] for row in rows])

    def _accumulate(self, work: StepWork, rows: Sequence[int]) -> None:
        """Gradients of this rank's micro-batches.

        Raises:
            OutOfMemory: A micro-batch did not fit. Where ranks must keep in step the others wait for this one, and
                cannot be told: the error of torch ends the attempt, and the next one knows.
        """
        try:
            self._accumulate_all(work, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._ranks.in_step:
                self._note_shortage(self._shortage(rows))
                raise
            reason = str(error).split("\n", 1)[0]
        else:
            return
        # Outside of the handler: the error holds on to the frames, and they to what took the memory.
        self._optimizer.drop_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory(reason)

    def _accumulate_all(self, work: StepWork, rows: Sequence[int]) -> None:
        """A loss that is not finite is refused once the others have done theirs: ranks may have to keep in step."""
        numbered = list(enumerate(self._split(rows)))
        refusals: list[NonFiniteError] = []
        for number, micro_batch in self._ranks.share(numbered):
            # Several ranks stop between steps alone: here they are at different places.
            if self._ranks.size == 1 and self._run.stop_requested:
                raise Interrupted
            seed_micro_batch(self.state.seed, self.state.step, number)
            with self._autocast():
                loss = work.loss(micro_batch)
            try:
                self._refuse_non_finite("loss", loss, work, micro_batch)
            except NonFiniteError as error:
                refusals.append(error)
            torch.autograd.backward(loss)
        for _ in range(self._ranks.idle(numbered)):
            with self._autocast():
                loss = self._objective.idle()
            torch.autograd.backward(loss)
        if refusals:
            self._optimizer.drop_gradients()
            raise refusals[0]

    def _refuse_non_finite(self, what: str, value: Tensor, work: StepWork, places: Sequence[int]) -> None:
        if bool(torch.isfinite(value)):
            return
        self._optimizer.drop_gradients()
        ids, advice = work.row_ids(places), "look at these rows; lower the learning rate; or train in fp32"
        if broken := non_finite_weights(self._objective.model):
            named = f"{broken[0]} ({number_of(len(broken), 'tensor')} in all)"
            whose = "the model that the job starts from" if self.state.step == 0 else "the model before it"
            advice = f"weights of {whose} are no finite numbers: {named}"
        raise NonFiniteError(
            f"non-finite {what} in step {self.state.step + 1}; the weights were not moved. Rows of the batch, "
            f"offending first: {', '.join(ids[:8])} ({advice})",
            ids,
        )

    def summary(self) -> dict[str, Any]:
        """How fast it went and how memory sufficed, for the record of the job; all ranks must call."""
        found = self._throughput.summary(self.state.counters)
        found |= {"checkpoints": checkpoint_times(self.state.counters)}
        lora = self._parameters.lora
        found |= {"quantize_base": lora.quantize_base} if lora is not None and lora.quantize_base else {}
        found |= {} if self._memory is None else self._memory.summary()
        return found | ({"memory_shortage": self.state.memory_shortage} if self.state.memory_shortage else {})

    def estimate_memory(self) -> None:
        """Before the first step estimate what one takes, and settle whether blocks are computed again for it.

        All ranks must call.
        """
        self._memory = settle_step_memory(
            self._objective, self._micro_batches, self._parameters, self._ranks, batch_size=self._schedule.batch_size
        )
        self._parameters = self._parameters.model_copy(update={"activation_checkpointing": self._memory.recompute})

    def _report(self, row: dict[str, Any], seconds_per_step: float) -> None:
        step, total = self.state.step, self._schedule.total_steps
        is_due = step % self._parameters.log_every_steps == 0 or step == total
        if is_due:
            self.metrics.append(row)
        if not self._ranks.is_leader or not (is_due or time.monotonic() - self._report_time > _LONGEST_SILENCE_S):
            return
        figures: dict[str, float] = {}
        if is_due:
            figures = {name: float(value) for name, value in row.items() if name not in ("step", "epoch")}
            figures |= self._since_last_report()
        remaining_s = (total - step) * seconds_per_step
        self._report_time = time.monotonic()
        self._run.progress(
            JobProgress(step=step, total_steps=total, metrics=figures, remaining_s=remaining_s, phase="training")
        )

    def _since_last_report(self) -> dict[str, float]:
        """Sums over all steps since the last report, for those who add up what a run did."""
        totals, before = self._totals(), self._reported
        self._reported = totals
        return {f"interval/{name}": total - before.get(name, 0.0) for name, total in totals.items()}

    def _totals(self) -> dict[str, float]:
        return {"steps": float(self.state.step), **self.state.counters}

    def _count(self, name: str, value: float) -> None:
        self.state.counters[name] = self.state.counters.get(name, 0.0) + value

    def _autocast(self) -> AbstractContextManager[Any]:
        return training_autocast(self._optimizer.trainable[0].device.type, self._parameters)
