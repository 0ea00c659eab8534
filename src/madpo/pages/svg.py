"""Small plots as SVG text: histograms, bars of shares, and points. Colours come from the page's style sheet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from operator import attrgetter
from typing import Self

from madpo.data.check.report import Distribution

_WIDTH, _HEIGHT, _BASE, _TOP = 420, 154, 122, 8
_LABEL_WIDTH, _VALUE_WIDTH, _BAR_HEIGHT = 150, 140, 22
_SCATTER_HEIGHT = 260
_CHAR_WIDTH = 6.2
"""Of the 11 px of the style sheet, on average; a line of capitals is wider."""
_BESIDE_CHARS = int((_LABEL_WIDTH - 8) / _CHAR_WIDTH)
_LINE_CHARS = int(_WIDTH / _CHAR_WIDTH)


def histogram(title: str, distributions: Mapping[str, Distribution], *, unit: str, mark: float | None = None) -> str:
    """Histograms of the same quantity above each other, with medians; `mark` draws a limit."""
    parts = [_histogram(title, name, found, unit, mark) for name, found in distributions.items()]
    return "".join(parts)


def bars(title: str, shares: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: label, share from 0 to 1, and what to write at the end.

    Labels stand beside their bars where all have room there, else above them, at the full width.
    """
    is_beside = all(len(label) <= _BESIDE_CHARS for label, _, _ in shares)
    left, row_height = (_LABEL_WIDTH, _BAR_HEIGHT) if is_beside else (0, 2 * _BAR_HEIGHT - 6)
    room = _WIDTH - left - _VALUE_WIDTH
    drawn = [_svg(title, len(shares) * row_height + 4)]
    for index, (label, share, text) in enumerate(shares):
        y = index * row_height + 3
        if is_beside:
            drawn.append(_text(left - 8, y + 12, label, anchor="end"))
        else:
            drawn.append(_text(0, y + 12, label if len(label) <= _LINE_CHARS else f"{label[: _LINE_CHARS - 1]}…"))
            y += row_height - _BAR_HEIGHT
        width = max(share * room, 0.5)
        drawn.append(
            f'<rect class="bar" x="{left}" y="{y}" width="{width:.1f}" height="15">'
            f"<title>{escape(label)}</title></rect>"
        )
        drawn.append(_text(left + width + 6, y + 12, text))
    return "".join([*drawn, "</svg>"])


@dataclass(frozen=True, slots=True)
class Point:
    """Something measured twice, with its 95 % intervals, if any."""

    label: str
    x: float
    y: float
    x_ci: tuple[float, float] | None = None
    y_ci: tuple[float, float] | None = None


def scatter(title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Points with intervals as crosses, each beside its name."""
    x, y = (
        _Axis.over([value for each in points for value in (position(each), *(interval(each) or ()))], start, end)
        for position, interval, start, end in (
            (attrgetter("x"), attrgetter("x_ci"), 46.0, _WIDTH - 110.0),
            (attrgetter("y"), attrgetter("y_ci"), _SCATTER_HEIGHT - 40.0, 14.0),
        )
    )
    drawn = [_svg(title, _SCATTER_HEIGHT)]
    drawn.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    drawn.append(f'<line class="axis" x1="{x.start}" x2="{x.start}" y1="{y.start}" y2="{y.end}"/>')
    drawn += [_text(x.place(value), y.start + 14, f"{value:.3g}", anchor="middle") for value in (x.low, x.high)]
    drawn += [_text(x.start - 4, y.place(value) + 4, f"{value:.3g}", anchor="end") for value in (y.low, y.high)]
    drawn.append(_text((x.start + x.end) / 2, y.start + 30, x_label, anchor="middle"))
    drawn.append(_text(x.start + 4, 12, y_label))
    for each in points:
        at_x, at_y = x.place(each.x), y.place(each.y)
        for low, high in filter(None, [each.x_ci]):
            drawn.append(_line("range", x.place(low), at_y, x.place(high), at_y))
        for low, high in filter(None, [each.y_ci]):
            drawn.append(_line("range", at_x, y.place(low), at_x, y.place(high)))
        drawn.append(f'<circle class="bar" cx="{at_x:.1f}" cy="{at_y:.1f}" r="3.5"/>')
        drawn.append(_text(at_x + 6, at_y - 5, each.label))
    return "".join([*drawn, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Self:
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1.0, start, end)

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _histogram(title: str, name: str, found: Distribution, unit: str, mark: float | None) -> str:
    edges, counts = found.histogram.edges, found.histogram.counts
    peak, bin_width = max(counts), (_WIDTH - 20) / len(counts)
    label = f"{title}: {name}, median {_number(found.quantiles['0.5'])} {unit}"
    drawn = [_svg(label, _HEIGHT)]
    for index, count in enumerate(counts):
        height = count / peak * (_BASE - _TOP - 12)
        below = "largest" if index == len(counts) - 1 else f"{edges[index + 1]:,.0f}"
        drawn.append(
            f'<rect class="bar" x="{10 + index * bin_width:.1f}" y="{_BASE - height:.1f}" '
            f'width="{max(bin_width - 1, 0.5):.1f}" height="{height:.1f}">'
            f"<title>{edges[index]:,.0f} to {below}: {count:,}</title></rect>"
        )
    drawn.append(f'<line class="axis" x1="10" x2="{_WIDTH - 10}" y1="{_BASE}" y2="{_BASE}"/>')
    every = max(1, len(counts) // 6)
    drawn += [
        _text(10 + index * bin_width, _BASE + 14, _number(edges[index]), anchor="middle")
        for index in range(0, len(counts), every)
    ]
    drawn.append(_text(_WIDTH - 10, _BASE + 26, f"largest {_number(found.largest)}", anchor="end"))
    median = _position(found.quantiles["0.5"], edges, bin_width)
    drawn.append(f'<line class="median" x1="{median:.1f}" x2="{median:.1f}" y1="{_TOP}" y2="{_BASE}"/>')
    if mark is not None and edges[0] <= mark <= edges[-1]:
        limit = _position(mark, edges, bin_width)
        drawn.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{_TOP}" y2="{_BASE}"/>')
    return (
        f"<figure><figcaption><b>{escape(name)}</b> {_figures(found, unit)}</figcaption>{''.join(drawn)}</svg></figure>"
    )


def _figures(found: Distribution, unit: str) -> str:
    if found.smallest == found.largest:
        return f"always {_number(found.largest)} {escape(unit)}"
    mean = f"{found.mean:.1f}" if found.mean < 100 else _number(found.mean)
    return (
        f"median {_number(found.quantiles['0.5'])}, mean {mean}, 95 % up to {_number(found.quantiles['0.95'])} "
        f"{escape(unit)}"
    )


def _position(value: float, edges: Sequence[float], bin_width: float) -> float:
    """Where a value is on the axis: bins are equally wide, the last one whatever it holds."""
    for index in range(len(edges) - 1):
        if value <= edges[index + 1]:
            return 10 + (index + (value - edges[index]) / (edges[index + 1] - edges[index])) * bin_width
    return 10 + (len(edges) - 1) * bin_width


def _svg(label: str, height: int) -> str:
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {height}">'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.0f}k"
