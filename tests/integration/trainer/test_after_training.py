"""A finished training is never lost to what comes after it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from madpo.storage.artifacts import list_artifacts
from madpo.storage.models import ModelStore
from madpo.worker.phase import Interrupted
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Outcome
from madpo_trainer import artifacts
from madpo_trainer.last_evaluation import evaluate_last, note_begin
from madpo_trainer.ledger import Ledger
from madpo_trainer.margins import calibration
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.ranks import OneRank
from tests.integration.trainer.training_site import Site, job_id


def spec(site: Site, **margin: Any) -> dict[str, Any]:
    return {
        "dataset": site.pairs,
        "eval_dataset": site.pairs,
        "method": {"name": "madpo", "params": {"tau": 2.0}},
        "margin": {"source": "dataset", **margin},
        "training": {"max_steps": 2, "global_batch_size": 8, "max_tokens": 32, "checkpoint_every_steps": 1},
    }


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("float division by zero")


def trained(site: Site, outcome: Outcome) -> tuple[str, ...]:
    """The warnings of a job that left its model."""
    assert (outcome.kind, outcome.reason) == ("succeeded", "")
    assert outcome.result is not None
    assert outcome.result.model_id is not None
    ModelStore(site.store, site.home / "cache").get(outcome.result.model_id)
    return outcome.result.warnings


def evaluate_only_before(monkeypatch: pytest.MonkeyPatch, after: Any) -> None:
    """Evaluations are real before the first step, and `after` later."""
    real = PolicyObjective.evaluate
    calls: list[None] = []

    def evaluate(objective: PolicyObjective, phase: Any) -> Any:
        calls.append(None)
        return real(objective, phase) if len(calls) == 1 else after()

    monkeypatch.setattr(PolicyObjective, "evaluate", evaluate)


def test_a_run_without_trouble_has_no_warnings(site: Site) -> None:
    assert trained(site, site.train("fine", spec(site, temperature="fit"))) == ()


def test_the_last_evaluation_may_fail(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate_only_before(monkeypatch, fail)

    warnings = trained(site, site.train("evaluation", spec(site)))

    (warning,) = warnings
    assert warning.startswith(
        "the held-out evaluation after training failed: ZeroDivisionError: float division by zero"
    )


def test_a_figure_that_is_no_number_does_not_keep_the_model_from_the_store(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_only_before(monkeypatch, lambda: {"rewards/accuracy": float("nan")})

    outcome = site.train("figure", spec(site))

    assert trained(site, outcome) == ("eval.rewards/accuracy is nan",)
    assert outcome.result is not None
    assert outcome.result.summary["eval"] == {"rewards/accuracy": None}


@pytest.mark.parametrize(
    ("where", "name", "what", "missing"),
    [
        (calibration, "write_plot", "the plot of the calibration", "calibration.png"),
        (artifacts, "write_metrics", "metrics.jsonl", "metrics.jsonl"),
        (Ledger, "join", "ledger.parquet", "ledger.parquet"),
        (PolicyObjective, "summary", "the summary of the method", None),
    ],
)
def test_each_thing_beside_the_model_fails_for_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, what: str, missing: str | None
) -> None:
    monkeypatch.setattr(where, name, fail)

    (warning,) = trained(site, site.train(what, spec(site, temperature="fit")))

    assert warning.startswith(f"{what} failed: ZeroDivisionError")
    left = {file.path for file in list_artifacts(site.store, job_id(what))}
    whole = {"metrics.jsonl", "training.png", "calibration.json", "calibration.png", "ledger.parquet"}
    assert left == whole - {missing}


def test_artifacts_that_cannot_be_stored_are_missed_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "publish_artifacts", fail)

    (warning,) = trained(site, site.train("artifacts", spec(site)))

    assert warning.startswith("storing artifacts failed: ZeroDivisionError")


def test_an_evaluation_that_kills_its_process_again_and_again_is_left_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if two attempts had been killed in it: the third goes on from the last checkpoint without."""
    evaluate_only_before(monkeypatch, fail)
    for attempt in (8, 9):
        note_begin(site.store, job_id("killed"), attempt=attempt)

    warnings = trained(site, site.train("killed", spec(site)))

    assert warnings == ("no held-out evaluation after training: 2 attempts died of it",)


def test_an_evaluation_that_was_asked_to_stop_died_of_nothing(site: Site) -> None:
    run: Any = SimpleNamespace(job=SimpleNamespace(job_id=job_id("drained")), attempt=1)

    def stop() -> Any:
        raise Interrupted

    for run.attempt in (1, 2):
        with pytest.raises(Interrupted):
            evaluate_last(stop, run, site.store, OneRank(), Tolerance())
    run.attempt, tolerance = 3, Tolerance()

    assert evaluate_last(lambda: {"loss": 1.0}, run, site.store, OneRank(), tolerance) == {"loss": 1.0}
    assert tolerance.warnings == []


def test_a_run_that_ended_after_its_last_checkpoint_goes_on_from_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = site.train("whole", spec(site))

    again = site.train("again", spec(site), pause_at=2)

    assert trained(site, again) == ()
    assert again.result is not None
    assert whole.result is not None
    assert again.result.model_id == whole.result.model_id


def test_what_fails_before_the_first_step_ends_the_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure", fail)

    with pytest.raises(ZeroDivisionError):
        site.train("before", spec(site, temperature="fit"))
