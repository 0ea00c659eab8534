"""What a rule is that chooses which responses to a prompt are compared.

A rule is one module of `madpo.pairing.rules`, ending in a `PairingRule`, which `madpo.pairing.registry` finds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict

Couple = tuple[int, int]
"""Places of two responses that are compared; their order says nothing."""


class RuleConfig(BaseModel):
    """Base of the parameters of a rule: immutable, unknown ones refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class PairingRule:
    """Chooses which responses to one prompt are compared."""

    name: str
    config: type[RuleConfig]
    """Its parameters; all have defaults."""
    summary: str
    source: str
    """Paper and arXiv id, or "own"."""
    choose: Callable[[Any, Sequence[float], Random], Sequence[Couple]]
    """Given parameters, the rewards of two or more different responses in reward-model logits, and chance: what is
    compared, each couple once."""
    leaves_lists: bool = False
    """Whether all that are compared stay together as one list of scored responses, in the place of pairs."""


def couples(count: int) -> Iterator[Couple]:
    """All couples of so many responses."""
    return ((first, second) for first in range(count) for second in range(first + 1, count))
