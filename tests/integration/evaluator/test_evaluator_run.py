"""Whole evaluations: the run as a real process on a real store, models and datasets, scored over real gRPC."""

import math
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from madpo.calibration.report import CalibrationReport
from madpo.data.check.report import CheckReport
from madpo.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidPairError,
    NotFoundError,
    UnavailableError,
)
from madpo.jobs.base import ModelReference
from madpo.models.load import load_tokenizer
from madpo.ports import Claim
from madpo.storage import keys
from madpo.storage.artifacts import list_artifacts, open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.storage.references import resolve_model
from madpo.storage.tokens import TokenStore
from madpo.types import (
    DatasetKind,
    Job,
    JobKind,
    JobProgress,
    JobState,
    PreferencePair,
)
from madpo.worker import phase
from madpo.worker.phase import Interrupted
from madpo.worker.workspace import Outcome, Run, Workspace
from madpo_evaluator import run
from madpo_evaluator.kinds import evaluation
from madpo_evaluator.models import load_models
from tests.integration.evaluator.evaluation_site import PAIRS, Site, job_id
from tests.model_directories import save_directory

Make = Callable[..., Any]

SPEC: dict[str, Any] = {
    "reward_model": {"model_id": "model-" + "0" * 32},
    "sampling": {"temperatures": [1.0, 0.7], "samples_per_prompt": 3, "max_new_tokens": 8},
    "generation_batch_size": 7,
}


async def test_a_run_measures_a_policy_and_the_next_one_is_compared_with_it(site: Site) -> None:
    first, second = job_id("first"), job_id("second")
    spec = SPEC | {"reference": {"model_id": site.reference_id}, "eval_dataset": site.pairs_id}

    outcome = await site.run_process(first, spec)
    again = await site.run_process(second, spec | {"baseline_job_ids": [first]})

    assert (outcome.kind, again.kind) == ("succeeded", "succeeded"), outcome.reason + again.reason
    report, generations = site.report(first), site.generations(first)
    assert (report["prompts"], report["samples_per_prompt"]) == (6, 3)
    assert report["model"] == {"model_id": site.policy_id}
    assert [result["temperature"] for result in report["results"]] == [1.0, 0.7]
    assert len(generations) == 2 * 6 * 3
    _check_result(report["results"][0], [row for row in generations if row["temperature"] == 1.0])
    assert report["implicit_reward_accuracy"]["pairs"] == 3
    assert outcome.result is not None
    assert outcome.result.summary["results"][0]["reward"] == report["results"][0]["metrics"]["reward"]["mean"]
    names = {file.path for file in list_artifacts(site.store, first)}
    plots = {"metrics.png", "response_tokens.png", "frontier.png"}
    assert names == {"report.json", "generations.jsonl", "samples.md", *plots}

    assert site.generations(second) == generations
    no_difference = {
        "win_rate": 0.5,
        "win_rate_ci": [0.5, 0.5],
        "tie_rate": 1.0,
        "difference": 0.0,
        "difference_ci": [0.0, 0.0],
    }
    assert [result["versus"] for result in site.report(second)["results"]] == [{first: {"reward": no_difference}}] * 2


KILLED_BEHIND_BATCH = """
import os, signal, sys
from pathlib import Path
from madpo_evaluator.generations import KeptGenerations
from madpo_evaluator.run import main

add, batches = KeptGenerations.add, []

def add_and_die(self, batch):
    add(self, batch)
    batches.append(batch)
    if len(batches) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

KeptGenerations.add = add_and_die
main(Path(sys.argv[1]))
"""


