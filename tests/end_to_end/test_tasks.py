"""The shipped runs of the tasks through real processes, made short: the same bits as their simulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.end_to_end.conftest import Site

from agfl_sim.cli import SHIPPED_CONFIGS

SHORT = {
    "num_rounds": 1,
    "evaluation": {"every": 1, "max_examples": 4},
    "tokenizer": {"type": "bpe", "vocab_size": 300, "merges_per_round": 64},
    "data": {"partition": "natural", "num_owners": 3},
}
MORE = {
    # All in one tier, since three are no two groups; the second round is the first of the whole model.
    "question_answering": {"num_rounds": 2, "elastic": {"widths": [0.5, 1.0]}},
    "summarization": {"num_rounds": 2, "search": {"slate": ["configured", "mingru"], "rungs": [1]}},
}


@pytest.fixture(scope="module", params=["translation", "summarization", "question_answering"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three natural owners of the task's corpus, and the simulation of one short round or two."""
    config = yaml.safe_load((SHIPPED_CONFIGS / f"{request.param}.yaml").read_text()) | SHORT
    config |= MORE.get(request.param, {})
    config["model"]["vocab_size"] = 300
    for stack in (config["model"], config["model"].get("encoder", {"layers": []})):
        for layer in stack["layers"]:  # of a search, each block is one more exchange
            layer |= {"repeat": 1} if "repeat" in layer else {}
            if stack is not config["model"]:
                layer["layers"] = layer["layers"][:1]
    config["training"] |= {"local_steps": 2, "batch_size": 2}
    config["task"] |= {name: 12 for name in ("source_length", "target_length") if name in config["task"]}
    site = Site(tmp_path_factory.mktemp(request.param))
    site.prepare(yaml.safe_dump(config))
    return site.folder


def chosen_in(run: Path) -> Any:
    """Return the model that a run's search chose; none where there was no search."""
    path = run / "search" / "chosen.yaml"
    return yaml.safe_load(path.read_text())["model"] if path.exists() else None


def test_deployment_and_simulation_of_a_task_end_with_the_same_bits(site: Site) -> None:
    server, port = site.start_server()
    clients = [site.start_client(owner, port) for owner in site.owners]
    assert server.wait() == 0, server.output()
    assert [client.wait(20) for client in clients] == [0, 0, 0]
    assert site.model == site.simulated_model
    learned, simulated = (
        (folder / "model" / "config.yaml").read_bytes()
        for folder in (site.federation / "run", site.folder / "simulated")
    )
    assert learned == simulated
    assert chosen_in(site.federation / "run") == chosen_in(site.folder / "simulated")
    rows = [json.loads(line) for line in (site.federation / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1].get("rings/owners_2", 3) == 3
