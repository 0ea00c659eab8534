"""Models from the hub, at a pinned commit; the hub is a mirror on loopback."""

import json
import sys

import pytest

from madpo.rpc import convert
from madpo.v1 import model_service_pb2
from madpo_gateway.settings import GatewaySettings
from tests.hub_mirror import COMMIT, hub
from tests.integration.gateway.messages import safetensors
from tests.integration.gateway.service import POLICY_CONFIG, Gateway, refusal, running


async def test_a_model_is_imported_from_the_hub_at_a_commit(settings: GatewaySettings) -> None:
    pytest.importorskip("huggingface_hub")
    wanted = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(3)}
    request = model_service_pb2.ImportModelRequest
    with hub({**wanted, "pytorch_model.bin": b"pickle", "modeling.py": b"code"}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            imported = await gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/model", commit=COMMIT))
            unknown = await refusal(
                gateway.ask(gateway.models.ImportModel, request(hub_id="somebody/other", commit=COMMIT))
            )
            assert gateway.spooled() == []

    model = convert.model_from_proto(imported.model)
    assert imported.created
    assert {file.path for file in model.files} == set(wanted)
    assert (model.display_name, model.metadata) == ("somebody/model", {"hub_id": "somebody/model", "commit": COMMIT})
    assert unknown.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("hub_id", "commit", "field"),
    [
        ("https://example.org/model", COMMIT, "hub_id"),
        ("../model", COMMIT, "hub_id"),
        ("a/b/c", COMMIT, "hub_id"),
        ("a/b", "main", "commit"),
        ("a/b", COMMIT + "\n", "commit"),
    ],
)
async def test_an_import_names_a_hub_model_and_a_full_commit(
    gateway: Gateway, hub_id: str, commit: str, field: str
) -> None:
    request = model_service_pb2.ImportModelRequest(hub_id=hub_id, commit=commit)

    refused = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert list(refused.violations) == [field]


async def test_without_a_hub_an_import_says_what_to_do_instead(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    request = model_service_pb2.ImportModelRequest(hub_id="private/model", commit=COMMIT)
    with hub({}) as url:
        async with running(settings.model_copy(update={"hub_endpoint": url})) as gateway:
            refusing = await refusal(gateway.ask(gateway.models.ImportModel, request))
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
            not_installed = await refusal(gateway.ask(gateway.models.ImportModel, request))

    assert (refusing.code, not_installed.code) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    assert "the hub did not give model private/model" in refusing.message
    assert "huggingface_hub is not installed" in not_installed.message
    assert all("upload it instead" in refused.message for refused in (refusing, not_installed))
