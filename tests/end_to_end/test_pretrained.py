"""Three owners with their own copies of a pretrained model, in real processes: the bits of the simulation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.commands import run
from tests.end_to_end.conftest import Site
from tests.tiny_pretrained import write_pretrained

CONFIG = """
seed: 3
num_rounds: 2
task: {{type: language_modeling, sequence_length: 16}}
tokenizer: {{type: huggingface}}
model:
  family: huggingface
  architecture: causal
  folder: {folder}
  lora: {{rank: 2, targets: [q_proj, v_proj]}}
training: {{batch_size: 2, local_steps: 2}}
evaluation: {{every: 2, max_examples: 2}}
data: {{partition: natural, num_owners: 3}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A federation whose operator, but no owner, has the pretrained model at the place that the run names."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    site.prepare(CONFIG.format(folder=write_pretrained(tmp_path / "operator", "llama")))
    yield site
    for command in site.commands:
        if command.process.poll() is None:
            command.kill()


def test_deployment_and_simulation_end_with_the_same_adapter(site: Site, tmp_path: Path) -> None:
    server, port = site.start_server()
    clients = []
    for owner in site.owners:
        copy = shutil.copytree(tmp_path / "operator", tmp_path / owner.stem)
        clients.append(site.start_client(owner, port, "--pretrained", copy))
    assert server.wait() == 0, server.output()
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    assert site.model == site.simulated_model
    assert not [client.output() for client in clients if str(tmp_path / "operator") in client.output()]
    shutil.rmtree(tmp_path / "operator")
    missing = ("--pretrained", tmp_path / "operator")
    done = run("agfl-client", *site.client_arguments(site.owners[0], port, *missing))
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == f"error: pretrained: {tmp_path / 'operator'}: no such folder [AGFL-PRETRAINED-001]"
    )