async def test_an_evaluation_killed_while_it_samples_goes_on_behind_the_batches_it_has(site: Site) -> None:
    whole, killed = job_id("whole"), job_id("killed")
    spec = SPEC | {"reference": {"model_id": site.reference_id}}
    assert (await site.run_process(whole, spec)).kind == "succeeded"

    # Batches of 7 of 18 responses a temperature: killed within the first, then within the second one.
    kept: list[set[str]] = []
    for attempt, batches in ((1, 2), (2, 3)):
        workspace = site.workspace(killed, spec, attempt=attempt)
        command = [sys.executable, "-c", KILLED_BEHIND_BATCH, str(workspace.directory), str(batches)]
        assert await site.launch(workspace, command) == -signal.SIGKILL
        assert workspace.outcome() is None
        workspace.close()
        kept.append({info.key for info in site.store.list(keys.generations(killed))})
    workspace = site.workspace(killed, spec, attempt=3)
    outcome = await site.finish(workspace)

    assert outcome.kind == "succeeded", outcome.reason
    assert [len(parts) for parts in kept] == [2, 5]
    assert kept[0] < kept[1]
    counted = [event for event in workspace.new_events() if isinstance(event, JobProgress)]
    assert next(event for event in counted if event.phase == "generating").phase_done == 18 + 2 * 7
    with (
        open_artifact(site.store, killed, "generations.jsonl") as resumed,
        open_artifact(site.store, whole, "generations.jsonl") as expected,
    ):
        assert resumed.read() == expected.read()
    assert site.report(killed)["results"] == site.report(whole)["results"]
    assert list(site.store.list(keys.generations(killed))) == []


def calibration_workspace(site: Site, name: str, spec: Mapping[str, Any]) -> Workspace:
    job = Job(job_id(name), JobKind.CALIBRATION, JobState.RUNNING, dict(spec), attempt=1)
    return Workspace(site.home / "jobs" / job.job_id, Claim(job, 1, "worker"))


async def test_a_reward_model_is_measured_on_each_part_of_a_benchmark(site: Site, tmp_path: Path) -> None:
    lengths = {"donotanswer": [(3, 1), (2, 2)], "mine": [(1, 2)]}
    rows = [
        PreferencePair("the", "x" * chosen, "y" * rejected, source=part)
        for part, pairs in lengths.items()
        for chosen, rejected in pairs
    ]
    pairs = [replace(pair, row=row) for row, pair in enumerate(rows, start=1)]
    stored, _ = DatasetStore(site.store).write(
        pairs, kind=DatasetKind.PREFERENCE, display_name="bench", scratch=tmp_path / "scratch"
    )
    spec = {"eval_dataset": stored.dataset_id, "reward_model": {"model_id": "model-" + "0" * 32}}
    workspace = calibration_workspace(site, "bench", spec)

    result = await site.execute(job_id("bench"), {}, workspace=workspace)

    found = result.summary["subsets"]
    assert {part: (each["accuracy"], each["pairs"], each["ties"]) for part, each in found["subsets"].items()} == {
        "donotanswer": (0.75, 2, 1),
        "mine": (0.0, 1, 0),
    }
    assert found["score"]["accuracy"] == found["sections"]["Safety"]["accuracy"] == 0.75


async def test_a_calibration_scores_both_sets_and_leaves_its_report(site: Site, tmp_path: Path) -> None:
    datasets = DatasetStore(site.store)
    training = [PreferencePair("the", "x" * length, "x", row=length) for length in range(1, 12)]
    stored, _ = datasets.write(training, kind=DatasetKind.PREFERENCE, display_name="t", scratch=tmp_path / "scratch")
    spec = {
        "eval_dataset": site.pairs_id,
        "dataset": stored.dataset_id,
        "reward_model": {"model_id": "model-" + "0" * 32},
        "method": {"name": "madpo", "params": {"tau": {"quantile": 0.5}}},
    }
    workspace = calibration_workspace(site, "calibration", spec)

    outcome = await site.finish(workspace)

    assert outcome.kind == "succeeded", outcome.reason
    with open_artifact(site.store, job_id("calibration"), "calibration.json") as stream:
        report = CalibrationReport.model_validate_json(stream.read())
    assert report.held_out is not None
    assert report.held_out.pairs == len(PAIRS)
    assert report.held_out.accuracy == 1  # chosen ones are longer by 1, 1 and 3 characters
    assert report.held_out.loss == pytest.approx(sum(math.log1p(math.exp(-longer)) for longer in (1, 1, 3)) / 3)
    assert (report.margins.of, report.margins.pairs) == ("training", len(training))
    assert report.params["tau"] == 5.0  # the median of 0, 1, ..., 10
    assert outcome.result is not None
    assert outcome.result.summary == report.summary()
    assert {file.path for file in list_artifacts(site.store, job_id("calibration"))} == {
        "calibration.json",
        "calibration.png",
    }


