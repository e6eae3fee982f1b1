"""What was set at a run's start is kept in its folder: --resume goes on with the same run, and says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agfl_models.errors import CheckpointError
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.run.settings import SETTINGS_FILE, merged, read_settings, write_settings
from agfl_sim.engines.grid import InProcessGrid


@pytest.mark.parametrize(
    ("kept", "new", "expected"),
    [
        ([], [], []),
        (["a=1", "b=2"], [], ["a=1", "b=2"]),
        (["a=1", "b=2"], ["a=3"], ["b=2", "a=3"]),
        (["a=1"], ["a=1", "a=2"], ["a=2"]),
        (["a.b={c: 1}"], ["a.b.c=2"], ["a.b={c: 1}", "a.b.c=2"]),
    ],
)
def test_what_is_set_anew_takes_the_place_of_what_was_kept(
    kept: list[str], new: list[str], expected: list[str]
) -> None:
    assert merged(kept, new) == expected


def test_what_was_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = ["data.path=/my text/Zo\u00eb's", "tokenizer={type: bpe, vocab_size: 300}"]
    assert read_settings(tmp_path) == []
    write_settings(tmp_path / "new", settings)
    assert read_settings(tmp_path / "new") == settings
    for text in ("", "[]", '{"set": 1}', "\x00"):
        (tmp_path / SETTINGS_FILE).write_text(text)
        with pytest.raises(CheckpointError, match="AGFL-CHECKPOINT-019"):
            read_settings(tmp_path)


def test_a_run_keeps_what_was_set_and_one_that_is_refused_keeps_nothing(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    open_grid: Callable[..., InProcessGrid],
    tmp_path: Path,
) -> None:
    folder, grid = tmp_path / "run", open_grid(make_owners(2))
    with pytest.raises(CheckpointError):
        run_federation(grid, run_config(), folder, resume=True, settings=["num_rounds=3"])
    assert not folder.exists()
    run_federation(grid, run_config("num_rounds=1"), folder, settings=["num_rounds=1"])
    assert read_settings(folder) == ["num_rounds=1"]
