"""Chat templates whose text depends on nothing but what they are given: their clock stands still.

Templates may write the day (`strftime_now`: Llama 3.1 and 3.2, SmolLM3, gpt-oss and others). The same row would then
have other tokens tomorrow: a training that goes on would not be the one that began, its stored tokens and reference
log-probs would belong to another text, and the same revision of a reward model would score otherwise. So the day is one
and the same for every model, job and service: the one that Llama's templates fall back to where there is no clock. Rows
that are to show another day say so by what their template reads beside it (`chat_template_kwargs`, for Llama
`{"date_string": "01 Jan 2026"}`).
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from string import ascii_letters

from madpo.errors import InvalidArgumentError

TEMPLATE_CLOCK = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` tells in every chat template."""

_READS_CLOCK = re.compile(r"\bstrftime_now\b")
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")


def reads_clock(template: str) -> bool:
    """Whether a template may write the time."""
    return _READS_CLOCK.search(template) is not None


@lru_cache(maxsize=16)
def with_fixed_clock(template: str) -> str:
    """The template, with a `strftime_now` of its own where it reads the clock.

    Raises:
        InvalidArgumentError: The template draws at random.
    """
    if chance := _CHANCE.search(template):
        raise InvalidArgumentError(
            f"the chat template draws at random ({chance.group()!r}), so a row would have other tokens each time: "
            "give a template that does not"
        )
    # The compiled template brings a real clock, which nothing given to it can replace; a macro of the name can. The
    # line end behind it is part of the block, so what the template itself begins with stays.
    return f"{_macro()}\n{template}" if reads_clock(template) else template


@lru_cache(maxsize=1)
def _macro() -> str:
    replacements = [("%%", "\\0")]
    for letter in ascii_letters:
        for code in (f"%{letter}", f"%-{letter}"):
            told = TEMPLATE_CLOCK.strftime(code)
            if told != code:
                replacements.append((code, told))
    replacements.append(("\\0", "%"))
    calls = "".join(f".replace('{code}', '{told}')" for code, told in replacements if "\n" not in told)
    return f"{{% macro strftime_now(format) %}}{{{{ format{calls} }}}}{{% endmacro %}}"
