"""A small line chart as inline SVG: no script, no network, colors from the page's light or dark scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT, EMPTY_HEIGHT = 520, 298, 64
LEFT, RIGHT, TOP, BOTTOM = 58, 500, 78, 256  # the plot area inside the picture
_TO = "\N{EN DASH}"
MAX_DOTS, MAX_BANDS = 60, 150  # of long runs a line without dots, and several rounds a band, for a small file

CHART_CSS = """
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
svg .title { fill: var(--ink); font-size: 15px; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 2 4; }
svg .curve0 { stroke: var(--curve0); fill: var(--curve0); }
svg .curve1 { stroke: var(--curve1); fill: var(--curve1); }
svg line.curve0, svg line.curve1, svg polyline { stroke-width: 2; }
svg line.curve1, svg polyline.curve1 { stroke-dasharray: 6 4; }
svg polyline.curve0, svg polyline.curve1 { fill: none; }
.bands path { fill: transparent; }
.bands line, .bands text { visibility: hidden; pointer-events: none; }
.bands line { stroke: var(--muted); stroke-width: 1; }
.bands text { fill: var(--ink); }
.bands g:hover > * { visibility: visible; }
"""


class Point(NamedTuple):
    """One value of a curve, at the end of a round, or at another whole number that the chart counts by."""

    round: int
    value: float


@dataclass(frozen=True)
class Curve:
    """A named line, or dots that no line joins; rounds without a value are left out."""

    name: str
    points: list[Point]
    is_joined: bool = True


@dataclass(frozen=True)
class Chart:
    """What `line_chart` draws: one or two curves over rounds, and perhaps a limit to stay below."""

    title: str
    unit: str
    curves: list[Curve]
    from_zero: bool = False
    limit: float | None = None
    smallest_step: float = 0.0
    x_label: str = "round"


@dataclass(frozen=True)
class Axis:
    """Ticks, and a range with the pixels that its ends stand at; of one number the middle between them."""

    ticks: list[float]
    low: float
    high: float
    start: float
    end: float

    @staticmethod
    def over(marks: list[float], start: float, end: float) -> Axis:
        """Return the axis from the first tick to the last."""
        return Axis(marks, marks[0], marks[-1], start, end)

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, smallest_step: float = 0.0) -> list[float]:
    """Return 2 to 7 numbers, evenly spaced by 1, 2 or 5 times a power of ten, that cover `low` to `high`."""
    if math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-12):
        margin = 0.5 * abs(low) or 1.0
        low, high = low - margin, high + margin
    rough_step = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = max(smallest_step, next(m * power for m in (1, 2, 5, 10, 20) if m * power >= rough_step))
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def inner_ticks(low: int, high: int) -> list[float]:
    """Return 1 to 8 whole numbers from `low` to `high`, evenly spaced as `ticks`."""
    found = ticks(low, high, smallest_step=1.0) if low < high else [float(low)]
    return [tick for tick in found if low <= tick <= high]


def number_text(value: float) -> str:
    """Return a number as people read it: whole or with 4 digits: 40, 1,204,000, 2.410, 3.100e-05."""
    whole = value.is_integer() or abs(value) >= 1e3
    return f"{value:,.0f}" if whole and abs(value) < 1e15 else f"{value:#.4g}"


def line_chart(chart: Chart) -> str:
    """Return the chart as one `<svg>` element whose title and description say in words what it shows."""
    key = "chart-" + "".join(c if c.isalnum() else "-" for c in chart.title.lower())
    curves = [curve for curve in chart.curves if curve.points]
    height = HEIGHT if curves else EMPTY_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc">',
        f'<title id="{key}-title">{escape(chart.title)}</title>',
        f'<desc id="{key}-desc">{escape(_in_words(chart))}</desc>',
        f'<text class="title" x="8" y="20">{escape(chart.title)}</text>',
    ]
    if curves:
        x, y = _axes(chart, curves)
        parts += [*_grid(x, y, chart.x_label), *_legend(chart)]
        parts += _limit(chart.limit, chart.unit, y) if chart.limit is not None else []
        parts += [_curve(curve, f"curve{i}", x, y) for i, curve in enumerate(chart.curves) if curve.points]
        parts += bands(chart, x)
    else:
        parts.append('<text x="8" y="46">not recorded</text>')
    return "\n".join([*parts, "</svg>"])


def _in_words(chart: Chart) -> str:
    sentences = []
    for curve in chart.curves:
        if not curve.points:
            sentences.append(f"{curve.name}: not recorded.")
            continue
        first, last = curve.points[0], curve.points[-1]
        sentences.append(
            f"{curve.name}: {number_text(first.value)} {chart.unit} at {chart.x_label} {first.round}, "
            f"{number_text(last.value)} {chart.unit} at {chart.x_label} {last.round}."
        )
    return " ".join(sentences)


def _axes(chart: Chart, curves: list[Curve]) -> tuple[Axis, Axis]:
    rounds = [point.round for curve in curves for point in curve.points]
    values = [point.value for curve in curves for point in curve.points]
    values += [0.0] if chart.from_zero else []
    values += [chart.limit] if chart.limit is not None else []
    first, last = min(rounds), max(rounds)
    x = Axis(inner_ticks(first, last), first, last, LEFT, RIGHT)
    return x, Axis.over(ticks(min(values), max(values), chart.smallest_step), BOTTOM, TOP)


def _grid(x: Axis, y: Axis, x_label: str) -> list[str]:
    parts = []
    for tick in y.ticks:
        height = y.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick_text(tick, y)}</text>')
    for tick in x.ticks:
        left = x.place(tick)
        parts.append(f'<text x="{left:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{tick_text(tick, x)}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 36}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def tick_text(tick: float, axis: Axis) -> str:
    step = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else 1.0
    decimals = max(0, 1 - math.floor(math.log10(step)))
    return f"{round(tick, decimals):,g}"


def _legend(chart: Chart) -> list[str]:
    # The unit stands above the axis that it belongs to; the names of the curves follow to its right.
    parts = [f'<text x="{LEFT - 8}" y="44" text-anchor="end">{escape(chart.unit)}</text>']
    left = LEFT + 4
    for i, curve in enumerate(chart.curves):
        if not curve.points:
            continue
        parts.append(f'<line class="curve{i}" x1="{left}" x2="{left + 24}" y1="40" y2="40"/>')
        parts.append(f'<text x="{left + 30}" y="44">{escape(curve.name)}</text>')
        left += 54 + 7 * len(curve.name)
    return parts


def _limit(limit: float, unit: str, y: Axis) -> list[str]:
    height = y.place(limit)
    label = f"limit {number_text(limit)} {escape(unit)}"
    return [
        f'<line class="limit" x1="{LEFT}" x2="{RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>',
        f'<text x="{RIGHT}" y="{height - 5:.1f}" text-anchor="end">{label}</text>',
    ]


def _curve(curve: Curve, css_class: str, x: Axis, y: Axis) -> str:
    places = [(f"{x.place(point.round):.1f}", f"{y.place(point.value):.1f}") for point in curve.points]
    has_dots = not curve.is_joined or len(places) <= MAX_DOTS
    dots = [f'<circle class="{css_class}" cx="{left}" cy="{top}" r="3"/>' for left, top in places if has_dots]
    line = f'<polyline class="{css_class}" points="{" ".join(",".join(place) for place in places)}"/>'
    line = line if curve.is_joined else ""
    return "\n".join([f'<g data-curve="{escape(curve.name)}">', line, *dots, "</g>"])


def bands(chart: Chart, x: Axis) -> list[str]:
    """Return one band a round, from edge to edge of the picture: over it one reads what every curve has there.

    Of long runs a band stands for several rounds, and says from where to where their values go.
    """
    rounds = sorted({point.round for curve in chart.curves for point in curve.points})
    size = math.ceil(len(rounds) / MAX_BANDS)
    parts = [rounds[i : i + size] for i in range(0, len(rounds), size)]
    edges = [x.place((before[-1] + after[0]) / 2) for before, after in pairwise(parts)]
    values = [_by_round(curve) for curve in chart.curves]
    found = ['<g class="bands">']
    for part, left, right in zip(parts, [0.0, *edges], [*edges, float(WIDTH)], strict=True):
        middle = x.place((part[0] + part[-1]) / 2)
        found.append(
            f'<g><path d="M{left:.1f} 0H{right:.1f}V{HEIGHT}H{left:.1f}Z"/>'
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{TOP}" y2="{BOTTOM}"/>'
            f'<text x="8" y="64">{escape(_readout(chart, part, values))}</text></g>'
        )
    return [*found, "</g>"]


def _by_round(curve: Curve) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for point in curve.points:
        found.setdefault(point.round, []).append(point.value)
    return found


def _readout(chart: Chart, rounds: list[int], values: list[dict[int, list[float]]]) -> str:
    where = f"{rounds[0]:,}" if len(rounds) == 1 else f"{rounds[0]:,}{_TO}{rounds[-1]:,}"
    parts = []
    for curve, by_round in zip(chart.curves, values, strict=True):
        here = [value for number in rounds for value in by_round.get(number, [])]
        if here:
            low, high = number_text(min(here)), number_text(max(here))
            parts.append(f"{curve.name} {low}" if low == high else f"{curve.name} {low}{_TO}{high}")
    return f"{chart.x_label} {where}: {', '.join(parts)} {chart.unit}".strip()
