"""Models from the hub, at one commit; the hub is a mirror on loopback."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from madpo.rpc import convert
from madpo.v1 import model_service_pb2
from madpo_gateway.settings import GatewaySettings
from tests.hub_mirror import COMMIT, REVISIONS, hub
from tests.integration.gateway.messages import model_parts, safetensors
from tests.integration.gateway.service import NO_MODEL, POLICY_CONFIG, Gateway, refusal, running


@pytest.mark.parametrize(
    "revision",
    [{"commit": COMMIT}, {}, *({"revision": revision} for revision in REVISIONS)],
    ids=lambda given: " ".join(given.values()) or "none",
)
async def test_a_model_is_imported_at_the_commit_that_a_revision_is(
    settings: GatewaySettings, revision: dict[str, str]
) -> None:
    pytest.importorskip("huggingface_hub")
    wanted = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(3)}
    request = model_service_pb2.ImportModelRequest
    with hub({**wanted, "pytorch_model.bin": b"pickle", "modeling.py": b"code"}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            imported = await gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/model", **revision))
            unknown = await refusal(
                gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/other", **revision))
            )
            assert gateway.spooled() == []

    model = convert.model_from_proto(imported.model)
    assert (imported.created, imported.commit) == (True, COMMIT)
    assert {file.path for file in model.files} == set(wanted)
    assert (model.display_name, model.metadata) == ("somebody/model", {"hub_id": "somebody/model", "commit": COMMIT})
    assert unknown.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("hub_id", "revision", "field"),
    [
        ("https://example.org/model", {"revision": COMMIT}, "hub_id"),
        ("../model", {"revision": COMMIT}, "hub_id"),
        ("a/b/c", {"revision": COMMIT}, "hub_id"),
        ("a/b", {"commit": "main"}, "commit"),
        ("a/b", {"commit": COMMIT + "\n"}, "commit"),
        ("a/b", {"commit": COMMIT, "revision": COMMIT}, "commit"),
        ("a/b", {"revision": "main\n"}, "revision"),
        ("a/b", {"revision": "../main"}, "revision"),
        ("a/b", {"revision": "main?x"}, "revision"),
    ],
)
async def test_an_import_names_a_hub_model_and_a_revision(
    gateway: Gateway, hub_id: str, revision: dict[str, str], field: str
) -> None:
    request = model_service_pb2.ImportModelRequest(hub_id=hub_id, **revision)

    refused = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert list(refused.violations) == [field]


async def test_a_model_that_is_too_large_is_refused_before_it_is_fetched(settings: GatewaySettings) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"config.json": b"{}", "model.safetensors": bytes(settings.max_model_bytes), "modeling.py": b"code"}
    request = model_service_pb2.ImportModelRequest(hub_id="somebody/model", commit=COMMIT)
    with hub(files) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            refused = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert refused.code == "INVALID_ARGUMENT"
    assert f"{settings.max_model_bytes + 2} bytes" in refused.violations["hub_id"]


async def bring(settings: GatewaySettings, repo: str, files: Mapping[str, bytes], commit: str, base: str = "") -> Any:
    """Import a repository of a hub that has no other."""
    request = model_service_pb2.ImportModelRequest(hub_id=repo, base_model_id=base)
    with hub(files, repo=repo, commit=commit) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            return (await gateway.ask(gateway.models.ImportModel, request)).model


def adapter_files(base: str, revision: str | None = None) -> dict[str, bytes]:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors(2)}


def base_files(weights: int) -> dict[str, bytes]:
    config = json.dumps(POLICY_CONFIG).encode()
    return {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": safetensors(weights)}


async def test_an_adapter_belongs_to_the_model_that_was_imported_as_its_base(settings: GatewaySettings) -> None:
    pytest.importorskip("huggingface_hub")
    first, second = "a" * 40, "b" * 40
    adapter = adapter_files("somebody/base")

    missing = await refusal(bring(settings, "somebody/lora", adapter, COMMIT))
    base = await bring(settings, "somebody/base", base_files(3), first)
    found = await bring(settings, "somebody/lora", adapter, COMMIT)
    async with running(settings) as gateway:
        uploaded = (await gateway.ask(gateway.models.UploadModel, model_parts(adapter))).model
    elsewhere = await refusal(bring(settings, "somebody/lora", adapter_files("somebody/base", second), COMMIT))
    other = await bring(settings, "somebody/base", base_files(4), second)
    ambiguous = await refusal(bring(settings, "somebody/lora", adapter, COMMIT))
    pinned = await bring(settings, "somebody/lora", adapter_files("somebody/base", second), COMMIT)
    named = await bring(settings, "somebody/lora", adapter, COMMIT, other.model_id)

    field = "files.adapter_config.json"
    said = "base_model_name_or_path is 'somebody/base'"
    by_hand = "name a stored model as the base (--base MODEL)"
    assert missing.violations == {
        field: f"{said}, and no stored model was imported from there: `madpo model import somebody/base` first, or "
        f"{by_hand}"
    }
    assert found.base_model_id == uploaded.base_model_id == base.model_id
    assert uploaded.model_id == found.model_id
    assert "tokenizer.json" in {file.path for file in found.files}
    assert elsewhere.violations == {
        field: f"{said}, and no stored model was imported from there at commit {second} (stored at other commits: "
        f"{base.model_id} (commit {first})): `madpo model import somebody/base --revision {second}` first, or {by_hand}"
    }
    assert f"{said}, which may be any of 2 stored models: {by_hand}: " in ambiguous.violations[field]
    assert all(
        f"{each.model_id} (commit {commit})" in ambiguous.message for each, commit in [(base, first), (other, second)]
    )
    assert pinned.base_model_id == named.base_model_id == other.model_id


async def test_the_base_of_an_import_is_looked_for_before_anything_is_fetched(settings: GatewaySettings) -> None:
    pytest.importorskip("huggingface_hub")
    base = await bring(settings, "somebody/base", base_files(3), COMMIT)

    absent = await refusal(bring(settings, "somebody/other", {}, COMMIT, NO_MODEL))
    malformed = await refusal(bring(settings, "somebody/other", {}, COMMIT, "somebody/base"))
    whole = await refusal(bring(settings, "somebody/other", base_files(4), COMMIT, base.model_id))

    assert (absent.code, absent.message) == ("NOT_FOUND", f"no model {NO_MODEL}")
    assert list(malformed.violations) == list(whole.violations) == ["base_model_id"]
    assert "this is a whole model" in whole.message


@pytest.mark.parametrize("token", ["", "hf_" + "x" * 20], ids=["no token", "of another account"])
async def test_a_gated_model_says_how_it_is_had_and_is_imported_with_a_token(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(3)}
    request = model_service_pb2.ImportModelRequest(hub_id="somebody/model")
    with hub(files, gate="hf_" + "a" * 20) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            monkeypatch.setenv("HF_TOKEN", token)
            refused = await refusal(gateway.ask(gateway.models.ImportModel, request))
            monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 20)
            imported = await gateway.ask(gateway.models.ImportModel, request)

    assert (refused.code, refused.message) == (
        "FAILED_PRECONDITION",
        "model somebody/model is gated: accept its terms on its page of the hub, and give the gateway a token of that "
        "account as HF_TOKEN",
    )
    assert {file.path for file in convert.model_from_proto(imported.model).files} == set(files)


async def test_a_token_that_reached_a_log_is_not_in_it(
    settings: GatewaySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "huggingface_hub.py").write_text("import os, sys; sys.exit('broken with ' + os.environ['HF_TOKEN'])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    request = model_service_pb2.ImportModelRequest(hub_id="somebody/model")
    async with running(settings) as gateway:
        await refusal(gateway.ask(gateway.models.ImportModel, request))

    said = [record.said for record in caplog.records if hasattr(record, "said")]
    assert ["broken with ***" in each for each in said] == [True]
    assert "a-token-of-no-known-form" not in said[0]


async def test_without_a_hub_an_import_says_what_to_do_instead(
    settings: GatewaySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    request = model_service_pb2.ImportModelRequest(hub_id="private/model", commit=COMMIT)
    with hub({}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            refusing = await refusal(gateway.ask(gateway.models.ImportModel, request))
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
            not_installed = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert (refusing.code, not_installed.code) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    assert "the hub refuses model private/model (HTTP 403): give the gateway a token" in refusing.message
    assert "huggingface_hub is not installed" in not_installed.message
    assert "upload it instead" in not_installed.message
