"""Regular expressions of somebody's, matched with names.

One can be written that takes for ever, and Python runs nothing else meanwhile: they are matched in a process of their
own, which ends by itself should nobody be left to end it.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence

from madpo.errors import InvalidArgumentError

_WITHIN_S = 30.0
_MATCH = """
import json, re, resource, sys
patterns, names, cpu_s = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
found = []
for pattern in patterns:
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit(f"{pattern:.200} is no regular expression: {error}")
    found.append([name for name in names if expression.fullmatch(name)])
json.dump(found, sys.stdout)
"""


def matching(patterns: Sequence[str], names: Iterable[str], *, within_s: float | None = None) -> list[list[str]]:
    """For each regular expression the names that it means as a whole.

    Args:
        patterns: The expressions.
        names: In the order of the result.
        within_s: How long all of it may take, in seconds; None for longer than anything honest does.

    Raises:
        InvalidArgumentError: One cannot be read, or they take longer.
    """
    if not patterns:
        return []
    within_s = _WITHIN_S if within_s is None else within_s
    request = json.dumps([list(patterns), list(names), math.ceil(within_s) + 1])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _MATCH], input=request, capture_output=True, text=True, timeout=within_s
        )
    except subprocess.TimeoutExpired as error:
        which = "the regular expression" if len(patterns) == 1 else "one of the regular expressions"
        raise InvalidArgumentError(
            f"{which} {', '.join(patterns):.200} came to nothing in {within_s:g} s: give names of layers"
        ) from error
    if done.returncode:
        raise InvalidArgumentError(done.stderr.strip()[-400:] or f"matching {', '.join(patterns):.200} was ended")
    return [list(found) for found in json.loads(done.stdout)]
