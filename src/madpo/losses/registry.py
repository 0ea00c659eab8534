"""All methods by name. Importable without torch: the gateway checks a job's method before anything trains.

To add a method, write `madpo/losses/<module>.py` with its `Method`; every module of this package is looked at.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from madpo.discovery import declared_by_name
from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.losses.method import Method, MethodConfig
from madpo.spelling import did_you_mean, nearest

_OTHER_MODULES = ("catalogue", "method", "registry", "scales", "terms", "vectors")


def find_methods() -> dict[str, Method]:
    """The methods of all modules of this package, by name."""
    return declared_by_name("madpo.losses", Method, besides=_OTHER_MODULES)


METHODS: Mapping[str, Method] = MappingProxyType(find_methods())

PATH = "spec.policy_training.method"


def get_method(name: str, *, path: str = PATH) -> Method:
    """A method by its name. Raises InvalidArgumentError with the names that are most like it."""
    try:
        return METHODS[name]
    except KeyError:
        *others, last = nearest(name, METHODS)
        meant = f"did you mean {', '.join(others)} or {last}?"
        description = f"there is no method {name!r}; {meant} `madpo methods list` lists all {len(METHODS)}"
        raise InvalidArgumentError.in_field(f"{path}.name", description) from None


def parse_params(name: str, params: Mapping[str, Any], *, path: str = PATH) -> MethodConfig:
    """Check a method's parameters and fill in the defaults.

    Args:
        name: Of the method.
        params: As given by the user.
        path: Of the method in the request, for the names of violations.

    Raises:
        InvalidArgumentError: No such method, or wrong parameters: one violation each, `<path>.params.tau`.
    """
    config = get_method(name, path=path).config
    try:
        return config.model_validate(dict(params))
    except ValidationError as error:
        legal = ", ".join(config.model_fields)
        violations = [
            FieldViolation(
                ".".join([path, "params", *map(str, detail["loc"])]),
                f"{name} has no such parameter{did_you_mean(str(detail['loc'][-1]), config.model_fields) or ';'} "
                f"parameters: {legal}"
                if detail["type"] == "extra_forbidden"
                else f"{detail['msg'].removeprefix('Value error, ')}, got {detail['input']!r:.80}",
            )
            for detail in error.errors(include_url=False)
        ]
        raise InvalidArgumentError.of(violations) from error
