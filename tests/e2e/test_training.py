"""The whole path on the embedded stack: real processes, real gRPC, real queue, tiny real models."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from madpo.errors import MadpoError
from madpo.jobs.registry import KINDS
from madpo.types import CheckpointPublished, JobProgress, JobState, StateChange
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_client.errors import JobFailedError
from madpo_examples.toy_reviews.language import true_reward
from madpo_examples.toy_reviews.model import make_base_model

WORDS = ["superb", "good", "long", "weak", "awful", "charming", "dull", "solid"]
STEPS = 60
"""Enough that a run is still going when its first checkpoint is heard of."""

OUTAGE_S = 10

PROMPTS = [f"a 1980s drama . the {noun}" for noun in ("plot", "acting", "music", "cast", "story", "script")]
REVIEWS = [(prompt, f"is {first} and {second} .") for prompt in PROMPTS for first in WORDS for second in WORDS]


def preference_rows(count):
    rows = []
    for index in range(count):
        prompt, first = REVIEWS[(7 * index) % len(REVIEWS)]
        _, second = REVIEWS[(11 * index + 5) % len(REVIEWS)]
        gap = true_reward(f"{prompt} {first}") - true_reward(f"{prompt} {second}")
        if gap != 0:
            chosen, rejected = (first, second) if gap > 0 else (second, first)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        for service in ("GATEWAY", "TRAINER", "EVALUATOR"):  # a dead worker's job is waited for a lease long
            environment.setenv(f"MADPO_{service}_LEASE_S", "6")
        for service in ("TRAINER", "EVALUATOR"):
            environment.setenv(f"MADPO_{service}_RENEW_S", "2")
        with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack:
            yield stack


@pytest.fixture(scope="module")
def client(stack):
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def base(client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    make_base_model(directory)
    return client.models.upload(directory, name="tiny")


@pytest.fixture(scope="module")
def pairs(client):
    return client.datasets.upload(preference_rows(96), name="pairs")


@pytest.fixture(scope="module")
def reward_job(client, base, pairs):
    job = client.jobs.train_reward(
        model=base, dataset=pairs, eval_dataset=pairs, training=training(epochs=2, learning_rate=3e-3)
    )
    job.wait()
    return job


def training(*, learning_rate=1e-3, **fields):
    return {"global_batch_size": 16, "optimizer": {"learning_rate": learning_rate}, "max_tokens": 64, **fields}


def policy_job(client, base, pairs, reward_job, **fields):
    settings = training(**{"max_steps": STEPS, "checkpoint_every_steps": 3, "seed": 5, **fields})
    return client.jobs.train_policy(
        model=base, dataset=pairs, method="madpo", params={"tau": 2.0}, reward_model=reward_job, training=settings
    )


@pytest.fixture(scope="module")
def uninterrupted(client, base, pairs, reward_job):
    return policy_job(client, base, pairs, reward_job).wait()


def test_supervised_training_lowers_the_held_out_loss(client, base):
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in REVIEWS]
    data = client.datasets.upload(rows, name="reviews")

    job = client.jobs.train_supervised(
        model=base, dataset=data, eval_dataset=data, training=training(max_steps=30, learning_rate=5e-3)
    ).wait()

    assert set(job.result.summary["eval"]) == set(KINDS[job.kind].held_out_figures)
    assert job.result.summary["eval"]["loss"] < 0.7 * job.result.summary["eval_before"]["loss"]


def test_a_reward_model_carries_its_accuracy_and_calibration(client, reward_job):
    report = reward_job.job.result.summary["eval"]
    assert set(report) == set(KINDS[reward_job.job.kind].held_out_figures)
    model = client.models.get(reward_job.job.result.model_id)

    assert model.kind == "reward"
    assert report["accuracy"] > 0.6
    assert {"ece", "temperature", "score_mean", "score_std"} <= set(model.metadata["eval"])


def test_margins_are_scored_live_once_per_pair_and_entered_in_the_ledger(client, pairs, uninterrupted):
    ledger = client.jobs.ledger(uninterrupted.job_id, with_text=True).to_pylist()
    margins = uninterrupted.result.summary["margins"]

    assert margins["requested"] == margins["scored_live"] == pairs.rows
    assert len(ledger) == STEPS * 16
    by_pair: dict[str, set[float]] = {}
    for row in ledger:
        by_pair.setdefault(row["pair_id"], set()).add(row["reward_margin"])
    assert all(len(values) == 1 for values in by_pair.values())
    assert any(row["weight"] != 1.0 for row in ledger)
    assert [row["step"] for row in ledger[::16]] == [*range(1, STEPS + 1)]
    assert [row["epoch"] for row in ledger] == [place // pairs.rows for place in range(STEPS * 16)]
    assert all(row["madpo_coefficient"] > 0 for row in ledger)
    uploaded = preference_rows(96)
    for row in ledger:
        assert {name: row[name] for name in ("prompt", "chosen", "rejected")} == uploaded[row["row"] - 1]


def test_what_the_reward_model_contradicted_is_one_command(stack, uninterrupted):
    done = subprocess.run(
        [sys.executable, "-m", "madpo_client.cli", "ledger", uninterrupted.job_id, "--summary"],
        env={**os.environ, "MADPO_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.startswith("The reward model contradicts")
    assert f"{uninterrupted.job_id} (madpo), {STEPS} steps" in done.stdout


def test_an_evaluation_reports_reward_divergence_and_the_comparison(client, base, pairs, reward_job, uninterrupted):
    prompts = client.datasets.upload([{"prompt": prompt} for prompt in PROMPTS], name="prompts")
    common = {
        "prompts": prompts,
        "reference": base,
        "reward_model": reward_job,
        "metrics": ["toy_reward"],
        "sampling": {"samples_per_prompt": 2, "max_new_tokens": 12},
    }

    baseline = client.jobs.evaluate(model=base, **common)
    evaluation = client.jobs.evaluate(
        model=client.models.get(uninterrupted.result.model_id), eval_dataset=pairs, baselines=[baseline], **common
    )
    evaluation.wait()
    result = evaluation.report().results[0]

    assert baseline.report().results[0].kl.mean == pytest.approx(0, abs=1e-6)
    assert result.kl.mean > 0
    assert set(result.versus[baseline.id]) == {"reward", "toy_reward"}
    assert evaluation.report().implicit_reward_accuracy.pairs == pairs.rows


@pytest.mark.promise("T1")
def test_a_killed_training_process_resumes_to_the_same_weights(client, stack, base, pairs, reward_job, uninterrupted):
    job = policy_job(client, base, pairs, reward_job, log_every_steps=2)
    wait_for_checkpoint(job)
    kill(training_process(stack))

    finished = job.wait()

    assert finished.attempt == 2
    assert finished.result.model_id == uninterrupted.result.model_id


@pytest.mark.promise("T1")
def test_a_killed_supervisor_loses_no_job_and_the_weights_are_the_same(
    client, stack, base, pairs, reward_job, uninterrupted
):
    job = policy_job(client, base, pairs, reward_job, log_every_steps=3)
    wait_for_checkpoint(job)
    kill(process(stack, "trainer"))

    finished = job.wait()

    assert finished.attempt == 2
    assert finished.result.model_id == uninterrupted.result.model_id


@pytest.mark.promise("D1")
def test_redis_and_the_scorer_may_die_during_a_run(client, stack, base, pairs, reward_job, uninterrupted):
    job = policy_job(client, base, pairs, reward_job, log_every_steps=4)
    wait_for_checkpoint(job)
    kill(process(stack, "redis"))
    kill(process(stack, "reward"))

    finished = job.wait()

    assert finished.state is JobState.SUCCEEDED
    assert finished.result.model_id == uninterrupted.result.model_id


@pytest.mark.promise("D4")
def test_the_store_may_go_away_during_a_run_with_live_margins(client, stack, base, pairs, reward_job, uninterrupted):
    """A file takes the store's place: whatever is written or read meanwhile fails, margins and checkpoints alike."""
    job = client.jobs.train_policy(
        model=base,
        dataset=pairs,
        params={"tau": 2.0},
        reward_model=reward_job,
        margin={"lookahead_batches": 1},
        training=training(max_steps=STEPS, checkpoint_every_steps=3, seed=5),
    )
    next(event for event in job.watch() if isinstance(event.event, JobProgress) and event.event.phase == "training")
    store = stack.home / "store"
    store.rename(stack.home / "away")
    store.touch()
    time.sleep(OUTAGE_S)
    store.unlink()
    (stack.home / "away").rename(store)

    finished = job.wait(timeout_s=300)

    assert finished.state is JobState.SUCCEEDED
    assert finished.result.model_id == uninterrupted.result.model_id


