"""A population on workers: the bits of one process, and workers that hold only those who were asked last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.forked_workers import ForkedWorker, keep_one_open
from tests.simulations.killing import kill_in
from tests.simulations.run_result import result

import agfl
from agfl.population import MadePopulation
from agfl_models.errors import AgflError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import secure_wire as sw
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.choice import choose_engine
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.workers import process_link

Configs = Callable[..., RunConfig]
SCAFFOLD = (
    "aggregation={type: plain, weighting: uniform, cohort_size: 5, min_cohort: 2, server_optimizer: {type: scaffold}}"
)
SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1, cohort_size: 5}"


def rows(number: int) -> list[str]:
    return [f"owner {number} saw the sea on day {day}" for day in range(8)]


def population(config: RunConfig, folder: Path, count: int, made: Callable[[int], Any] = rows) -> MadePopulation:
    owners = MadePopulation(config, agfl.Population(count, made), folder / "owners")
    owners.write()
    return owners


@pytest.mark.parametrize(("settings", "count"), [(SCAFFOLD, 1_000_000), (SECURE, 40)], ids=["plain", "secure"])
def test_workers_change_no_bit_of_a_run_over_a_population(
    settings: str, count: int, run_config: Configs, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    config = run_config("num_rounds=2", "training.local_steps=1", "evaluation.max_examples=4", settings)
    for name, kind in (("inline", InlineEngine), ("processes", ProcessesEngine)):
        folder = tmp_path / name
        engine = kind(config, population(config, folder, count), "cpu", 2)
        engine.run(folder, resume=False, observer=Observer())
    assert len(workers) == 2
    assert result(tmp_path / "processes") == result(tmp_path / "inline")
    asked = [
        sorted(path.name for path in (tmp_path / name / "owners").glob("*.jsonl")) for name in ("inline", "processes")
    ]
    assert asked[0] == asked[1]
    assert len(asked[0]) < 40 if count > 40 else len(asked[0]) == 40  # a plan of secure sums names all


def test_a_worker_that_dies_before_an_owners_ledger_was_ever_written_is_replaced(
    run_config: Configs, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    config = run_config("num_rounds=1", "training.local_steps=1", "evaluation.max_examples=4", SECURE)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    InlineEngine(config, population(config, whole, 20), "cpu").run(whole, resume=False, observer=Observer())

    def kill() -> None:
        workers[-1].kill()
        workers[-1].wait(20)

    with pytest.MonkeyPatch.context() as patch:
        killed = kill_in(patch, sw.MASK, kill, 1)
        ProcessesEngine(config, population(config, torn, 20), "cpu", 2).run(torn, resume=False, observer=Observer())
    assert len(killed) == 1
    assert len(workers) == 3
    assert result(torn) == result(whole)


@pytest.mark.parametrize("broken", [None, [{"body": "x"}]])
def test_an_owner_without_usable_rows_ends_the_run_in_one_line(
    broken: object, run_config: Configs, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    asked = list[int]()

    def made(number: int) -> Any:
        asked.append(number)
        return broken if len(asked) == 5 else rows(number)

    config = run_config("num_rounds=3", "aggregation.cohort_size=3")
    engine = ProcessesEngine(config, population(config, tmp_path, 1000, made), "cpu", 2)
    with pytest.raises(AgflError, match=r"owner-\d\d\d: .*row"):
        engine.run(tmp_path, resume=False, observer=Observer())


def test_a_worker_holds_as_many_nodes_as_it_may(
    run_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: list[ForkedWorker]
) -> None:
    """One each: nodes are opened anew for each message, and what they keep on disk is enough."""
    whole, small = tmp_path / "whole", tmp_path / "small"
    config = run_config("num_rounds=3", "training.local_steps=1", "evaluation.max_examples=4", SCAFFOLD)
    InlineEngine(config, population(config, whole, 9), "cpu").run(whole, resume=False, observer=Observer())
    monkeypatch.setattr(process_link, "launch", lambda descriptor: ForkedWorker(descriptor, keep_one_open))
    ProcessesEngine(config, population(config, small, 9), "cpu", 1).run(small, resume=False, observer=Observer())
    assert result(small) == result(whole)


def test_auto_takes_processes_for_a_long_run_over_a_population(
    run_config: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agfl_sim.engines.choice.usable_cpus", lambda: 2)
    for settings, expected in ((("num_rounds=1000",), "processes"), (("num_rounds=2",), "inline")):
        config = run_config(*settings, "aggregation.cohort_size=50")
        owners = MadePopulation(config, agfl.Population(1000, rows), tmp_path / "owners")
        assert choose_engine(config, owners, "cpu") == (expected, None)
