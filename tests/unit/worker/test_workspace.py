import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from madpo.ports import Claim
from madpo.types import CheckpointPublished, Job, JobKind, JobProgress, JobResult, JobState, LogLine
from madpo.worker.workspace import LOG_LINE_CHARS, LineReader, Outcome, Run, Workspace, clean_line

JOB = Job(
    job_id="job-" + "0" * 32,
    kind=JobKind.POLICY_TRAINING,
    state=JobState.RUNNING,
    spec={"method": {"name": "madpo", "params": {"tau": 1.5}}, "eval_dataset": None},
    depends_on=("job-" + "1" * 32,),
    attempt=3,
    create_time=1.5,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "jobs" / JOB.job_id, Claim(JOB, JOB.attempt, "worker"))
    yield workspace
    workspace.close()


@pytest.fixture
def run(workspace: Workspace) -> Run:
    return Run.open(workspace.directory)


def test_the_run_reads_its_job_and_attempt(run: Run) -> None:
    assert (run.job, run.attempt) == (JOB, 3)


def test_events_arrive_once_and_in_order(workspace: Workspace, run: Run) -> None:
    progress = JobProgress(1, 2, {"loss": 0.5}, remaining_s=3.0, phase="training")
    run.progress(progress)
    run.checkpoint_published(7)
    assert workspace.new_events() == [progress, CheckpointPublished(7)]
    run.log("saved \x1b[32mit\x1b[0m")
    assert workspace.new_events() == [LogLine("saved it")]
    assert workspace.new_events() == []


def test_a_metric_that_is_not_finite_arrives(workspace: Workspace, run: Run) -> None:
    run.progress(JobProgress(1, 2, {"loss": float("inf")}))
    (event,) = workspace.new_events()
    assert event == JobProgress(1, 2, {"loss": float("inf")})


def test_an_unfinished_event_waits_and_a_foreign_line_is_skipped(workspace: Workspace, run: Run) -> None:
    path = workspace.directory / "events.jsonl"
    whole = json.dumps(["log", json.dumps({"line": "whole"})])
    state = json.dumps(["state", json.dumps({"state": "SUCCEEDED", "attempt": 1, "reason": ""})])
    path.write_text(f'not json\n["unknown", "{{}}"]\n["log"]\n{state}\n{whole[:9]}')
    assert workspace.new_events() == []
    with path.open("a") as file:
        file.write(whole[9:] + "\n")
    assert workspace.new_events() == [LogLine("whole")]


def test_a_run_that_says_nothing_has_no_outcome(workspace: Workspace) -> None:
    assert workspace.outcome() is None


def test_the_last_word_is_heard(workspace: Workspace, run: Run) -> None:
    result = JobResult("model-1", {"steps": 3})
    run.succeed(result)
    assert workspace.outcome() == Outcome("succeeded", result=result)
    run.fail("no such column")
    assert workspace.outcome() == Outcome("failed", reason="no such column")
    run.stop()
    assert workspace.outcome() == Outcome("stopped")


def test_a_cancellation_overrules_a_drain(workspace: Workspace, run: Run) -> None:
    assert run.stop_requested is None
    workspace.request_stop("drain")
    assert run.stop_requested == "drain"
    workspace.request_stop("cancel")
    assert run.stop_requested == "cancel"


def test_the_lifeline_is_held_until_the_workspace_is_closed(workspace: Workspace) -> None:
    with (workspace.directory / "lifeline").open("rb") as lifeline:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lifeline, fcntl.LOCK_SH | fcntl.LOCK_NB)
        workspace.close()
        fcntl.flock(lifeline, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_run_of_an_older_attempt_cannot_speak_for_a_newer_one(workspace: Workspace, run: Run) -> None:
    newer = Workspace(workspace.directory.parent, Claim(JOB, JOB.attempt + 1, "worker"))
    for speak in (run.stop, lambda: run.checkpoint_published(1)):
        with pytest.raises(FileNotFoundError):
            speak()
    assert (newer.outcome(), newer.new_events()) == (None, [])
    workspace.close()
    assert newer.directory.exists()
    newer.close()
    assert not workspace.directory.parent.exists()


def test_log_lines_are_complete_clean_and_end_with_the_unfinished_one(workspace: Workspace) -> None:
    workspace.log_path.write_bytes(b"one\n\n\x1b[1mtwo\x1b[0m\xff\n 10%\r 20%\r 30%\nKil")
    assert workspace.new_log_lines() == ["one", "two\ufffd", " 30%"]
    assert workspace.new_log_lines() == []
    assert workspace.new_log_lines(ended=True) == ["Kil"]
    assert workspace.log_tail(2) == "30%\nKil"


def test_log_lines_hold_no_credentials(workspace: Workspace) -> None:
    workspace.log_path.write_text("redis://user:opensesame@host:6379/0\nMADPO_S3_SECRET_KEY=opensesame\n")
    masked = ["redis://***@host:6379/0", "MADPO_S3_SECRET_KEY=***"]
    assert workspace.new_log_lines() == masked
    assert workspace.log_tail() == workspace.log_text(1000) == "\n".join(masked)


def test_the_tail_of_a_large_log_is_its_end(workspace: Workspace) -> None:
    workspace.log_path.write_text("".join(f"line {i}\n" for i in range(50_000)))
    assert workspace.log_tail(3) == "line 49997\nline 49998\nline 49999"
    assert workspace.log_text(30) == "line 49998\nline 49999"


def test_a_line_without_end_is_cut_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LineReader(path)
    assert reader.read() == []
    path.write_text("x" * (5 << 19) + "\nshort\n")
    read = []
    while lines := reader.read():
        read += lines
    assert "".join(read) == "x" * (5 << 19) + "short"
    assert read[-1] == "short"


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("plain\r\n", "plain"),
        ("tab\tstays", "tab\tstays"),
        ("bell\x07 null\x00 c1\x9b", "bell null c1"),
        ("a\x1b[2Kb\x1b[38;5;1mc", "abc"),
        ("x" * 3000, "x" * LOG_LINE_CHARS),
    ],
)
def test_lines_are_cleaned(line: str, clean: str) -> None:
    assert clean_line(line) == clean
