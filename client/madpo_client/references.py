"""What an argument that stands for a model, a dataset or a job refers to.

Text may be an id, a beginning of one that no other has (with or without `job-`, 4 digits or more), a name, or `@last`:
the newest that fits, of a kind or method with `@last:reward`. A model is also the job that makes it, and `JOB@STEP` one
of that job's checkpoints. `madpo_client.lookup` asks the gateway which id is meant.
"""

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, ModelReference, validate
from madpo.types import Dataset, Model
from madpo_client.job import JobHandle

ModelLike = Model | ModelReference | JobHandle | tuple[JobHandle, int] | str
"""A model; a job, whose output is meant; a job with the step of one of its checkpoints; or text that stands for one."""

DatasetLike = Dataset | DatasetReference | JobHandle | str
"""A dataset; a job that leaves one; or text that stands for one."""


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
        case str():
            return validate(ModelReference, model, path="model")
    raise InvalidArgumentError(f"a model is a Model, its id, a job or (job, step), not {model!r:.80}")


def dataset_reference(dataset: DatasetLike) -> DatasetReference:
    """What a dataset argument refers to. Raises InvalidArgumentError for text that is no id."""
    match dataset:
        case DatasetReference():
            return dataset
        case Dataset():
            return DatasetReference(dataset_id=dataset.dataset_id)
        case JobHandle():
            return DatasetReference(job_id=dataset.id)
        case str():
            return validate(DatasetReference, dataset, path="dataset")
    raise InvalidArgumentError(f"a dataset is a Dataset, its id or a job, not {dataset!r:.80}")
