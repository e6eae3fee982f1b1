"""Which width a device of each tier should use: none wider than it holds, of the best ones the fastest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_models.errors import DataError
from agfl_models.examples import TextRow, write_rows
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.baselines.widths import choose, read_widths, write_widths
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.report.width_section import width_section


@pytest.mark.parametrize(
    ("gains", "speeds", "chosen"),
    [
        ([None, 0.1, 0.1], [1.0, 2.0, 3.0], [0, 1, 2]),
        ([None, 0.1, 0.001], [1.0, 2.0, 3.0], [0, 1, 1]),  # as good as alike: the faster one
        ([None, -0.1, 0.05], [1.0, 2.0, 3.0], [0, 0, 0]),
        ([None, -0.1, 0.2], [1.0, 2.0, 3.0], [0, 0, 2]),
        ([None, 0.0, 0.001], [3.0, 2.0, 1.0], [0, 1, 2]),
        ([None, None, 0.5], [1.0, 2.0, 3.0], [0, 0, 0]),  # a ring that nobody trained ends it
    ],
)
def test_width_that_a_tier_should_use(gains: list[float | None], speeds: list[float], chosen: list[int]) -> None:
    assert choose(gains, speeds) == chosen


def test_a_run_writes_its_widths_and_the_report_shows_them(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    elastic = ("elastic={widths: [0.5, 1.0]}", "data.max_widths={0.5: 2, 1.0: 2}", "evaluation.every=1")
    config, owners = run_config(*elastic), sorted(make_owners(4).iterdir())
    InlineEngine(config, owners).run(tmp_path / "run", resume=False, observer=Observer())
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"round": 4, "ev')  # as a crash may have cut it short
    blank = tmp_path / "blank.jsonl"
    write_rows(blank, [TextRow(text=" ")])
    write_widths(tmp_path / "run", [blank, *owners])
    narrow, whole = read_widths(tmp_path / "run" / "widths.json")
    assert (narrow.width, whole.width, narrow.owners, whole.owners) == (0.5, 1.0, None, 2)
    assert (narrow.num_parameters, whole.num_parameters) == tuple(
        config.narrowed_model(k).num_parameters() for k in (1, 2)
    )
    assert narrow.flops_per_token < whole.flops_per_token
    assert narrow.gain is None
    assert whole.gain is not None
    assert min(narrow.ms, whole.ms) > 0
    section = width_section(tmp_path / "run")
    assert f"{whole.num_parameters:,}" in section
    assert "All 2 widths were trained" in section


def test_a_width_that_too_few_hold_is_named(tmp_path: Path) -> None:
    one = {"width": 0.5, "num_parameters": 1, "flops_per_token": 2, "owners": None, "gain": None, "ms": 0.1, "use": 0.5}
    (tmp_path / "widths.json").write_text(json.dumps([one, {**one, "width": 1.0, "owners": 0}]))
    assert "Too few owners hold width 1: its ring was not trained" in width_section(tmp_path)


def test_a_model_of_one_width_has_no_section(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    owners = sorted(make_owners(2).iterdir())
    InlineEngine(run_config("num_rounds=1"), owners).run(tmp_path, resume=False, observer=Observer())
    write_widths(tmp_path, owners)
    assert not (tmp_path / "widths.json").exists()
    assert width_section(tmp_path) == ""


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "widths.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"widths.json: must hold the widths of a run as it writes them"):
        width_section(tmp_path)
