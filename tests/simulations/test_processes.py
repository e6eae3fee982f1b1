"""Worker processes: the bits of one process with any number of them, and what becomes of them however a run ends."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from tests.commands import Started
from tests.forked_workers import ForkedWorker
from tests.processes import children_of, is_there
from tests.simulations.run_result import result

from agfl_models.errors import DataError
from agfl_models.layers.layer import LAYERS
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer, Row
from agfl_sim.engines.grid import deflated, deflated_together, take_identity
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.engines.workers import process_link
from agfl_sim.engines.workers.messages import Request
from agfl_sim.engines.workers.worker_grid import shared_out

MIXED = "model.layers=[{type: attention, num_heads: 4}, {type: ff, hidden_dim: 24}, {type: rnn, cell: mingru}]"
SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1}"
SETTINGS = {
    "plain": ("aggregation.cohort_size=3",),
    "secure": (SECURE,),
    "elastic": (
        "elastic={widths: [0.25, 0.5, 1.0], growth: {patience: 1, min_gain: 0.2}}",
        *(MIXED, "data.max_widths={0.25: 1, 0.5: 2, 1.0: 2}", "num_rounds=4", "evaluation.every=1", SECURE),
    ),
    "state": ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform"),
    "search": (
        "search={slate: [configured, mingru], rungs: [1, 2]}",
        *("num_rounds=3", SECURE),
    ),
    "tokenizer": ("tokenizer={type: bpe, vocab_size: 270, merges_per_round: 8}", "model.vocab_size=270", SECURE),
}
Configs = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]


def test_what_messages_have_in_common_is_made_once_and_travels_in_the_same_bytes() -> None:
    take_identity()
    shared, own = (RecordDict({"a": ArrayRecord({"x": Array(np.full(9, number))})}) for number in range(2))
    messages = [Message(content, node, "train") for node, content in enumerate((shared, own, shared, shared))]
    found = deflated_together(messages)
    shared.array_records["a"]["x"] = Array(np.zeros(3))  # what comes later is hashed anew
    assert deflated_together(messages)[0][0] != found[0][0]
    shared.array_records["a"]["x"] = Array(np.full(9, 0))
    assert found == [deflated(message) for message in messages]
    (_, first), _, (_, second), _ = found
    common = first.keys() & second.keys()
    assert len(common) == len(first) - 1
    assert all(first[key] is second[key] for key in common)


@pytest.mark.parametrize("name", SETTINGS)
def test_workers_change_no_bit(
    name: str, run_config: Configs, make_owners: MakeOwners, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    config = run_config("num_rounds=2", "training.local_steps=1", "evaluation.max_examples=4", *SETTINGS[name])
    owners = sorted(make_owners(5).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "inline", resume=False, observer=Observer())
    for count in (1, 2, 4) if name == "secure" else (2,):
        folder = tmp_path / str(count)
        ProcessesEngine(config, owners, "cpu", num_workers=count).run(folder, resume=False, observer=Observer())
        assert result(folder) == result(tmp_path / "inline"), count
    assert len(workers) == (7 if name == "secure" else 2)


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


class Interrupter(Observer):
    def __init__(self, ends_at: int) -> None:
        self._ends_at = ends_at

    def round_finished(self, row: Row) -> None:
        if row["round"] == self._ends_at:
            raise PulledPlugError


def test_run_that_ended_goes_on_in_either_engine(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    config, owners = run_config(SECURE), sorted(make_owners(4).iterdir())
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    InlineEngine(config, owners, "cpu").run(whole, resume=False, observer=Observer())
    for kind, ends_at in ((ProcessesEngine, 1), (InlineEngine, 2)):
        with pytest.raises(PulledPlugError):
            kind(config, owners, "cpu").run(torn, resume=ends_at > 1, observer=Interrupter(ends_at))
    ProcessesEngine(config, owners, "cpu", num_workers=3).run(torn, resume=True, observer=Observer())
    assert result(torn) == result(whole)


def test_node_that_cannot_be_is_the_line_of_one_process(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    owners = sorted(make_owners(3).iterdir())
    owners[2].unlink()
    lines = []
    for engine in (InlineEngine(run_config(), owners, "cpu"), ProcessesEngine(run_config(), owners, "cpu", 2)):
        with pytest.raises(DataError) as refused:
            engine.run(tmp_path / "run", resume=False, observer=Observer())
        lines.append(str(refused.value))
    assert lines[0] == lines[1]


def test_what_a_worker_logs_is_a_line_of_the_driver(
    run_config: Configs,
    make_owners: MakeOwners,
    tmp_path: Path,
    workers: list[ForkedWorker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An owner whose file went away says so on its screen; the run goes on without it."""
    owners = sorted(make_owners(4).iterdir())

    class Remover(Observer):
        def connected(self, name: str) -> None:
            owners[3].unlink(missing_ok=True)

    with caplog.at_level(logging.INFO):
        ProcessesEngine(run_config(), owners, "cpu", 2).run(tmp_path / "run", resume=False, observer=Remover())
    said = [record for record in caplog.records if "your node takes no part in the run" in record.message]
    assert {record.name for record in said} == {"agfl.client"}