async def test_a_dataset_check_leaves_its_report_and_the_tokens_for_trainings(site: Site) -> None:
    spec = {
        "dataset": site.pairs_id,
        "eval_dataset": site.prompts_id,
        "model": {"model_id": site.policy_id},
        "max_tokens": 6,
        "overlong": "drop",
    }
    job = Job(job_id("check"), JobKind.DATASET_CHECK, JobState.RUNNING, spec, attempt=1)

    outcome = await site.finish(Workspace(site.home / "jobs" / job.job_id, Claim(job, 1, "worker")))

    assert outcome.kind == "succeeded", outcome.reason
    assert {file.path for file in list_artifacts(site.store, job.job_id)} == {"check.json", "check.html", "rows.jsonl"}
    with open_artifact(site.store, job.job_id, "check.json") as stream:
        report = CheckReport.from_json(stream.read())
    assert report.name == site.pairs_id
    assert report.tokens is not None
    assert (report.tokens.model, report.tokens.overlong["drop"].dropped) == (site.policy_id, 2)
    assert report.leakage is not None
    assert report.leakage.exact == 2
    assert outcome.result is not None
    assert outcome.result.summary["verdict"] == report.verdict == "warnings"
    assert outcome.result.summary["findings"]["overlong"] == 2
    tokenizer = load_tokenizer(ModelStore(site.store, site.home / "cache").fetch(site.policy_id))
    kept = list(TokenStore(site.store).read(site.pairs_id, tokenizer))
    assert [row.row for row in kept] == [pair.row for pair in PAIRS]


async def test_a_calibration_gives_pairs_that_come_twice_the_margin_of_their_own(site: Site, tmp_path: Path) -> None:
    lengths = [5, 2, 9, 2, 7, 5, 2, 3]
    pairs = [PreferencePair("the", "x" * length, "x", row=row) for row, length in enumerate(lengths, start=1)]
    stored, _ = DatasetStore(site.store).write(
        pairs, kind=DatasetKind.PREFERENCE, display_name="twice", scratch=tmp_path / "scratch"
    )
    spec = {
        "eval_dataset": site.pairs_id,
        "dataset": stored.dataset_id,
        "reward_model": {"model_id": "model-" + "0" * 32},
        "method": {"name": "madpo", "params": {"tau": {"quantile": 0.5}}},
    }
    workspace = calibration_workspace(site, "twice", spec)

    outcome = await site.finish(workspace)

    assert outcome.kind == "succeeded", outcome.reason
    with open_artifact(site.store, job_id("twice"), "calibration.json") as stream:
        report = CalibrationReport.model_validate_json(stream.read())
    margins = [length - 1.0 for length in lengths]
    assert report.margins.pairs == len(pairs)
    assert report.margins.mean == pytest.approx(statistics.fmean(margins))
    assert report.params["tau"] == statistics.median(margins)


async def test_a_calibration_of_margins_that_rows_do_not_have_fails_by_saying_so(site: Site) -> None:
    outcome = await site.finish(calibration_workspace(site, "no margins", {"eval_dataset": site.pairs_id}))

    assert outcome.kind == "failed"
    assert "3 rows have no margin (add a `margin` column, or give reward_model)" in outcome.reason


