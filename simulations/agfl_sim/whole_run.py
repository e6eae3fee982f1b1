"""One run of a simulation with all that belongs to it: rounds, baselines, widths, report. The command and the API."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agfl_client.training.device import AUTO
from agfl_models import stop_signal
from agfl_models.errors import AgflError
from agfl_models.metrics.signatures import signatures
from agfl_protocol.config.defaults import TakenDefault
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.flower_settings import prepare_flower
from agfl_server.rounds.observer import Observer, Observers
from agfl_server.run.defaults_table import print_defaults
from agfl_server.run.sittings import SittingLog
from agfl_sim.baselines.baselines import run_baselines
from agfl_sim.baselines.widths import write_widths
from agfl_sim.partition import Owners
from agfl_sim.population import Population
from agfl_sim.progress import BaselineBar, ProgressObserver
from agfl_sim.report.report import write_report
from agfl_sim.run import AUTO_ENGINE, found_owners, has_masks, simulate, was_unmasked

log = logging.getLogger("agfl.simulate")

UNMASKED = (
    "secure sums are simulated without masks: the same integers and the owners' own checks, but no keys, shares, masks "
    "or signatures, so bytes and seconds are not those of a deployment; --simulate-masks has them"
)


def run_all(
    config: RunConfig,
    folder: Path,
    console: Console,
    *,
    engine: str = AUTO_ENGINE,
    device: str = AUTO,
    resume: bool = False,
    taken: Sequence[TakenDefault] = (),
    settings: Sequence[str] = (),
    owners: Owners | Population | None = None,
    simulate_masks: bool | None = None,
    callbacks: Sequence[Observer] = (),
) -> None:
    """Run a federation on this machine to its end, tell `console` what happens, and leave everything in `folder`.

    taken: what the configuration left open; settings: what was set beside it, KEY=VALUE; owners: as of `simulate`;
    simulate_masks: as of `has_masks`; callbacks: told what happens, beside the person.

    Raises:
        AgflError: one line for a person.
    """

    def tell(line: str, style: str | None = None) -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    tell(f"{config.model.num_parameters():,} parameters; output in {folder}")
    print_defaults(console, taken)
    if config.aggregation.type == "plain":
        tell("aggregation is plain: a server run like this sees every client's update", "bold red")
    if config.data.devices is not None:
        tell("times of rounds are virtual: those of data.devices, whatever this machine takes")
    prepare_flower()
    owners = owners or found_owners(config, folder)
    if simulate_masks is None and resume and was_unmasked(folder):
        simulate_masks = False
    masks = has_masks(config, owners.count, simulate_masks) or config.aggregation.type == "plain"
    if not masks:
        tell(UNMASKED, "bold red")
        if console.quiet:
            log.warning(UNMASKED)
    metric = config.task.main_metric
    with SittingLog() as sitting, stop_signal.unwrapped():
        with ProgressObserver(console, metric) as progress:
            watcher = Observers([progress, *callbacks])
            files = simulate(config, folder, engine, resume, watcher, device, tell, settings, sitting, owners, masks)
        comparison = None
        if config.baselines:
            with BaselineBar(console) as bar:
                comparison = run_baselines(folder, files, resume, bar.update, device)
            console.print(f"{comparison.side_by_side}\n{comparison.answer}", highlight=False, soft_wrap=True)
        write_widths(folder, files)
    for signature in signatures([metric.name]).values():
        tell(f"metric   {metric.title}: {signature}")
    shown, command = shlex.quote(str(folder)), config.task.command
    uses = f"agfl-model {command} {shown}, or agfl-model serve {shown}" if command else f"agfl-model describe {shown}"
    tell(f"model    {folder / 'model'}   ({uses})")
    try:
        tell(f"report   {write_report(folder, metric, files, comparison, UNMASKED if was_unmasked(folder) else '')}")
    except AgflError as error:
        tell(f"no report: {error}", "yellow")
