"""The most that may be asked for. Nothing that was stored is refused by it: see `madpo.jobs.bounds`."""

from dataclasses import dataclass
from typing import Any

MOST_STEPS = 10_000_000
"""Optimizer steps of a job, and whatever is counted in them."""


@dataclass(frozen=True, slots=True)
class AtMost:
    """On a field of a pydantic model: the highest number, or the most items of a tuple, in a new job.

    No part of validation, which also reads what was stored before there was a bound, or a lower one. It stands in the
    JSON schema, as `maximum` or `maxItems`.
    """

    most: float

    def allows(self, value: Any) -> bool:
        """Whether a value, or the number of its items, is within; what is no number is."""
        number = len(value) if isinstance(value, tuple) else value
        return not isinstance(number, (int, float)) or number <= self.most

    def __str__(self) -> str:
        return f"{self.most:,}" if isinstance(self.most, int) else f"{self.most:,.0f}"

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        found: dict[str, Any] = handler(schema)
        for option in found.get("anyOf", [found]):
            if option.get("type") in ("integer", "number"):
                option["maximum"] = self.most
            elif option.get("type") == "array":
                option["maxItems"] = self.most
        return found
