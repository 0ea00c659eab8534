"""Names of jobs that were given none: what they are about, and what they make of it, as `qwen-madpo`."""

import asyncio

from madpo.errors import NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference, Spec, references
from madpo.jobs.methods import PreferenceMethod
from madpo.jobs.registry import kind_of
from madpo.types import JobKind
from madpo_gateway.checks.references import Shelves
from madpo_gateway.requests import MAX_DISPLAY_NAME


async def default_name(spec: Spec, shelves: Shelves) -> str:
    """The first model or dataset that the spec refers to, and the method or what the job makes."""
    kind = kind_of(spec)
    method = getattr(spec, "method", None)
    noun = method.name if kind.name is JobKind.POLICY_TRAINING and isinstance(method, PreferenceMethod) else kind.noun
    targets = [reference.target for reference in references(spec)]
    models = [target for target in targets if isinstance(target, ModelReference)]
    others = [target for target in targets if isinstance(target, DatasetReference)]
    subject = await _name_of((models or others)[0], shelves) if models or others else ""
    return f"{subject[: MAX_DISPLAY_NAME - len(noun) - 1]}-{noun}" if subject else noun


async def _name_of(target: ModelReference | DatasetReference, shelves: Shelves) -> str:
    """Nothing where what is referred to has no name."""
    try:
        if target.job_id is not None:
            job = await shelves.job(target.job_id)
            step = target.step if isinstance(target, ModelReference) else None
            return f"{job.display_name}-step{step}" if step is not None else job.display_name
        if isinstance(target, ModelReference):
            return (await asyncio.to_thread(shelves.models.get, target.model_id or "")).display_name
        return (await asyncio.to_thread(shelves.datasets.get, target.dataset_id or "")).display_name
    except NotFoundError:
        return ""
