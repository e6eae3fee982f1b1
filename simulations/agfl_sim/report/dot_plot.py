"""A dot plot as inline SVG: one line an owner, one mark a model, so that a person finds who gains and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from agfl_server.report.charts import WIDTH, Axis, number_text, tick_text, ticks

ROW_HEIGHT = 18
LEFT, RIGHT, TOP = 170, 500, 84  # the plot area; its height follows from the rows
NAME_LENGTH = 24  # characters that fit to the left of it

DOT_PLOT_CSS = """
svg .line0 { stroke: var(--curve0); stroke-width: 2; }
svg .line1 { stroke: var(--curve1); stroke-width: 2; }
svg .tick { stroke: var(--muted); stroke-width: 2; }
svg .hollow { fill: var(--card); stroke-width: 2; }
"""


@dataclass(frozen=True)
class DotPlot:
    """What `dot_plot` draws: for each row a filled dot, a hollow dot and a tick, in the order of `names`.

    names: of the three marks, for the legend. rows: name -> their values, from top to bottom. higher_is_better: so that
    the line between the dots has the color of the better one.
    """

    title: str
    unit: str
    names: tuple[str, str, str]
    rows: Mapping[str, tuple[float, float, float]]
    higher_is_better: bool


def dot_plot(plot: DotPlot) -> str:
    """Return the plot as one `<svg>` element whose title and description say in words what it shows."""
    height = TOP + ROW_HEIGHT * len(plot.rows) + 8
    values = [value for row in plot.rows.values() for value in row]
    axis = Axis.over(ticks(min(values), max(values)), LEFT, RIGHT)
    first, second, third = plot.names
    words = f"{len(plot.rows)} rows, one below the other; each shows {first}, {second} and {third}, in {plot.unit}."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="dot-plot-title dot-plot-desc">',
        f'<title id="dot-plot-title">{escape(plot.title)}</title>',
        f'<desc id="dot-plot-desc">{escape(words)}</desc>',
        f'<text class="title" x="8" y="20">{escape(plot.title)}</text>',
        *_legend(plot.names),
        *_grid(axis, plot.unit, height),
    ]
    parts += [_row(plot, name, row, axis, TOP + ROW_HEIGHT * i) for i, (name, row) in enumerate(plot.rows.items())]
    return "\n".join([*parts, "</svg>"])


def _legend(names: Sequence[str]) -> list[str]:
    parts, left = [], 14.0
    for name, mark in zip(names, (_dot, _hollow, _tick), strict=True):
        parts += [mark(left, 40, name), f'<text x="{left + 12}" y="44">{escape(name)}</text>']
        left += 44 + 7 * len(name)
    return parts


def _grid(axis: Axis, unit: str, height: float) -> list[str]:
    parts = [f'<text x="8" y="68">{escape(unit)}</text>']
    for tick in axis.ticks:
        left = axis.place(tick)
        parts.append(f'<text x="{left:.1f}" y="68" text-anchor="middle">{tick_text(tick, axis)}</text>')
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="74" y2="{height - 4}"/>')
    return parts


def _row(plot: DotPlot, name: str, row: tuple[float, float, float], axis: Axis, top: float) -> str:
    middle = top + ROW_HEIGHT / 2
    shown = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    first_is_better = (row[0] > row[1]) == plot.higher_is_better
    x = [axis.place(value) for value in row]
    titles = [f"{name}, {label}: {number_text(value)}" for label, value in zip(plot.names, row, strict=True)]
    return "\n".join(
        [
            f'<g data-row="{escape(name)}">',
            f'<text x="{LEFT - 12}" y="{middle + 4}" text-anchor="end">{escape(shown)}</text>',
            f'<line class="line{0 if first_is_better else 1}" x1="{x[0]:.1f}" x2="{x[1]:.1f}" '
            f'y1="{middle}" y2="{middle}"/>',
            _tick(x[2], middle, titles[2]),
            _hollow(x[1], middle, titles[1]),
            _dot(x[0], middle, titles[0]),
            "</g>",
        ]
    )


def _dot(x: float, y: float, title: str) -> str:
    return f'<circle class="curve0" cx="{x:.1f}" cy="{y}" r="4"><title>{escape(title)}</title></circle>'


def _hollow(x: float, y: float, title: str) -> str:
    return f'<circle class="curve1 hollow" cx="{x:.1f}" cy="{y}" r="4"><title>{escape(title)}</title></circle>'


def _tick(x: float, y: float, title: str) -> str:
    return (
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6}" y2="{y + 6}"><title>{escape(title)}</title></line>'
    )
