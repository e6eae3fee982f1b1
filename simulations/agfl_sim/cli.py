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
    engine: Annotated[
        str, typer.Option(metavar="auto|inline|processes|ray|stacked[:OWNERS]", help="Where the clients run.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where owners train: auto, cpu, cuda, mps or cuda:N.")] = "auto",
    simulate_masks: Annotated[
        bool | None,
        typer.Option(
            "--simulate-masks/--no-simulate-masks",
            help="Mask secure sums as a deployment does, or add up the same integers without.",
            show_default="masks for up to 200 owners",
        ),
    ] = None,
    export_owners: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write the owners' data as DIR/NAME.jsonl.")
    ] = None,
) -> None:
    """Run the federation that CONFIG describes; without it, the shipped language_modeling."""
    from agfl_models.errors import AgflError, ConfigError
    from agfl_protocol.config.run_config import load_with_defaults
    from agfl_server.run.settings import merged, read_settings
    from agfl_sim.partition import owners_of

    path = find_config(config)
    settings = merged(read_settings(output) if resume and output is not None else (), overrides or ())
    run_config, taken = load_with_defaults(path, settings)
    if export_owners is not None:
        if output is not None or resume or (engine, device, simulate_masks) != ("auto", "auto", None):
            raise ConfigError(
                "AGFL-CONFIG-082",
                "--export-owners: runs nothing: --output, --resume, --engine, --device, --simulate-masks go without it",
            )
        whole = run_config.data.path
        if whole is not None and whole.is_file():
            raise ConfigError(
                "AGFL-CONFIG-285",
                f"--export-owners: must be left out where data.path is one file of all owners, got {whole}",
            )
        found = owners_of(run_config, export_owners)
        written = found.write()
        for line in found.notes:
            print(line)
        print(f"{len(written)} owners in {written[0].parent}")  # files that `data.path` holds already stay there
        return
    from agfl_sim.run import check_engine, check_masks

    check_engine(engine, "--engine")
    check_masks(run_config, simulate_masks, "--simulate-masks" if simulate_masks else "--no-simulate-masks")
    if resume and output is None:
        raise ConfigError("AGFL-CONFIG-084", "--resume: needs --output, the folder of the run to go on with")
    folder = output or new_folder(path.stem)
    again = [
        "agfl-simulate",
        config,
        "--output",
        str(folder),
        *(part for one in settings for part in ("--set", one)),
    ]
    again += [] if engine == "auto" else ["--engine", engine]
    again += [] if device == "auto" else ["--device", device]
    if simulate_masks is not None:
        again.append("--simulate-masks" if simulate_masks else "--no-simulate-masks")
    try:
        _run(run_config, taken, folder, engine, device, resume, again, settings, simulate_masks)
    except AgflError:
        if output is None:
            with suppress(OSError):  # the run left something in it
                folder.rmdir()
        raise


def new_folder(name: str) -> Path:
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
    simulate_masks: bool | None,
) -> None:
    """Run it; `again` is the command that does so once more, `settings` what --set changed."""
    from rich.console import Console

    from agfl_server.run.run_folder import RunFolder
    from agfl_sim.whole_run import run_all

    try:
        run_all(
            run_config,
            folder,
            Console(),
            engine=engine,
            device=device,
            resume=resume,
            taken=taken,
            settings=settings,
            simulate_masks=simulate_masks,
        )
    except KeyboardInterrupt:
        run_folder = RunFolder(folder)
        has_run = run_folder.has_checkpoint or run_folder.search.exists()  # else there is nothing yet to resume
        print(f"stopped; go on with: {shlex.join([*again, *(['--resume'] if has_run else [])])}")
        raise


def find_config(config: str) -> Path:
    """Return the file that `config` names: a path, or a shipped configuration."""
    from agfl_models.errors import ConfigError
    from agfl_models.validation import nearest

    if Path(config).suffix in {".yaml", ".yml"}:
        return Path(config)
    shipped = {path.stem: path for path in SHIPPED_CONFIGS.glob("*.yaml")}
    if config not in shipped:
        raise ConfigError(
            "AGFL-CONFIG-085", f"CONFIG: no shipped configuration {config!r}{nearest(config, list(shipped))}"
        )
    return shipped[config]


def main() -> None:
    """Console entry point."""
    run_app(app)
