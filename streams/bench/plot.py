"""Line charts as SVG, by hand: a few series over a logarithmic axis need no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, MARGIN = 360, 240, 56


@dataclass(frozen=True, slots=True)
class Chart:
    """Points (x, y) with x > 0, both axes labelled; x is logarithmic, y begins at 0."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]


def svg(charts: Sequence[Chart], columns: int = 3) -> str:
    """The charts in a grid, as one SVG document."""
    rows = math.ceil(len(charts) / columns)
    size = f'width="{WIDTH * min(columns, len(charts))}" height="{HEIGHT * rows}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, chart in enumerate(charts):
        x, y = number % columns * WIDTH, number // columns * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_chart(chart)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _chart(chart: Chart) -> str:
    left, right, top, bottom = MARGIN, WIDTH - 24, 32, HEIGHT - 44
    points = sorted(chart.points)
    low, high = math.log10(points[0][0]), math.log10(points[-1][0])
    most = max(y for _, y in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - low) / (high - low) if high > low else 0.5
        return left + share * (right - left), bottom - y / most * (bottom - top)

    parts = [
        f'<text x="{left}" y="18" font-weight="bold">{escape(chart.title)}</text>',
        f'<text x="{(left + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<text x="{left - 4}" y="{y + 4:.0f}" text-anchor="end">{_short(most * share)}</text>')
        parts.append(f'<path d="M{left} {y:.0f}H{right}" stroke="#ddd"/>')
    parts.append(f'<text x="{left + 4}" y="{top - 2}">{escape(chart.y_label)}</text>')
    places = [at(x, y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    for (x, y), (value, _) in zip(places, points, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#06c"/>')
        parts.append(f'<text x="{x:.0f}" y="{bottom + 14}" text-anchor="middle">{_short(value)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
