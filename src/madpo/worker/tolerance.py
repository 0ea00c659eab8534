"""What a job does beside its purpose: what fails of it is told with the result, and takes nothing else along."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from madpo.errors import DeadlineExceededError, OverloadedError, StaleAttemptError, UnavailableError
from madpo.worker.failure import Failure
from madpo.worker.phase import Interrupted

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PASSED = (UnavailableError, OverloadedError, DeadlineExceededError, StaleAttemptError, Interrupted)
"""Somebody is away, or the run is to stop: what was begun can be done by another attempt, which loses nothing."""


class Tolerance:
    """Collects warnings in place of errors.

    Attributes:
        warnings: What went wrong, a line each, for `JobResult.warnings`.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def attempt(self, what: str, work: Callable[[], T], otherwise: T) -> T:
        """The work's result, or `otherwise` with a warning that says why. Raises what another attempt may be spared."""
        try:
            return work()
        except _PASSED:
            raise
        except Exception as error:
            logger.warning("%s failed; the job goes on", what, exc_info=True)
            self.warnings.append(f"{what} failed: {Failure.of(error).line}")
            return otherwise

    def finite(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The figures with None for those that are no finite numbers, which JSON cannot hold; each gets a warning."""
        return {name: self._finite(value, name) for name, value in figures.items()}

    def _finite(self, value: Any, path: str) -> Any:
        match value:
            case Mapping():
                return {name: self._finite(each, f"{path}.{name}") for name, each in value.items()}
            case list() | tuple():
                return [self._finite(each, f"{path}.{index}") for index, each in enumerate(value)]
            case float() if not math.isfinite(value):
                self.warnings.append(f"{path} is {value}")
                return None
        return value
