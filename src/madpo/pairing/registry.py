"""All rules by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from madpo.discovery import declared_by_name
from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.pairing.rule import PairingRule, RuleConfig
from madpo.spelling import did_you_mean

RULES: Mapping[str, PairingRule] = MappingProxyType(declared_by_name("madpo.pairing.rules", PairingRule))


def get_rule(name: str, *, path: str) -> PairingRule:
    """A rule by its name. Raises InvalidArgumentError listing those there are."""
    if name not in RULES:
        description = f"there is no rule {name!r}{did_you_mean(name, RULES) or ';'} rules: {', '.join(sorted(RULES))}"
        raise InvalidArgumentError.in_field(f"{path}.name", description)
    return RULES[name]


def parse_rule_params(name: str, params: Mapping[str, Any], *, path: str) -> RuleConfig:
    """Check a rule's parameters and fill in the defaults.

    Args:
        name: Of the rule.
        params: As given by the user.
        path: Of the rule in the request, for the names of violations.

    Raises:
        InvalidArgumentError: No such rule, or wrong parameters: one violation each, `<path>.params.pairs`.
    """
    config = get_rule(name, path=path).config
    try:
        return config.model_validate(dict(params))
    except ValidationError as error:
        violations = [
            FieldViolation(".".join([path, "params", *map(str, each["loc"])]), _describe(name, config, each))
            for each in error.errors(include_url=False)
        ]
        raise InvalidArgumentError.of(violations) from error


def _describe(name: str, config: type[RuleConfig], detail: Any) -> str:
    if detail["type"] != "extra_forbidden":
        return f"{detail['msg'].removeprefix('Value error, ')}, got {detail['input']!r:.80}"
    meant = did_you_mean(str(detail["loc"][-1]), config.model_fields) or ";"
    return f"{name} has no such parameter{meant} parameters: {', '.join(config.model_fields) or 'none'}"
