"""The very same apps on Flower's Ray runtime: the same bits as in one process."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.conftest import CONFIG, run, run_ok


def test_ray_ends_with_the_bits_of_the_inline_engine(tmp_path: Path) -> None:
    """Ray's nodes keep nothing between messages, not even how far their words are cut up."""
    tokenizer = "tokenizer: {type: bpe, vocab_size: 275, merges_per_round: 8}\n"
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.replace("num_rounds: 5", "num_rounds: 2").replace("259", "275") + tokenizer)
    run_ok("agfl-simulate", config, "--output", tmp_path / "inline")
    plain = ("--set", "aggregation.type=plain")
    run_ok("agfl-simulate", config, "--output", tmp_path / "ray", "--engine", "ray", *plain)
    models = [(tmp_path / engine / "model" / "model.safetensors").read_bytes() for engine in ("inline", "ray")]
    assert models[0] == models[1]


def test_ray_refuses_secure_sums_by_name(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG)
    refused = run("agfl-simulate", config, "--output", tmp_path / "ray", "--engine", "ray")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --engine ray: runs aggregation.type plain only")
