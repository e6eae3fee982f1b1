"""All commands alike: --version, and -h wherever --help is taken."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

COMMANDS: dict[str, list[list[str]]] = {
    "agfl_server.cli": [[], ["start"], ["nodes"], ["remove-node"], ["renew"]],
    "agfl_client.cli": [[], ["start"], ["keygen"]],
    "agfl_models.cli": [[], ["describe"]],
    "agfl_sim.cli": [[]],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_short_help_is_the_long_one(module: str) -> None:
    app = import_module(module).app
    for command in COMMANDS[module]:
        short, long = (CliRunner().invoke(app, [*command, option]) for option in ("-h", "--help"))
        assert short.exit_code == 0, short.output
        assert short.output == long.output
        assert "Usage" in short.output


@pytest.mark.parametrize("module", COMMANDS)
def test_version_is_that_of_the_package(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["agfl-command", "--version"])
    import_module(module).main()
    assert capsys.readouterr().out == f"agfl {version('agfl')}\n"
