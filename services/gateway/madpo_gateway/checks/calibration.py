"""Calibrations: the method must read margins, and there must be some."""

from madpo.jobs.calibration import CalibrationSpec
from madpo.losses.registry import get_method, parse_params
from madpo_gateway.checks.base import SpecCheck
from madpo_gateway.checks.references import Findings


def look(spec: CalibrationSpec, findings: Findings) -> None:
    """Refuse a method without margins, and datasets that lack them where no reward model gives them."""
    method = get_method(spec.method.name)
    if not method.requirements(parse_params(spec.method.name, spec.method.params)).margin:
        findings.add("method.name", f"{spec.method.name} reads no margins, so none can be calibrated for it")
    if spec.reward_model is not None:
        return
    for name, dataset in findings.datasets.items():
        if not dataset.has_margins:
            findings.add(name, "not every row of it has a margin; give reward_model")


CHECK = SpecCheck(CalibrationSpec, look)
