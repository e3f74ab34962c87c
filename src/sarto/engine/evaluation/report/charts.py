"""Charts of the report as inline SVG: scores with their intervals, and losses over steps. The page has the colours.

Each chart has a title for screen readers; the page repeats its numbers in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640
LABEL_WIDTH = 170
ROW_HEIGHT = 26


@dataclass(frozen=True)
class Bar:
    """One row of a score chart, with all values between 0 and 1."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """Points (step, value) of one line; `style` is a class of the page."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]


def interval_chart(title: str, bars: Sequence[Bar]) -> str:
    """A dot per system on an axis from 0 to 100 %, with a line over its interval."""
    height = ROW_HEIGHT * len(bars) + 30
    parts = [_open(title, height)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _across(share)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 22}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{share:.0%}</text>')
    for index, bar in enumerate(bars):
        y = ROW_HEIGHT * index + ROW_HEIGHT / 2 + 4
        parts.append(
            f'<text x="{LABEL_WIDTH - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(bar.label))}</text>'
        )
        if bar.low is not None and bar.high is not None:
            low, high = _across(max(0.0, bar.low)), _across(min(1.0, bar.high))
            parts.append(f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="dot" cx="{_across(bar.mean):.1f}" cy="{y:.1f}" r="5"/>')
    return "".join([*parts, "</svg>"])


def curve_chart(title: str, curves: Sequence[Curve]) -> str:
    """Lines over steps, on an axis from the lowest to the highest value; empty without points."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    height, left, right = 220, 60, WIDTH - 20
    steps, values = [point[0] for point in points], [point[1] for point in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) if last > first else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        return left + across * (right - left), height - 40 - up * (height - 70)

    parts = [_open(title, height)]
    for value in dict.fromkeys((low, high)):
        y = place(first, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step in dict.fromkeys((first, last)):
        parts.append(f'<text x="{place(step, low)[0]:.1f}" y="{height - 20}" text-anchor="middle">step {step:g}</text>')
    for index, curve in enumerate(curves):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in sorted(curve.points)))
        parts.append(f'<polyline class="{curve.style}" points="{path}"/>')
        dots = (place(*point) for point in curve.points)
        parts += [f'<circle class="{curve.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots]
        x = left + 150 * index
        parts.append(f'<line class="{curve.style}" x1="{x}" x2="{x + 24}" y1="12" y2="12"/>')
        parts.append(f'<text x="{x + 30}" y="16">{escape(curve.label)}</text>')
    return "".join([*parts, "</svg>"])


def _open(title: str, height: int) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg role="img" {size}><title>{escape(title)}</title>'


def _across(share: float) -> float:
    return LABEL_WIDTH + share * (WIDTH - LABEL_WIDTH - 30)


def _short(label: str) -> str:
    return label if len(label) <= 24 else label[:23] + "…"
