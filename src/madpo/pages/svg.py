"""Small plots as SVG text: histograms, bars of shares, and points. Colours come from the page's style sheet."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Self

from madpo.data.check.report import Distribution

_WIDTH, _HEIGHT, _BASE, _TOP = 420, 154, 122, 8
_LABEL_WIDTH, _VALUE_WIDTH, _BAR_HEIGHT = 150, 140, 22
_PATHS_WIDTH, _PATHS_HEIGHT, _TICKS = 520, 320, 5
_COLOURS = 7
"""Of the style sheet, for lines; further ones begin again."""
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
    is_end: bool = True
    """Whether it is what a path leads to, not a point on the way."""


def paths(title: str, origin: Point, drawn: Sequence[Sequence[Point]], *, x_label: str, y_label: str) -> str:
    """Lines from one point to others, which have their intervals as crosses.

    Points say their names and values where a pointer rests on them; a legend is the page's.

    Args:
        title: For those who do not see it.
        origin: Where all begin; `s0` of the style sheet.
        drawn: Lines; `s1` and so on.
        x_label: Of the horizontal axis.
        y_label: Of the vertical one.
    """
    points = [origin, *(point for path in drawn for point in path)]
    x = _Axis.over([value for each in points for value in (each.x, *(each.x_ci or ()))], 52.0, _PATHS_WIDTH - 14.0)
    y = _Axis.over([value for each in points for value in (each.y, *(each.y_ci or ()))], _PATHS_HEIGHT - 44.0, 28.0)
    parts = [_svg(title, _PATHS_HEIGHT, width=_PATHS_WIDTH)]
    for value in x.ticks:
        parts.append(_line("axis", x.place(value), y.start, x.place(value), y.end))
        parts.append(_text(x.place(value), y.start + 17, f"{value:g}", anchor="middle"))
    for value in y.ticks:
        parts.append(_line("axis", x.start, y.place(value), x.end, y.place(value)))
        parts.append(_text(x.start - 6, y.place(value) + 4, f"{value:g}", anchor="end"))
    parts.append(_text(x.end, y.start + 36, x_label, anchor="end"))
    parts.append(_text(2, 14, y_label))
    for number, path in enumerate(drawn, start=1):
        parts.append(
            f'<g class="{series(number)}">{_way([origin, *path], x, y)}{"".join(map(_marked(x, y), path))}</g>'
        )
    parts.append(f'<g class="{series(0)}">{_marked(x, y)(origin)}</g>')
    return "".join([*parts, "</svg>"])


def series(number: int) -> str:
    """The class of a line's colour; 0 is the origin's."""
    return f"s{number if number == 0 else 1 + (number - 1) % _COLOURS}"


def _way(path: Sequence[Point], x: "_Axis", y: "_Axis") -> str:
    places = " ".join(f"{x.place(each.x):.1f},{y.place(each.y):.1f}" for each in path)
    return f'<polyline class="way" points="{places}"/>'


def _marked(x: "_Axis", y: "_Axis") -> Callable[[Point], str]:
    def mark(each: Point) -> str:
        at_x, at_y = x.place(each.x), y.place(each.y)
        said = f"{each.label}: {each.y:.3g} at {each.x:.3g}"
        style, radius = ("end", 4.5) if each.is_end else ("on", 3)
        parts = [_line("range", x.place(low), at_y, x.place(high), at_y) for low, high in filter(None, [each.x_ci])]
        parts += [_line("range", at_x, y.place(low), at_x, y.place(high)) for low, high in filter(None, [each.y_ci])]
        parts.append(f'<circle class="{style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius}">')
        return "".join([*parts, f"<title>{escape(said)}</title></circle>"])

    return mark


@dataclass(frozen=True, slots=True)
class _Axis:
    ticks: tuple[float, ...]
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Self:
        low, high = min(values), max(values)
        wide = high - low or 1.0
        unit = 10.0 ** math.floor(math.log10(wide / _TICKS))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * _TICKS >= wide)
        first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
        return cls(tuple(round(number * step, 12) for number in range(first, last + 1)), start, end)

    def place(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


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


def _svg(label: str, height: int, *, width: int = _WIDTH) -> str:
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.0f}k"
