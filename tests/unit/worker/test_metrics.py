from prometheus_client import CollectorRegistry

from madpo.types import Job, JobKind, JobProgress, JobState
from madpo.worker.metrics import WorkerMetrics

JOB = Job(job_id="job-1", kind=JobKind.POLICY_TRAINING, state=JobState.RUNNING, spec={})
KIND = {"kind": "policy_training"}


def report(step: int, steps: int) -> JobProgress:
    """As runs report every so many steps."""
    interval = {"steps": steps, "rows": 8 * steps, "step_s": 2.0 * steps, "margin_wait_s": 0.5 * steps}
    interval |= {"checkpoint_write_s": 0.25 * steps, "checkpoint_wait_s": 0, "checkpoint_upload_s": 1.5 * steps}
    figures = {"loss": 0.5, **{f"interval/{name}": float(value) for name, value in interval.items()}}
    return JobProgress(step=step, total_steps=50, metrics=figures, remaining_s=60.0, phase="training")


def seconds(registry: CollectorRegistry, phase: str) -> float | None:
    return registry.get_sample_value("madpo_training_seconds_total", KIND | {"phase": phase})


def checkpoint_seconds(registry: CollectorRegistry, phase: str) -> float | None:
    return registry.get_sample_value("madpo_training_checkpoint_seconds_total", KIND | {"phase": phase})


def test_a_run_shows_while_it_runs_and_leaves_only_counters() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, "train")
    info = {"queue": "train", "kind": "policy_training", "job_id": "job-1"}

    metrics.begin(JOB)
    assert registry.get_sample_value("madpo_training_steps_total", KIND) == 0
    metrics.observe(JOB, JobProgress(phase="loading"))
    metrics.observe(JOB, report(10, steps=10))
    metrics.observe(JOB, report(20, steps=10))
    metrics.observe(JOB, report(25, steps=5))

    assert registry.get_sample_value("madpo_worker_job_info", info) == 1
    assert registry.get_sample_value("madpo_worker_progress_ratio", KIND) == 0.5
    assert registry.get_sample_value("madpo_worker_remaining_seconds", KIND) == 60
    assert registry.get_sample_value("madpo_training_loss", KIND) == 0.5

    metrics.end("succeeded")

    assert registry.get_sample_value("madpo_worker_job_info", info) is None
    assert registry.get_sample_value("madpo_worker_progress_ratio", KIND) is None
    assert registry.get_sample_value("madpo_training_loss", KIND) is None
    assert registry.get_sample_value("madpo_training_steps_total", KIND) == 25
    assert registry.get_sample_value("madpo_training_rows_total", KIND) == 200
    assert (seconds(registry, "compute"), seconds(registry, "margin_wait")) == (37.5, 12.5)
    assert [checkpoint_seconds(registry, phase) for phase in ("write", "wait", "upload")] == [6.25, 0, 37.5]
    assert registry.get_sample_value("madpo_queue_attempts_total", {"queue": "train", "outcome": "succeeded"}) == 1


def test_a_report_without_figures_leaves_those_there_are() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, "train")

    metrics.begin(JOB)
    metrics.observe(JOB, report(50, steps=50))
    metrics.observe(JOB, JobProgress(step=50, phase="publishing"))

    assert registry.get_sample_value("madpo_training_loss", KIND) == 0.5
    assert registry.get_sample_value("madpo_training_steps_total", KIND) == 50


def test_an_evaluation_counts_no_training() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, "evaluate")
    job = Job(job_id="job-1", kind=JobKind.EVALUATION, state=JobState.RUNNING, spec={})

    metrics.begin(job)
    metrics.observe(job, JobProgress(step=5, total_steps=20, phase="generating"))

    assert registry.get_sample_value("madpo_worker_progress_ratio", {"kind": "evaluation"}) == 0.25
    assert registry.get_sample_value("madpo_training_steps_total", {"kind": "evaluation"}) is None
