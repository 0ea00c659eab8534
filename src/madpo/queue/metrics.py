"""What operators watch of a queue, its workers, and the run a worker is at.

Figures of a run are those of its last report, and are gone when it ends. Counters go by the difference in steps between
reports, so they count every step, also of runs that report only now and then.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge

from madpo.types import Job, JobProgress

_FIGURES = {
    "loss": ("madpo_training_loss", "Loss of the last reported step"),
    "rewards/implicit_margin": ("madpo_training_implicit_margin_nats", "Mean implicit margin, beta times nats"),
    "reward_margin/mean": ("madpo_training_reward_margin_logits", "Mean margin of the reward model"),
    "weight/mean": ("madpo_training_weight", "Mean weight of a pair's loss"),
    "rewards/accuracy": ("madpo_training_accuracy_ratio", "Share of pairs whose implicit margin is positive"),
    "grad_norm": ("madpo_training_gradient_norm", "Gradient norm before clipping"),
    "learning_rate": ("madpo_training_learning_rate", "Learning rate of the last reported step"),
    "rows_per_s": ("madpo_training_rows_per_second", "Rows trained a second"),
}
_PHASES = {"time/step_s": "step", "time/margin_wait_s": "margin_wait"}


class WorkerMetrics:
    """Attempts, the queue as this worker sees it, and the run it is at."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = Counter("madpo_queue_jobs", "Attempts ended", ["queue", "outcome"], registry=registry)
        self.depth = Gauge("madpo_queue_depth", "Jobs pending", ["queue"], registry=registry)
        self.last_poll = Gauge(
            "madpo_queue_last_poll_timestamp_seconds", "When the queue last answered", ["queue"], registry=registry
        )
        self._job = Gauge(
            "madpo_worker_job_info",
            "1 for the job this worker is at; absent while it has none",
            ["queue", "kind", "job_id"],
            registry=registry,
        )
        self._progress = Gauge(
            "madpo_worker_progress_ratio", "Share of the job's steps done", ["kind"], registry=registry
        )
        self._figures = {
            figure: Gauge(name, text, ["kind"], registry=registry) for figure, (name, text) in _FIGURES.items()
        }
        self._steps = Counter("madpo_training_steps", "Optimizer steps done", ["kind"], registry=registry)
        self._seconds = Counter(
            "madpo_training_seconds",
            "Time of training: step is all of it, margin_wait the part spent waiting for margins",
            ["kind", "phase"],
            registry=registry,
        )
        self._step: int | None = None

    def begin(self, queue_name: str, job: Job) -> None:
        """A run begins."""
        self._job.labels(queue_name, job.kind.value, job.job_id).set(1)

    def observe(self, job: Job, progress: JobProgress) -> None:
        """The run reports."""
        kind = job.kind.value
        if progress.total_steps:
            self._progress.labels(kind).set(progress.step / progress.total_steps)
        for figure, gauge in self._figures.items():
            if figure in progress.metrics:
                gauge.labels(kind).set(progress.metrics[figure])
        if not progress.metrics:
            return
        # A resumed run does not count again what an earlier attempt did.
        steps = 1 if self._step is None else max(0, progress.step - self._step)
        self._step = progress.step
        self._steps.labels(kind).inc(steps)
        for figure, phase in _PHASES.items():
            self._seconds.labels(kind, phase).inc(steps * progress.metrics.get(figure, 0.0))

    def end(self, outcome: str, queue_name: str) -> None:
        """The run is over."""
        self.jobs.labels(queue_name, outcome).inc()
        self._step = None
        for gauge in (self._job, self._progress, *self._figures.values()):
            gauge.clear()
