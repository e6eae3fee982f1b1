"""Nodes with several ranks in a federation over TLS with secure sums: a rank or a node is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Command, Site

TWO = ("--device", "cpu", "--parallel")
# The real client, but for its ranks, which have PyTorch loaded when they start.
FORKED_RANKS = """
from tests.forked_workers import forked_rank
from agfl_client.parallel import ranks

ranks.launch = forked_rank
from agfl_client.cli import main
if __name__ == "__main__":  # a rank reads the script, too
    main()
"""


def rank_of(client: Command) -> int:
    """The process beside a node's own, which has just joined it to train."""
    return int(client.wait_for(r"2 ranks train together: this process and (\d+)").group(1))


def is_gone(pid: int) -> bool:
    """Whether a process ends within five seconds; what nobody waits for stays as a zombie."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_nodes_with_two_ranks_train_what_is_simulated_with_one_though_a_rank_is_killed(site: Site) -> None:
    server, port = site.start_server()
    script = site.folder / "client.py"
    script.write_text(FORKED_RANKS)
    sharing = zip(site.owners, ("ddp:2", "fsdp2:2", "single"), strict=True)
    arguments = [site.client_arguments(owner, port, *TWO, how) for owner, how in sharing]
    clients = [site.start("client", script, *its) for its in arguments]
    rank = rank_of(clients[0])
    os.kill(rank, signal.SIGKILL)
    assert server.wait() == 0, server.output()
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    assert "rank 1 was ended by signal 9; all are started again, and the round too" in clients[0].output()
    assert is_gone(rank_of(clients[1]))
    simulated, model = (safetensors.numpy.load(content) for content in (site.simulated_model, site.model))
    for name, weights in simulated.items():
        np.testing.assert_allclose(model[name], weights, atol=1e-3, err_msg=name)


def test_a_rank_ends_with_its_node_that_is_killed(site: Site) -> None:
    """Here it is a new interpreter, as a person's."""
    _, port = site.start_server()
    owner, *others = site.owners
    client = site.start_client(owner, port, *TWO, "auto:2")
    for other in others:
        site.start_client(other, port)
    rank = rank_of(client)
    client.kill()
    assert is_gone(rank)
