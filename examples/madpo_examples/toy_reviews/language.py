"""A small language of film reviews whose true reward is known exactly.

    review = "a" PERIOD GENRE "." (clause "."){2,4}        a 1980s drama . the plot is not weak . i loved the score .
    clause = one of TEMPLATES, its slots filled            ADJ is plain, or modified unless neutral: "very good"

A review is written from one latent quality, drawn from a standard normal, which tilts its adjectives and verbs. The
true reward adds up valences, a modifier scaling the word right after it, and squashes the sum s:

    reward = 6 * (sigmoid(s / 2) - 1/2) = 3 * tanh(s / 4)    in (-3, 3), the form used by arXiv:2510.05342

Generator and membership test are built from the same templates, so "grammatical" is exact. No torch here: the evaluator
loads the two metrics by entry point.
"""

import math
import random
import re
from collections.abc import Collection, Container, Sequence

from madpo.errors import InvalidArgumentError
from madpo.types import Content

PROMPT_WORDS = 6
"""A prompt is the head and the first two words of the first clause."""

_STRONG_PRAISE = ("superb", "brilliant", "wonderful", "masterful", "dazzling", "moving", "unforgettable")
_PRAISE = ("good", "solid", "charming", "warm", "clever", "pleasant", "funny", "decent")
_NEUTRAL = ("long", "quiet", "loud", "old", "simple", "strange", "slow", "familiar", "short", "dark")
_BLAME = ("weak", "dull", "bland", "clumsy", "flat", "noisy", "uneven", "tired")
_STRONG_BLAME = ("awful", "terrible", "dreadful", "unbearable", "ugly", "hopeless", "pathetic")
_VERB_VALENCES = {"loved": 2.0, "enjoyed": 1.0, "watched": 0.0, "noticed": 0.0, "endured": -1.0, "hated": -2.0}
_INTENSIFIERS = {"very": 1.5, "truly": 1.5, "slightly": 0.5, "somewhat": 0.5}
_NEGATORS = {"not": -0.75, "never": -0.75, "hardly": -0.5}

VALENCES = {
    **dict.fromkeys(_STRONG_PRAISE, 2.0),
    **dict.fromkeys(_PRAISE, 1.0),
    **dict.fromkeys(_BLAME, -1.0),
    **dict.fromkeys(_STRONG_BLAME, -2.0),
    **_VERB_VALENCES,
}
MODIFIERS = {**_INTENSIFIERS, **_NEGATORS}

_PERIODS = ("1950s", "1960s", "1970s", "1980s", "1990s", "recent")
_GENRES = (
    *("drama", "comedy", "thriller", "western", "musical"),
    *("horror", "romance", "documentary", "mystery", "sequel"),
)
_NOUNS = (
    *("plot", "acting", "script", "music", "ending", "cast", "story", "camera", "dialogue"),
    *("director", "lead", "editing", "humor", "pacing", "set", "score"),
)
_VIEWERS = ("my brother", "my wife", "a friend", "the critic", "our teacher", "nobody", "the crowd", "my boss")
TEMPLATES = (
    "the NOUN is ADJ",
    "the NOUN felt ADJ and ADJ",
    "WHO VERB the NOUN",
    "with a ADJ NOUN and a ADJ NOUN",
    "the NOUN was ADJ but the NOUN was ADJ",
    "i VERB the ADJ NOUN",
    "it has a ADJ NOUN",
)
_DRAWS_PER_OPENING = 100
_SLOT = re.compile("NOUN|ADJ|VERB|WHO")


def write_review(rng: random.Random) -> str:
    """Draw a review, words separated by single spaces; of length 14 to 52 words."""
    quality = rng.gauss(0.0, 1.0)
    fillers = {
        "NOUN": lambda: rng.choice(_NOUNS),
        "WHO": lambda: rng.choice(_VIEWERS),
        "VERB": lambda: _verb(rng, quality),
        "ADJ": lambda: _adjective(rng, quality),
    }
    clauses = [
        _SLOT.sub(lambda slot: fillers[slot.group()](), rng.choice(TEMPLATES)) + " ." for _ in range(rng.randint(2, 4))
    ]
    return " ".join(["a", rng.choice(_PERIODS), rng.choice(_GENRES), ".", *clauses])


def split_review(review: str) -> tuple[str, str]:
    """The prompt (first `PROMPT_WORDS` words) and the rest of a review."""
    words = review.split()
    return " ".join(words[:PROMPT_WORDS]), " ".join(words[PROMPT_WORDS:])


