from prometheus_client import CollectorRegistry

from madpo.queue.metrics import WorkerMetrics
from madpo.types import Job, JobKind, JobProgress, JobState

JOB = Job(job_id="job-1", kind=JobKind.POLICY_TRAINING, state=JobState.RUNNING, spec={})
LABELS = {"kind": "policy_training"}


def test_a_run_shows_while_it_runs_and_leaves_only_counters() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    info = {"queue": "train", "kind": "policy_training", "job_id": "job-1"}

    metrics.begin("train", JOB)
    metrics.observe(JOB, JobProgress(phase="loading"))
    for step in (10, 20, 25):
        figures = {"loss": 0.5, "time/step_s": 2.0, "time/margin_wait_s": 0.5}
        metrics.observe(JOB, JobProgress(step=step, total_steps=50, metrics=figures))

    assert registry.get_sample_value("madpo_worker_job_info", info) == 1
    assert registry.get_sample_value("madpo_worker_progress_ratio", LABELS) == 0.5
    assert registry.get_sample_value("madpo_training_loss", LABELS) == 0.5

    metrics.end("succeeded", "train")

    assert registry.get_sample_value("madpo_worker_job_info", info) is None
    assert registry.get_sample_value("madpo_training_loss", LABELS) is None
    # One step for the first report, whose predecessors another attempt may have done; then every step.
    assert registry.get_sample_value("madpo_training_steps_total", LABELS) == 16
    assert registry.get_sample_value("madpo_training_seconds_total", LABELS | {"phase": "margin_wait"}) == 8
    assert registry.get_sample_value("madpo_queue_jobs_total", {"queue": "train", "outcome": "succeeded"}) == 1


def test_a_resumed_run_does_not_count_steps_twice() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    figures = {"loss": 0.5, "time/step_s": 1.0}

    metrics.observe(JOB, JobProgress(step=30, total_steps=50, metrics=figures))
    metrics.observe(JOB, JobProgress(step=20, total_steps=50, metrics=figures))
    metrics.observe(JOB, JobProgress(step=21, total_steps=50, metrics=figures))

    assert registry.get_sample_value("madpo_training_steps_total", LABELS) == 2
