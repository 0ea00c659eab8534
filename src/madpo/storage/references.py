"""From references in a job's spec to what is stored: model directories on this host, and datasets.

What somebody is about to delete is waited for: as the job that asks is not over, it is put back.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference
from madpo.model_files.companions import MODEL_RECORD
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.checkpoints import checkpoint_prefixes, find_checkpoint, list_checkpoints
from madpo.storage.models import ModelStore
from madpo.storage.results import read_result
from madpo.storage.withdrawals import settle
from madpo.types import JobResult, JobState

CHECKPOINT_MODEL = "model"
"""Subdirectory of a checkpoint that holds the model."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A verified local model directory; `base_directory` when it is an adapter. `model_id` is None for a checkpoint."""

    directory: Path
    base_directory: Path | None
    model_id: str | None


def resolve_model(reference: ModelReference, *, store: ObjectStore, models: ModelStore) -> ResolvedModel:
    """Fetch the model a reference names, and its base.

    Raises:
        NotFoundError: There is no such model or checkpoint.
        FailedPreconditionError: The job has not succeeded, or leaves no model.
        CorruptObjectError: A stored file does not match its digest.
        UnavailableError: It is out of sight for long.
    """
    if reference.job_id is not None and reference.step is not None:
        return _resolve_checkpoint(reference.job_id, reference.step, store=store, models=models)
    model_id = resolve_model_id(reference, store=store)
    base_model_id = models.get(model_id).base_model_id
    return ResolvedModel(models.fetch(model_id), _base_directory(base_model_id, store, models), model_id)


def resolve_model_id(reference: ModelReference, *, store: ObjectStore) -> str:
    """The stored model a reference names, without fetching it: for models that another service runs.

    Raises:
        FailedPreconditionError: It names a checkpoint, or a job that leaves no model.
        UnavailableError: See `resolve_model`.
    """
    if reference.step is not None:
        raise FailedPreconditionError(
            f"step {reference.step} of {reference.job_id} is a checkpoint and cannot be served: "
            "name a stored model or a finished job"
        )
    model_id = reference.model_id or _model_of_job(reference.job_id or "", store)
    settle(store, keys.model(model_id))
    return model_id


def resolve_dataset_id(reference: DatasetReference, *, store: ObjectStore) -> str:
    """The stored dataset a reference names.

    Raises:
        FailedPreconditionError: It names a job that leaves none.
        UnavailableError: See `resolve_model`.
    """
    dataset_id = reference.dataset_id or _dataset_of_job(reference.job_id or "", store)
    settle(store, keys.dataset(dataset_id))
    return dataset_id


def checkpoint_bases(job_id: str, store: ObjectStore) -> set[str]:
    """The stored models to which checkpoints of a job belong, where they are adapters.

    Raises:
        CorruptObjectError: A checkpoint was changed, so that nobody knows its base; names the object.
    """
    bases: set[str] = set()
    for checkpoint in list_checkpoints(store, job_id):
        prefix = keys.checkpoint(job_id, step=checkpoint.step, attempt=checkpoint.attempt)
        try:
            files = {file.path: file for file in bundle.read_manifest(store, prefix).files}
        except NotFoundError:
            continue  # removed meanwhile
        if record := files.get(f"{CHECKPOINT_MODEL}/{MODEL_RECORD}"):
            body = documents.decode(bundle.read_file(store, prefix, record), key=f"{prefix}/{record.path}")
            bases.update(filter(None, [body.get("base_model_id")]))
    return bases


def _dataset_of_job(job_id: str, store: ObjectStore) -> str:
    result = _result_of_job(job_id, store, instead="another job")
    if result is None or result.dataset_id is None:
        raise FailedPreconditionError(f"{job_id} leaves no dataset: name a stored dataset")
    return result.dataset_id


def _model_of_job(job_id: str, store: ObjectStore) -> str:
    result = _result_of_job(job_id, store, instead="one of its checkpoints, or another job")
    if result is None or result.model_id is None:
        raise FailedPreconditionError(f"{job_id} leaves no model: name a training job")
    return result.model_id


def _result_of_job(job_id: str, store: ObjectStore, *, instead: str) -> JobResult | None:
    try:
        outcome = read_result(store, job_id)
    except NotFoundError as error:
        raise FailedPreconditionError(f"{job_id} has not ended: wait for it, or name {instead}") from error
    if outcome.state is not JobState.SUCCEEDED:
        raise FailedPreconditionError(f"{job_id} ended as {outcome.state}: name {instead}")
    return outcome.result


def _resolve_checkpoint(job_id: str, step: int, *, store: ObjectStore, models: ModelStore) -> ResolvedModel:
    for prefix in checkpoint_prefixes(store, job_id, step):
        settle(store, prefix)
    prefix = find_checkpoint(store, job_id, step)
    directory = models.copies.fetch(
        prefix, lambda directory: bundle.fetch(store, prefix, directory, under=CHECKPOINT_MODEL)
    )
    record = directory / MODEL_RECORD
    base_model_id = json.loads(record.read_bytes()).get("base_model_id") if record.is_file() else None
    return ResolvedModel(directory, _base_directory(base_model_id, store, models), None)


def _base_directory(base_model_id: str | None, store: ObjectStore, models: ModelStore) -> Path | None:
    if base_model_id is None:
        return None
    settle(store, keys.model(base_model_id))
    return models.fetch(base_model_id)
