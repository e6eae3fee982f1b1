"""What a run did, as one HTML file that needs nothing else: numbers, curves, every round, configuration."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

from agfl_models.durable_files import read_json_lines
from agfl_models.errors import DataError
from agfl_models.store import CONFIG_FILE, METRICS_FILE
from agfl_models.tasks import distribution
from agfl_models.tasks.task import MainMetric
from agfl_server.run_folder import RunFolder
from agfl_sim.charts import CHART_CSS, Chart, Curve, Point, line_chart, number_text
from agfl_sim.comparison import Comparison
from agfl_sim.join_section import JOIN_CSS, join_section
from agfl_sim.search_section import search_section
from agfl_sim.width_section import width_section

Row = dict[str, float | None]

# The file needs nothing from outside itself, and a browser is told to allow nothing else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
QUANTIZATION_LIMIT_PERCENT = 1.0
NOT_RECORDED = "&ndash;"

PAGE_CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --muted: #565d6b;
  --line: #dfe3ea; --curve0: #2563c9; --curve1: #c2500a; --limit: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1e24; --ink: #eceff4;
  --muted: #a7b0bf; --line: #323944; --curve0: #7fb0ff; --curve1: #ff9f5a; --limit: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 1.25rem; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.15rem; }
h1 small { display: block; color: var(--muted); font-size: .9rem; font-weight: 400; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
dl div, figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dl div { padding: .65rem .9rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: .75rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; padding: .6rem; }
.scroll { overflow: auto; max-height: 36rem; }
.scroll:focus-visible { outline: 2px solid var(--curve0); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--muted); vertical-align: bottom;
  white-space: normal; }
tbody tr:last-child > * { border-bottom: 0; }
caption { padding: .5rem .7rem 0; color: var(--muted); text-align: left; }
pre { margin: 0; padding: .9rem; font: .85rem/1.5 ui-monospace, monospace; }
"""


def write_report(run_folder: Path, main_metric: MainMetric, comparison: Comparison | None = None) -> Path:
    """Read `metrics.jsonl` and `config.yaml` of a run, and what its search left, and write `report.html` beside them.

    main_metric: of the run's task. comparison: with the baselines, where the run has any.

    Raises:
        DataError, CheckpointError: one of the two files is missing, or a file is unreadable or malformed.
    """
    rows = _read_rows(run_folder / METRICS_FILE)
    configuration = _read_text(run_folder / CONFIG_FILE)
    report = run_folder / "report.html"
    join = "" if comparison is None else join_section(comparison)
    sections = join + search_section(RunFolder(run_folder).search) + width_section(run_folder)
    report.write_text(_page(run_folder.resolve().name, rows, configuration, main_metric, sections), encoding="utf-8")
    return report


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _read_rows(path: Path) -> list[Row]:
    # Whole numbers become floats too: every number of a row has one type, and true is none of them.
    found = read_json_lines(path, parse_int=float)
    rows = [_checked_row(row, f"{path}:{number}") for number, row in enumerate(found, start=1)]
    if not rows:
        raise DataError(f"{path}: must hold at least one round, is empty")
    return rows


def _checked_row(row: dict[str, Any], place: str) -> Row:
    for key, value in row.items():
        if not isinstance(value, float | None):
            raise DataError(f"{place}: {key}: must be a number or null, got {value!r}")
    # A loss that overflowed has no place on an axis: it is shown as not recorded.
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in row.items()}
    if finite.get("round") is None:
        raise DataError(f"{place}: round: required but missing")
    return finite


def _values(rows: list[Row], key: str) -> list[float]:
    return [value for row in rows if (value := row.get(key)) is not None]


def _curve(rows: list[Row], name: str, key: str, scale: float = 1.0) -> Curve:
    rounds = _values([row for row in rows if row.get(key) is not None], "round")
    values = _values(rows, key)
    return Curve(name, [Point(int(i), value * scale) for i, value in zip(rounds, values, strict=True)])


