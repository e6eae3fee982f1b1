"""agfl.simulate: a whole federation on this machine, as `agfl-simulate` runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from agfl.central_evaluation import CentralEvaluation
from agfl.history import History
from agfl.owners import OwnersData, dealt
from agfl.parts import stated
from agfl.population import MadePopulation, Population
from agfl_models.errors import AgflError, ConfigError
from agfl_models.model.base_config import FAMILIES, ModelConfigBase
from agfl_models.tasks.config import TASKS, TaskConfigBase
from agfl_protocol.config.defaults import TakenDefault
from agfl_protocol.config.run_config import RunConfig, fill, load_with_defaults
from agfl_server.rounds.observer import Observer
from agfl_server.run.settings import merged, read_settings
from agfl_sim.cli import DEFAULT_CONFIG, find_config, new_folder
from agfl_sim.partition import Owners
from agfl_sim.run import OWNERS_FOLDER, check_engine, check_masks
from agfl_sim.whole_run import run_all


def simulate(
    config: str | Path | Mapping[str, Any] | RunConfig = DEFAULT_CONFIG,
    *,
    task: TaskConfigBase | Mapping[str, Any] | None = None,
    model: ModelConfigBase | Mapping[str, Any] | None = None,
    owners: str | Path | OwnersData | Population | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Observer] = (),
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    engine: str = "auto",
    device: str = "auto",
    simulate_masks: bool | None = None,
    progress: bool = True,
) -> History:
    """Run a whole federation on this machine and return what it measured.

        history = agfl.simulate("language_modeling", settings={"num_rounds": 3}, out="runs/mine")

    Args:
        config: a shipped configuration by name, a YAML file, its content as a mapping, or a `RunConfig`.
        task: in place of the configuration's: an object, such as of a class of yours, or its content as a mapping.
        model: likewise. A class of yours need not be registered.
        owners: a folder with one file or folder NAME for each owner, or a mapping from each NAME to its rows: texts, or
            mappings with the task's columns; or, of any number of owners, a Parquet file or an `agfl.Population`. If
            omitted, what `data` of the configuration says.
        settings: keys of the configuration to change, as in `{"training.local_steps": 8}`.
        callbacks: told what happens in the run.
        evaluate: called with the global model and the number of its round whenever that is evaluated; what it returns
            joins the round's row under `central/`.
        out: folder of the run; a new one in `runs` if omitted.
        resume: go on with the run in `out`, with the settings with which it began.
        engine: "inline" trains in this process, "processes" in one for each processor, "ray" on actors of Ray;
            "auto" takes "processes" where the run is long enough for them. The results are the same bits. "stacked", or
            "stacked:25", trains so many owners at a time as one computation, to the same numbers up to rounding.
        device: where owners train: "auto" or a PyTorch device.
        simulate_masks: whether secure sums are masked as in a deployment, or the same integers are added up without;
            if omitted, they are masked for up to 200 owners.
        progress: whether to show each round.

    Raises:
        AgflError: one line that names the field, the rule and the value.
    """
    check_engine(engine, "engine")
    if resume and out is None:
        raise ConfigError("AGFL-CONFIG-199", "resume: needs out, the folder of the run to go on with")
    given = [*stated("task", task, TASKS), *stated("model", model, FAMILIES)]
    given += [f"{key}={json.dumps(value, default=str)}" for key, value in (settings or {}).items()]
    folder = Path(out) if out is not None else None
    name = _name(config)
    made = folder or new_folder(name)
    try:
        if owners is not None:
            path = Path(owners) if isinstance(owners, str | Path) else made / OWNERS_FOLDER
            given.append(f"data.path={json.dumps(str(path))}")
        kept = merged(read_settings(made) if resume else (), given)
        run_config, taken = _read(config, kept)
        check_masks(run_config, simulate_masks, "simulate_masks")
        rows: Owners | MadePopulation | None = None
        if isinstance(owners, Mapping):
            rows = dealt(run_config, owners, made / OWNERS_FOLDER)
        elif isinstance(owners, Population):
            rows = MadePopulation(run_config, owners, made / OWNERS_FOLDER)
        watchers = [*callbacks, *([] if evaluate is None else [CentralEvaluation(evaluate)])]
        run_all(
            run_config,
            made,
            Console(quiet=not progress),
            engine=engine,
            device=device,
            resume=resume,
            taken=taken,
            settings=kept,
            owners=rows,
            simulate_masks=simulate_masks,
            callbacks=watchers,
        )
    except AgflError:
        if folder is None:
            with suppress(OSError):  # the run left something in it
                made.rmdir()
        raise
    return History.read(made)


def _name(config: str | Path | Mapping[str, Any] | RunConfig) -> str:
    return Path(config).stem if isinstance(config, str | Path) else "run"


def _read(
    config: str | Path | Mapping[str, Any] | RunConfig, settings: Sequence[str]
) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    if isinstance(config, RunConfig):
        return fill(config.model_dump(mode="json"), settings, "config")
    if isinstance(config, Mapping):
        return fill(config, settings, "config")
    return load_with_defaults(find_config(str(config)), settings)
