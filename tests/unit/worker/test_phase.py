from collections.abc import Iterator
from pathlib import Path

import pytest

from madpo.ports import Claim
from madpo.storage import bundle
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import Job, JobKind, JobProgress, JobState
from madpo.worker import phase as module
from madpo.worker.phase import Interrupted, Phase, counted, transfers
from madpo.worker.workspace import Run, Workspace

JOB = Job("job-" + "0" * 32, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, attempt=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "jobs" / JOB.job_id, Claim(JOB, JOB.attempt, "worker"))
    yield workspace
    workspace.close()


@pytest.fixture
def run(workspace: Workspace) -> Run:
    return Run.open(workspace.directory)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def reports(workspace: Workspace) -> list[JobProgress]:
    return [event for event in workspace.new_events() if isinstance(event, JobProgress)]


def test_a_phase_says_how_much_is_done_and_when_it_will_end(workspace: Workspace, run: Run, clock: list[float]) -> None:
    phase = Phase(run, "tokenizing", 100, unit="rows", step=7)
    for _ in range(10):
        clock[0] += 2
        phase.advance(10)
    said = reports(workspace)
    assert [(each.phase_done, each.phase_total, each.phase_unit) for each in said] == [
        (done, 100, "rows") for done in range(0, 101, 10)
    ]
    assert [each.remaining_s for each in said] == [None, *(18.0 - 2 * place for place in range(10))]
    assert {(each.phase, each.step, each.total_steps) for each in said} == {("tokenizing", 7, 0)}


def test_it_says_its_begin_and_its_end_and_no_more_than_a_line_a_second_between(
    workspace: Workspace, run: Run, clock: list[float]
) -> None:
    phase = Phase(run, "scoring", 1000)
    for _ in range(1000):
        clock[0] += 0.01
        phase.advance()
    said = [each.phase_done for each in reports(workspace)]
    assert (said[0], said[-1]) == (0, 1000)
    assert len(said) in (11, 12)


def test_items_are_counted_to_the_last_and_end_where_the_run_is_asked_to_stop(workspace: Workspace, run: Run) -> None:
    assert list(counted(range(200), Phase(run, "tokenizing", 200, unit="rows"))) == list(range(200))
    assert reports(workspace)[-1].phase_done == 200

    seen = []

    def look() -> None:
        for item in counted(range(10_000), Phase(run, "tokenizing", 10_000)):
            seen.append(item)
            if item == 100:
                workspace.request_stop("cancel")

    with pytest.raises(Interrupted):
        look()
    assert seen == list(range(127))


def test_what_an_earlier_attempt_did_counts_but_not_as_speed(
    workspace: Workspace, run: Run, clock: list[float]
) -> None:
    phase = Phase(run, "tokenizing", 100, done=80)
    clock[0] += 10
    phase.advance(10)
    first, last = reports(workspace)
    assert (first.phase_done, last.phase_done, last.remaining_s) == (80, 90, 10.0)


@pytest.mark.parametrize("reason", ["cancel", "drain"])
def test_it_ends_with_the_piece_of_work_in_which_the_run_is_asked_to_stop(
    workspace: Workspace, run: Run, reason: str
) -> None:
    phase = Phase(run, "scoring", 10)
    phase.advance()
    workspace.request_stop(reason)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        phase.advance()


def test_ranks_that_do_not_report_stop_as_well(workspace: Workspace, run: Run) -> None:
    phase = Phase(run, "scoring", 10, reports=False)
    phase.advance(10)
    assert reports(workspace) == []
    workspace.request_stop("cancel")
    with pytest.raises(Interrupted):
        phase.advance(0)


def test_a_model_that_is_being_fetched_counts_its_bytes_and_ends_on_request(
    workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights").write_bytes(b"w" * (3 << 20))
    name = "model-" + "1" * 32
    description = {"display_name": "", "kind": "causal_lm", "architecture": "", "base_model_id": None, "metadata": {}}
    bundle.publish(store, f"models/{name}", tmp_path / "files", metadata=description)

    def begin(name: str, total: int = 0, *, unit: str = "", done: int = 0) -> Phase:
        return Phase(run, name, total, unit=unit, done=done)

    class StopsAfterAMegabyte(LocalStore):
        def open_read(self, key: str):  # type: ignore[no-untyped-def]
            workspace.request_stop("cancel")
            return super().open_read(key)

    stopped = ModelStore(StopsAfterAMegabyte(tmp_path / "store"), tmp_path / "cache", transfer=transfers(begin))
    with pytest.raises(Interrupted):
        stopped.fetch(name)
    assert [
        path.name for path in (tmp_path / "cache" / "models").iterdir() if not path.name.endswith((".lock", ".used"))
    ] == []
    (workspace.directory / "stop").unlink()
    reports(workspace)
    (tmp_path / "stored").mkdir()
    again = bundle.publish(
        LocalStore(tmp_path / "stored"), name, tmp_path / "files", metadata={}, transfer=transfers(begin)
    )
    stored = reports(workspace)[-1]
    assert (stored.phase, stored.phase_done, again.size_bytes) == (f"storing {name}", 3 << 20, 3 << 20)
    ModelStore(store, tmp_path / "cache", transfer=transfers(begin)).fetch(name)
    last = reports(workspace)[-1]
    assert (last.phase, last.phase_done, last.phase_total, last.phase_unit) == (
        f"fetching {name}", 3 << 20, 3 << 20, "bytes",
    )  # fmt: skip
