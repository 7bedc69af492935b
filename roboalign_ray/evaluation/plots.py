"""Small charts as SVG text to be embedded in a page, whose style sheet sets the fonts and colours.

    line_chart     curves over a common axis, with an optional marker
    interval_bar   one mean and its interval on a shared axis around zero
    histogram_bars counts between edges

A series has its colour from the class `s-<key>`. The page defines `--ink`, `--muted`, `--grid` and one colour per
key, for both light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: name, shown on hovering and in the legend.
        key: colour class, without the prefix.
        x, y: float [N]; points whose y is not finite break the line.
        dashed: drawn dashed.
    """

    label: str
    key: str
    x: np.ndarray
    y: np.ndarray
    dashed: bool = False


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high]."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number in short form: 0.25, 1500, 2e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}".replace("-", "−")


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    width: int = 330,
    height: int = 190,
    marker: tuple[float, str] | None = None,
    description: str = "",
) -> str:
    """Curves over a common axis.

    Args:
        series: the curves; the last one is drawn on top.
        marker: a value on the x axis and its label, drawn as a dotted vertical line.
        description: text for screen readers.
    """
    frame = _fit(series, width, height)
    if frame is None:
        return '<p class="empty">no finite values</p>'
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
    ]
    parts += _axes(frame)
    if marker is not None and frame.x_low <= marker[0] <= frame.x_high:
        at = frame.x(marker[0])
        parts.append(
            f'<line class="marker" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        )
        parts.append(f'<text class="tick" x="{at + 4:.1f}" y="{_TOP + 8}">{escape(marker[1])}</text>')
    parts += [_curve(frame, one) for one in series]
    return "".join([*parts, "</svg>"])


def _fit(series: Sequence[Series], width: int, height: int) -> _Frame | None:
    points = [(x, y) for one in series for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    x_low, x_high, y_low, y_high = float(min(xs)), float(max(xs)), float(min(ys)), float(max(ys))
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    margin = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    return _Frame(width, height, x_low, x_high, y_low - margin, y_high + margin)


def _axes(frame: _Frame) -> list[str]:
    parts = []
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    for value in nice_ticks(frame.y_low, frame.y_high):
        at = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{tick_label(value)}</text>'
        )
    ticks = [value for value in nice_ticks(frame.x_low, frame.x_high, 5) if value == round(value)]
    for value in ticks:
        at = frame.x(value)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{tick_label(value)}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _curve(frame: _Frame, series: Series) -> str:
    pieces: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append(f"{frame.x(x):.1f},{frame.y(y):.1f}")
        elif pieces[-1]:
            pieces.append([])
    style = f"line s-{escape(series.key)}{' dashed' if series.dashed else ''}"
    drawn = []
    for piece in filter(None, pieces):
        if len(piece) == 1:
            x, y = piece[0].split(",")
            drawn.append(f'<circle class="{style}" cx="{x}" cy="{y}" r="2"/>')
        else:
            drawn.append(f'<polyline class="{style}" points="{" ".join(piece)}"/>')
    return f"<g><title>{escape(series.label)}</title>{''.join(drawn)}</g>"


def histogram_bars(edges: Sequence[float], counts: Sequence[int], *, description: str) -> str:
    """A histogram: one bar per bin, each with its range and count on hovering.

    Args:
        edges: ascending, one more than there are counts.
        counts: of each bin.
        description: for people who do not see the chart.
    """
    width, height = 320, 140
    most = max(max(counts), 1)
    inner, low, span = width - _LEFT - _RIGHT, edges[0], edges[-1] - edges[0]

    def at(value: float) -> float:
        return _LEFT + inner * (value - low) / span

    base = height - _BOTTOM
    bars = []
    for first, last, count in zip(edges, edges[1:], counts, strict=False):
        tall = (base - _TOP) * count / most
        text = f"{tick_label(first)} to {tick_label(last)}: {count}"
        bars.append(
            f'<rect x="{at(first):.1f}" y="{base - tall:.1f}" width="{max(1.0, at(last) - at(first) - 1):.1f}" '
            f'height="{tall:.1f}"><title>{text}</title></rect>'
        )
    ticks = "".join(
        f'<text x="{at(value):.1f}" y="{height - 8}" text-anchor="middle">{tick_label(value)}</text>'
        for value in nice_ticks(edges[0], edges[-1])
    )
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{base}" y2="{base}"/>{"".join(bars)}{ticks}'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{most}</text></svg>'
    )


def interval_bar(mean: float, low: float, high: float, reach: float, style: str) -> str:
    """A mean and its interval on an axis from -reach to +reach, zero in the middle.

    Args:
        mean, low, high: in per cent; values beyond the axis are clipped, and the dot becomes an arrow head.
        reach: half the length of the axis; the same for all bars of a column.
        style: colour class, such as "better".
    """
    width, height = 180, 22
    if not all(map(math.isfinite, (mean, low, high))):
        return ""

    def at(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, value / reach)) * (width / 2 - 6)

    middle = height / 2
    label = f"{mean:+.3g} ({low:.3g} to {high:.3g})"
    beyond = abs(mean) > reach
    tip = width / 2 + math.copysign(width / 2 - 2, mean)
    back = tip - math.copysign(8, mean)
    dot = (
        f'<path class="dot {style}" d="M{tip:.1f} {middle}L{back:.1f} {middle - 5}L{back:.1f} {middle + 5}Z"/>'
        if beyond
        else f'<circle class="dot {style}" cx="{at(mean):.1f}" cy="{middle}" r="4.5"/>'
    )
    return (
        f'<svg class="bar" viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><title>{label} %</title>'
        f'<line class="grid" x1="4" x2="{width - 4}" y1="{middle}" y2="{middle}"/>'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="2" y2="{height - 2}"/>'
        f'<line class="span {style}" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{middle}" y2="{middle}"/>{dot}</svg>'
    )
