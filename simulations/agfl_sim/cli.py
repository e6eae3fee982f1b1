"""agfl-simulate: run a whole federation on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agfl_models.console import new_app, run_app

if TYPE_CHECKING:
    from agfl_protocol.config.defaults import TakenDefault
    from agfl_protocol.config.run_config import RunConfig

DEFAULT_CONFIG = "language_modeling"
SHIPPED_CONFIGS = Path(str(files("agfl_sim").joinpath("configs")))

app = new_app("Run a whole federation on this machine, with the code of the server and of the clients.")


@app.command()
def simulate(
    config: Annotated[
        str, typer.Argument(metavar="[NAME|CONFIG.yaml]", help="A shipped configuration or a file.")
    ] = DEFAULT_CONFIG,
    output: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME-TIME")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in num_rounds=3."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    engine: Annotated[str, typer.Option(metavar="inline|ray", help="Where the clients run.")] = "inline",
    device: Annotated[str, typer.Option(help="Where owners train: auto, cpu, cuda, mps or cuda:N.")] = "auto",
    export_owners: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write the owners' data as DIR/NAME.jsonl.")
    ] = None,
) -> None:
    """Run the federation that CONFIG describes; without it, the shipped language_modeling."""
    from agfl_models.errors import AgflError, ConfigError
    from agfl_models.validation import nearest
    from agfl_protocol.config.run_config import load_with_defaults
    from agfl_server.run.settings import merged, read_settings
    from agfl_sim.partition import owners_of

    path = _find(config)
    settings = merged(read_settings(output) if resume and output is not None else (), overrides or ())
    run_config, taken = load_with_defaults(path, settings)
    if export_owners is not None:
        if output is not None or resume or (engine, device) != ("inline", "auto"):
            raise ConfigError("--export-owners: runs nothing: --output, --resume, --engine and --device go without it")
        found = owners_of(run_config, export_owners)
        written = found.write()
        for line in found.notes:
            print(line)
        print(f"{len(written)} owners in {written[0].parent}")  # files that `data.path` holds already stay there
        return
    from agfl_sim.run import ENGINES

    if engine not in ENGINES:
        raise ConfigError(f"--engine: unknown engine {engine!r}{nearest(engine, list(ENGINES))}")
    if resume and output is None:
        raise ConfigError("--resume: needs --output, the folder of the run to go on with")
    folder = output or _new_folder(path.stem)
    again = [
        "agfl-simulate",
        config,
        "--output",
        str(folder),
        *(part for one in settings for part in ("--set", one)),
    ]
    again += [] if engine == "inline" else ["--engine", engine]
    again += [] if device == "auto" else ["--device", device]
    try:
        _run(run_config, taken, folder, engine, device, resume, again, settings)
    except AgflError:
        if output is None:
            with suppress(OSError):  # the run left something in it
                folder.rmdir()
        raise


def _new_folder(name: str) -> Path:
    """Make a folder for a run of this moment that no other run has, also of those that begin in the same second."""
    stamped = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        folder = Path("runs") / (stamped if number == 1 else f"{stamped}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("there is always a next number")


def _run(
    run_config: RunConfig,
    taken: Sequence[TakenDefault],
    folder: Path,
    engine: str,
    device: str,
    resume: bool,
    again: Sequence[str],
    settings: Sequence[str],
) -> None:
    """Run it; `again` is the command that does so once more, `settings` what --set changed."""
    from rich.console import Console

    from agfl_models.errors import AgflError
    from agfl_models.metrics.signatures import signatures
    from agfl_server.run.defaults_table import print_defaults
    from agfl_server.run.run_folder import RunFolder
    from agfl_server.run.sittings import SittingLog
    from agfl_sim.baselines.baselines import run_baselines
    from agfl_sim.baselines.widths import write_widths
    from agfl_sim.progress import BaselineBar, ProgressObserver
    from agfl_sim.report.report import write_report
    from agfl_sim.run import simulate as run_simulation

    console = Console()
    print(f"{run_config.model.num_parameters():,} parameters; output in {folder}")
    print_defaults(console, taken)
    if run_config.aggregation.type == "plain":
        console.print("[bold red]aggregation is plain: a server run like this sees every client's update[/]")

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        with SittingLog() as sitting:
            with ProgressObserver(console, run_config.task.main_metric) as observer:
                owners = run_simulation(run_config, folder, engine, resume, observer, device, tell, settings, sitting)
            comparison = None
            if run_config.baselines:
                with BaselineBar(console) as bar:
                    comparison = run_baselines(folder, owners, resume, bar.update, device)
                console.print(f"{comparison.side_by_side}\n{comparison.answer}", highlight=False, soft_wrap=True)
            write_widths(folder, owners)
    except KeyboardInterrupt:
        run_folder = RunFolder(folder)
        has_run = run_folder.has_checkpoint or run_folder.search.exists()  # else there is nothing yet to resume
        print(f"stopped; go on with: {shlex.join([*again, *(['--resume'] if has_run else [])])}")
        raise
    for signature in signatures([run_config.task.main_metric.name]).values():
        print(f"metric   {run_config.task.main_metric.title}: {signature}")
    shown, command = shlex.quote(str(folder)), run_config.task.command
    uses = f"agfl-model {command} {shown}, or agfl-model serve {shown}" if command else f"agfl-model describe {shown}"
    print(f"model    {folder / 'model'}   ({uses})")
    try:
        print(f"report   {write_report(folder, run_config.task.main_metric, owners, comparison)}")
    except AgflError as error:
        console.print(f"no report: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _find(config: str) -> Path:
    """Return the file that `config` names: a path, or a shipped configuration."""
    from agfl_models.errors import ConfigError
    from agfl_models.validation import nearest

    if Path(config).suffix in {".yaml", ".yml"}:
        return Path(config)
    shipped = {path.stem: path for path in SHIPPED_CONFIGS.glob("*.yaml")}
    if config not in shipped:
        raise ConfigError(f"CONFIG: no shipped configuration {config!r}{nearest(config, list(shipped))}")
    return shipped[config]


def main() -> None:
    """Console entry point."""
    run_app(app)
