"""A path that an unset shell variable left empty is a mistake, and not the folder that the command runs in."""

from __future__ import annotations

import sys

import pytest
import typer

from agfl_client.cli import app as client_app
from agfl_models.cli import app as model_app
from agfl_models.console import run_app
from agfl_server.cli import app as server_app
from agfl_sim.cli import app as simulation_app


@pytest.mark.parametrize(
    ("app", "arguments", "name"),
    [
        (client_app, ["probe", "--config", "run.yaml", "--data", ""], "--data"),
        (client_app, ["keygen", "alice", "--keys", " "], "--keys"),
        (model_app, ["evaluate", "model", "--data="], "--data"),
        (model_app, ["describe", ""], "path"),
        (server_app, ["roster", "", "--federation", "fed"], "file"),
        (simulation_app, ["--output", ""], "--output"),
    ],
)
def test_empty_path_is_refused_by_the_name_of_its_option(
    app: typer.Typer,
    arguments: list[str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_app(app)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {name}: must name a file or folder, got '")
    assert line.count("\n") == 1
