"""Plots of the page: nothing written is cut, or runs out of the picture."""

import re
from html import unescape

import pytest

from madpo.data.check.report import Distribution, Histogram
from madpo.pages import svg

pytestmark = pytest.mark.data

_TEXT = re.compile(r'<text x="([0-9.]+)" y="([0-9.]+)" text-anchor="(\w+)">([^<]*)</text>')
_PICTURE = re.compile(r'viewBox="0 0 (\d+) (\d+)"')
CHAR_WIDTH = 6.2


def texts(plot: str) -> list[str]:
    """All that is written, each found to be within the picture."""
    width, height = map(int, _PICTURE.findall(plot)[0])
    written = [(float(x), float(y), anchor, unescape(text)) for x, y, anchor, text in _TEXT.findall(plot)]
    for x, y, anchor, text in written:
        left = x - len(text) * CHAR_WIDTH if anchor == "end" else x
        assert left >= 0, text
        assert left + len(text) * CHAR_WIDTH <= width, text
        assert y <= height, text
    return [text for *_, text in written]


@pytest.mark.parametrize(
    "labels", [["user", "assistant"], ["user", "user assistant user assistant user"], ["it is <b> a & b of some words"]]
)
def test_labels_are_whole(labels: list[str]) -> None:
    plot = svg.bars("shares", [(label, 1.0, "100.0% (98.9%-100.0%)") for label in labels])

    assert [text for text in texts(plot) if "%" not in text] == labels


def test_a_label_longer_than_a_line_ends_in_an_ellipsis_and_is_whole_where_one_points_at_its_bar() -> None:
    label = "user assistant " * 10

    plot = svg.bars("shares", [(label, 0.5, "50.0%")])

    written = texts(plot)[0]
    assert written.endswith("…")
    assert label.startswith(written[:-1])
    assert f"<title>{label}</title>" in plot


def distribution(smallest: float, largest: float, mean: float) -> Distribution:
    return Distribution(
        count=3,
        mean=mean,
        smallest=smallest,
        largest=largest,
        quantiles={"0.5": smallest, "0.95": largest},
        histogram=Histogram(edges=(smallest, smallest + 1, smallest + 2), counts=(2, 1)),
    )


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        (distribution(2, 2, 2), "always 2 messages<"),
        (distribution(2, 4, 2.5), "median 2, mean 2.5, 95 % up to 4 messages<"),
        (distribution(200, 400, 249.6), "median 200, mean 250, 95 % up to 400 messages<"),
    ],
)
def test_a_caption_says_what_is_worth_saying(spread: Distribution, said: str) -> None:
    assert f"</b> {said}" in svg.histogram("messages", {"messages per prompt": spread}, unit="messages")
