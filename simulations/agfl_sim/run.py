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
from agfl_server.run.run_folder import RunFolder
from agfl_server.run.settings import write_settings
from agfl_server.run.sittings import SittingLog
from agfl_sim.engines.choice import choose_engine
from agfl_sim.engines.engine import Engine
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.ray_engine import RayEngine
from agfl_sim.engines.stacked.stacked_engine import StackedEngine
from agfl_sim.parquet_population import population_of
from agfl_sim.partition import Owners, owners_of
from agfl_sim.population import Population

OWNERS_FOLDER = "owners"
AUTO_ENGINE = "auto"


ENGINES: dict[str, type[Engine]] = {"inline": InlineEngine, "processes": ProcessesEngine, "ray": RayEngine}
STACKED = "stacked"  # with a number of owners after it, as in stacked:25
_STACK, _MAX_STACK = 16, 256
MAX_MASKED = 200  # owners: each masks for each of the others
_UNMASKED_FILE, _STACKED_FILE = "without_masks", "stacked"


def check_engine(engine: str, field: str) -> None:
    """Raise ConfigError unless there is such an engine; field: what a person calls it."""
    known, (name, colon, number) = [AUTO_ENGINE, *ENGINES, STACKED], engine.partition(":")
    if name not in known or (colon and name != STACKED):
        raise ConfigError("AGFL-CONFIG-083", f"{field}: unknown engine {engine!r}{nearest(engine, known)}")
    if colon and not (len(number) <= 3 and number.isascii() and number.isdecimal() and 2 <= int(number) <= _MAX_STACK):
        rule = f"stacked must have a number of owners from 2 to {_MAX_STACK}, as in stacked:{_STACK}, or none"
        raise ConfigError("AGFL-CONFIG-276", f"{field}: {rule}, got {engine!r}")


def kept_engine(folder: Path, engine: str) -> str:
    """Return the engine with which a run goes on: how many owners are stacked may change the last bits of a sum.

    Raises:
        ConfigError: the run began with owners stacked otherwise.
    """
    kept = folder / _STACKED_FILE
    began = f"{STACKED}:{kept.read_text().strip()}" if kept.exists() else None
    if began is not None:
        check_engine(began, str(kept))
    if engine == AUTO_ENGINE:
        return began or engine
    if _stack_of(engine) != _stack_of(began or "inline"):
        rule = f"must be {began or 'one without a stack'}, as the run began"
        raise ConfigError("AGFL-CONFIG-278", f"--engine: {rule}, got {engine}")
    return engine


def _stack_of(engine: str) -> int | None:
    """Return how many owners an engine trains together; None where it trains one by one."""
    name, _, number = engine.partition(":")
    return int(number or _STACK) if name == STACKED else None


def found_owners(config: RunConfig, folder: Path) -> Owners | Population:
    """Return the owners of a run in `folder`, of whom nothing is written yet; raises as `owners_of`."""
    return population_of(config, folder / OWNERS_FOLDER) or owners_of(config, folder / OWNERS_FOLDER)


def check_masks(config: RunConfig, wanted: bool | None, field: str) -> None:
    """Raise ConfigError where it is said of sums that have no masks; field: what a person calls it."""
    if wanted is not None and config.aggregation.type == "plain":
        raise ConfigError("AGFL-CONFIG-249", f"{field}: must be left out with aggregation.type plain, got {wanted}")


def has_masks(config: RunConfig, num_owners: int, wanted: bool | None) -> bool:
    """Return whether the sums of a run are masked: as somebody wants it, else where there are at most 200 owners.

    All owners are in one sum at the end of a run, however few a round asks.
    """
    return config.aggregation.type == "secure" and (num_owners <= MAX_MASKED if wanted is None else wanted)


def was_unmasked(folder: Path) -> bool:
    """Whether sums of the run in a folder were added up without masks: it goes on so, and its report says it."""
    return (folder / _UNMASKED_FILE).exists()


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
    owners: Owners | Population | None = None,
    simulate_masks: bool = True,
) -> list[Path]:
    """Divide the data into owners and run the federation to its last round, leaving everything in `folder`.

    Return the files of the owners, of a population of those that were asked. engine: of `ENGINES`, "stacked" with or
    without ":OWNERS", or "auto", see `choose_engine`. device: where they train, "auto" or a PyTorch device. `tell`
    takes lines on what was read of a person's own; settings: what `--set` changed, for a run that goes on; sitting: of
    the command, begun once nothing refuses the run. owners: where somebody has divided the data already.
    simulate_masks: where False, sums that are secure are added up without masks, to the same integers.

    Raises:
        AgflError: one line for a person.
    """
    prepare_flower()
    owners = owners or found_owners(config, folder)
    if resume:
        engine = kept_engine(folder, engine)
    if engine == AUTO_ENGINE:
        engine, reason = choose_engine(config, owners, device)
        if reason is not None:
            tell(reason)
    chosen = _engine(config, owners, engine, device, simulate_masks)
    refuse_run(config, folder, resume=resume, roster=chosen.roster, num_owners=owners.count)
    with RunFolder(folder).hold():  # before anything in it changes: another process may be at work there
        owners.write(is_new=not resume)
        for line in owners.notes:
            tell(line)
        write_settings(folder, settings)
        if not simulate_masks:
            (folder / _UNMASKED_FILE).touch()
        elif not resume:
            (folder / _UNMASKED_FILE).unlink(missing_ok=True)
        stack = _stack_of(engine)
        if stack is not None:
            (folder / _STACKED_FILE).write_text(f"{stack}\n")
        elif not resume:
            (folder / _STACKED_FILE).unlink(missing_ok=True)
        chosen.run(folder, resume=resume, observer=observer, sitting=sitting)
    return owners.files


def _engine(config: RunConfig, owners: Owners | Population, engine: str, device: str, has_masks: bool) -> Engine:
    if isinstance(owners, Population):
        owners.check(config)
    files, stack = owners if isinstance(owners, Population) else owners.files, _stack_of(engine)
    if stack is not None:
        return StackedEngine(config, files, device, simulate_masks=has_masks, size=stack)
    return ENGINES[engine](config, files, device, simulate_masks=has_masks)
