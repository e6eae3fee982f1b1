"""agfl-model as a person runs it: a real process, its output and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agfl_models import AutoGenModel
from agfl_models.store import save_model

COMMAND = Path(sys.executable).with_name("agfl-model")


ENCODER_DECODER = {
    "family": "encoder_decoder",
    "vocab_size": 259,
    "dim": 16,
    "encoder": {"layers": [{"type": "rnn"}]},
    "layers": [{"type": "attention", "cross": True}],
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = AutoGenModel({"vocab_size": 259, "dim": 16, "layers": [{"type": "attention"}, {"type": "ff"}]}, seed=0)
    save_model(folder / "model", model.config, model.state_dict(), "language_modeling")
    return folder


def agfl_model(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "120", "PYTHONUTF8": "1"},
    )


def test_describe_shows_parts_and_totals(run_folder: Path) -> None:
    result = agfl_model("describe", run_folder, "--context-length", "10")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {cells[1].strip(): cells for line in result.stdout.splitlines() if len(cells := line.split("│")) == 6}
    # 16 * 64 attention weights; 3 * 16 * 48 of SwiGLU; 16 for each of three norms.
    assert [cell.strip() for cell in rows["layers.0"][3:5]] == ["1,024", "2,688"]
    assert [cell.strip() for cell in rows["layers.1"][3:5]] == ["2,304", "4,608"]
    assert [cell.strip() for cell in rows["total"][3:5]] == ["7,520", "15,584"]


def test_describe_shows_the_encoder(tmp_path: Path) -> None:
    model = AutoGenModel(ENCODER_DECODER, seed=0)
    save_model(tmp_path, model.config, model.state_dict(), "translation")
    result = agfl_model("describe", tmp_path, "--context-length", "10")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {cells[1].strip(): cells for line in result.stdout.splitlines() if len(cells := line.split("│")) == 6}
    # A GRU each way, 3 * 16 * 32 weights and 96 biases, and a projection of 32 * 16; q, k, v and output of 16 * 16.
    assert [cell.strip() for cell in rows["encoder.layers.0"][3:5]] == ["3,776", "7,168"]
    assert [cell.strip() for cell in rows["encoder.norm"][3:5]] == ["16", "0"]
    assert [cell.strip() for cell in rows["layers.0"][3:5]] == ["1,024", "2,688"]


def test_generate_continues_the_prompt_the_same_way_for_the_same_seed(run_folder: Path) -> None:
    first, again, other = (
        agfl_model("generate", run_folder, "Grüß", "--max-tokens", "30", "--seed", seed) for seed in "112"
    )
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("Grüß")
    assert len(first.stdout) > len("Grüß\n")
    assert first.stdout == again.stdout
    assert first.stdout != other.stdout


def test_a_temperature_that_is_no_number_is_one_line_and_exit_code_2(run_folder: Path) -> None:
    result = agfl_model("generate", run_folder, "--temperature", "nan")
    assert result.returncode == 2
    assert result.stderr == "error: command line: temperature: Input should be a finite number, got nan\n"


def test_a_missing_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = agfl_model("describe", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}/config.yaml: no such file\n"


def test_a_model_without_tokens_does_not_write(tmp_path: Path) -> None:
    model = AutoGenModel({"dim": 8, "layers": [{"type": "ff"}]})
    save_model(tmp_path, model.config, model.state_dict(), "regression")
    result = agfl_model("generate", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path}: model.vocab_size: must be 259 to write text, got None\n"


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, agfl_models, agfl_models.cli\n"
        "slow = {'torch', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "from agfl_models import AttentionLayer, AutoGenModel, CrossAttentionLayer, FFLayer, ModelConfig, RNNLayer\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert agfl_model("--help").returncode == 0


def test_the_package_has_no_other_names() -> None:
    import agfl_models

    with pytest.raises(AttributeError, match="no attribute 'AutoGenModle'"):
        _ = agfl_models.AutoGenModle
