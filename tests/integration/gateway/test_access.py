"""Who may call the gateway, and what may name a thing there."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from madpo.rpc.channel import call_metadata
from madpo.rpc.gateway.calls import Ending
from madpo.v1 import (
    access_service_pb2,
    dataset_service_pb2,
    job_service_pb2,
    model_service_pb2,
    retention_service_pb2,
    scoring_service_pb2,
    store_service_pb2,
)
from madpo_gateway.service import CONTRACTS
from tests.integration.gateway.messages import header, model_header
from tests.integration.gateway.service import NO_DATASET, NO_JOB, NO_MODEL, TOKEN, Gateway, refusal

REQUESTS: dict[str, Message] = {
    "UploadDataset": header(format="jsonl"),
    "ImportDataset": dataset_service_pb2.ImportDatasetRequest(hub_id="no/such/id"),
    "GetUpload": dataset_service_pb2.GetUploadRequest(upload_id="0" * 32),
    "GetDataset": dataset_service_pb2.GetDatasetRequest(dataset_id=NO_DATASET),
    "ListDatasets": dataset_service_pb2.ListDatasetsRequest(),
    "DeleteDataset": dataset_service_pb2.DeleteDatasetRequest(dataset_id=NO_DATASET),
    "CheckDataset": dataset_service_pb2.CheckDatasetRequest(dataset_id=NO_DATASET),
    "ReadDatasetRows": dataset_service_pb2.ReadDatasetRowsRequest(dataset_id=NO_DATASET, rows=[1]),
    "DownloadDataset": dataset_service_pb2.DownloadDatasetRequest(dataset_id=NO_DATASET),
    "UploadModel": model_header(),
    "ImportModel": model_service_pb2.ImportModelRequest(hub_id="no/such/id"),
    "GetModel": model_service_pb2.GetModelRequest(model_id=NO_MODEL),
    "ListModels": model_service_pb2.ListModelsRequest(),
    "ListCheckpoints": model_service_pb2.ListCheckpointsRequest(job_id=NO_JOB),
    "DownloadModel": model_service_pb2.DownloadModelRequest(model_id=NO_MODEL),
    "DeleteModel": model_service_pb2.DeleteModelRequest(model_id=NO_MODEL),
    "CreateJob": job_service_pb2.CreateJobRequest(request_id="a-request"),
    "GetJob": job_service_pb2.GetJobRequest(job_id=NO_JOB),
    "ListJobs": job_service_pb2.ListJobsRequest(),
    "CancelJob": job_service_pb2.CancelJobRequest(job_id=NO_JOB),
    "ResumeJob": job_service_pb2.ResumeJobRequest(job_id=NO_JOB),
    "DeleteJob": job_service_pb2.DeleteJobRequest(job_id=NO_JOB),
    "WatchJob": job_service_pb2.WatchJobRequest(job_id=NO_JOB),
    "ListArtifacts": job_service_pb2.ListArtifactsRequest(job_id=NO_JOB),
    "DownloadArtifact": job_service_pb2.DownloadArtifactRequest(job_id=NO_JOB, name="report.json"),
    "DownloadLedgerParts": job_service_pb2.DownloadLedgerPartsRequest(job_id=NO_JOB),
    "GetCaller": access_service_pb2.GetCallerRequest(),
    "CreateToken": access_service_pb2.CreateTokenRequest(),
    "ListTokens": access_service_pb2.ListTokensRequest(),
    "RevokeToken": access_service_pb2.RevokeTokenRequest(name="nobody"),
    "ListAuditRecords": access_service_pb2.ListAuditRecordsRequest(),
    "ApplyRetention": retention_service_pb2.ApplyRetentionRequest(dry_run=True),
    "Pin": retention_service_pb2.PinRequest(thing_id=NO_JOB),
    "Unpin": retention_service_pb2.UnpinRequest(thing_id=NO_JOB),
    "ListPins": retention_service_pb2.ListPinsRequest(),
    "CheckStore": store_service_pb2.CheckStoreRequest(),
    "DownloadLog": job_service_pb2.DownloadLogRequest(job_id=NO_JOB),
    "ScorePairs": scoring_service_pb2.ScoringServiceScorePairsRequest(reward_model={"model_id": NO_MODEL}),
    "ScoreResponses": scoring_service_pb2.ScoringServiceScoreResponsesRequest(reward_model={"model_id": NO_MODEL}),
}
ANSWERS = {
    **dict.fromkeys(("GetUpload", "ListDatasets", "ListModels", "ListJobs"), "OK"),
    **dict.fromkeys(("GetCaller", "ListTokens", "ListAuditRecords", "ApplyRetention", "Unpin", "ListPins"), "OK"),
    "CheckStore": "OK",
    **dict.fromkeys(("UploadDataset", "ImportDataset", "UploadModel", "ImportModel", "CreateJob"), "INVALID_ARGUMENT"),
    "CreateToken": "INVALID_ARGUMENT",
    **dict.fromkeys(("ScorePairs", "ScoreResponses"), "FAILED_PRECONDITION"),
}


@pytest.mark.promise("H3")
async def test_every_call_needs_the_token(gateway: Gateway) -> None:
    for contract in CONTRACTS:
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for token in (None, TOKEN[:-1], TOKEN + "x", ""):
                    code = await outcome(gateway.channel, service.full_name, method, token=token)
                    assert code == "UNAUTHENTICATED", (method.name, token)
                code = await outcome(gateway.channel, service.full_name, method, token=TOKEN)
                assert code == ANSWERS.get(method.name, "NOT_FOUND"), method.name


async def to_the_end(call: Any) -> None:
    """Read what a stream answers; it fails as the server said, also where a request that came too late hides that."""
    ending = Ending(call)
    try:
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
    except grpc.aio.AioRpcError as error:
        raise ending.unmasked(error) from error


async def outcome(channel: grpc.aio.Channel, service: str, method: Any, *, token: str | None) -> str:
    """Status code of one call that sends a single request."""
    path, request = f"/{service}/{method.name}", REQUESTS[method.name].SerializeToString()
    metadata = call_metadata(token)
    try:
        if method.server_streaming and method.client_streaming:
            await to_the_end(channel.stream_stream(path)([request], metadata=metadata, timeout=30))
        elif method.server_streaming:
            async for _ in channel.unary_stream(path)(request, metadata=metadata, timeout=30):
                pass
        elif method.client_streaming:
            await channel.stream_unary(path)([request], metadata=metadata, timeout=30)
        else:
            await channel.unary_unary(path)(request, metadata=metadata, timeout=30)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("method", "request_type", "field"),
    [
        ("datasets.GetDataset", dataset_service_pb2.GetDatasetRequest, "dataset_id"),
        ("datasets.DeleteDataset", dataset_service_pb2.DeleteDatasetRequest, "dataset_id"),
        ("models.GetModel", model_service_pb2.GetModelRequest, "model_id"),
        ("models.ListCheckpoints", model_service_pb2.ListCheckpointsRequest, "job_id"),
        ("jobs.GetJob", job_service_pb2.GetJobRequest, "job_id"),
        ("jobs.CancelJob", job_service_pb2.CancelJobRequest, "job_id"),
        ("jobs.ListArtifacts", job_service_pb2.ListArtifactsRequest, "job_id"),
    ],
)
async def test_text_that_is_no_id_never_becomes_a_key(
    gateway: Gateway, method: str, request_type: Any, field: str
) -> None:
    service, name = method.split(".")
    for value in ("", "../../etc", NO_JOB + "\n", NO_DATASET + "/x", "job-" + "g" * 32):
        refused = await refusal(gateway.ask(getattr(getattr(gateway, service), name), request_type(**{field: value})))
        assert refused.code == "INVALID_ARGUMENT"
        assert list(refused.violations) == [field]