def test_longest_are_dealt_out_first_to_whoever_has_least() -> None:
    assert shared_out({1: 5.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 3.0}, 2) == [[1, 4], [5, 2, 3]]
    assert shared_out({1: 1.0, 2: 1.0}, 4) == [[1], [2]]
    assert shared_out({node: 1.0 for node in range(6)}, 3) == [[0, 3], [1, 4], [2, 5]]


CONFIG = """
num_rounds: 300
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 8, layers: [{type: ff}]}
training: {batch_size: 2, local_steps: 1}
aggregation: {type: plain, min_cohort: 2}
data: {partition: natural, num_owners: 4}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_driver(number: signal.Signals, tmp_path: Path) -> None:
    """Here they are new interpreters, as a person starts them."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    log = tmp_path / "log"
    process = Started(*("agfl-simulate", "run.yaml", "--output", "out", "--engine", "processes"), cwd=tmp_path, log=log)
    if number == signal.SIGINT:  # one will do, since each loads PyTorch; after SIGKILL none may wait for another
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    deadline = time.monotonic() + 120
    while not log.exists() or "round   2/" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    workers = children_of(process.pid)
    assert len(workers) == (1 if number == signal.SIGINT else usable_cpus())
    for pid in (*workers, process.pid) if number == signal.SIGINT else (process.pid,):  # a terminal sends it to all
        os.kill(pid, number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 20
    while any(map(is_there, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, workers))
    assert "Traceback" not in log.read_text()
    if number == signal.SIGINT:
        assert "stopped; go on with: agfl-simulate run.yaml --output out --engine processes --resume" in log.read_text()


OWN_LAYER = """
import sys
from pathlib import Path
from typing import Literal

from agfl_models.layers.feed_forward import FFConfig, FFLayer


class OwnConfig(FFConfig):
    type: Literal["own"] = "own"

    def build(self):
        return OwnLayer(self)


class OwnLayer(FFLayer):
    def forward(self, *inputs, **settings):
        if "agfl_sim.engines.workers.process_worker" in sys.modules:
            Path(__file__).with_name("loaded").write_text(" ".join(sys.modules))
        return super().forward(*inputs, **settings)
"""


def test_layer_of_a_module_is_found_by_new_interpreters(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_layers.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("_kinds", "_types"):
        monkeypatch.setattr(LAYERS, name, dict(vars(LAYERS)[name]))
    LAYERS.add(importlib.import_module("own_layers").OwnConfig)
    config = run_config("model.layers=[{type: own, hidden_dim: 24}]", "num_rounds=1")
    owners = sorted(make_owners(3).iterdir())
    for name, engine in (("inline", InlineEngine), ("processes", ProcessesEngine)):
        engine(config, owners, "cpu", 1).run(tmp_path / name, resume=False, observer=Observer())
    assert result(tmp_path / "processes") == result(tmp_path / "inline")
    # The last that a worker did was to evaluate what it had trained: training loads no compiler, a second of each.
    loaded = (tmp_path / "loaded").read_text().split()
    assert "torch.optim" in loaded
    assert "torch._dynamo" not in loaded


def test_a_broadcast_is_sent_to_a_worker_once(
    run_config: Configs,
    make_owners: MakeOwners,
    tmp_path: Path,
    workers: list[ForkedWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    class Counting(Connection):
        def send(self, obj: object) -> None:
            if isinstance(obj, Request):
                sizes.append(sum(len(content) for content in obj.objects.values() if content is not None))
            super().send(obj)

    monkeypatch.setattr(process_link, "Connection", Counting)
    config = run_config("num_rounds=1")
    ProcessesEngine(config, sorted(make_owners(6).iterdir()), "cpu", 2).run(
        tmp_path / "run", resume=False, observer=Observer()
    )
    messages = 2  # of the round, and of the evaluation after it
    assert len([size for size in sizes if size > 4 * config.model.num_parameters()]) == 2 * messages
    assert len(sizes) > 6 * messages
