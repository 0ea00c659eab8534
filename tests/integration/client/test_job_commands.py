"""Jobs from the command line, at a real gateway: what is asked for is what is stored."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.types import Dataset, JobKind, JobState, Model
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack

ROWS = [{"prompt": "the film", "chosen": " was good .", "rejected": " was bad ."}] * 2
Madpo = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """Queue and gateway; nobody takes jobs."""
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), reward_replicas=0, trainers=0, evaluators=0) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack: EmbeddedStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(client: Client, tmp_path_factory: pytest.TempPathFactory, make_toy_lm, make_toy_tokenizer) -> Model:
    directory = tmp_path_factory.mktemp("model")
    make_toy_lm().save_pretrained(directory)
    make_toy_tokenizer().save_pretrained(directory)
    return client.models.upload(directory)


@pytest.fixture(scope="module")
def pairs(client: Client) -> Dataset:
    return client.datasets.upload(ROWS, name="pairs")


@pytest.fixture
def madpo(stack: EmbeddedStack) -> Madpo:
    """Runs the command against the stack."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "madpo_client.cli", *arguments, "--no-wait"]
        environment = {**os.environ, "MADPO_HOME": str(stack.home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_a_file_and_single_fields_make_a_job(
    madpo: Madpo, client: Client, model: Model, pairs: Dataset, tmp_path: Path
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        f"model: {model.model_id}\ndataset: {pairs.dataset_id}\n"
        "method: {name: dpo, params: {beta: 5e-2}}\ntraining: {epochs: 3}\n"
    )

    done = madpo("job", "create", "policy_training", "--spec", str(file), "--set", "training.epochs=2", "--name", "try")

    assert done.returncode == 0, done.stderr
    job = client.jobs.get(done.stdout.strip())
    assert (job.job.display_name, job.state) == ("try", JobState.PENDING)
    assert (job.job.spec["method"]["name"], job.job.spec["method"]["params"]["beta"]) == ("dpo", 0.05)
    assert job.job.spec["training"]["epochs"] == 2


def test_options_and_single_fields_make_jobs_that_wait_for_each_other(
    madpo: Madpo, client: Client, model: Model, pairs: Dataset
) -> None:
    given = ("--model", model.model_id, "--dataset", pairs.dataset_id)
    modules = "training.lora.target_modules=[q_proj]"

    reward = madpo("train", "reward", *given, "--learning-rate", "1e-4", "--set", modules)
    policy = madpo("train", "policy", *given, "--reward-model", reward.stdout.strip(), "--set", "method.params.tau=2")

    assert (reward.returncode, policy.returncode) == (0, 0), reward.stderr + policy.stderr
    training = client.jobs.get(reward.stdout.strip()).job.spec["training"]
    assert training["optimizer"]["learning_rate"] == 1e-4
    assert training["lora"]["target_modules"] == ["q_proj"]
    waiting = client.jobs.get(policy.stdout.strip())
    assert (waiting.state, waiting.job.depends_on) == (JobState.WAITING, (reward.stdout.strip(),))
    assert waiting.job.spec["method"]["params"]["tau"] == 2


def test_what_the_gateway_refuses_is_named_as_it_was_written(madpo: Madpo, model: Model, pairs: Dataset) -> None:
    given = ("--model", model.model_id, "--dataset", pairs.dataset_id, "--method")

    option = madpo("train", "policy", *given, "dpo", "--param", "beta=-1")
    setting = madpo("train", "policy", *given, "dpo", "--set", "method.params.beta=-1")
    method = madpo("train", "policy", *given, "dop")

    assert option.stderr.startswith("error: --param beta: Input should be greater than 0, got -1")
    assert setting.stderr.startswith("error: method.params.beta: Input should be greater than 0, got -1")
    assert method.stderr.startswith("error: --method: there is no method 'dop'; did you mean dpo, ")
    assert [(done.returncode, done.stdout) for done in (option, setting, method)] == [(1, "")] * 3


def test_names_beginnings_and_the_newest_stand_for_ids(
    madpo: Madpo, client: Client, model: Model, pairs: Dataset, stack: EmbeddedStack
) -> None:
    reward = madpo("train", "reward", "--model", model.model_id[:14], "--dataset", "pairs", "--name", "scorer")
    policy = madpo("train", "policy", "--model", model.display_name, "--dataset", "@last", "--reward-model", "scorer",
                   "--set", "eval_dataset=@last:preference")  # fmt: skip
    assert (reward.returncode, policy.returncode) == (0, 0), reward.stderr + policy.stderr
    reward_id, policy_id = reward.stdout.strip(), policy.stdout.strip()

    spec = client.jobs.get(policy_id).job.spec
    assert (spec["model"], spec["margin"]["reward_model"]) == ({"model_id": model.model_id}, {"job_id": reward_id})
    assert spec["dataset"] == spec["eval_dataset"] == {"dataset_id": pairs.dataset_id}
    assert f"scorer is {reward_id}" in policy.stderr
    assert client.jobs.get(policy_id[4:12]).id == client.jobs.get("@last").id == policy_id
    assert client.jobs.get("scorer").id == reward_id
    assert client.jobs.get("@last").job.display_name == f"{model.display_name}-madpo"

    unknown = madpo("train", "reward", "--model", "scroer", "--dataset", "pairs")
    assert unknown.stderr.splitlines()[-1].startswith(
        "error: --model: there is no model 'scroer'; did you mean scorer?"
    )
    assert complete(stack, "job", "show", "sco") == ["scorer"]
    assert complete(stack, "train", "reward", "--dataset", "pa") == ["pairs"]


def test_jobs_are_listed_by_what_they_are(madpo: Madpo, client: Client, model: Model, pairs: Dataset) -> None:
    made = {method: client.jobs.train_policy(model=model, dataset=pairs, method=method) for method in ("dpo", "ipo")}
    made["dpo"].cancel()

    def listed(**filters: Any) -> list[str]:
        return [job.id for job in client.jobs.list(since=made["dpo"].job.create_time, **filters)]

    assert listed() == [made["ipo"].id, made["dpo"].id]
    assert listed(method="dpo") == listed(states=[JobState.CANCELLED]) == [made["dpo"].id]
    assert listed(name="ipo") == listed(name="*-ipo") == listed(limit=1) == [made["ipo"].id]
    assert listed(kinds=[JobKind.EVALUATION]) == listed(name="dpo*") == []
    assert listed(model=model.display_name) == listed()


def test_a_job_is_resumed_and_deleted(client: Client, model: Model, pairs: Dataset) -> None:
    job = client.jobs.train_reward(model=model, dataset=pairs, name="again")
    job.cancel()
    assert (job.resume().state, job.job.resumes) == (JobState.PENDING, 1)
    with pytest.raises(FailedPreconditionError, match=r"is PENDING: cancel it"):
        job.delete()
    with pytest.raises(FailedPreconditionError, match=f"is used by {job.id}, which is PENDING"):
        client.models.delete(model)
    job.cancel()
    client.jobs.delete("again")
    with pytest.raises(NotFoundError, match=f"there is no job {job.id}"):
        job.refresh()


def complete(stack: EmbeddedStack, *words: str) -> list[str]:
    """What a shell offers for the last word of a command."""
    completing = {"COMP_WORDS": " ".join(["madpo", *words]), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **completing, "_MADPO_COMPLETE": "complete_bash", "MADPO_HOME": str(stack.home)}
    command = [str(Path(sys.executable).with_name("madpo"))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.split()
