"""Sentiment of a text by VADER's lexicon and rules."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from madpo.types import Content


def vader_metric(prompts: Sequence[Content], responses: Sequence[str]) -> list[float]:
    """Metric `vader`: compound sentiment of each response, in [-1, 1].

    Source: Hutto and Gilbert 2014, as implemented by the package vaderSentiment (extra `movie-reviews`).
    """
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
