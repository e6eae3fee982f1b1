"""The report's section on a search shows every candidate, its fate and the front, and takes names for text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agfl_models.errors import DataError
from agfl_server.report.search_section import search_section

SVG = "{http://www.w3.org/2000/svg}"


def candidate(name: str, flops: int, *losses: float | None, fate: str = "left after rung 1") -> dict[str, Any]:
    return {"name": name, "num_parameters": 1234, "flops_per_token": flops, "losses": losses, "fate": fate}


RACE = {
    "rungs": [2, 2],
    "candidate_rounds": 12,
    "exhaustive_rounds": 16,
    "reference_flops": 2000,
    "skipped": {"ff": "is the same as <b>"},
    "candidates": [
        candidate("configured", 2000, 3.5),
        candidate("gru", 3000, 2.5, 2.0, fate=""),
        candidate("attention", 4000, 3.0),
        candidate("<mingru>", 1000, None, fate="died in rung 1: its loss is nan"),
    ],
}
BLOCKS = {"round": 3, "loss": 2.0, "blocks": [{"name": "layers.0", "layer": "rnn cell=gru", "loss": 2.25}]}


def write(folder: Path, race: Any = RACE, blocks: Any = BLOCKS) -> Path:
    for name, content in (("search.json", race), ("blocks.json", blocks)):
        (folder / name).write_text(json.dumps(content))
    return folder


def test_section_tells_the_whole_race(tmp_path: Path) -> None:
    page = search_section(write(tmp_path))
    assert "Chosen of 4 architectures: gru. The race took 12 rounds" in page
    rows = [
        ElementTree.fromstring(row)
        for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", page.replace("&ndash;", "-"))
    ]
    cells = [[cell.text for cell in row] for row in rows]
    assert cells == [
        ["configured", "1,234", "2,000", "3.500", "-", "left after rung 1"],
        ["gru", "1,234", "3,000", "2.500", "2", "chosen"],
        ["attention", "1,234", "4,000", "3", "-", "left after rung 1"],
        ["<mingru>", "1,234", "1,000", "-", "-", "died in rung 1: its loss is nan"],
        ["layers.0", "rnn", "2.250", "0.2500"],
    ]
    assert "ff took no part: is the same as &lt;b&gt;." in page


def test_front_holds_who_is_not_beaten_in_both_loss_and_cost(tmp_path: Path) -> None:
    (picture,) = re.findall(r"<svg.*?</svg>", search_section(write(tmp_path)), re.DOTALL)
    groups = {group.get("data-curve"): group for group in ElementTree.fromstring(picture).iter(f"{SVG}g")}
    (bands,) = (group for group in ElementTree.fromstring(picture).iter(f"{SVG}g") if group.get("class") == "bands")
    assert [text.text for text in bands.iter(f"{SVG}text")] == [
        "kFLOPs a token 2: on the front 3.500 nats",
        "kFLOPs a token 3: on the front 2.500 nats",
        "kFLOPs a token 4: others 3 nats",
    ]
    assert groups["others"].find(f"{SVG}polyline") is None


def test_run_without_a_search_has_no_section(tmp_path: Path) -> None:
    assert search_section(tmp_path) == ""


@pytest.mark.parametrize("race", [[1], {}, {"candidates": 3}])
def test_files_that_no_search_wrote_are_refused(tmp_path: Path, race: object) -> None:
    with pytest.raises(DataError, match="AGFL-DATA-065"):
        search_section(write(tmp_path, race))
