"""A whole federation on one machine: the server's and the clients' own code, joined by a Grid of the chosen engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from agfl_client.training.device import AUTO
from agfl_models.errors import ConfigError
from agfl_models.validation import nearest
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.flower_settings import prepare_flower
from agfl_server.app import refuse_run
from agfl_server.rounds.observer import Observer
from agfl_server.run.settings import write_settings
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.choice import choose_engine
from agfl_sim.engines.engine import Engine
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.ray_engine import RayEngine
from agfl_sim.partition import Owners, owners_of

OWNERS_FOLDER = "owners"
AUTO_ENGINE = "auto"


ENGINES: dict[str, Callable[[RunConfig, Sequence[Path], str], Engine]] = {
    "inline": InlineEngine,
    "processes": ProcessesEngine,
    "ray": RayEngine,
}


def check_engine(engine: str, field: str) -> None:
    """Raise ConfigError unless there is such an engine; field: what a person calls it."""
    known = [AUTO_ENGINE, *ENGINES]
    if engine not in known:
        raise ConfigError("AGFL-CONFIG-083", f"{field}: unknown engine {engine!r}{nearest(engine, known)}")


def simulate(
    config: RunConfig,
    folder: Path,
    engine: str,
    resume: bool,
    observer: Observer,
    device: str = AUTO,
    tell: Callable[[str], None] = lambda line: None,
    settings: Sequence[str] = (),
    sitting: SittingLog | None = None,
    owners: Owners | None = None,
) -> list[Path]:
    """Divide the data into owners and run the federation to its last round, leaving everything in `folder`.

    Return the owners' files. engine: of `ENGINES`, or "auto", see `choose_engine`. device: where they train, "auto" or
    a PyTorch device. `tell` takes lines on what was read of a person's own; settings: what `--set` changed, for a run
    that goes on; sitting: of the command, begun once nothing refuses the run. owners: where somebody has divided the
    data already.

    Raises:
        AgflError: one line for a person.
    """
    prepare_flower()
    owners = owners or owners_of(config, folder / OWNERS_FOLDER)
    if engine == AUTO_ENGINE:
        engine, reason = choose_engine(config, owners, device)
        if reason is not None:
            tell(reason)
    chosen = ENGINES[engine](config, owners.files, device)
    refuse_run(config, folder, resume=resume, roster=chosen.roster, num_owners=len(owners.files))
    owners.write(is_new=not resume)
    for line in owners.notes:
        tell(line)
    write_settings(folder, settings)
    chosen.run(folder, resume=resume, observer=observer, sitting=sitting)
    return owners.files