def _charts(rows: list[Row], main_metric: MainMetric) -> list[Chart]:
    size, unit = _byte_unit(max(_values(rows, "bytes_up") + _values(rows, "bytes_down"), default=0.0))
    losses = [_curve(rows, "training", "train/loss"), _curve(rows, "evaluation", "eval/loss")]
    quality = [_curve(rows, "all owners", main_metric.name)]
    quality += [_curve(rows, "worst tenth of owners", distribution.WORST_DECILE)]
    moved = [_curve(rows, "from clients", "bytes_up", 1 / size)]
    moved += [_curve(rows, "to clients", "bytes_down", 1 / size)]
    seconds = [_curve(rows, "whole round", "seconds")]
    errors = [_curve(rows, "relative error", "quantization/relative_error", 100.0)]
    clients = [_curve(rows, "took part", "clients"), _curve(rows, "refused", "refused")]
    return [
        Chart("Loss", "nats", losses),
        Chart(f"Evaluation: {main_metric.title}", "", quality),
        Chart("Bytes per round", unit, moved, from_zero=True),
        Chart("Seconds per round", "s", seconds, from_zero=True),
        Chart("Quantization error", "%", errors, from_zero=True, limit=QUANTIZATION_LIMIT_PERCENT),
        Chart("Clients per round", "", clients, from_zero=True, smallest_step=1.0),
    ]


def _headlines(rows: list[Row], main_metric: MainMetric) -> list[tuple[str, str]]:
    quality = _values(rows, main_metric.name)
    clients = _values(rows, "clients")
    seconds = _values(rows, "seconds")
    return [
        (f"First {main_metric.title}", number_text(quality[0]) if quality else NOT_RECORDED),
        (f"Last {main_metric.title}", number_text(quality[-1]) if quality else NOT_RECORDED),
        ("Rounds", number_text(max(_values(rows, "round")))),
        ("Clients, at most", number_text(max(clients)) if clients else NOT_RECORDED),
        ("Sent by clients", _bytes_text(_values(rows, "bytes_up"))),
        ("Sent to clients", _bytes_text(_values(rows, "bytes_down"))),
        ("Total time", f"{number_text(sum(seconds))} s" if seconds else NOT_RECORDED),
    ]


def _byte_unit(most: float) -> tuple[float, str]:
    return next((unit for unit in BYTE_UNITS if most >= unit[0]), BYTE_UNITS[-1])


def _bytes_text(counts: list[float]) -> str:
    if not counts:
        return NOT_RECORDED
    size, unit = _byte_unit(sum(counts))
    return f"{number_text(sum(counts) / size)} {unit}"


def _table(rows: list[Row]) -> str:
    keys = ["round", *(key for key in dict.fromkeys(key for row in rows for key in row) if key != "round")]
    heads = "".join(f'<th scope="col">{escape(key.replace("/", " ").replace("_", " "))}</th>' for key in keys)
    body = "\n".join(f"<tr>{''.join(_cell(key, row.get(key)) for key in keys)}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _cell(key: str, value: float | None) -> str:
    text = NOT_RECORDED if value is None else number_text(value)
    return f'<th scope="row">{text}</th>' if key == "round" else f"<td>{text}</td>"


def _page(name: str, rows: list[Row], configuration: str, main_metric: MainMetric, sections: str) -> str:
    title = escape(name)
    numbers = "\n".join(
        f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in _headlines(rows, main_metric)
    )
    figures = "\n".join(f"<figure>{line_chart(chart)}</figure>" for chart in _charts(rows, main_metric))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - AutoGen Federated</title>
<style>{PAGE_CSS}{CHART_CSS}{JOIN_CSS}</style>
</head>
<body>
<h1><small>AutoGen Federated, report of a run</small>{title}</h1>
<main>
<dl>
{numbers}
</dl>
{sections}
<h2 id="curves">Curves</h2>
<section class="charts" aria-labelledby="curves">
{figures}
</section>
<h2 id="rounds">All rounds</h2>
<div class="scroll" role="region" aria-labelledby="rounds" tabindex="0">
{_table(rows)}
</div>
<h2 id="configuration">Configuration</h2>
<div class="scroll" role="region" aria-labelledby="configuration" tabindex="0">
<pre>{escape(configuration)}</pre>
</div>
</main>
</body>
</html>
"""
