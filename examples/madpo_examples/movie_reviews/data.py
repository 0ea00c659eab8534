"""Preference pairs from people's ratings of film-review sentences.

Two sentences whose mean ratings lie far enough apart make a pair; which one is preferred is what a single rater of each
said, so labels carry the raters' own noise. Preferred means: rated the more positive.
"""

import io
import json
import random
import statistics
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from madpo.errors import InvalidArgumentError
from madpo.types import Message, content_to_json

INSTRUCTIONS = tuple(
    f"{verb} {wish}"
    for verb in ("Write", "Make up", "Give me", "Compose")
    for wish in (
        "one sentence about a film.",
        "a one-sentence film review.",
        "one line of a film review.",
        "one sentence by a film critic.",
    )
)
"""Ways to ask for what the snippets are."""

_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"

_NEWTON_STEPS = 20


@dataclass(frozen=True, slots=True)
class Snippet:
    """One sentence with its ratings, each from -4 (extremely negative) to 4 (extremely positive)."""

    text: str
    ratings: tuple[int, ...]

    @property
    def mean_rating(self) -> float:
        """Mean over its raters."""
        return statistics.fmean(self.ratings)


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two snippets, the chosen one first."""

    chosen: Snippet
    rejected: Snippet

    @property
    def rating_gap(self) -> float:
        """Chosen minus rejected mean rating; negative where the label goes against the mean."""
        return self.chosen.mean_rating - self.rejected.mean_rating


def read_snippets(archive: Path) -> list[Snippet]:
    """The film-review sentences of the vaderSentiment 0.5 source archive, repeated texts left out.

    Nothing is extracted to disk.

    Raises:
        InvalidArgumentError: The two tables do not fit together.
    """
    with (
        zipfile.ZipFile(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(outer.read(_ARCHIVE)), mode="r:gz") as inner,
    ):
        texts = {row[0]: row[2] for row in _table(inner, _TEXTS)}
        ratings = {row[0]: tuple(json.loads(row[3])) for row in _table(inner, _RATINGS)}
    if texts.keys() != ratings.keys():
        raise InvalidArgumentError(f"{archive.name}: texts and ratings name different snippets")
    snippets = {text: Snippet(text, ratings[key]) for key, text in texts.items()}
    return list(snippets.values())


def make_pairs(snippets: Sequence[Snippet], count: int, rng: random.Random, *, min_gap: float) -> list[LabelledPair]:
    """Pairs of different snippets, no snippet in two of them, labelled by one drawn rating of each.

    Args:
        snippets: At least twice `count`, and more as `min_gap` grows.
        count: Pairs to make.
        rng: Draws order and ratings.
        min_gap: Least difference of the mean ratings; pairs below it and draws of equal ratings are passed over.

    Raises:
        InvalidArgumentError: There are not enough snippets.
    """
    shuffled = rng.sample(snippets, len(snippets))
    pairs: list[LabelledPair] = []
    for first, second in zip(shuffled[::2], shuffled[1::2], strict=False):
        ratings = rng.choice(first.ratings), rng.choice(second.ratings)
        if abs(first.mean_rating - second.mean_rating) < min_gap or ratings[0] == ratings[1]:
            continue
        pairs.append(LabelledPair(first, second) if ratings[0] > ratings[1] else LabelledPair(second, first))
        if len(pairs) == count:
            return pairs
    raise InvalidArgumentError(
        f"{len(snippets)} snippets give {len(pairs)} pairs with a gap of at least {min_gap}, {count} are wanted"
    )


def relabel_by_mean(pair: LabelledPair) -> LabelledPair:
    """The same pair with the higher mean rating chosen."""
    return pair if pair.rating_gap > 0 else LabelledPair(pair.rejected, pair.chosen)


def fit_logits_per_point(pairs: Sequence[LabelledPair]) -> float:
    """The k for which sigmoid(k * gap) fits the share of raters who agree with a pair's label.

    It puts rating gaps on the scale of a Bradley-Terry reward model: the log-odds that a rater prefers the chosen one.
    Maximum likelihood by Newton's method; infinite if all raters of all pairs agree with the mean ratings.
    """
    gaps = np.array([pair.rating_gap for pair in pairs])
    shares = np.array([_share_of_raters(pair) for pair in pairs])
    slope = 0.0
    for _ in range(_NEWTON_STEPS):
        odds = 1.0 / (1.0 + np.exp(-slope * gaps))
        slope += float(np.sum((shares - odds) * gaps) / np.sum(odds * (1.0 - odds) * gaps**2))
    return slope


def to_rows(pairs: Sequence[LabelledPair], rng: random.Random, *, logits_per_point: float) -> Iterator[dict[str, Any]]:
    """Preference rows as chat messages, each answering an instruction drawn at random.

    `margin` is the gap of the mean ratings in reward-model logits.
    """
    for pair in pairs:
        yield {
            "prompt": prompt(rng.choice(INSTRUCTIONS)),
            "chosen": _answer(pair.chosen),
            "rejected": _answer(pair.rejected),
            "margin": logits_per_point * pair.rating_gap,
        }


def prompt(instruction: str) -> Any:
    """An instruction as chat messages."""
    # With a system message of our own the chat template does not add its longer one.
    return content_to_json((Message("system", "You review films."), Message("user", instruction)))


def _share_of_raters(pair: LabelledPair) -> float:
    """Share of all pairings of a rater of each snippet that prefer the chosen one; equal ratings are left aside."""
    lead = np.subtract.outer(pair.chosen.ratings, pair.rejected.ratings)
    return float(np.sum(lead > 0) / np.sum(lead != 0))


def _answer(snippet: Snippet) -> Any:
    return content_to_json((Message("assistant", snippet.text),))


def _table(archive: tarfile.TarFile, name: str) -> Iterator[list[str]]:
    member = archive.extractfile(name)
    if member is None:
        raise InvalidArgumentError(f"{name} is not a file in the archive")
    with io.TextIOWrapper(member, encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n").split("\t")
