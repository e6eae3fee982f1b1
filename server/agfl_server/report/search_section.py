"""The report's section on a search: who raced and when it left, loss against cost, and what each block is worth."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from agfl_models.errors import DataError
from agfl_server.report.charts import Chart, Curve, Point, line_chart, number_text
from agfl_server.report.table import table
from agfl_server.search.search import RACE_FILE
from agfl_server.search.skipping import BLOCKS_FILE

_KILO = 1000
Content = dict[str, Any]  # the content of a file of the search


def search_section(folder: Path) -> str:
    """Return the section as HTML, from the files in OUTPUT/search; nothing where the run began without a search.

    Raises:
        DataError: a file is unreadable or malformed.
    """
    race = _read(folder / RACE_FILE)
    if race is None:
        return ""
    try:
        blocks = _read(folder / BLOCKS_FILE)
        return _section(race, _blocks(blocks) if blocks is not None else "")
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            "AGFL-DATA-065", f"{folder}: must hold the files of a search as it writes them: {error!r}"
        ) from None


def _read(path: Path) -> Content | None:
    if not path.exists():
        return None
    try:
        content: Content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("AGFL-DATA-066", f"{path}: cannot be read: {error}") from None
    return content


def _section(race: Content, blocks: str) -> str:
    return f"""<h2 id="search">Search</h2>
<p class="answer">{escape(_answer(race))}</p>
<div class="beside">
<div class="scroll" role="region" aria-labelledby="search" tabindex="0">
{_candidates(race)}
</div>
<figure>{line_chart(_front(race["candidates"]))}</figure>
{blocks}
</div>
<p class="note">{escape(_note(race))}</p>"""


def _answer(race: Content) -> str:
    chosen = next((one["name"] for one in race["candidates"] if not one["fate"]), "none yet")
    return (
        f"Chosen of {len(race['candidates'])} architectures: {chosen}. The race took {race['candidate_rounds']:,} "
        f"rounds of candidates; training each of them to the end would have taken {race['exhaustive_rounds']:,}."
    )


def _note(race: Content) -> str:
    skipped = "".join(f" {name} took no part: {reason}." for name, reason in race["skipped"].items())
    return (
        "Loss: on the owners' validation text, after each rung; the configured model stays to the last. On the front: "
        f"no candidate has both less loss after the first rung and fewer FLOPs.{skipped}"
    )


def _candidates(race: Content) -> str:
    rungs = [f"loss, rung {number}" for number in range(1, len(race["rungs"]) + 1)]
    heads = ("Candidate", "parameters", "FLOPs a token", *rungs, "fate")
    rows = []
    for one in race["candidates"]:
        losses = [*one["losses"], *[None] * (len(rungs) - len(one["losses"]))]
        numbers = [f"{one['num_parameters']:,}", f"{one['flops_per_token']:,}", *map(_loss, losses)]
        rows.append(_row(one["name"], [*numbers, escape(one["fate"] or "chosen")]))
    return table(heads, rows)


def _blocks(content: Content) -> str:
    """Return the table of what skipping each block costs."""
    whole = content["loss"]
    rows = []
    for block in content["blocks"]:
        cost = None if whole is None or block["loss"] is None else block["loss"] - whole
        rows.append(_row(block["name"], [escape(block["layer"].split()[0]), _loss(block["loss"]), _loss(cost)]))
    blocks = table(("Block that is skipped", "layer", "loss without it", "costs"), rows)
    return f'<div class="scroll" role="region" aria-label="blocks" tabindex="0">\n{blocks}\n</div>'


def _front(candidates: list[Content]) -> Chart:
    """Return the candidates that have a loss after the first rung, over what they cost."""
    measured = [one for one in candidates if one["losses"] and one["losses"][0] is not None]
    points = sorted((one["flops_per_token"], one["losses"][0]) for one in measured)
    front: list[tuple[int, float]] = []
    for cost, loss in points:
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    others = [point for point in points if point not in front]
    curves = [Curve("on the front", _points(front)), Curve("others", _points(others), is_joined=False)]
    return Chart("Loss after the first rung, by cost", "nats", curves, x_label="kFLOPs a token")


def _points(pairs: list[tuple[int, float]]) -> list[Point]:
    return [Point(round(cost / _KILO), loss) for cost, loss in pairs]


def _loss(value: float | None) -> str:
    return "&ndash;" if value is None else number_text(value)


def _row(name: str, cells: list[str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
