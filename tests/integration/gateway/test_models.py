"""Models over the wire: uploads, adapters, checkpoints, downloads."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from madpo.rpc.channel import call_metadata
from madpo.storage.checkpoints import CheckpointStore
from madpo.types import JobResult
from madpo.v1 import job_service_pb2, model_service_pb2
from tests.integration.gateway.messages import model_file, model_header, model_parts, received, safetensors
from tests.integration.gateway.service import (
    NO_MODEL,
    POLICY_CONFIG,
    REWARD_CONFIG,
    TOKEN,
    Gateway,
    eventually,
    refusal,
)


async def test_a_model_comes_back_as_it_was_sent(gateway: Gateway) -> None:
    files = {
        "config.json": json.dumps(REWARD_CONFIG).encode(),
        "model.safetensors": safetensors(100),
        "extra/empty.txt": b"",
    }

    uploaded = await gateway.ask(gateway.models.UploadModel, model_parts(files))
    again = await gateway.ask(gateway.models.UploadModel, model_parts(files))

    model = uploaded.model
    assert (uploaded.created, again.created) == (True, False)
    assert (model.kind, model.architecture) == ("reward", "LlamaForSequenceClassification")
    request = model_service_pb2.GetModelRequest(model_id=model.model_id)
    assert (await gateway.ask(gateway.models.GetModel, request)).model == model == again.model
    listed = await gateway.ask(gateway.models.ListModels, model_service_pb2.ListModelsRequest())
    assert list(listed.models) == [model]
    download = model_service_pb2.DownloadModelRequest(model_id=model.model_id)
    assert received(await gateway.collect(gateway.models.DownloadModel, download)) == files
    download.without_weights = True
    del files["model.safetensors"]
    assert received(await gateway.collect(gateway.models.DownloadModel, download)) == files
    assert gateway.spooled() == []


WEIGHTS = model_file("model.safetensors", safetensors(1))
CONFIG = model_file("config.json", json.dumps(POLICY_CONFIG).encode())


@pytest.mark.parametrize(
    ("parts", "field", "reason"),
    [
        ([], "header", "first message"),
        ([*CONFIG, *WEIGHTS], "header", "first message"),
        ([model_header(0)], "header.file_count", "must be 1 to 1000"),
        ([model_header(1001)], "header.file_count", "must be 1 to 1000"),
        ([model_header()], "file", "ended after 0 of 2 files"),
        ([model_header(), *CONFIG], "file", "ended after 1 of 2 files"),
        ([model_header(1), *CONFIG, *WEIGHTS], "file", "one more than the announced 1"),
        ([model_header(), WEIGHTS[1]], "part", "must be a file"),
        ([model_header(), *CONFIG, model_header()], "part", "must be a file"),
        ([model_header(), *model_file("model.bin", b"x")], "file.path", ".safetensors"),
        ([model_header(), *model_file("../config.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *model_file("/etc/config.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *model_file("a\\b.json", b"x")], "file.path", "cannot be stored"),
        ([model_header(), *CONFIG, *CONFIG], "file.path", "sent before"),
        ([model_header(), *CONFIG, *model_file("config.json/a.json", b"{}")], "file.path", "in the way"),
        ([model_header(), *model_file("a.json", b"x", sha256="0" * 64)], "file.sha256", "have digest"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=3), *WEIGHTS], "file.size_bytes", "received 2"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=3)], "file.size_bytes", "received 2"),
        ([model_header(), *model_file("a.json", b"xy", size_bytes=1)], "chunk", "larger than announced (1 bytes)"),
        ([model_header(), *model_file("a.json", b"", size_bytes=-1)], "file.size_bytes", "max_model_bytes"),
        ([model_header(), *model_file("a.json", b"", size_bytes=100_001)], "file.size_bytes", "max_model_bytes"),
        ([model_header(1), *CONFIG], "files", "no .safetensors"),
        ([model_header(1), *WEIGHTS], None, "config.json"),
        ([model_header(), *CONFIG, *model_file("model.safetensors", b"rubbish")], "files.model.safetensors", "header"),
        (
            [model_header(), *WEIGHTS, *model_file("config.json", b'{"auto_map": {"AutoModel": "x.Y"}}')],
            None,
            "code of its own",
        ),
        ([model_header(), *WEIGHTS, *model_file("config.json", b'{"architectures": ["Bert"]}')], None, "ForCausalLM"),
        (
            [model_header(), *WEIGHTS, *model_file("adapter_config.json", b'{"peft_type": "LORA", "task_type": "QA"}')],
            None,
            "task_type in adapter_config.json must be CAUSAL_LM or SEQ_CLS, or null for that of its base, got 'QA'",
        ),
    ],
)
async def test_a_model_upload_that_is_not_as_agreed_is_refused(
    gateway: Gateway, parts: list[Any], field: str | None, reason: str
) -> None:
    refused = await refusal(gateway.ask(gateway.models.UploadModel, parts))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == ([field] if field else [])
    assert reason in refused.message
    assert gateway.stored() == []
    assert gateway.spooled() == []


BROKEN = b"{% for m in messages %}\n{{ m.content }\n{% endfor %}"
FINE = b"{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% break %}{% endfor %}"
NAMED = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ oh"}]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("chat_template.jinja", BROKEN, "no jinja: unexpected '}' (line 2: {{ m.content })"),
        ("additional_chat_templates/rag.jinja", b"{% if %}", "(line 1: {% if %})"),
        ("tokenizer_config.json", json.dumps({"chat_template": BROKEN.decode()}).encode(), "(line 2: {{ m.content })"),
        ("tokenizer_config.json", json.dumps({"chat_template": NAMED}).encode(), "(line 1: {{ oh)"),
        ("tokenizer_config.json", b'{"chat_template": 7}', "must be text, got 7"),
        ("chat_template.json", b'{"chat_template": "{% nonsense %}"}', "unknown tag 'nonsense'"),
        ("chat_template.jinja", b" \n", "is empty"),
        ("chat_template.jinja", b"{{ messages }}\xff", "is not UTF-8 text: invalid start byte at byte 14"),
        ("chat_template.jinja", b"{{" + b"(" * 20_000, "nested too deeply"),
    ],
)
async def test_a_chat_template_that_nothing_can_read_is_refused_with_its_line(
    gateway: Gateway, name: str, content: bytes, reason: str
) -> None:
    parts = [model_header(3), *CONFIG, *WEIGHTS, *model_file(name, content)]

    refused = await refusal(gateway.ask(gateway.models.UploadModel, parts))

    assert refused.code == "INVALID_ARGUMENT"
    assert list(refused.violations) == [f"files.{name}"]
    assert reason in refused.message
    assert gateway.stored() == []


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": FINE},
        {"chat_template.jinja": FINE, "tokenizer_config.json": json.dumps({"chat_template": BROKEN.decode()}).encode()},
        {"tokenizer_config.json": b'{"chat_template": null}'},
    ],
    ids=["the tags of transformers", "one that stands elsewhere is not read", "none"],
)
async def test_a_chat_template_that_can_be_read_is_taken(gateway: Gateway, files: dict[str, bytes]) -> None:
    parts = [part for name, content in files.items() for part in model_file(name, content)]

    await gateway.ask(gateway.models.UploadModel, [model_header(2 + len(files)), *CONFIG, *WEIGHTS, *parts])


async def test_an_adapter_that_does_not_say_its_task_has_that_of_its_base_or_of_its_head(gateway: Gateway) -> None:
    async def kind(base: str, tensor: str) -> str:
        config = json.dumps({"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base}).encode()
        weights = safetensors(2, name=tensor)
        files = {"adapter_config.json": config, "adapter_model.safetensors": weights}
        return str((await gateway.ask(gateway.models.UploadModel, model_parts(files))).model.kind)

    policy = (await gateway.upload_model()).model.model_id
    reward = (await gateway.upload_model(REWARD_CONFIG)).model.model_id

    assert await kind(policy, "weight") == "causal_lm"
    assert await kind(policy, "base_model.model.score.weight") == "reward"
    assert await kind(reward, "weight") == "reward"


async def test_a_client_that_goes_away_between_two_files_leaves_nothing(gateway: Gateway) -> None:
    call = gateway.models.UploadModel(metadata=call_metadata(TOKEN))
    for part in [model_header(4), *CONFIG, *WEIGHTS, *model_file("empty.txt", b"")]:
        await call.write(part)
    await eventually(lambda: any(path.name == "empty.txt" for path in gateway.spooled()))

    call.cancel()

    await eventually(lambda: gateway.spooled() == [])
    assert gateway.stored() == []


async def test_an_adapter_belongs_to_a_model_that_is_stored(gateway: Gateway) -> None:
    def adapter(base: str) -> list[Any]:
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
        return model_parts(
            {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors(2)}
        )

    base = (await gateway.upload_model()).model.model_id

    uploaded = await gateway.ask(gateway.models.UploadModel, adapter(base))

    assert (uploaded.model.kind, uploaded.model.base_model_id) == ("causal_lm", base)
    elsewhere = await refusal(gateway.ask(gateway.models.UploadModel, adapter("somebody/model")))
    assert "files.adapter_config.json" in elsewhere.violations
    assert (await refusal(gateway.ask(gateway.models.UploadModel, adapter(NO_MODEL)))).code == "NOT_FOUND"


async def test_checkpoints_and_the_final_model_of_a_job_can_be_downloaded(gateway: Gateway, tmp_path: Path) -> None:
    job_id = await gateway.ready_job()
    final = (await gateway.upload_model(weights=7)).model
    claim = await gateway.queue.claim("train", "worker", timeout_s=5)
    assert claim is not None
    checkpoints = CheckpointStore(gateway.store, job_id, attempt=claim.attempt)
    checkpoints.take_ownership()
    for step in (10, 20):
        directory = tmp_path / str(step)
        (directory / "model").mkdir(parents=True)
        (directory / "model" / "config.json").write_text(f'{{"step": {step}}}')
        (directory / "optimizer.safetensors").write_bytes(b"x" * step)
        checkpoints.publish(step, directory, metadata={})
    request = model_service_pb2.DownloadModelRequest

    listed = await gateway.ask(gateway.models.ListCheckpoints, model_service_pb2.ListCheckpointsRequest(job_id=job_id))
    tenth = await gateway.collect(gateway.models.DownloadModel, request(job_id=job_id, step=10))
    early = await refusal(gateway.collect(gateway.models.DownloadModel, request(job_id=job_id)))
    absent = await refusal(gateway.collect(gateway.models.DownloadModel, request(job_id=job_id, step=11)))
    await gateway.queue.succeed(claim, JobResult(model_id=final.model_id))
    finished = await gateway.collect(gateway.models.DownloadModel, request(job_id=job_id))

    assert [(checkpoint.step, checkpoint.attempt) for checkpoint in listed.checkpoints] == [(20, 1), (10, 1)]
    assert received(tenth) == {"config.json": b'{"step": 10}'}
    assert (early.code, absent.code) == ("FAILED_PRECONDITION", "NOT_FOUND")
    assert received(finished)["model.safetensors"] == safetensors(7)
    nothing = await refusal(gateway.collect(gateway.models.DownloadModel, request()))
    assert "source" in nothing.violations
    confused = await refusal(gateway.collect(gateway.models.DownloadModel, request(model_id=final.model_id, step=1)))
    assert "step" in confused.violations


async def test_a_model_in_use_is_not_deleted(gateway: Gateway) -> None:
    job_id = await gateway.ready_job()
    job = (await gateway.ask(gateway.jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id))).job
    base = job.spec.supervised_training.model.model_id
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors(2)}
    adapter = (await gateway.ask(gateway.models.UploadModel, model_parts(files))).model.model_id

    async def delete(model_id: str) -> Any:
        return await gateway.ask(gateway.models.DeleteModel, model_service_pb2.DeleteModelRequest(model_id=model_id))

    used = await refusal(delete(base))
    await gateway.ask(gateway.jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job_id))
    belongs = await refusal(delete(base))
    await delete(adapter)
    await delete(base)

    assert (used.code, f"is used by {job_id}, which is PENDING" in used.message) == ("FAILED_PRECONDITION", True)
    assert f"the adapter {adapter} belongs to {base}" in belongs.message
    assert not [key for key in gateway.stored() if key.startswith("models/")]
    assert (await refusal(delete(base))).code == "NOT_FOUND"


async def test_all_that_upload_the_same_model_at_once_get_the_same(gateway: Gateway) -> None:
    uploaded = await asyncio.gather(*(gateway.upload_model() for _ in range(30)))

    assert len({each.model.model_id for each in uploaded}) == 1
    request = model_service_pb2.GetModelRequest(model_id=uploaded[0].model.model_id)
    files = (await gateway.ask(gateway.models.GetModel, request)).model.files
    assert {file.path for file in files} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert gateway.spooled() == []
