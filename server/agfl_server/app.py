"""The server's side of a run: read the configuration, build the parts, run the rounds, tell the nodes it is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from agfl_models.errors import ConfigError
from agfl_protocol import wire
from agfl_protocol.run_config import RunConfig, load_run_config
from agfl_server.exchange import exchange
from agfl_server.observer import Observer
from agfl_server.optimizers import build_optimizer
from agfl_server.plain_sum import PlainSum
from agfl_server.roster import Roster
from agfl_server.rounds import Federation, run_rounds
from agfl_server.run_folder import RunFolder
from agfl_server.state import ServerState, initial_state

_FINISH_TIMEOUT_S = 10.0


def run_federation(
    grid: Grid,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    registered_name: Callable[[int], str | None] | None = None,
) -> ServerState:
    """Run a federation to its last round over `grid` and leave everything it made in `folder`.

    registered_name: the NAME under which the transport admitted a node id, where it knows one.

    Raises:
        AgflError: one line for a person; what was checkpointed stays and can be resumed.
    """
    observer = observer or Observer()
    run_folder = RunFolder(folder)
    optimizer = build_optimizer(config.aggregation.server_optimizer)
    layout, state = initial_state(config, optimizer)
    if resume:
        state = run_folder.resume(config)
    else:
        run_folder.begin(config)
        run_folder.save(config, state, [])
    federation = Federation(
        config=config,
        task=config.task.build(),
        layout=layout,
        grid=grid,
        roster=Roster(grid, observer, registered_name),
        aggregator=PlainSum(observer),
        optimizer=optimizer,
        observer=observer,
    )
    state = run_rounds(federation, state, partial(run_folder.save, config))
    run_folder.save_model(config, layout, state)
    _finish(grid, state)
    return state


def _finish(grid: Grid, state: ServerState) -> None:
    """Tell every node that the run is over; who does not answer soon learns it from the closed door."""
    content = wire.FinishRequest(state.run_id, state.round).to_record()
    requests = [Message(content, node, wire.FINISH) for node in grid.get_node_ids()]
    for _ in exchange(grid, requests, _FINISH_TIMEOUT_S):
        pass


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point of Flower's own runtimes (`flwr run .`): paths come from the run configuration."""
    config, output = (str(context.run_config.get(key, "")) for key in ("config", "output"))
    if not config or not output:
        raise ConfigError("run-config: config and output must name a file and a folder, got an empty value")
    run_federation(grid, load_run_config(Path(config)), Path(output))
