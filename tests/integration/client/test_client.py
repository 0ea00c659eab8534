"""The SDK against a real gateway with a real queue and store; the test itself is the worker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from madpo.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from madpo.models.save import save_adapter
from madpo.ports import Claim
from madpo.queue.queue import RedisJobQueue, connect
from madpo.storage.artifacts import publish_artifacts
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.ledger import LEDGER_PARTS
from madpo.storage.local import LocalStore
from madpo.types import (
    CheckpointPublished,
    Dataset,
    DatasetForm,
    DatasetKind,
    JobEvent,
    JobProgress,
    JobResult,
    JobState,
    Model,
    PreferencePair,
    StateChange,
)
from madpo_client import Client, JobFailedError, JobHandle
from madpo_client.check import TokenView, check_file
from madpo_client.embedded import EmbeddedStack
from madpo_client.embedded.plan import read_secret
from madpo_trainer.ledger import SCHEMA, Ledger, LedgerRow

PAIRS = [
    {"prompt": "the film", "chosen": " was good .", "rejected": " was bad ."},
    {"prompt": "the film", "chosen": " was good good .", "rejected": " bad ."},
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """Queue and gateway; nobody takes jobs."""
    home = tmp_path_factory.mktemp("stack")
    with EmbeddedStack(home, reward_replicas=0, trainers=0, evaluators=0) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack: EmbeddedStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory, make_toy_lm, make_toy_tokenizer) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_toy_lm().save_pretrained(directory)
    make_toy_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(client: Client, model_directory: Path) -> Model:
    return client.models.upload(model_directory)


@pytest.fixture(scope="module")
def pairs(client: Client) -> Dataset:
    return client.datasets.upload(PAIRS, name="pairs")


@pytest.fixture
def job(client: Client, model: Model, pairs: Dataset) -> Iterator[JobHandle]:
    job = client.jobs.train_reward(model=model, dataset=pairs, training={"max_steps": 3}, name="toy")
    yield job
    job.cancel()


@asynccontextmanager
async def queue_of(stack: EmbeddedStack) -> AsyncIterator[RedisJobQueue]:
    port = next(status.process.port for status in stack.status() if status.process.name == "redis")
    password = read_secret(stack.home, "redis_password")
    queue = connect(f"redis://:{password}@127.0.0.1:{port}/0", namespace="madpo", lease_s=30.0)
    try:
        yield queue
    finally:
        await queue.close()


async def claim(queue: RedisJobQueue, job: JobHandle) -> Claim:
    claimed = await queue.claim("train", "test", timeout_s=10)
    assert claimed is not None
    assert claimed.job.job_id == job.id
    return claimed


def test_rows_and_a_file_of_the_same_content_are_one_dataset(client: Client, pairs: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert client.datasets.upload(path).dataset_id == pairs.dataset_id
    assert (pairs.kind, pairs.rows, pairs.display_name) == (DatasetKind.PREFERENCE, 2, "pairs")
    assert client.datasets.get(pairs.dataset_id) == pairs
    assert pairs in client.datasets.list()


def test_content_that_is_stored_already_keeps_its_name_and_that_is_said(
    client: Client, pairs: Dataset, model: Model, model_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="madpo_client.lookup"):
        client.datasets.upload(PAIRS, name="pairs")
        client.models.upload(model_directory)
        assert caplog.messages == []
        client.datasets.upload(PAIRS, name="held-out")
        client.models.upload(model_directory, name="large")

    kept = "the same content is stored already: {} keeps the name {!r}, and is not called {!r}"
    assert caplog.messages == [
        kept.format(pairs.dataset_id, "pairs", "held-out"),
        kept.format(model.model_id, "tiny", "large"),
    ]
    assert client.datasets.get("pairs") == pairs


@pytest.mark.data
def test_the_same_rows_are_one_dataset_however_they_are_given(client: Client, pairs: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(PAIRS)
    table.save_to_disk(tmp_path / "saved", num_shards=2)
    table.select([0]).to_csv(tmp_path / "first.csv", index=False)
    table.select([1]).to_parquet(tmp_path / "second.parquet")
    (tmp_path / "third.json").write_text('[{"prompt": "p", "chosen": 5, "rejected": "b"}]')

    for source in (table, tmp_path / "saved", [tmp_path / "first.csv", tmp_path / "second.parquet"]):
        assert client.datasets.upload(source).dataset_id == pairs.dataset_id
    with pytest.raises(InvalidArgumentError) as caught:
        client.datasets.upload([tmp_path / "first.csv", tmp_path / "third.json"])
    assert [violation.field for violation in caught.value.violations] == ["third.json row 1.chosen"]


def test_an_upload_says_which_forms_it_found_and_what_was_read_as_what(client: Client) -> None:
    rows = [{"question": "2+2?", "best": "4", "rejected": "5", "score": 1.5}, {"chosen": "a b", "rejected": "a c"}]
    first = client.datasets.upload(rows[:1], columns={"chosen": "best", "margin": "score"})
    again = client.datasets.upload(
        [
            {"prompt": [{"role": "user", "content": "2+2?"}], "margin": 1.5}
            | {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "4"), ("rejected", "5"))}
        ]
    )

    assert first.dataset_id == again.dataset_id
    assert first.forms == (
        DatasetForm("intel", 1, {"chosen": "best", "margin": "score", "prompt": "question", "rejected": "rejected"}),
    )
    assert [form.name for form in again.forms] == ["explicit-chat"]
    assert client.datasets.get(again.dataset_id).forms == first.forms
    with pytest.raises(
        InvalidArgumentError, match=r"columns\.weight: is to be read from 'wieght', a column that no row"
    ):
        client.datasets.upload(rows[1:], columns={"weight": "wieght"})
    with pytest.raises(InvalidArgumentError, match=r"columns\.chosn: is no column that is read"):
        client.datasets.upload(rows, columns={"chosn": "best"})


def test_ranked_responses_become_what_was_chosen(client: Client) -> None:
    completions = [{"rank": rank, "completion": text} for rank, text in ((2, "c"), (0, "a"), (1, "b"))]
    rows = [{"context": "p", "completions": completions}, {"context": "q", "completions": completions}]

    with pytest.raises(InvalidArgumentError, match=r"row 1\.completions: ranks 3 responses: say what becomes of lists"):
        client.datasets.upload(rows)
    pairs = client.datasets.upload(rows, lists="pairs")
    assert (pairs.kind, pairs.rows, pairs.forms[0].rows) == (DatasetKind.PREFERENCE, 6, 2)
    found = client.datasets.read_rows(pairs.dataset_id, [2])
    assert [(pair.row, pair.chosen, pair.rejected) for pair in found] == [(2, "a", "b"), (2, "a", "c"), (2, "b", "c")]
    assert client.datasets.upload(rows, lists="keep").kind is DatasetKind.LIST
    assert client.datasets.upload(rows, lists="best_worst").rows == 2


def test_a_dataset_is_downloaded_as_a_file_that_makes_it_again(client: Client, tmp_path: Path) -> None:
    rows = [row | {"margin": 0.5, "chosen_reward": 1.5, "rejected_reward": 1.0, "weight": 2.0} for row in PAIRS]
    dataset = client.datasets.upload(rows)

    path = client.datasets.download(dataset, tmp_path / "rows.jsonl")

    assert client.datasets.upload(path).dataset_id == dataset.dataset_id
    assert [row.row for row in client.datasets.rows(dataset)] == list(range(1, len(rows) + 1))
    with pytest.raises(AlreadyExistsError, match="is there already"):
        client.datasets.download(dataset, path)
    with pytest.raises(NotFoundError):
        client.datasets.download("no-such-dataset", tmp_path / "other.jsonl")
    assert [file.name for file in tmp_path.glob("*.jsonl*")] == ["rows.jsonl"]


def test_a_check_reports_on_the_rows(client: Client) -> None:
    rows = [*PAIRS, PAIRS[0], {"prompt": "p", "chosen": "short", "rejected": "much longer"}]
    report = client.datasets.check(client.datasets.upload(rows).dataset_id)
    assert (report.rows.read, report.duplicates.exact, report.duplicates.identical) == (4, 1, 0)
    assert report.length_bias is not None
    assert report.length_bias.longer_chosen_ratio == 0.75


def test_a_file_is_checked_through_the_tokenizer_of_a_stored_model(
    client: Client, model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    directory = client.models.download(model, tmp_path / "tokenizer", weights=False)
    assert not list(directory.glob("*.safetensors"))
    report = check_file(path, model=TokenView(directory, name=model.model_id, max_tokens=64))
    assert report.tokens is not None
    assert report.tokens.model == model.model_id
    assert report.tokens.lengths["sequence"].count == len(PAIRS)


def test_a_wrong_row_is_named(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"row 3\.chosen"):
        client.datasets.upload([*PAIRS, {"prompt": "p", "chosen": 5, "rejected": "b"}])
    with pytest.raises(InvalidArgumentError, match="row 2 is no JSON object"):
        client.datasets.upload([PAIRS[0], {"prompt": object()}])


def test_a_deleted_dataset_is_gone(client: Client) -> None:
    dataset = client.datasets.upload([{"prompt": "only to be deleted"}])
    client.datasets.delete(dataset.dataset_id)
    with pytest.raises(NotFoundError):
        client.datasets.get(dataset.dataset_id)


def test_a_model_comes_back_as_it_was_sent(client: Client, model: Model, model_directory: Path, tmp_path: Path) -> None:
    assert model.display_name == "tiny"
    assert client.models.get(model.model_id) == model
    assert model in client.models.list()
    copy = client.models.download(model, tmp_path / "copy")
    for entry in model.files:
        assert (copy / entry.path).read_bytes() == (model_directory / entry.path).read_bytes()


def test_a_step_goes_with_a_job_and_not_with_a_model(client: Client, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="exactly one of model_id and job_id"):
        client.models.download(model, tmp_path / "copy", step=3)


def test_weights_in_forms_that_are_not_read_are_refused_by_name(
    client: Client, model_directory: Path, tmp_path: Path
) -> None:
    for path in model_directory.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("pytorch_model.bin", "weights.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(InvalidArgumentError, match=r"pytorch_model\.bin.*weights\.pkl"):
        client.models.upload(tmp_path)


def test_files_that_are_no_part_of_a_model_stay_behind(
    client: Client, model: Model, model_directory: Path, tmp_path: Path
) -> None:
    for path in model_directory.iterdir():
        (tmp_path / path.name).symlink_to(path)  # as the hub's cache has them
    for name in (
        "LICENSE",
        "README.md",
        "training_args.bin",
        "pytorch_model.bin",
        "weights.pkl",
        "modeling.py",
        "tokenizer.model.v3",
        "runs/events.out.tfevents.1",
        ".git/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x80\x04")

    assert client.models.upload(tmp_path).model_id == model.model_id


def test_a_wrong_token_is_refused(stack: EmbeddedStack) -> None:
    with Client(stack.connection().server, token="wrong" * 8) as client, pytest.raises(UnauthenticatedError):
        client.jobs.list()


def test_a_job_is_listed_and_can_be_cancelled(client: Client, job: JobHandle) -> None:
    assert job.state is JobState.PENDING
    assert client.jobs.list(limit=1)[0].id == job.id
    assert client.jobs.get(job.id).job.display_name == "toy"
    assert job.cancel().state is JobState.CANCELLED
    assert job.refresh().state is JobState.CANCELLED


def test_a_job_that_uses_another_waits_for_it(client: Client, job: JobHandle, model: Model, pairs: Dataset) -> None:
    after = client.jobs.train_policy(model=model, dataset=pairs, reward_model=job)
    assert after.state is JobState.WAITING
    assert after.job.depends_on == (job.id,)
    job.cancel()
    with pytest.raises(JobFailedError) as failed:
        after.wait(timeout_s=30)
    assert failed.value.job.state in (JobState.FAILED, JobState.CANCELLED)


def test_the_gateway_names_a_wrong_parameter_of_the_method(client: Client, model: Model, pairs: Dataset) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        client.jobs.train_policy(model=model, dataset=pairs, method="dpo", params={"beta": -1})
    assert [violation.field for violation in refused.value.violations] == ["params.beta"]


async def test_a_wait_sees_everything_and_returns_the_result(stack: EmbeddedStack, job: JobHandle) -> None:
    async with queue_of(stack) as queue:
        claimed = await claim(queue, job)
        waiting = asyncio.create_task(asyncio.to_thread(job.wait, progress=True, timeout_s=60))
        steps = [JobProgress(step, 3, {"loss": 1.0 / step}, phase="training") for step in (1, 2, 3)]
        await queue.publish(claimed, [*steps, CheckpointPublished(3)])
        await queue.succeed(claimed, JobResult(summary={"accuracy": 0.75}))
        done = await waiting
    assert done.state is JobState.SUCCEEDED
    assert done.result is not None
    assert done.result.summary == {"accuracy": 0.75}
    seen = [event.event for event in job.watch()]
    assert [event for event in seen if isinstance(event, JobProgress)] == steps
    assert CheckpointPublished(3) in seen
    assert isinstance(seen[-1], StateChange)


async def test_a_failed_job_raises_its_reason(stack: EmbeddedStack, job: JobHandle) -> None:
    async with queue_of(stack) as queue:
        await queue.fail(await claim(queue, job), "the loss is not finite")
        with pytest.raises(JobFailedError, match=r"\(toy\) failed: the loss is not finite"):
            await asyncio.to_thread(job.wait, timeout_s=60)


def test_a_wait_gives_up_in_time_and_the_job_goes_on(job: JobHandle) -> None:
    with pytest.raises(DeadlineExceededError, match=f"{job.id} is still PENDING"):
        job.wait(timeout_s=0.3)
    assert job.refresh().state is JobState.PENDING


async def test_a_watch_outlives_the_gateway(stack: EmbeddedStack, job: JobHandle) -> None:
    steps = [JobProgress(step, 4, phase="training") for step in (1, 2, 3, 4)]
    seen: list[JobEvent] = []
    first = threading.Event()

    def watch() -> None:
        for event in job.watch(timeout_s=90):
            seen.append(event)
            if event.event == steps[1]:
                first.set()

    async with queue_of(stack) as queue:
        claimed = await claim(queue, job)
        await queue.publish(claimed, steps[:2])
        watching = asyncio.create_task(asyncio.to_thread(watch))
        assert await asyncio.to_thread(first.wait, 30)
        gateway = next(status.process for status in stack.status() if status.process.name == "gateway")
        os.kill(gateway.pid, signal.SIGKILL)
        await queue.publish(claimed, steps[2:])
        await queue.succeed(claimed, JobResult())
        await watching
    assert [event.event for event in seen if isinstance(event.event, JobProgress)] == steps
    assert len({event.cursor for event in seen}) == len(seen)


def test_an_artifact_that_is_not_there_is_named(job: JobHandle) -> None:
    assert job.artifacts() == []
    with pytest.raises(NotFoundError, match=r"no artifact 'report\.json'; it has none"):
        job.report()


def test_an_interrupted_command_exits_with_130_and_leaves_the_job(stack: EmbeddedStack, job: JobHandle) -> None:
    # As at a terminal: a suite that runs in the background inherits an ignored SIGINT. Set there and not by a function
    # before the program is loaded, for which this process would be forked, gRPC's threads and all.
    watch = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from madpo_client.cli import main; main()"
    )
    command = [sys.executable, "-c", watch, "job", "watch", job.id, "--json"]
    environment = {**os.environ, "MADPO_HOME": str(stack.home)}
    watching = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["kind"] == "StateChange"
    watching.send_signal(signal.SIGINT)
    _, complaint = watching.communicate(timeout=30)
    assert (watching.returncode, complaint) == (130, "")
    assert job.refresh().state is JobState.PENDING


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["shown", "as JSON"])
async def test_who_watches_a_job_that_does_not_succeed_exits_with_1(
    stack: EmbeddedStack, client: Client, job: JobHandle, options: tuple[str, ...]
) -> None:
    def watch(job_id: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "madpo_client.cli", "job", "watch", job_id, *options]
        environment = {**os.environ, "MADPO_HOME": str(stack.home)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    async with queue_of(stack) as queue:
        await queue.fail(await claim(queue, job), "the disk is full")
    failed = await asyncio.to_thread(watch, job.id)
    assert failed.returncode == 1
    assert "the disk is full" in failed.stdout + failed.stderr

    await asyncio.to_thread(job.resume)
    async with queue_of(stack) as queue:
        await queue.succeed(await claim(queue, job), JobResult())
    assert (await asyncio.to_thread(watch, job.id)).returncode == 0


def test_who_downloads_an_adapter_hears_where_its_base_is_looked_for(
    stack: EmbeddedStack, client: Client, model: Model, model_directory: Path, tmp_path: Path, make_toy_lm: Any
) -> None:
    adapted = get_peft_model(make_toy_lm(), LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_adapter(adapted, tmp_path / "adapter", source=model_directory, base=(model.model_id, None))
    adapter = client.models.upload(tmp_path / "adapter")

    def download(model_id: str, *options: str) -> str:
        command = [sys.executable, "-m", "madpo_client.cli", "model", "download", model_id, *options]
        environment = {**os.environ, "MADPO_HOME": str(stack.home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stderr

    assert f"(`madpo model download {model.model_id} {model.model_id}`)" in download(
        adapter.model_id, str(tmp_path / "again")
    )
    for options in ([model.model_id, str(tmp_path / "base")], [adapter.model_id, str(tmp_path / "one"), "--merged"]):
        assert download(*options) == ""


def test_a_dataset_goes_up_and_is_listed_from_the_command_line(stack: EmbeddedStack, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    environment = {**os.environ, "MADPO_HOME": str(stack.home)}

    def madpo(*arguments: str) -> str:
        command = [sys.executable, "-m", "madpo_client.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout

    uploaded = json.loads(madpo("dataset", "upload", str(tmp_path / "pairs.jsonl"), "--json"))
    assert uploaded in json.loads(madpo("dataset", "list", "--json"))
    assert uploaded["dataset_id"] in madpo("dataset", "list")
    assert "0 duplicates" in madpo("dataset", "check", uploaded["dataset_id"])
    mapped = madpo(
        "dataset", "upload", str(tmp_path / "pairs.jsonl"), "--map", "chosen=rejected", "--map", "rejected=chosen"
    )
    assert "2 rows of the form explicit-text: chosen from rejected, prompt, rejected from chosen" in mapped


# ---- ledgers


@pytest.fixture
def policy(client: Client, model: Model, pairs: Dataset) -> Iterator[JobHandle]:
    job = client.jobs.train_policy(
        model=model, dataset=pairs, method="dpo", training={"max_steps": 2, "checkpoint_every_steps": 1}
    )
    yield job
    job.cancel()


def step_rows(step: int) -> list[LedgerRow]:
    """Both pairs, trained on in one step: the first agrees with a reward model, the second does not."""
    return [
        LedgerRow(f"pair-{row}", row, epoch=step - 1, step=step, reward_margin=margin, weight=weight,
                  implicit_margin=step * margin, loss=0.5 / step, tokens=6, figures={"madpo/coefficient": weight})
        for row, margin, weight in [(1, 1.0, 0.5), (2, -2.0, 1.5)]
    ]  # fmt: skip


def train(stack: EmbeddedStack, claimed: Claim, scratch: Path, *, steps: int) -> Ledger:
    """What a trainer stores of its first steps, a checkpoint each."""
    store = LocalStore(stack.home / "store")
    ledger = Ledger(store, job_id=claimed.job.job_id, attempt=claimed.attempt, parts=[])
    checkpoints = CheckpointStore(store, claimed.job.job_id, attempt=claimed.attempt)
    checkpoints.take_ownership()
    (scratch / "files").mkdir()
    (scratch / "files" / "state.json").write_text("{}")
    for step in range(1, steps + 1):
        ledger.extend(step_rows(step))
        ledger.cut(step)
        ledger.store()
        checkpoints.publish(step, scratch / "files", metadata={LEDGER_PARTS: ledger.parts})
    return ledger


async def test_a_ledger_grows_with_the_checkpoints_of_its_job(
    stack: EmbeddedStack, client: Client, policy: JobHandle, tmp_path: Path
) -> None:
    def read(**options: bool) -> "asyncio.Future[Any]":
        return asyncio.ensure_future(asyncio.to_thread(client.jobs.ledger, policy.id, **options))

    with pytest.raises(FailedPreconditionError, match="PENDING and has not begun to train"):
        await read()
    async with queue_of(stack) as queue:
        claimed = await claim(queue, policy)
        with pytest.raises(FailedPreconditionError, match="RUNNING, and rows come with its checkpoints, every 1 steps"):
            await read()
        ledger = train(stack, claimed, tmp_path, steps=1)
        running = await read()
        (tmp_path / "artifacts").mkdir()
        ledger.extend(step_rows(2))
        ledger.cut(2)
        ledger.store()
        ledger.join(tmp_path / "artifacts" / "ledger.parquet")
        publish_artifacts(LocalStore(stack.home / "store"), policy.id, tmp_path / "artifacts", attempt=1)
        await queue.succeed(claimed, JobResult())
    whole = await read(with_text=True)

    assert running["step"].to_pylist() == [1, 1]
    assert whole.schema.names == [*SCHEMA.names, "madpo_coefficient", "prompt", "chosen", "rejected"]
    assert whole["step"].to_pylist() == [1, 1, 2, 2]
    assert whole["chosen"].to_pylist() == [" was good .", " was good good ."] * 2
    assert client.datasets.read_rows(policy.job.spec["dataset"]["dataset_id"], [2]) == [
        PreferencePair(**PAIRS[1], row=2),
    ]


def test_a_job_of_another_kind_keeps_no_ledger(job: JobHandle) -> None:
    with pytest.raises(FailedPreconditionError, match="a reward_training job; only a policy training keeps a ledger"):
        job.ledger()


async def test_a_ledger_is_asked_from_the_command_line(stack: EmbeddedStack, policy: JobHandle, tmp_path: Path) -> None:
    async def madpo(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "madpo_client.cli", "ledger", policy.id, *arguments]
        environment = {**os.environ, "MADPO_HOME": str(stack.home)}
        return await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60
        )

    async with queue_of(stack) as queue:
        claimed = await claim(queue, policy)
        train(stack, claimed, tmp_path, steps=2)
        await queue.publish(claimed, [JobProgress(2, 9, phase="training")])

        rows = (await madpo("--sort", "weight")).stdout.splitlines()
        found = json.loads((await madpo("--where", "rejected LIKE '%bad .' AND epoch = 1", "--json")).stdout)
        bare = json.loads((await madpo("--where", "chosen LIKE '%good good%'", "--no-text", "--json")).stdout)
        nobody = await madpo("--where", "reward_margin > 5")
        wrong = await madpo("--where", "margin < 0")
        summary = (await madpo("--summary")).stdout
        figures = json.loads((await madpo("--summary", "--json")).stdout)
        written = await madpo("--epoch", "all", "--top", "3", "--csv", str(tmp_path / "rows.csv"))
        unwritten = await madpo("--parquet", str(tmp_path / "missing" / "rows.parquet"))
        clash = await madpo("--summary", "--sort", "loss")

    assert [line.strip() for line in rows] == [
        "row  step  reward_margin  weight  implicit_margin   loss",
        "prompt, + chosen, - rejected",
        "2     2         -2.000   1.500           -4.000  0.250",
        "the film",
        "+ was good good .",
        "- bad .",
        "1     2         +1.000   0.500           +2.000  0.250",
        "the film",
        "+ was good .",
        "- was bad .",
        "",
        f"2 of 2 rows · {policy.id} (dpo) is RUNNING: rows up to its newest checkpoint, step 2 of 9",
    ]
    assert [(row["row"], row["step"], row["rejected"]) for row in found] == [(1, 2, " was bad ."), (2, 2, " bad .")]
    assert [(row["row"], "chosen" in row) for row in bare] == [(2, False)]
    assert (nobody.returncode, "0 of 0 matching rows, 2 in all" in nobody.stdout) == (0, True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert 'column "margin" not found' in wrong.stderr
    assert "reward_margin, weight" in wrong.stderr
    assert summary.startswith("The reward model contradicts the label of 1 of 2 pairs (50.0%); they got 75.0% of all")
    assert "2     2         -2.000   1.500           -4.000  0.250" in summary
    assert "1     2         +1.000" not in summary
    assert [(group["verdict"], group["weight_share"]) for group in figures] == [("agrees", 0.25), ("contradicts", 0.75)]
    assert written.stdout == f"3 rows in {tmp_path / 'rows.csv'}\n"
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 4
    assert (unwritten.returncode, "cannot write" in unwritten.stderr) == (1, True)
    assert (clash.returncode, "--summary looks at all visits" in clash.stderr) == (2, True)


async def test_a_ledger_whose_dataset_is_gone_is_read_without_texts(
    stack: EmbeddedStack, client: Client, model: Model, tmp_path: Path
) -> None:
    dataset = client.datasets.upload([{"prompt": "soon", "chosen": "to be", "rejected": "gone"}] * 2)
    job = client.jobs.train_policy(model=model, dataset=dataset, method="dpo")
    async with queue_of(stack) as queue:
        claimed = await claim(queue, job)
        train(stack, claimed, tmp_path, steps=1)
        await queue.fail(claimed, "enough")
    client.datasets.delete(dataset.dataset_id)

    assert job.ledger().num_rows == 2
    with pytest.raises(NotFoundError, match=rf"no dataset {dataset.dataset_id}; leave them out \(--no-text\)"):
        job.ledger(with_text=True)
