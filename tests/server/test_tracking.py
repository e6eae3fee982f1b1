"""Trackers hold the rows of metrics.jsonl, each once, whatever stopped the run; a missing one is said at once."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agfl_models.errors import CheckpointError, ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer, Row
from agfl_server.tracking import registry
from agfl_sim.engines.grid import InProcessGrid

NAMES = ("tensorboard", "mlflow", "wandb")
Points = dict[tuple[str, int], list[float]]


class StoppedError(BaseException):
    """Nothing in the product catches it."""


class Stopper(Observer):
    """Ends the run once a row is durable, before or after the trackers have it."""

    def __init__(self, last: int) -> None:
        self._last = last

    def saved(self, rows: Sequence[Row]) -> None:
        if rows[-1]["round"] == self._last:
            raise StoppedError


def needed(name: str) -> None:
    pytest.importorskip(name, reason=f"the extra {name} is not installed")


def tensorboard_points(place: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place / "tensorboard"))
    found.Reload()
    points: Points = {}
    for key in found.Tags()["scalars"]:
        for event in found.Scalars(key):
            points.setdefault((key, event.step), []).append(event.value)
    texts = found.Tags()["tensors"]
    assert {"configuration/text_summary", "model/text_summary"} <= set(texts)
    return points


def mlflow_points(place: Path) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("agfl").experiment_id])
    assert run.data.params["training.batch_size"] == "4"
    assert (run.info.status, run.data.tags["model"]) == ("FINISHED", str(place.parent / "model"))
    points: Points = {}
    for key in run.data.metrics:
        for one in client.get_metric_history(run.info.run_id, key):
            points.setdefault((key, one.step), []).append(one.value)
    return points


def wandb_points(place: Path) -> Points:
    """All folders of the run together, as they would be sent."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((place / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({path.stem for path in files}) == 1, "one run"
    points: Points = {}
    models = []
    for content in (content for path in files for content in log_records(path.read_bytes())):
        record = Record.FromString(content)
        values = {(one.key or one.nested_key[0]): one.value_json for one in record.history.item}
        models += [json.loads(one.value_json) for one in record.summary.update if "model" in (one.key, *one.nested_key)]
        for key in values.keys() - {"_step", "_runtime", "_timestamp", "_wandb"}:
            points.setdefault((key, record.history.step.num), []).append(json.loads(values[key]))
    assert models == [str(place.parent / "model")]
    return points


def log_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, which has 7 bytes before its first block of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        size, kind = struct.unpack_from("<HB", content, at + 4)
        if 2**15 - at % 2**15 < 7 or kind == 0:
            at += 2**15 - at % 2**15
            continue
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of it
            yield parts
            parts = b""


POINTS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": tensorboard_points,
    "mlflow": mlflow_points,
    "wandb": wandb_points,
}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def points_of_rows(folder: Path) -> dict[tuple[str, int], list[Any]]:
    return {
        (key, row["round"]): [pytest.approx(value, rel=1e-5)]
        for row in rows_of(folder)
        for key, value in row.items()
        if key != "round" and value is not None
    }


@pytest.fixture
def run_tracked(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    open_grid: Callable[..., InProcessGrid],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """Run the tiny run in a folder, with trackers."""
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def run(folder: Path, *names: str, **arguments: Any) -> None:
        config = run_config(f"tracking=[{', '.join(names)}]")
        run_federation(open_grid(make_owners(3)), config, folder, **arguments)

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_what_a_tracker_holds_is_metrics_jsonl_though_the_run_was_stopped(
    name: str, run_tracked: Callable[..., None], tmp_path: Path
) -> None:
    needed(name)
    folder = tmp_path / "run"
    with pytest.raises(StoppedError):
        run_tracked(folder, name, observer=Stopper(1))
    logged = json.loads((folder / "tracking" / f"{name}.json").read_text())
    assert logged["round"] == 0, "row 1 is durable and not logged yet"
    run_tracked(folder, name, resume=True)
    assert json.loads((folder / "tracking" / f"{name}.json").read_text()) == {"run": logged["run"], "round": 3}
    assert POINTS[name](folder / "tracking") == points_of_rows(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_extra_is_said_before_anything_is_written(
    name: str, run_tracked: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(wanted: str) -> ModuleSpec | None:
        return None if wanted == name else find_spec(wanted)

    monkeypatch.setattr(registry, "find_spec", without)
    line = rf"^tracking: {name}: needs an extra that is not installed: pip install 'agfl\[{name}\]' .AGFL-CONFIG-193"
    with pytest.raises(ConfigError, match=line):
        run_tracked(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


def test_no_owner_hears_of_it_and_it_may_change(run_config: Callable[..., RunConfig]) -> None:
    plain, tracked = run_config(), run_config("tracking=[tensorboard, mlflow]")
    assert tracked.client_plan.to_json() == plain.client_plan.to_json()
    assert tracked.hash == plain.hash
    assert "tracking" not in tracked.client_plan.to_json()
    with pytest.raises(ConfigError, match=r"tracking\.0: .*'tensorbord'"):
        run_config("tracking=[tensorbord]")


def test_nothing_is_imported_for_a_run_without_trackers(run_tracked: Callable[..., None], tmp_path: Path) -> None:
    before = set(sys.modules)
    run_tracked(tmp_path / "run")
    assert not {"tensorboard", "mlflow", "wandb"} & (set(sys.modules) - before)
    assert not (tmp_path / "run" / "tracking").exists()


def test_a_damaged_note_is_named(run_tracked: Callable[..., None], tmp_path: Path) -> None:
    needed("tensorboard")
    note = tmp_path / "run" / "tracking" / "tensorboard.json"
    note.parent.mkdir(parents=True)
    note.write_text("[")
    with pytest.raises(CheckpointError, match=rf"^tracking: {note}: must say which tracked run goes on; it is damaged"):
        run_tracked(tmp_path / "run", "tensorboard")
