"""The engine that trains in this process, with a thread a processor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from flwr.serverapp import Grid

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_models.machine import usable_cpus
from agfl_sim.engines.engine import Engine
from agfl_sim.engines.grid import InProcessGrid


class InlineEngine(Engine):
    """This process: one node an owner, as many at a time as there are processors."""

    def _open_grid(self, folder: Path) -> AbstractContextManager[Grid]:
        nodes = {number: create_client_app(node) for number, node in self._nodes(folder).items()}
        return InProcessGrid(nodes, self._num_workers or usable_cpus(), waits_for_all=True)

    def _nodes(self, folder: Path) -> dict[int, Node]:
        return self._owners.nodes(folder)