def _check_result(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """The figures of a temperature follow from its generations."""

    def mean(values: Iterable[float]) -> Any:
        return pytest.approx(statistics.fmean(values))

    assert all(row["metrics"]["reward"] == len(row["response"].split()) for row in rows)
    assert result["metrics"]["reward"]["mean"] == mean(row["metrics"]["reward"] for row in rows)
    assert result["kl"]["mean"] == mean(row["kl"] for row in rows)
    assert result["kl"]["ci"][0] < result["kl"]["mean"] < result["kl"]["ci"][1]
    assert result["finished_ratio"] == mean(row["finished"] for row in rows)
    assert result["response_tokens"]["mean"] == mean(row["tokens"] for row in rows)
    assert result["versus"] == {}


async def test_another_policy_is_compared_sample_by_sample(site: Site) -> None:
    ours, theirs = job_id("ours"), job_id("theirs")
    await site.execute(theirs, SPEC)

    await site.execute(ours, SPEC | {"model": {"model_id": site.reference_id}, "baseline_job_ids": [theirs]})

    pairs = [
        (mine["metrics"]["reward"], other["metrics"]["reward"])
        for mine, other in zip(site.generations(ours), site.generations(theirs), strict=True)
        if mine["temperature"] == 0.7
    ]
    comparison = site.report(ours)["results"][1]["versus"][theirs]["reward"]
    assert comparison["difference"] == pytest.approx(statistics.fmean(a - b for a, b in pairs))
    assert comparison["win_rate"] == pytest.approx(statistics.fmean((a > b) + (a == b) / 2 for a, b in pairs))
    assert comparison["difference"] != 0.0
    assert comparison["difference_ci"][0] < comparison["difference"] < comparison["difference_ci"][1]


async def test_the_kl_of_a_policy_to_itself_is_zero(site: Site) -> None:
    itself = job_id("itself")

    await site.execute(itself, {"reference": {"model_id": site.policy_id}})

    assert site.report(itself)["results"][0]["kl"] == {"mean": 0.0, "std": 0.0, "ci": [0.0, 0.0]}


async def test_an_adapter_needs_no_second_copy_of_its_base(
    site: Site, make_toy_lm: Make, make_toy_tokenizer: Make
) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    save_directory(get_peft_model(make_toy_lm(seed=2), config), make_toy_tokenizer(), site.home / "adapter")
    models = ModelStore(site.store, site.home / "cache")
    adapter, _ = models.publish(
        site.home / "adapter", display_name="toy", kind="causal_lm", base_model_id=site.reference_id
    )
    resolve = partial(resolve_model, store=site.store, models=models)

    loaded = load_models(
        resolve(ModelReference(model_id=adapter.model_id)), resolve(ModelReference(model_id=site.reference_id))
    )

    assert loaded.reference is not None
    with loaded.reference() as reference:
        assert reference is loaded.policy
        logits = reference(input_ids=torch.tensor([[1, 6, 7]])).logits
    assert torch.equal(logits, make_toy_lm(seed=2)(input_ids=torch.tensor([[1, 6, 7]])).logits)
    assert not torch.equal(logits, loaded.policy(input_ids=torch.tensor([[1, 6, 7]])).logits)


async def test_a_reference_with_another_tokenizer_is_refused(
    site: Site, make_toy_lm: Make, make_toy_tokenizer: Make
) -> None:
    save_directory(make_toy_lm(), make_toy_tokenizer(bos=False), site.home / "foreign")
    models = ModelStore(site.store, site.home / "cache")
    foreign, _ = models.publish(site.home / "foreign", display_name="toy", kind="causal_lm")

    with pytest.raises(FailedPreconditionError, match="different tokenizers"):
        await site.execute(job_id("foreign"), {"reference": {"model_id": foreign.model_id}})


async def test_progress_counts_samples_and_says_what_is_being_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "_SAY_EVERY_S", 0.0)  # else as often as time passes
    spec = {"generation_batch_size": 2, "sampling": {"max_new_tokens": 4}}
    workspace = site.workspace(job_id("progress"), spec)

    await site.execute(job_id("progress"), spec, workspace=workspace)

    events = [event for event in workspace.new_events() if isinstance(event, JobProgress)]
    generating = [event for event in events if event.phase == "generating"]
    assert [event.step for event in generating] == [0, 2, 4, 6]
    assert {event.total_steps for event in generating} == {6}
    assert [(event.phase_done, event.phase_total) for event in generating] == [(0, 6), (2, 6), (4, 6), (6, 6)]
    assert generating[0].remaining_s is None
    assert generating[-1].remaining_s == 0.0
    said = [event.phase for event in events if not event.phase.startswith("fetching model-")]
    assert list(dict.fromkeys(said)) == ["loading", "generating", "reporting"]


