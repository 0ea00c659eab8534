"""The reward model that a caller names, as the reward service knows it."""

from typing import Annotated

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs.base import REWARD, ModelReference, NeedsModel, Spec
from madpo_gateway.checks.references import Findings, ReferenceCheck, Shelves
from madpo_gateway.checks.reward_models import unfit_reward_model

_FIELD = "reward_model"


class _Named(Spec):
    reward_model: Annotated[ModelReference, NeedsModel(REWARD, is_served=True)]


async def served_model_id(reference: ModelReference, shelves: Shelves) -> str:
    """The id of the stored reward model that a reference leads to.

    Raises:
        InvalidArgumentError: It leads nowhere, to another kind of model or to a checkpoint, or the model can give no
            single score.
        FailedPreconditionError: The job that it names has not left its model yet.
    """
    findings = Findings("")
    await ReferenceCheck(shelves, findings).follow(_Named(reward_model=reference))
    if not findings.violations and (problem := await unfit_reward_model(reference, shelves=shelves)):
        findings.add(_FIELD, problem)
    if findings.violations:
        raise InvalidArgumentError.of(findings.violations)
    if reference.model_id is not None:
        return reference.model_id
    job = findings.jobs[reference.job_id or ""]
    if job is None or job.result is None or job.result.model_id is None:
        state = "unknown" if job is None else job.state
        raise FailedPreconditionError(f"{reference.job_id} is {state} and has left no model: wait for its end")
    return job.result.model_id
