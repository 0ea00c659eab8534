"""What a check found: a level, one line about it, and one line about what to do."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    """Stable name: `gateway.clock`, `trainer.redis.eviction`."""
    level: Level
    message: str
    advice: str = ""
    """What to do; present unless the level is ok."""

    def __post_init__(self) -> None:
        assert bool(self.advice) == (self.level != "ok"), self


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", message)


def warning(check: str, message: str, advice: str) -> Finding:
    """It works, but something is worse than it should be, or could not be checked."""
    return Finding(check, "warning", message, advice)


def error(check: str, message: str, advice: str) -> Finding:
    """It does not work, or loses data one day."""
    return Finding(check, "error", message, advice)


def under(prefix: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings with a prefix before the names of their checks."""
    return [replace(finding, check=f"{prefix}.{finding.check}") for finding in findings]


def unchecked(check: str, *packages: str) -> Finding | None:
    """A warning that the check is left out for want of a package; None when all are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return None
    return warning(
        check,
        f"not checked: {', '.join(missing)} not installed",
        "pip install 'madpo[service]', or run this in the service's own container",
    )


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """1 when there is an error, with `strict` also when there is a warning; else 0."""
    bad = ("error", "warning") if strict else ("error",)
    return int(any(finding.level in bad for finding in findings))
