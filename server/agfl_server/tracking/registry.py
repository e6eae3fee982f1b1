"""The trackers by the names that a run's `tracking` lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer, Observers
from agfl_server.tracking.mlflow import MLflowTracker
from agfl_server.tracking.tensorboard import TensorBoardTracker
from agfl_server.tracking.tracker import Tracker
from agfl_server.tracking.wandb import WandbTracker

_TRACKERS: dict[str, type[Tracker]] = {one.name: one for one in (TensorBoardTracker, MLflowTracker, WandbTracker)}


def refuse_missing(names: Sequence[str]) -> None:
    """Raise ConfigError where a tracker's package is not installed."""
    for name in names:
        if find_spec(_TRACKERS[name].package) is None:
            rule = f"needs an extra that is not installed: pip install 'agfl[{name}]'"
            raise ConfigError("AGFL-CONFIG-193", f"tracking: {name}: {rule}")


@contextmanager
def tracked(config: RunConfig, folder: Path, observer: Observer) -> Iterator[Observer]:
    """Tell `observer` and the run's trackers what happens, from `opened` on."""
    with ExitStack() as open_ones:
        trackers = [_TRACKERS[name]() for name in dict.fromkeys(config.tracking)]
        observer.opened(config, folder)
        for tracker in trackers:
            tracker.opened(config, folder)
            open_ones.callback(tracker.close)
        yield Observers([observer, *trackers])
