"""What a run did, as one HTML file that needs nothing else: numbers, curves, every round, how it was computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from agfl_models.errors import DataError
from agfl_models.files.durable_files import read_json_lines, write_atomically
from agfl_models.files.store import CONFIG_FILE, METRICS_FILE
from agfl_models.files.store_files import REPORT_FILE
from agfl_models.metrics.signatures import signatures
from agfl_models.tasks.task import MainMetric
from agfl_server.report.charts import CHART_CSS, Chart, line_chart, number_text
from agfl_server.report.curves import curve, loss_chart, other_charts, quality_chart, values
from agfl_server.report.search_section import search_section
from agfl_server.report.sittings_section import duration_text, sittings_section, total_time, when
from agfl_server.report.style import PAGE_CSS
from agfl_server.report.table import table
from agfl_server.run.run_folder import RunFolder
from agfl_server.run.sittings import Sitting, read_sittings

Row = dict[str, float | None]

# The file needs nothing from outside itself, and a browser is told to allow nothing else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
QUANTIZATION_LIMIT_PERCENT = 1.0
TRAFFIC = ("clients", "refused", "bytes_up", "bytes_down", "seconds", "quantization/relative_error")
NOT_RECORDED = "&ndash;"


@dataclass(frozen=True)
class Section:
    """A part of the page that only some runs have, between the first numbers and the curves; it is HTML already.

    quotes_owners: it holds text of theirs, so that only its owner may read the file.
    """

    html: str
    css: str = ""
    quotes_owners: bool = False


def write_report(
    run_folder: Path, main_metric: MainMetric, sections: Sequence[Section] = (), output: Path | None = None
) -> Path:
    """Read what a run has left in its folder so far, and write it as a page; return where that is.

    main_metric: of the run's task. sections: what the caller knows beyond that. output: report.html in the folder if
    omitted.

    Raises:
        DataError, CheckpointError: metrics.jsonl or config.yaml is missing, or a file is unreadable or malformed, or
            the page cannot be written.
    """
    rows = _read_rows(run_folder / METRICS_FILE)
    configuration = _read_text(run_folder / CONFIG_FILE)
    sittings = read_sittings(run_folder)
    sections = [*sections, Section(search_section(RunFolder(run_folder).search))]
    report = output or run_folder / REPORT_FILE
    page = _page(run_folder.resolve().name, rows, configuration, main_metric, sections, sittings)
    is_private = any(section.quotes_owners and section.html for section in sections)
    try:
        write_atomically(report, page.encode(), mode=0o600 if is_private else 0o644)
    except OSError as error:
        raise DataError("AGFL-DATA-058", f"{report}: cannot be written: {error.strerror}") from None
    return report


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError("AGFL-DATA-059", f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("AGFL-DATA-060", f"{path}: cannot be read: {error}") from None


def _read_rows(path: Path) -> list[Row]:
    # Whole numbers become floats too: every number of a row has one type, and true is none of them.
    found = read_json_lines(path, parse_int=float)
    rows = [_checked_row(row, f"{path}:{number}") for number, row in enumerate(found, start=1)]
    if not rows:
        raise DataError("AGFL-DATA-061", f"{path}: must hold at least one round, is empty")
    return rows


def _checked_row(row: dict[str, Any], place: str) -> Row:
    for key, value in row.items():
        if not isinstance(value, float | None):
            raise DataError("AGFL-DATA-062", f"{place}: {key}: must be a number or null, got {value!r}")
    # A loss that overflowed has no place on an axis: it is shown as not recorded.
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in row.items()}
    if finite.get("round") is None:
        raise DataError("AGFL-DATA-063", f"{place}: round: required but missing")
    if finite["round"] == 0 and not any(finite.get(key) for key in TRAFFIC):
        # Before round 1 only a tokenizer may be learned: where none was, nothing took place, which is no zero.
        return {key: None if key in TRAFFIC else value for key, value in finite.items()}
    return finite


def _charts(rows: list[Row], main_metric: MainMetric) -> list[Chart]:
    size, unit = _byte_unit(max(values(rows, "bytes_up") + values(rows, "bytes_down"), default=0.0))
    moved = [curve(rows, "from clients", "bytes_up", 1 / size)]
    moved += [curve(rows, "to clients", "bytes_down", 1 / size)]
    seconds = [curve(rows, "whole round", "seconds")]
    errors = [curve(rows, "relative error", "quantization/relative_error", 100.0)]
    clients = [curve(rows, "took part", "clients"), curve(rows, "refused", "refused")]
    return [
        loss_chart(rows),
        quality_chart(rows, main_metric),
        Chart("Bytes per round", unit, moved, from_zero=True),
        Chart("Seconds per round", "s", seconds, from_zero=True),
        Chart("Quantization error", "%", errors, from_zero=True, limit=QUANTIZATION_LIMIT_PERCENT),
        Chart("Clients per round", "", clients, from_zero=True, smallest_step=1.0),
        *other_charts(rows),
    ]


def _headlines(rows: list[Row], main_metric: MainMetric, sittings: Sequence[Sitting]) -> list[tuple[str, str]]:
    quality = values(rows, main_metric.name)
    clients = values(rows, "clients")
    return [
        (f"First {main_metric.title}", number_text(quality[0]) if quality else NOT_RECORDED),
        (f"Last {main_metric.title}", number_text(quality[-1]) if quality else NOT_RECORDED),
        ("Rounds", number_text(max(values(rows, "round")))),
        ("Clients, at most", number_text(max(clients)) if clients else NOT_RECORDED),
        ("Sent by clients", _bytes_text(values(rows, "bytes_up"))),
        ("Sent to clients", _bytes_text(values(rows, "bytes_down"))),
        _time(rows, sittings),
    ]


def _time(rows: list[Row], sittings: Sequence[Sitting]) -> tuple[str, str]:
    """Return how long all commands took that worked on the run; where none left a word, how long its rounds did."""
    if sittings:
        return "Total time", total_time(sittings)
    seconds = values(rows, "seconds")
    return "Time in rounds", duration_text(sum(seconds)) if seconds else NOT_RECORDED


def _byte_unit(largest: float) -> tuple[float, str]:
    return next((unit for unit in BYTE_UNITS if largest >= unit[0]), BYTE_UNITS[-1])


def _bytes_text(counts: list[float]) -> str:
    if not counts:
        return NOT_RECORDED
    size, unit = _byte_unit(sum(counts))
    return f"{number_text(sum(counts) / size)} {unit}"


def _table(rows: list[Row]) -> str:
    """Return all rounds, the newest first."""
    keys = ["round", *(key for key in dict.fromkeys(key for row in rows for key in row) if key != "round")]
    body = (f"<tr>{''.join(_cell(key, row.get(key)) for key in keys)}</tr>" for row in reversed(rows))
    return table((key.replace("/", " ").replace("_", " ") for key in keys), body)


def _signatures(rows: list[Row]) -> str:
    """Return how each score was counted that others may count otherwise."""
    named = signatures(dict.fromkeys(key for row in rows for key in row))
    lines = (f"{escape(key.removeprefix('eval/'))}: {escape(signature)}" for key, signature in named.items())
    return f'<p class="note">{"<br>".join(lines)}</p>' if named else ""


def _cell(key: str, value: float | None) -> str:
    text = NOT_RECORDED if value is None else number_text(value)
    return f'<th scope="row">{text}</th>' if key == "round" else f"<td>{text}</td>"


def _page(
    name: str,
    rows: list[Row],
    configuration: str,
    main_metric: MainMetric,
    sections: Sequence[Section],
    sittings: Sequence[Sitting],
) -> str:
    title = escape(name)
    numbers = "\n".join(
        f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in _headlines(rows, main_metric, sittings)
    )
    parts = "\n".join(section.html for section in sections if section.html)
    css = "".join(section.css for section in sections)
    figures = "\n".join(f"<figure>{line_chart(chart)}</figure>" for chart in _charts(rows, main_metric))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - AutoGen Federated</title>
<style>{PAGE_CSS}{CHART_CSS}{css}</style>
</head>
<body>
<h1><small>AutoGen Federated, report of a run</small>{title}<small>{when(sittings)}</small></h1>
<main>
<dl>
{numbers}
</dl>
{parts}
<h2 id="curves">Curves</h2>
<section class="charts" aria-labelledby="curves">
{figures}
</section>
<h2 id="rounds">All rounds, the newest first</h2>
<div class="scroll" role="region" aria-labelledby="rounds" tabindex="0">
{_table(rows)}
</div>
{_signatures(rows)}
{sittings_section(sittings)}
<h2 id="configuration">Configuration</h2>
<div class="scroll" role="region" aria-labelledby="configuration" tabindex="0">
<pre>{escape(configuration)}</pre>
</div>
</main>
</body>
</html>
"""
