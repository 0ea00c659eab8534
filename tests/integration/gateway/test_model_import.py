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
    assert "the hub did not give model private/model" in refusing.message
    assert "huggingface_hub is not installed" in not_installed.message
    assert all("upload it instead" in refused.message for refused in (refusing, not_installed))