async def test_only_prompts_are_needed(site: Site) -> None:
    bare = job_id("bare")

    await site.execute(bare, {"max_prompts": 2, "prompt_dataset": site.pairs_id})

    report = site.report(bare)
    assert [row["prompt"] for row in site.generations(bare)] == ["the film was", "the"]
    assert (report["results"][0]["metrics"], report["results"][0]["kl"]) == ({}, None)
    assert report["implicit_reward_accuracy"] is None


async def test_a_metric_or_a_plot_that_fails_takes_nothing_else_along(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(prompts: Any, responses: Any) -> Any:
        return [1 / 0 for _ in responses]

    def length(prompts: Any, responses: Sequence[str]) -> list[float]:
        return [float(len(response)) for response in responses]

    def fail(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(evaluation, "load_metrics", lambda _: {"broken": broken, "length": length})
    monkeypatch.setattr(evaluation, "write_plots", fail)

    result = await site.execute(job_id("partly"), {"metrics": ["broken", "length"]})

    first, second = result.warnings
    assert first.startswith("metric 'broken' failed: ZeroDivisionError: division by zero (in ")
    assert second.startswith("the plots failed: RuntimeError: no fonts")
    assert [list(row["metrics"]) for row in site.generations(job_id("partly"))] == [["length"]] * 6
    assert list(site.report(job_id("partly"))["results"][0]["metrics"]) == ["length"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_prompts": 2}, "answered 6 prompts, this evaluation has 2"),
        ({"sampling": SPEC["sampling"] | {"max_new_tokens": 9}}, "sampling.max_new_tokens=8, this evaluation uses 9"),
        ({"sampling": SPEC["sampling"] | {"temperatures": [1.0]}}, r"sampling.temperatures=\(1.0, 0.7\)"),
        ({"reward_model": {"model_id": "model-" + "1" * 32}}, "was scored by model-000"),
        ({"prompt_dataset": "pairs"}, "answered 6 prompts, this evaluation has 3"),
    ],
)
async def test_a_baseline_that_does_not_pair_up_is_refused(site: Site, change: dict[str, Any], reason: str) -> None:
    await site.execute(job_id("baseline"), SPEC)
    if change.get("prompt_dataset") == "pairs":
        change = {"prompt_dataset": site.pairs_id}

    with pytest.raises(FailedPreconditionError, match=reason):
        await site.execute(job_id("next"), SPEC | {"baseline_job_ids": [job_id("baseline")]} | change)


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ({"metrics": ["no_such_metric"]}, InvalidArgumentError, "unknown metric 'no_such_metric'"),
        ({"model": {"model_id": "model-" + "f" * 32}}, NotFoundError, "no model model-fff"),
        ({"baseline_job_ids": ["job-" + "f" * 32]}, FailedPreconditionError, "left no evaluation to compare with"),
        ({"sampling": {"max_new_tokens": 64}}, InvalidArgumentError, "exceeds the 64 tokens that the model can read"),
        (
            {"reward_model": {"job_id": "job-" + "f" * 32, "step": 3}},
            FailedPreconditionError,
            "is a checkpoint and cannot be served",
        ),
    ],
)
async def test_a_wrong_spec_is_refused_with_the_reason(
    site: Site, spec: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        await site.execute(job_id("wrong"), spec)


async def test_a_reward_model_without_a_reward_service_is_refused_with_the_setting_to_give(site: Site) -> None:
    alone = replace(site, reward_target="")

    with pytest.raises(FailedPreconditionError, match="set MADPO_EVALUATOR_REWARD_TARGET"):
        await alone.execute(job_id("alone"), SPEC)


async def test_prompts_and_pairs_over_the_models_context_are_skipped_and_named_by_row(site: Site) -> None:
    scratch = site.home / "scratch"
    long = PreferencePair("the film " * 30, "was good", "was bad . the film", row=4)
    pairs, _ = DatasetStore(site.store).write(
        [*PAIRS, long], kind=DatasetKind.PREFERENCE, display_name="long", scratch=scratch
    )
    spec = {
        "prompt_dataset": pairs.dataset_id,
        "reference": {"model_id": site.reference_id},
        "eval_dataset": pairs.dataset_id,
        "sampling": {"max_new_tokens": 8},
    }

    outcome = await site.execute(job_id("long"), spec)

    assert outcome.summary["skipped_prompts"] == outcome.summary["skipped_pairs"] == {"count": 1, "rows": [4]}
    report = site.report(job_id("long"))
    assert (report["prompts"], report["skipped_rows"]) == (3, [4])
    assert report["implicit_reward_accuracy"]["pairs"] == 3


async def test_rows_with_tokens_that_the_model_does_not_embed_are_named(
    site: Site, make_toy_lm: Make, make_toy_tokenizer: Make
) -> None:
    tokenizer = make_toy_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    directory, scratch = save_directory(make_toy_lm(), tokenizer, site.home / "small"), site.home / "scratch"
    models, datasets = ModelStore(site.store, site.home / "cache"), DatasetStore(site.store)
    small, _ = models.publish(directory, display_name="small", kind="causal_lm")
    pairs = [PAIRS[0], PreferencePair("the <tool>", "was good", "was bad", row=2)]
    dataset, _ = datasets.write(pairs, kind=DatasetKind.PREFERENCE, display_name="tools", scratch=scratch)
    model, used = {"model_id": small.model_id}, dataset.dataset_id
    problem = "row 2: the model has no embedding for the token '<tool>'"

    with pytest.raises(InvalidPairError, match=problem):
        await site.execute(job_id("prompts"), {"model": model, "prompt_dataset": used})
    result = await site.execute(job_id("pairs"), {"model": model, "reference": model, "eval_dataset": used})

    (warning,) = result.warnings
    assert problem in warning


async def test_a_run_asked_to_stop_ends_between_batches_and_publishes_nothing(site: Site) -> None:
    workspace = site.workspace(job_id("drained"), SPEC)
    workspace.request_stop("drain")

    with pytest.raises(Interrupted):
        await site.execute(job_id("drained"), SPEC, workspace=workspace)

    assert list_artifacts(site.store, job_id("drained")) == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidArgumentError("tau is wrong"), Outcome("failed", reason="tau is wrong")),
        (Interrupted(), Outcome("stopped")),
        (UnavailableError("the store is away"), None),
        (ZeroDivisionError("a defect"), None),
    ],
)
def test_only_what_is_wrong_with_the_job_fails_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: Outcome | None
) -> None:
    workspace = site.workspace(job_id("error"), SPEC)
    for name, value in {"store_url": "file:///none", "redis_url": "redis://none", "workspace": "/none"}.items():
        monkeypatch.setenv(f"MADPO_EVALUATOR_{name}".upper(), value)
    monkeypatch.setattr(Run, "watch_lifeline", lambda _: None)
    monkeypatch.setattr(run, "configure_logging", lambda **_: None)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(run.JobInputs, "open", fail)

    with nullcontext() if outcome else pytest.raises(type(error)):
        run.main(workspace.directory)

    assert workspace.outcome() == outcome
