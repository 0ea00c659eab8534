"""Models from the hub, at one commit; the hub is a mirror on loopback."""

import json
from pathlib import Path

import pytest

from madpo.rpc import convert
from madpo.v1 import model_service_pb2
from madpo_gateway.settings import GatewaySettings
from tests.hub_mirror import COMMIT, REVISIONS, hub
from tests.integration.gateway.messages import safetensors
from tests.integration.gateway.service import POLICY_CONFIG, Gateway, refusal, running


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