def test_cancel_leaves_a_usable_checkpoint(client, base, pairs, reward_job, tmp_path):
    job = policy_job(client, base, pairs, reward_job, max_steps=100_000)
    wait_for_checkpoint(job)
    steps = job.ledger()["step"].to_pylist()
    assert len(steps) == 16 * max(steps)

    job.cancel()
    states = [event.event.state for event in job.watch() if isinstance(event.event, StateChange)]
    checkpoints = client.models.checkpoints(job)
    directory = client.models.download(job, tmp_path / "model", step=checkpoints[0].step)

    assert states[-1] is JobState.CANCELLED
    assert max(job.ledger()["step"].to_pylist()) == checkpoints[0].step
    assert (directory / "model.safetensors").exists()


def test_lora_in_bf16_trains_an_adapter_that_names_its_base(client, base, pairs, reward_job, tmp_path):
    job = policy_job(client, base, pairs, reward_job, max_steps=3, lora={"rank": 2}, precision="bf16").wait()
    model = client.models.get(job.result.model_id)

    directory = client.models.download(model, tmp_path / "adapter")

    assert model.base_model_id == base.model_id
    assert json.loads((directory / "adapter_config.json").read_text())["r"] == 2


def test_a_stored_dataset_is_checked_through_a_stored_model(client, stack, base, pairs, tmp_path):
    job = client.jobs.check_dataset(dataset=pairs, model=base, max_tokens=64)
    job.wait()
    report = job.dataset_check()
    assert report.tokens.model == base.model_id
    assert job.job.result.summary["verdict"] == report.verdict

    page = tmp_path / "page.html"
    command = ["dataset", "check", pairs.dataset_id, "--model", base.model_id, "--max-tokens", "4", "--html", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "madpo_client.cli", *command],
        env=os.environ | {"MADPO_HOME": str(stack.home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 2, done.stderr
    assert f"{pairs.dataset_id}: refused" in done.stdout
    assert "Longer than max_tokens=4" in page.read_text()


def test_a_job_that_cannot_be_done_fails_with_one_readable_reason(client, base, pairs):
    job = client.jobs.train_policy(model=base, dataset=pairs, method="dpo", training=training(max_tokens=8))

    with pytest.raises(JobFailedError, match=r"longer than training\.max_tokens=8"):
        job.wait()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "nope"}, "there is no method"),
        ({"method": "madpo"}, "margin"),
        ({"method": "dpo", "params": {"beta": -1}}, r"params\.beta"),
        ({"method": "dpo", "params": {"gamma": 1}}, r"params\.gamma"),
        ({"method": "dpo", "dataset": "dataset-" + "0" * 32}, "dataset"),
        ({"method": "dpo", "model": "model-" + "0" * 32}, "model"),
    ],
)
def test_a_wrong_policy_job_is_refused_before_anything_starts(client, base, pairs, fields, message):
    with pytest.raises(MadpoError, match=message):
        client.jobs.train_policy(**{"model": base, "dataset": pairs, **fields})


