"""Whatever is sent, the answer says what is wrong with it: no call ends as if the gateway were at fault."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from madpo.rpc.channel import call_metadata
from madpo.v1 import access_service_pb2, job_service_pb2
from madpo_gateway.service import CONTRACTS
from tests.integration.gateway.messages import (
    chunk,
    digest,
    header,
    json_lines,
    model_parts,
    ref,
    safetensors,
)
from tests.integration.gateway.nasty import UNDECODABLE, variants
from tests.integration.gateway.service import (
    COMPLETIONS,
    POLICY_CONFIG,
    TOKEN,
    Gateway,
    Material,
    make_material,
    refusal,
)
from tests.integration.gateway.test_access import REQUESTS, to_the_end

OURS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
"""Codes that say that the gateway is at fault."""
_AT_ONCE = 16


def methods() -> Iterator[tuple[str, Any]]:
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield service.full_name, method


def jobs(ids: Material) -> Iterator[Message]:
    """A good job of each kind, with every part that there may be."""
    policy, reward = {"model_id": ids.policy}, {"model_id": ids.reward}
    pairs, completions = ref(ids.pairs), ref(ids.completions)
    training = {"epochs": 1}
    specs: dict[str, dict[str, Any]] = {
        "supervised_training": {"model": policy, "dataset": completions, "training": training},
        "reward_training": {"model": policy, "dataset": pairs, "training": training},
        "policy_training": {
            "model": policy, "dataset": pairs, "training": training, "margin": {"reward_model": reward},
            "method": {"name": "madpo"},
        },
        "evaluation": {"model": policy, "prompt_dataset": ref(ids.prompts)},
        "calibration": {"eval_dataset": pairs, "reward_model": reward, "method": {"name": "madpo"}},
        "dataset_check": {"dataset": pairs, "model": policy},
    }  # fmt: skip
    for kind, spec in specs.items():
        yield job_service_pb2.CreateJobRequest(request_id=f"a-{kind}", spec={kind: spec})


def flows(name: str, ids: Material) -> list[list[Any]]:
    """What a good client sends in a call of that name, in as many ways as there are."""
    rows = json_lines(COMPLETIONS)
    match name:
        case "CreateJob":
            return [[job] for job in jobs(ids)]
        case "CreateToken":
            return [[access_service_pb2.CreateTokenRequest(name="a", role=access_service_pb2.ROLE_READ)]]
        case "UploadDataset":
            return [[header(format="jsonl", columns={"prompt": "prompt"}), chunk(rows), digest(rows)]]
        case "UploadModel":
            files = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(1)}
            return [model_parts(files)]
    return [[REQUESTS[name]]]


def changed(flow: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Each with one value of one message changed, and its name."""
    for index, message in enumerate(flow):
        for place, other in variants(message):
            yield place, [*flow[:index], other, *flow[index + 1 :]]


def every_request(ids: Material) -> Iterator[tuple[str, Any, str, list[Any]]]:
    for service, method in methods():
        for number, (place, sent) in enumerate(each for flow in flows(method.name, ids) for each in changed(flow)):
            its_id = {"CreateJob": "request_id", "CreateToken": "name"}.get(method.name)
            if its_id is not None and its_id != place:
                setattr(sent[0], its_id, f"a-{number}")
            yield service, method, place, sent


async def code_of(channel: grpc.aio.Channel, service: str, method: Any, *requests: bytes) -> str:
    path, options = f"/{service}/{method.name}", {"metadata": call_metadata(TOKEN), "timeout": 60}
    try:
        if method.client_streaming and method.server_streaming:
            await to_the_end(channel.stream_stream(path)(list(requests), **options))
        elif method.client_streaming:
            await channel.stream_unary(path)(list(requests), **options)
        elif method.server_streaming:
            call = channel.unary_stream(path)(requests[0], **options)
            while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
                pass
        else:
            await channel.unary_unary(path)(requests[0], **options)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.promise("H1")
async def test_no_value_of_any_field_of_any_call_is_taken_for_a_fault_of_ours(
    gateway: Gateway, figure: Callable[[str], None]
) -> None:
    ids = await make_material(gateway)
    seen, ours = Counter[str](), list[str]()

    async def ask(requests: Iterator[tuple[str, Any, str, list[Any]]]) -> None:
        for service, method, place, sent in requests:
            code = await code_of(gateway.channel, service, method, *(each.SerializeToString() for each in sent))
            seen[code] += 1
            if code in OURS:
                ours.append(f"{method.name} {place}: {code}")

    requests = every_request(ids)
    await asyncio.gather(*(ask(requests) for _ in range(_AT_ONCE)))
    assert ours == []
    assert seen["INVALID_ARGUMENT"] > 500
    for service, method in methods():  # nothing was stored that cannot be listed
        if method.name.startswith("List") and method.name not in ("ListCheckpoints", "ListArtifacts"):
            request = REQUESTS[method.name].SerializeToString()
            assert await code_of(gateway.channel, service, method, request) == "OK", method.name
    figure(f"{seen.total():,} requests to {len(list(methods()))} calls")


async def test_what_cannot_be_decoded_is_the_callers_fault(gateway: Gateway) -> None:
    good = {
        "UploadDataset": REQUESTS["UploadDataset"].SerializeToString(),
        "UploadModel": REQUESTS["UploadModel"].SerializeToString(),
    }
    for service, method in methods():
        for data in UNDECODABLE:
            before = [good[method.name]] if method.name in good else []
            for requests in ([data], [*before, data]):
                code = await code_of(gateway.channel, service, method, *requests)
                assert code == "INVALID_ARGUMENT", (method.name, data)


async def test_numbers_that_are_none_are_named(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    request = next(each for each in jobs(ids) if each.request_id == "a-policy_training")  # type: ignore[attr-defined]
    for number in (math.nan, math.inf, -math.inf):
        request.spec.policy_training.method.params.update({"beta": number, "tau": {"quantile": number}})  # type: ignore[attr-defined]
        refused = await refusal(gateway.ask(gateway.jobs.CreateJob, request))
        place = "spec.policy_training.method.params"
        said = f"must be a finite number, got {number}"
        assert (refused.code, refused.violations) == (
            "INVALID_ARGUMENT",
            {f"{place}.beta": said, f"{place}.tau.quantile": said},
        )


@pytest.mark.parametrize("cursor", [f"{2**64}-0", f"0-{2**64}", "9" * 20 + "-0", "\u0663-\u0663", "-1-0", "1", "x"])
async def test_a_cursor_that_no_stream_has_is_refused(gateway: Gateway, cursor: str) -> None:
    request = job_service_pb2.WatchJobRequest(job_id=await gateway.ready_job(), cursor=cursor)
    call = gateway.jobs.WatchJob(request, metadata=call_metadata(TOKEN))
    refused = await refusal(call.read())
    assert (refused.code, "cursor is not one this service gave" in refused.message) == ("INVALID_ARGUMENT", True)
