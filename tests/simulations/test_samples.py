"""What the model writes is shown for rows that it was not trained on, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from agfl_models.examples import TextRow, read_rows, write_rows
from agfl_models.tasks.dataset import split_rows
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.report.samples import write_samples


@pytest.fixture
def finished(run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """The owners of a run in tmp_path/run."""
    owners = sorted(make_owners(3).iterdir())
    InlineEngine(run_config("num_rounds=1"), owners).run(tmp_path / "run", resume=False, observer=Observer())
    return owners


def test_texts_are_held_out_ones_and_of_half_of_them_the_model_goes_on(finished: list[Path], tmp_path: Path) -> None:
    page = unescape(write_samples(tmp_path / "run", finished))
    for path in finished:
        training, held_out = split_rows(read_rows(path, TextRow), 0.1)
        beginning = held_out[0].text[: len(held_out[0].text) // 2].rpartition(" ")[0]
        assert f">{beginning}<" in page
        assert not any(row.text[:20] in page for row in training if row.text[:20] != beginning[:20])


def test_an_owner_without_use_is_left_out_and_a_run_without_any_has_no_section(
    finished: list[Path], tmp_path: Path
) -> None:
    alone, blank = tmp_path / "alone.jsonl", tmp_path / "blank.jsonl"
    write_rows(alone, [TextRow(text="nothing of it can be held out")])
    write_rows(blank, [TextRow(text=" ")])
    page = write_samples(tmp_path / "run", [alone, blank, finished[0]])
    assert ">owner-00<" in page
    assert "alone" not in page
    assert write_samples(tmp_path / "run", [alone, blank]) == ""


def test_a_run_without_a_model_has_no_section(make_owners: Callable[..., Path], tmp_path: Path) -> None:
    assert write_samples(tmp_path, sorted(make_owners(2).iterdir())) == ""