def test_a_wrong_token_is_refused(stack):
    with Client(server=stack.client().server, token="wrong" * 8) as stranger, pytest.raises(MadpoError, match="token"):
        stranger.jobs.list()


@pytest.mark.promise("T1")
def test_a_stopped_stack_goes_on_where_it_was_and_ends_with_the_same_weights(
    client, stack, base, pairs, reward_job, uninterrupted
):
    job = policy_job(client, base, pairs, reward_job, log_every_steps=5)
    wait_for_checkpoint(job)
    stack.stop()

    stack.start()
    with stack.client() as again:
        finished = again.jobs.get(job.id).wait()

    assert finished.attempt == 2
    assert finished.result.model_id == uninterrupted.result.model_id


def wait_for_checkpoint(job):
    for event in job.watch():
        if isinstance(event.event, CheckpointPublished):
            return
    raise AssertionError("the job ended before its first checkpoint")


def process(stack, name):
    entries = (entry.process for entry in stack.status())
    return next(psutil.Process(entry.pid) for entry in entries if entry.name.startswith(name))


def training_process(stack):
    descendants = process(stack, "trainer").children(recursive=True)
    return next(child for child in descendants if is_training(child.pid))


def is_training(pid):
    """By where it prints to: a process that waits for the next job is of the same program."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1").endswith("run.log")
    except OSError:  # it has ended
        return False


def kill(process):
    process.kill()
    process.wait(timeout=10)
