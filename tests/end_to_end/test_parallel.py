"""Nodes with several ranks in a federation over TLS with secure sums: a rank or a node is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
from tests.client.test_machines import free_port

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Command, Site

TWO = ("--device", "cpu", "--parallel")
# The real client, but for its ranks, which have PyTorch loaded when they start.
FORKED_RANKS = """
import sys
from tests.forked_workers import forked_rank
from agfl_client.parallel import ranks

ranks.launch = forked_rank
if sys.argv[1] == "rank":
    from agfl_client.parallel import elsewhere
    from tests.forked_workers import forked_elsewhere

    elsewhere.launch = forked_elsewhere
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


def start_machine(site: Site, script: Path, meet: str) -> tuple[Command, int]:
    """Start the command of another machine of the third owner; return it and its rank's process."""
    key = site.folder / "keys" / site.owners[2].stem / "machines.key"
    machine = site.start("machine", script, "rank", "--join", meet, "--key", key, "--device", "cpu", "--ranks", "1")
    return machine, int(machine.wait_for(r"1 ranks \(processes (\d+)\) join").group(1))


def test_nodes_with_two_ranks_train_what_is_simulated_with_one_though_a_rank_and_a_machine_are_killed(
    site: Site,
) -> None:
    server, port = site.start_server()
    script = site.folder / "client.py"
    script.write_text(FORKED_RANKS)
    sharing = zip(site.owners, ("ddp:2", "fsdp2:2", "ddp+1"), strict=True)
    arguments = [site.client_arguments(owner, port, *TWO, how) for owner, how in sharing]
    meet = f"127.0.0.1:{free_port()}"
    arguments[2] += ("--meet", meet)
    clients = [site.start("client", script, *its) for its in arguments]
    clients[2].wait_for("waiting for 1 ranks of your other machines")
    machine, its_rank = start_machine(site, script, meet)
    rank = rank_of(clients[0])
    os.kill(rank, signal.SIGKILL)
    clients[2].wait_for("2 ranks train together: this process and 127.0.0.1")
    machine.kill()
    assert is_gone(its_rank), "it ends with its machine's command"
    machine, _ = start_machine(site, script, meet)
    assert server.wait() == 0, server.output()
    assert [client.wait(30) for client in clients] == [0, 0, 0]
    assert "rank 1 was ended by signal 9; all are started again, and the round too" in clients[0].output()
    assert "rank 1 at 127.0.0.1 was lost; all are started again, and the round too" in clients[2].output()
    machine.process.send_signal(signal.SIGTERM)
    assert machine.wait(30) == 130, machine.output()
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
