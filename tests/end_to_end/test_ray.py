"""The very same apps on Flower's Ray runtime: the same bits as in one process, and an end in seconds."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.commands import Started, run
from tests.end_to_end.conftest import CONFIG, run_ok

from agfl_models.errors import ConfigError
from agfl_protocol.folder_lock import held

MakeOwners = Callable[[int], Path]
PLAIN = ("--engine", "ray", "--set", "aggregation.type=plain")
SLOW_S = 500  # each of Ray's processes loads PyTorch, on a machine that may be busy
pytestmark = pytest.mark.timeout(2 * SLOW_S)


def simulate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("agfl-simulate", *arguments, timeout_s=SLOW_S)


def test_ray_ends_with_the_bits_of_the_inline_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_owners: MakeOwners
) -> None:
    """Ray's nodes keep nothing between messages, not even how far their words are cut up."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # of a Ray that is not there, and not wanted
    tokenizer = "tokenizer: {type: bpe, vocab_size: 275, merges_per_round: 8}\n"
    config, data = tmp_path / "run.yaml", ("--set", f"data.path={make_owners(3)}")
    config.write_text(CONFIG.replace("num_rounds: 5", "num_rounds: 2").replace("259", "275") + tokenizer)
    run_ok("agfl-simulate", config, "--output", tmp_path / "inline", *data)
    done = simulate(config, "--output", tmp_path / "ray", *PLAIN, *data)
    assert done.returncode == 0, done.stdout + done.stderr
    models = [(tmp_path / engine / "model" / "model.safetensors").read_bytes() for engine in ("inline", "ray")]
    assert models[0] == models[1]


def test_ray_refuses_secure_sums_by_name(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    refused = simulate(config, "--output", tmp_path / "ray", "--engine", "ray")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --engine ray: runs aggregation.type plain only")


def test_ray_that_cannot_start_is_one_line_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    deep = tmp_path / ("x" * 100)  # too long for a socket below it
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    refused = simulate(config, "--output", tmp_path / "ray", *PLAIN)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: --engine ray: Ray cannot start here: .*", refused.stderr.splitlines()[-1])
    assert "Traceback" not in refused.stdout + refused.stderr
    assert_free(tmp_path / "ray")


@pytest.mark.parametrize(("sent", "at"), [(signal.SIGINT, "round   2/"), (signal.SIGTERM, "aggregation is plain")])
def test_signal_ends_a_run_on_ray_in_seconds_and_frees_its_folder(
    tmp_path: Path, make_owners: MakeOwners, sent: int, at: str
) -> None:
    config, log = tmp_path / "run.yaml", tmp_path / "log"
    config.write_text(CONFIG.replace("num_rounds: 5", "num_rounds: 5000"))
    data = ("--set", f"data.path={make_owners(3)}")
    process = Started("agfl-simulate", config, "--output", tmp_path / "ray", *PLAIN, *data, log=log)
    try:
        deadline = time.monotonic() + SLOW_S
        while not log.exists() or at not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.send_signal(sent)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    assert re.search("stopped; go on with: .*|interrupted", log.read_text())
    assert "Traceback" not in log.read_text()
    assert_free(tmp_path / "ray")


def test_ray_none_of_whose_processes_answers_is_given_up(tmp_path: Path) -> None:
    """Ray itself would wait without end."""
    config, program = tmp_path / "run.yaml", tmp_path / "program.py"
    config.write_text(CONFIG)
    program.write_text(
        "from agfl_sim import cli\nfrom agfl_sim.engines import ray_engine\nray_engine._START_S = 0.001\ncli.main()"
    )
    refused = run(program, config, "--output", tmp_path / "ray", *PLAIN, timeout_s=SLOW_S)
    assert refused.returncode == 2
    line = (
        r"error: --engine ray: Ray cannot start here: none of its processes answered within 0.001 s \[AGFL-CONFIG-207\]"
    )
    assert re.fullmatch(line, refused.stderr.splitlines()[-1])
    assert "Traceback" not in refused.stderr
    assert_free(tmp_path / "ray")


def assert_free(folder: Path) -> None:
    """No process holds the folder."""
    folder.mkdir(exist_ok=True)
    with held(folder, ConfigError("AGFL-CONFIG-000", "held")):
        pass
