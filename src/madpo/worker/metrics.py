"""What operators watch of workers: their attempts, and the run each is at."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from madpo.jobs.registry import KINDS
from madpo.types import Job, JobProgress

OUTCOMES = ("succeeded", "failed", "cancelled", "given_back", "interrupted", "crashed", "lost")
"""How an attempt ends."""
TRAINING_FIGURES = {
    "loss": ("madpo_training_loss", "Loss of the last reported step"),
    "rewards/implicit_margin": ("madpo_training_implicit_margin_nats", "Mean implicit margin, beta times nats"),
    "reward_margin/mean": ("madpo_training_reward_margin_logits", "Mean margin of the reward model"),
    "weight/mean": ("madpo_training_weight", "Mean weight of a pair's loss"),
    "rewards/accuracy": ("madpo_training_accuracy_ratio", "Share of pairs whose chosen response is ahead"),
    "grad_norm": ("madpo_training_gradient_norm", "Gradient norm before clipping"),
    "learning_rate": ("madpo_training_learning_rate", "Learning rate of the last reported step"),
}
"""Figures of a training's reports that are exported: name and meaning there."""


class WorkerMetrics:
    """Attempts of one worker, and the run it is at: figures of its last report, gone when it ends.

    Args:
        registry: Where to export.
        queue_name: The worker's queue.
    """

    def __init__(self, registry: CollectorRegistry, queue_name: str) -> None:
        self._queue_name = queue_name
        self._attempts = Counter("madpo_queue_attempts", "Attempts ended", ["queue", "outcome"], registry=registry)
        self._unanswered = Counter(
            "madpo_queue_renewals_failed", "Lease renewals the queue did not answer", ["queue"], registry=registry
        )
        self._last_answer = Gauge(
            "madpo_worker_last_answer_timestamp_seconds",
            "When the queue last answered this worker: a claim while idle, a renewal while at a job",
            ["queue"],
            registry=registry,
        )
        self._job = Gauge(
            "madpo_worker_job_info",
            "1 for the job this worker is at; absent while it has none",
            ["queue", "kind", "job_id"],
            registry=registry,
        )
        self._last_progress = Gauge(
            "madpo_worker_last_progress_timestamp_seconds",
            "When the run this worker is at began or last reported progress; absent while it has none",
            ["queue"],
            registry=registry,
        )
        self._progress = Gauge(
            "madpo_worker_progress_ratio", "Share of the job's steps done", ["kind"], registry=registry
        )
        self._remaining = Gauge(
            "madpo_worker_remaining_seconds", "Estimated time to the end of the phase", ["kind"], registry=registry
        )
        self._figures = {
            figure: Gauge(name, text, ["kind"], registry=registry) for figure, (name, text) in TRAINING_FIGURES.items()
        }
        self._steps = Counter("madpo_training_steps", "Optimizer steps done", ["kind"], registry=registry)
        self._rows = Counter("madpo_training_rows", "Rows trained on", ["kind"], registry=registry)
        self._seconds = Counter(
            "madpo_training_seconds",
            "Time spent on steps, by phase: waiting for margins (margin_wait), everything else (compute)",
            ["kind", "phase"],
            registry=registry,
        )
        self._checkpoint_seconds = Counter(
            "madpo_training_checkpoint_seconds",
            "Time of checkpoints, by phase: training stands while one is written (write) or the one before is not"
            " stored yet (wait), and goes on while it is stored (upload)",
            ["kind", "phase"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._attempts.labels(queue_name, outcome)
        self._unanswered.labels(queue_name)

    def answered(self) -> None:
        """The queue answered."""
        self._last_answer.labels(self._queue_name).set_to_current_time()

    def renewal_failed(self) -> None:
        """The queue did not answer a renewal."""
        self._unanswered.labels(self._queue_name).inc()

    def begin(self, job: Job) -> None:
        """A run begins."""
        kind = job.kind.value
        self._job.labels(self._queue_name, kind, job.job_id).set(1)
        self._last_progress.labels(self._queue_name).set_to_current_time()
        if KINDS[job.kind].is_training:
            # From 0 before the first report, so that a rate sees it.
            self._count(kind, {})

    def observe(self, job: Job, progress: JobProgress) -> None:
        """The run reports."""
        kind = job.kind.value
        self._last_progress.labels(self._queue_name).set_to_current_time()
        if progress.total_steps:
            self._progress.labels(kind).set(progress.step / progress.total_steps)
        if progress.remaining_s is not None:
            self._remaining.labels(kind).set(progress.remaining_s)
        for figure, gauge in self._figures.items():
            if figure in progress.metrics:
                gauge.labels(kind).set(progress.metrics[figure])
        if KINDS[job.kind].is_training:
            self._count(kind, progress.metrics)

    def end(self, outcome: str) -> None:
        """The run is over."""
        self._attempts.labels(self._queue_name, outcome).inc()
        for gauge in (self._job, self._last_progress, self._progress, self._remaining, *self._figures.values()):
            gauge.clear()

    def _count(self, kind: str, figures: Mapping[str, float]) -> None:
        """Runs report sums over all steps since their last report, however seldom they do."""
        wait_s, step_s = figures.get("interval/margin_wait_s", 0.0), figures.get("interval/step_s", 0.0)
        self._steps.labels(kind).inc(figures.get("interval/steps", 0.0))
        self._rows.labels(kind).inc(figures.get("interval/rows", 0.0))
        self._seconds.labels(kind, "margin_wait").inc(wait_s)
        self._seconds.labels(kind, "compute").inc(max(0.0, step_s - wait_s))
        for phase in ("write", "wait", "upload"):
            seconds = figures.get(f"interval/checkpoint_{phase}_s", 0.0)
            self._checkpoint_seconds.labels(kind, phase).inc(seconds)
