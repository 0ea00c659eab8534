"""The whole check of a spec: its references, and what its kind of job asks besides.

A kind that asks for more has a module here with a `SpecCheck`; every module is looked at.
"""

from collections.abc import Sequence

from madpo.discovery import declarations
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.jobs.base import JOB_ID_PATTERN, Spec, awaited_job_ids
from madpo.jobs.methods import PreferenceMethod
from madpo.jobs.registry import kind_of
from madpo.jobs.sampling import Pairing
from madpo.losses.registry import parse_params
from madpo.pairing.registry import parse_rule_params
from madpo.types import JobState
from madpo_gateway.checks.abilities import missing_abilities
from madpo_gateway.checks.base import SpecCheck
from madpo_gateway.checks.best_metrics import unknown_best_metric
from madpo_gateway.checks.context import over_context
from madpo_gateway.checks.model_files import unfit_models
from madpo_gateway.checks.references import Findings, ReferenceCheck, Shelves
from madpo_gateway.checks.reward_models import unfit_reward_models
from madpo_gateway.checks.tokenizers import other_tokens
from madpo_gateway.requests import require_match, violation

MAX_JOB_REFERENCES = 100
"""Jobs one job may wait for."""

_CHECKS = {check.spec: check.look for check in declarations("madpo_gateway.checks", SpecCheck, besides=["registry"])}


def with_parameter_defaults(spec: Spec) -> Spec:
    """The spec with all parameters of its method and its pairing rule, so that the job records what it ran with.

    Raises:
        InvalidArgumentError: No such method or rule, or wrong parameters.
    """
    path = f"spec.{kind_of(spec).name}"
    changed: dict[str, PreferenceMethod | Pairing] = {}
    for name in ("method", "pairing"):
        match getattr(spec, name, None):
            case PreferenceMethod() as given:
                method = parse_params(given.name, given.params, path=f"{path}.{name}")
                changed[name] = PreferenceMethod(name=given.name, params=method.model_dump(mode="json"))
            case Pairing() as given:
                rule = parse_rule_params(given.name, given.params, path=f"{path}.{name}")
                changed[name] = Pairing(name=given.name, params=rule.model_dump(mode="json"))
    return spec.model_copy(update=changed) if changed else spec


def all_dependencies(spec: Spec, depends_on: Sequence[str]) -> tuple[str, ...]:
    """The jobs named by the request and those the spec refers to, each once. Raises InvalidArgumentError."""
    for index, job_id in enumerate(depends_on):
        require_match(job_id, JOB_ID_PATTERN, field=f"depends_on.{index}")
    dependencies = tuple(dict.fromkeys([*depends_on, *awaited_job_ids(spec)]))
    if len(dependencies) > MAX_JOB_REFERENCES:
        raise violation("depends_on", f"must be at most {MAX_JOB_REFERENCES} jobs, got {len(dependencies)}")
    return dependencies


async def require_references(spec: Spec, *, shelves: Shelves) -> None:
    """Look up again all that a spec refers to, once its job is queued: what was deleted just before is missed here.

    Raises:
        InvalidArgumentError: With one violation per reference that leads nowhere.
    """
    findings = Findings(path=f"spec.{kind_of(spec).name}")
    await ReferenceCheck(shelves, findings).follow(spec)
    if findings.violations:
        raise InvalidArgumentError.of(findings.violations)


async def check_spec(spec: Spec, *, depends_on: Sequence[str], shelves: Shelves) -> None:
    """Check a spec and its dependencies; everything wrong is found and named at once.

    Only what depends on time (a job that has failed) is a FailedPreconditionError.

    Args:
        spec: With its method's defaults.
        depends_on: All jobs it waits for, those it refers to included.
        shelves: Where things are looked up.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
        FailedPreconditionError: A dependency has failed or was cancelled.
    """
    findings = Findings(path=f"spec.{kind_of(spec).name}")
    follower = ReferenceCheck(shelves, findings)
    await follower.follow(spec)
    if type(spec) in _CHECKS:
        _CHECKS[type(spec)](spec, findings)
    for name, description in unknown_best_metric(spec):
        findings.add(name, description)
    async for name, description in over_context(spec, shelves=shelves):
        findings.add(name, description)
    async for name, description in unfit_models(spec, datasets=findings.datasets, shelves=shelves):
        findings.add(name, description)
    async for name, description in other_tokens(spec, shelves=shelves):
        findings.add(name, description)
    async for name, description in missing_abilities(spec, shelves=shelves):
        findings.add(name, description)
    async for name, description in unfit_reward_models(spec, shelves=shelves):
        findings.add(name, description)
    findings.path = ""
    dependencies = [job for job_id in depends_on if (job := await follower.job("depends_on", job_id))]
    if findings.violations:
        raise InvalidArgumentError.of(findings.violations)
    for job in dependencies:
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            raise FailedPreconditionError(f"{job.job_id} is {job.state}, so this job could never start")
