"""The very same apps on Flower's Ray runtime: the same bits as in one process, and an end in seconds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.end_to_end.conftest import BIN, CONFIG, Command, run, run_ok

from agfl_models.errors import ConfigError
from agfl_protocol.folder_lock import held

PLAIN = ("--engine", "ray", "--set", "aggregation.type=plain")
SLOW_S = 500  # each of Ray's processes loads PyTorch, on a machine that may be busy
pytestmark = pytest.mark.timeout(2 * SLOW_S)


def test_ray_ends_with_the_bits_of_the_inline_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's nodes keep nothing between messages, not even how far their words are cut up."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # of a Ray that is not there, and not wanted
    tokenizer = "tokenizer: {type: bpe, vocab_size: 275, merges_per_round: 8}\n"
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.replace("num_rounds: 5", "num_rounds: 2").replace("259", "275") + tokenizer)
    run_ok("agfl-simulate", config, "--output", tmp_path / "inline")
    done = run("agfl-simulate", config, "--output", tmp_path / "ray", *PLAIN, timeout_s=SLOW_S)
    assert done.returncode == 0, done.stdout + done.stderr
    models = [(tmp_path / engine / "model" / "model.safetensors").read_bytes() for engine in ("inline", "ray")]
    assert models[0] == models[1]


def test_ray_refuses_secure_sums_by_name(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    refused = run("agfl-simulate", config, "--output", tmp_path / "ray", "--engine", "ray")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --engine ray: runs aggregation.type plain only")


def test_ray_that_cannot_start_is_one_line_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    deep = tmp_path / ("x" * 100)  # too long for a socket below it
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    refused = run("agfl-simulate", config, "--output", tmp_path / "ray", *PLAIN, timeout_s=SLOW_S)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: --engine ray: Ray cannot start here: .*", refused.stderr.splitlines()[-1])
    assert "Traceback" not in refused.stdout + refused.stderr
    assert_free(tmp_path / "ray")


@pytest.mark.parametrize(("sent", "at"), [(signal.SIGINT, "round   2/"), (signal.SIGTERM, "aggregation is plain")])
def test_signal_ends_a_run_on_ray_in_seconds_and_frees_its_folder(tmp_path: Path, sent: int, at: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.replace("num_rounds: 5", "num_rounds: 5000"))
    log = tmp_path / "log"
    command = [str(BIN / "agfl-simulate"), str(config), "--output", str(tmp_path / "ray"), *PLAIN]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=unbuffered)
    started = Command(process, log)
    try:
        started.wait_for(at, SLOW_S)
        process.send_signal(sent)
        assert started.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert re.search("stopped; go on with: .*|interrupted", started.output())
    assert "Traceback" not in started.output()
    assert_free(tmp_path / "ray")


def test_ray_none_of_whose_processes_answers_is_given_up(tmp_path: Path) -> None:
    """Ray itself would wait without end. In a process of its own, which is all that Ray leaves nothing in."""
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    program = "from agfl_sim import cli, ray_engine; ray_engine._START_S = 0.001; cli.main()"
    command = [sys.executable, "-c", program, str(config), "--output", str(tmp_path / "ray"), *PLAIN]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=SLOW_S, check=False)
    assert refused.returncode == 2
    line = r"error: --engine ray: Ray cannot start here: none of its processes answered within 0.001 s"
    assert re.fullmatch(line, refused.stderr.splitlines()[-1])
    assert "Traceback" not in refused.stderr
    assert_free(tmp_path / "ray")


def assert_free(folder: Path) -> None:
    """No process holds the folder."""
    folder.mkdir(exist_ok=True)
    with held(folder, ConfigError("held")):
        pass
