"""Which layers an adapter of somebody's is for, where its configuration says so by a regular expression.

One can be written that takes for ever, and Python runs nothing else meanwhile: it is matched in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import is_pattern

_MATCH_S = 30.0
_MATCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
json.dump([name for name in names if re.fullmatch(pattern, name)], sys.stdout)
"""


def matching(pattern: str, names: Iterable[str], *, within_s: float | None = None) -> list[str]:
    """The names that a regular expression means as a whole.

    Raises:
        InvalidArgumentError: It cannot be read, or takes longer than an honest one.
    """
    within_s = _MATCH_S if within_s is None else within_s
    command = [sys.executable, "-I", "-c", _MATCH]
    try:
        done = subprocess.run(
            command, input=json.dumps([pattern, list(names)]), capture_output=True, text=True, timeout=within_s
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidArgumentError(
            f"the regular expression {pattern:.200} came to nothing in {within_s:g} s: give names of layers"
        ) from error
    if done.returncode:
        raise InvalidArgumentError(f"{pattern:.200} is no regular expression: {done.stderr.strip()[-200:]}")
    return list(json.loads(done.stdout))


def name_layers(config: Any, names: Iterable[str]) -> None:
    """Put the names of layers in the place of expressions for them.

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
            found = matching(pattern, names)
            if not found and field == "target_modules":
                raise InvalidArgumentError(f"{field} {pattern:.200} means no layer of the base")
            setattr(config, field, set(found) or None)
