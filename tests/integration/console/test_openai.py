"""OpenAI's own client against the console: files, fine-tuning jobs, models."""

import json
import time
from pathlib import Path
from typing import Any

import openai as library
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from madpo_client import Client
from tests.integration.console.site import Site, rows

ENDED = {"succeeded", "failed", "cancelled"}


def ended(openai: OpenAI, job_id: str) -> FineTuningJob:
    deadline = time.monotonic() + 300
    while (job := openai.fine_tuning.jobs.retrieve(job_id)).status not in ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return job


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def test_a_preference_file_becomes_a_model(openai: OpenAI, base: str, pairs_file: Path) -> None:
    with pairs_file.open("rb") as content:
        file = openai.files.create(file=content, purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        validation_file=file.id,
        suffix="from openai",
        seed=3,
        method=dpo(beta=0.3, n_epochs=1, batch_size=16, learning_rate_multiplier=10),  # type: ignore[arg-type]
        metadata={"ticket": "17"},
        extra_body={"madpo": {"training": {"max_tokens": 64, "checkpoint_every_steps": 2}}},
    )
    done = ended(openai, job.id)

    assert (job.status, done.status, done.error and done.error.message) == ("queued", "succeeded", "")
    assert (file.filename, file.status, file.bytes > 0) == ("pairs.jsonl", "processed", True)
    assert done.method is not None
    assert done.method.dpo is not None
    assert done.method.dpo.hyperparameters is not None
    assert done.method.dpo.hyperparameters.model_dump() == {
        "beta": 0.3,
        "n_epochs": 1,
        "batch_size": 16,
        "learning_rate_multiplier": 10,
    }
    assert (done.seed, done.metadata, done.training_file, done.user_provided_suffix) == (
        3,
        {"ticket": "17"},
        file.id,
        "from openai",
    )
    model = openai.models.retrieve(done.fine_tuned_model or "")
    assert model.id in {each.id for each in openai.models.list()}
    assert job.id in {each.id for each in openai.fine_tuning.jobs.list()}
    newest, *older = openai.fine_tuning.jobs.checkpoints.list(job.id)
    assert (newest.step_number, [each.step_number for each in older]) == (3, [2])
    assert newest.fine_tuned_model_checkpoint == f"{job.id}@3"
    events = list(openai.fine_tuning.jobs.list_events(job.id, limit=2))  # page after page
    assert events[0].message == "The job is succeeded"
    assert [event.created_at for event in events] == sorted((event.created_at for event in events), reverse=True)
    losses = [event for event in events if event.type == "metrics" and "training loss" in event.message]
    assert losses[0].message.startswith("Step 3/3: training loss=")


def test_rows_of_chats_train_supervised(openai: OpenAI, base: str) -> None:
    chat = {"messages": [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was good ."}]}
    content = (json.dumps(chat) + "\n") * 12
    file = openai.files.create(file=("chats.jsonl", content.encode()), purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(
        model=base, training_file=file.id, extra_body={"madpo": {"training": {"max_tokens": 64}}}
    )
    done = ended(openai, job.id)

    assert (done.status, done.method and done.method.type, bool(done.fine_tuned_model)) == (
        "succeeded",
        "supervised",
        True,
    )


def test_a_file_is_its_content(openai: OpenAI, pairs_file: Path) -> None:
    first = openai.files.create(file=("a.jsonl", pairs_file.read_bytes()), purpose="fine-tune")
    content = openai.files.content(first.id).read()
    again = openai.files.create(file=("b.jsonl", content), purpose="fine-tune")

    assert len(content.splitlines()) == 48
    assert again.id == first.id == openai.files.retrieve(first.id).id
    assert first.id in {file.id for file in openai.files.list(purpose="fine-tune")}


def test_a_file_can_be_deleted(openai: OpenAI) -> None:
    lines = "".join(json.dumps(row | {"margin": 1.0}) + "\n" for row in rows(5))
    file = openai.files.create(file=("short.jsonl", lines.encode()), purpose="fine-tune")

    assert openai.files.delete(file.id).deleted
    with pytest.raises(library.NotFoundError):
        openai.files.retrieve(file.id)


def test_a_job_is_paused_and_goes_on(openai: OpenAI, base: str, pairs_file: Path) -> None:
    file = openai.files.create(file=("pairs.jsonl", pairs_file.read_bytes()), purpose="fine-tune")
    job = openai.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        method=dpo(n_epochs=400),
        extra_body={"madpo": {"training": {"max_tokens": 64}}},
    )
    openai.fine_tuning.jobs.pause(job.id)
    paused = ended(openai, job.id)
    resumed = openai.fine_tuning.jobs.resume(job.id)
    openai.fine_tuning.jobs.cancel(job.id)

    assert (paused.status, resumed.status in ("queued", "running")) == ("cancelled", True)
    assert ended(openai, job.id).status == "cancelled"


def test_what_is_wrong_comes_as_the_client_expects_it(openai: OpenAI, base: str, pairs_file: Path, site: Site) -> None:
    with pytest.raises(library.AuthenticationError, match="token"):
        openai.with_options(api_key="another token altogether").models.list()
    with pytest.raises(library.BadRequestError, match="purpose: must be fine-tune, got 'batch'") as purpose:
        openai.files.create(file=("pairs.jsonl", pairs_file.read_bytes()), purpose="batch")
    assert purpose.value.param == "purpose"
    broken = pairs_file.read_bytes().splitlines()[0] + b"\n{}\n"
    with pytest.raises(library.BadRequestError, match="row 2"):
        openai.files.create(file=("broken.jsonl", broken), purpose="fine-tune")
    file = openai.files.create(file=("pairs.jsonl", pairs_file.read_bytes()), purpose="fine-tune")

    def create(**changes: Any) -> FineTuningJob:
        return openai.fine_tuning.jobs.create(**{"model": base, "training_file": file.id, "method": dpo(), **changes})

    with pytest.raises(library.BadRequestError, match=r"there is no causal_lm model 'gpt-4\.1'"):
        create(model="gpt-4.1")
    with pytest.raises(library.BadRequestError, match="the integration 'wandb' is not offered"):
        create(integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    with pytest.raises(library.BadRequestError, match="supervised"):
        create(method={"type": "reinforcement"})
    with pytest.raises(library.BadRequestError, match="margin"):
        create(extra_body={"madpo": {"method": "madpo"}})
    with pytest.raises(library.BadRequestError, match="learning_rate_multiplier"):
        create(
            method=dpo(learning_rate_multiplier=2),
            extra_body={"madpo": {"training": {"optimizer": {"learning_rate": 1e-4}}}},
        )
    with pytest.raises(library.NotFoundError):
        openai.fine_tuning.jobs.retrieve("job-" + "0" * 32)
    with pytest.raises(library.BadRequestError, match="there is no ftevent-9 in this list"):
        openai.fine_tuning.jobs.list(after="ftevent-9")
    unknown = site.ask("GET", "/v1/assistants")
    assert (unknown.status, unknown.json()["error"]["message"]) == (404, "there is nothing at /v1/assistants")


def test_a_token_that_reads_starts_nothing(client: Client, site: Site, base: str, pairs_file: Path) -> None:
    _, secret = client.access.create_token("reader", role="read")

    with OpenAI(base_url=f"{site.url}/v1", api_key=secret, max_retries=0) as reader:
        assert base in {model.id for model in reader.models.list()}
        with pytest.raises(library.PermissionDeniedError):
            reader.files.create(file=("pairs.jsonl", pairs_file.read_bytes()), purpose="fine-tune")
        client.access.revoke_token("reader")
        with pytest.raises(library.AuthenticationError):
            reader.models.list()
