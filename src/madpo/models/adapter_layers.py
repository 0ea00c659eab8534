"""Which layers an adapter of somebody's is for, where its configuration says so by a regular expression."""

from collections.abc import Iterable
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.expressions import matching
from madpo.jobs.training import is_pattern

_AS_PEFT_READS_IT = {
    "rank_pattern": r"(.*\.)?({})",
    "alpha_pattern": r"(.*\.)?({})",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\..*",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
}


def name_layers(config: Any, names: Iterable[str]) -> None:
    """Put the names of layers in the place of expressions for them, and try the expressions that peft matches itself.

    Args:
        config: Of peft, for an adapter; changed.
        names: Of all modules of the base.

    Raises:
        InvalidArgumentError: See `matching`; or no layer is meant.
    """
    names = list(names)
    for field in ("target_modules", "exclude_modules"):
        pattern = getattr(config, field)
        if isinstance(pattern, str) and is_pattern(pattern):
            (found,) = matching([pattern], names)
            if not found and field == "target_modules":
                raise InvalidArgumentError(f"{field} {pattern:.200} means no layer of the base")
            setattr(config, field, set(found) or None)
    for field, form in _AS_PEFT_READS_IT.items():
        value = getattr(config, field) or ()
        patterns = [value] if isinstance(value, str) else value
        matching([form.replace("{}", each) for each in patterns if is_pattern(each)], names)
