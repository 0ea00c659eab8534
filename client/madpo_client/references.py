"""What an argument that stands for a model, a dataset or a job refers to."""

from madpo.errors import InvalidArgumentError
from madpo.jobs import ModelReference, validate
from madpo.types import Dataset, Model
from madpo_client.job import JobHandle

ModelLike = Model | ModelReference | JobHandle | tuple[JobHandle, int] | str
"""A model; its id; a job, whose output is meant; a job with the step of one of its checkpoints; `JOB_ID@STEP`."""


def model_reference(model: ModelLike) -> ModelReference:
    """What a model argument refers to.

    Raises:
        InvalidArgumentError: Text that is neither a model id nor `JOB_ID` nor `JOB_ID@STEP`.
    """
    match model:
        case ModelReference():
            return model
        case Model():
            return ModelReference(model_id=model.model_id)
        case JobHandle():
            return ModelReference(job_id=model.id)
        case (JobHandle() as job, int(step)):
            return validate(ModelReference, {"job_id": job.id, "step": step}, path="model")
        case str() if model.startswith("job-"):
            job_id, _, checkpoint = model.partition("@")
            return validate(ModelReference, {"job_id": job_id, "step": checkpoint or None}, path="model")
        case str():
            return validate(ModelReference, {"model_id": model}, path="model")
    raise InvalidArgumentError(f"a model is a Model, its id, a job or (job, step), not {model!r:.80}")


def job_id_of(job: JobHandle | str) -> str:
    """The id of a job given either way."""
    return job.id if isinstance(job, JobHandle) else job


def dataset_id_of(dataset: Dataset | str) -> str:
    """The id of a dataset given either way."""
    return dataset.dataset_id if isinstance(dataset, Dataset) else dataset
