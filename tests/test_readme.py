"""What the README shows works: its commands parse, its Python runs, its YAML builds the model."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import torch
import typer
import yaml
from pydantic import TypeAdapter

from agfl_client.policy import Policy
from agfl_models import AutoGenModel
from agfl_models.tokenizers.tokenizer import TokenizerConfig
from agfl_models.validation import validate
from agfl_protocol.config.run_config import load_with_defaults
from agfl_server.run.defaults_table import shown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = ("agfl-simulate", "agfl-server", "agfl-client", "agfl-model")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def command_lines() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(COMMANDS)]


def application(name: str) -> click.Command:
    import agfl_client.cli
    import agfl_models.cli
    import agfl_server.cli
    import agfl_sim.cli

    apps = {
        "agfl-simulate": agfl_sim.cli.app,
        "agfl-server": agfl_server.cli.app,
        "agfl-client": agfl_client.cli.app,
        "agfl-model": agfl_models.cli.app,
    }
    return typer.main.get_command(apps[name])


def test_the_smallest_run_takes_what_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(blocks("yaml")[0])
    _, taken = load_with_defaults(tmp_path / "run.yaml")
    rows = [f"| {default.setting} | {shown(default.value)} | {default.reason} |" for default in taken]
    assert "\n".join(["| setting | taken | because |", "|---|---|---|", *rows, ""]) in README


@pytest.mark.parametrize("line", command_lines())
def test_every_command_parses(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = application(name)
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    if isinstance(command, click.Group):
        sub_name, sub_command, rest = command.resolve_command(context, arguments)
        assert sub_command is not None
        sub_command.make_context(sub_name, rest, parent=context)


def test_all_four_commands_are_shown() -> None:
    assert {line.split()[0] for line in command_lines()} == set(COMMANDS)


def test_the_literal_model_runs() -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, AutoGenModel)
    assert model(torch.randn(2, 5, 64)).shape == (2, 5, 64)


def test_the_policy_is_one() -> None:
    policy = blocks("yaml")[1]
    assert set(validate(Policy, yaml.safe_load(policy), "README").model_fields_set) == set(Policy.model_fields)


def test_the_yaml_model_builds() -> None:
    text = blocks("yaml")[2]
    model = AutoGenModel(yaml.safe_load(text)["model"])
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 259)


def test_ci_calls_the_test_command_of_the_readme() -> None:
    test_command = "python -m pytest -n 3 --dist loadfile"
    assert any(line.endswith(test_command) for block in blocks("sh") for line in block.splitlines())
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_yaml_tokenizer_is_one() -> None:
    text = blocks("yaml")[3]
    tokenizer = TypeAdapter(TokenizerConfig).validate_python(yaml.safe_load(text)["tokenizer"])
    assert not tokenizer.is_trained


def test_ci_runs_what_is_numeric_once_more_without_wide_instructions() -> None:
    """All files of its list are there: bash leaves a name that it cannot expand as it is."""
    script = (ROOT / ".ci" / "run").read_text()
    assert (
        'ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE python -m pytest -n 3 --dist loadfile "${numeric[@]}"'
        in script
    )
    named = re.search(r"^numeric=\(.*?^\)", script, re.MULTILINE | re.DOTALL)
    assert named is not None
    listed = subprocess.run(
        ["bash", "-c", f'{named[0]}\nls "${{numeric[@]}}"'], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.split()) > 25