def negative_openings(count: int, rng: random.Random, *, exclude: Container[str] = ()) -> list[str]:
    """Different prompts cut from reviews of negative true reward, none of them in `exclude`.

    Raises:
        InvalidArgumentError: The language has hardly so many; there are about 1,900.
    """
    openings: dict[str, None] = {}
    for _ in range(_DRAWS_PER_OPENING * count):
        review = write_review(rng)
        prompt, _ = split_review(review)
        if true_reward(review) < 0 and prompt not in exclude:
            openings[prompt] = None
        if len(openings) == count:
            # Common openings are drawn first; shuffled, every part of the list is like the whole.
            return rng.sample(list(openings), count)
    raise InvalidArgumentError(f"{count} openings are wanted, the language gave {len(openings)}; ask for fewer")


def vocabulary() -> list[str]:
    """Every word of the language, sorted."""
    sources = (_PERIODS, _GENRES, _NOUNS, _VIEWERS, TEMPLATES, VALENCES, _NEUTRAL, MODIFIERS)
    words = {word for source in sources for phrase in source for word in phrase.split()}
    return sorted(words - {"NOUN", "ADJ", "VERB", "WHO"} | {"a", "."})


def is_grammatical(text: str) -> bool:
    """Whether the language can write exactly this text."""
    return _REVIEW.fullmatch(text) is not None


def true_reward(text: str) -> float:
    """Ground-truth reward of any text, grammatical or not, in [-3, 3]; unknown words count nothing."""
    words = text.split()
    total = sum(
        MODIFIERS.get(before, 1.0) * VALENCES.get(word, 0.0) for before, word in zip(["", *words], words, strict=False)
    )
    return 3.0 * math.tanh(total / 4.0)


def reward_metric(prompts: Sequence[Content], responses: Sequence[str]) -> list[float]:
    """Metric `toy_reward`: true reward of prompt and response together."""
    return [true_reward(text) for text in _join(prompts, responses)]


def grammatical_metric(prompts: Sequence[Content], responses: Sequence[str]) -> list[float]:
    """Metric `toy_grammatical`: 1.0 where prompt and response together are grammatical, else 0.0."""
    return [float(is_grammatical(text)) for text in _join(prompts, responses)]


def _join(prompts: Sequence[Content], responses: Sequence[str]) -> list[str]:
    texts = []
    for prompt, response in zip(prompts, responses, strict=True):
        if not isinstance(prompt, str):
            raise InvalidArgumentError("toy metrics score plain-text prompts, got chat messages (use a text dataset)")
        texts.append(f"{prompt} {response}")
    return texts


def _is_kind(rng: random.Random, quality: float) -> bool:
    return rng.random() < 1.0 / (1.0 + math.exp(-1.6 * quality))


def _verb(rng: random.Random, quality: float) -> str:
    return rng.choice(("loved", "enjoyed", "watched") if _is_kind(rng, quality) else ("hated", "endured", "noticed"))


def _adjective(rng: random.Random, quality: float) -> str:
    if rng.random() < 0.25:
        return rng.choice(_NEUTRAL)
    kind, strong, negated = _is_kind(rng, quality), rng.random() < 0.4, rng.random() < 0.15
    if kind != negated:
        adjective = rng.choice(_STRONG_PRAISE if strong else _PRAISE)
    else:
        adjective = rng.choice(_STRONG_BLAME if strong else _BLAME)
    if negated:
        return f"{rng.choice(list(_NEGATORS))} {adjective}"
    if rng.random() < 0.25:
        return f"{rng.choice(list(_INTENSIFIERS))} {adjective}"
    return adjective


def _any_of(words: Collection[str]) -> str:
    return f"(?:{'|'.join(words)})"


def _review_pattern() -> re.Pattern[str]:
    charged = (*_STRONG_PRAISE, *_PRAISE, *_BLAME, *_STRONG_BLAME)
    slots = {
        "NOUN": _any_of(_NOUNS),
        "WHO": _any_of(_VIEWERS),
        "VERB": _any_of(_VERB_VALENCES),
        "ADJ": _any_of((*_NEUTRAL, rf"(?:{_any_of(MODIFIERS)} )?{_any_of(charged)}")),
    }
    clause = _any_of([_SLOT.sub(lambda slot: slots[slot.group()], template) for template in TEMPLATES])
    return re.compile(rf"a {_any_of(_PERIODS)} {_any_of(_GENRES)} \.(?: {clause} \.){{2,4}}")


_REVIEW = _review_pattern()
