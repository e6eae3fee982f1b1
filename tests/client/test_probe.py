"""`agfl-client probe` measures each width on this machine and proposes one; the owner decides."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.commands import run

from agfl_client.training.probe import Measured, measure, proposed
from agfl_protocol.config.run_config import RunConfig

WIDTHS = "elastic={widths: [0.25, 0.5, 1.0]}"


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("agfl-client", "probe", *arguments)


def test_each_width_is_measured(run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]) -> None:
    config, data = run_config(WIDTHS), next(make_owners(1).iterdir())
    found = measure(config.client_plan, data, {}, "cpu", 1)
    assert [one.width for one in found] == [0.25, 0.5, 1.0]
    assert [one.num_parameters for one in found] == [config.narrowed_model(k).num_parameters() for k in (1, 2, 3)]
    memory = [one.memory_bytes for one in found]
    assert memory == sorted(set(memory))
    assert all(one.step_s > 0 and one.memory_bytes > 4 * one.num_parameters for one in found)


def test_every_model_that_a_round_may_broadcast_takes_memory(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]
) -> None:
    data = next(make_owners(1).iterdir())
    auto = run_config("aggregation.server_optimizer={type: auto}")
    (one,), (several,) = (measure(config.client_plan, data, {}, "cpu", 1) for config in (run_config(), auto))
    assert (
        several.memory_bytes - one.memory_bytes == 4 * (auto.client_plan.max_models - 1) * auto.model.num_parameters()
    )


def test_a_tokenizer_that_is_not_learned_yet_is_no_obstacle(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path]
) -> None:
    config = run_config("tokenizer={type: bpe, vocab_size: 300}", "model.vocab_size=300")
    (found,) = measure(config.client_plan, next(make_owners(1).iterdir()), {}, "cpu", 1)
    assert (found.width, found.num_parameters) == (1.0, config.model.num_parameters())


@pytest.mark.parametrize(
    ("max_seconds", "free_bytes", "width"),
    [(100.0, 1000, 1.0), (3.0, 1000, 0.5), (100.0, 20, 0.5), (1.0, 20, 0.25), (0.5, 1000, None), (100.0, 5, None)],
)
def test_the_widest_that_fits_is_proposed(max_seconds: float, free_bytes: int, width: float | None) -> None:
    found = [Measured(w, k, 1, 0.1 * k, 10 * k) for k, w in enumerate((0.25, 0.5, 1.0), start=1)]
    proposal = proposed(found, 10, max_seconds, free_bytes)
    assert (proposal.width if proposal else None) == width


def test_a_person_reads_a_table_and_the_line_for_the_policy(
    config_file: Path, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    config_file.write_text(config_file.read_text() + WIDTHS.replace("=", ": ", 1) + "\n")
    data = next(make_owners(1).iterdir())
    result = probe("--config", str(config_file), "--data", str(data))
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"0\.25 .* \d", result.stdout)
    assert "the times are of training alone; a round that evaluates takes longer\n" in result.stdout
    assert "proposed for your policy file, since training then takes at most 60 s a round:\n" in result.stdout
    assert result.stdout.endswith("max_width: 1\n")
    refused = probe("--config", str(config_file), "--data", str(data), "--max-seconds", "0")
    assert "not even width 0.25 fits" in refused.stdout
    assert "held out" not in result.stdout
    one = tmp_path / "one.txt"
    one.write_text("a single document")
    epochs = config_file.with_name("epochs.yaml")
    text = config_file.read_text().replace("local_steps: 2", "local_epochs: 1")
    epochs.write_text(text.replace("type: plain", "type: plain, max_weight: 99"))
    timeless = probe("--config", str(epochs), "--data", str(data))
    assert timeless.returncode == 0, timeless.stderr
    assert "width proposed: with training.local_epochs the steps follow from the text\n" in timeless.stdout
    refused = probe("--config", str(config_file), "--data", str(data), "--max-seconds", "nan")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --max-seconds: must be a number, got nan [AGFL-CONFIG-060]\n",
    )
    alone = probe("--config", str(config_file), "--data", str(one))
    assert (alone.returncode, "none of this data is held out to evaluate on: " in alone.stdout) == (0, True)
    for_a_machine = json.loads(probe("--config", str(config_file), "--data", str(data), "--json").stdout)
    assert [one["width"] for one in for_a_machine["widths"]] == [0.25, 0.5, 1.0]
    assert for_a_machine["max_width"] == 1.0
    missing = probe("--config", str(config_file), "--data", str(data.with_suffix(".txt")))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: data: ")
