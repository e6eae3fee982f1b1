"""Several ranks that train together do what one process does, whoever is killed; what they cannot train is refused."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.client.test_node import request_of
from tests.forked_workers import forked_rank, forked_slow_leaver
from tests.tiny_federation import TINY
from torch import Tensor

from agfl_client.node import Node
from agfl_client.parallel import ranks
from agfl_client.parallel.choice import Parallel
from agfl_client.parallel.link import FROM_RANK, Line, Note, RankLostError, Recipe
from agfl_client.parallel.ranks import Ranks
from agfl_client.parallel.shares import split
from agfl_client.parallel.trainer import ParallelTrainer, SharedTraining
from agfl_client.policy import Policy
from agfl_client.training.deadline import Deadline, OutOfTime
from agfl_client.training.part import Part
from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import ConfigError
from agfl_models.examples import TextRow
from agfl_models.tasks.language_modeling import TokenBatch
from agfl_models.tasks.own_task import TensorBatch
from agfl_models.tasks.sequence_to_sequence import PairBatch
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.methods.method import Gradient

MakeConfig = Callable[..., RunConfig]
STEPS = "training.local_steps=6"
EPOCHS = ("training.local_steps=null", "training.local_epochs=2", "aggregation.max_weight=99")
CASES = {
    "plain": [],
    "a batch that two do not divide": ["training.batch_size=3"],
    "fewer examples than ranks": ["training.batch_size=1"],
    "moments and decay": ["training.optimizer={type: adamw, lr: 0.01}"],
    "momentum, no clipping": ["training.optimizer={type: sgd, lr: 0.3, momentum: 0.9}", "training.max_grad_norm=null"],
    "a rate that changes": ["training.schedule={type: cosine, steps: 9, warmup_steps: 2}"],
    "a proximal term": ["training.proximal_mu=0.3"],
    "epochs": [*EPOCHS, "aggregation.averaging=mean", "training.batch_size=5"],
    "a recurrent layer": ["model={vocab_size: 259, dim: 16, layers: [{type: rnn, cell: mingru}, {type: ff}]}"],
}
WHOLE_ONLY = {
    "widths": ["elastic={widths: [0.5, 1.0]}"],
    "a step size that is found": ["training.optimizer={type: delta_sgd}"],
}


@dataclass
class Bench:
    """Two ranks, of which this process is one."""

    folder: Path
    shared: SharedTraining

    def work(self, overrides: list[str]) -> tuple[RunConfig, Part, LocalWork]:
        (self.folder / "run.yaml").write_text(TINY)
        config = load_run_config(self.folder / "run.yaml", [STEPS, *overrides])
        plan, draws = config.client_plan, np.random.default_rng(0)
        rows = [TextRow(text=" ".join(draws.choice(["sea", "ship", "no", "man", "shore"], 12))) for _ in range(12)]
        rings = plan.build_rings()
        task, part = plan.build_task(), Part.of(plan, rings, 1 if rings is None else 2, "cpu")
        rng = np.random.default_rng(3)
        data = task.prepare(rows)
        work = LocalWork(part.model, part.layout, task, data, rng, plan.training, widths=part.widths, first_step=3)
        return config, part, replace(work, start=part.layout.flatten(part.model))  # as a node does, which has it anyway

    def trainer(self, sharing: Any, config: RunConfig, part: Part) -> ParallelTrainer:
        plan = config.client_plan
        return ParallelTrainer(self.shared, Recipe(sharing, plan.to_json(), part.num_rings), plan, part)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ranks, "launch", forked_rank)
        bench = Bench(tmp_path_factory.mktemp("parallel"), SharedTraining(Ranks(("cpu", "cpu"))))
        yield bench
        bench.shared.end()


@pytest.mark.parametrize("case", [*CASES, "shaped gradients"])
@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_ranks_train_as_one_process(bench: Bench, sharing: str, case: str) -> None:
    check_equal(bench, sharing, CASES.get(case, []), shaped=case == "shaped gradients")


@pytest.mark.parametrize("case", WHOLE_ONLY)
def test_whole_copies_serve_all_that_one_process_does(bench: Bench, case: str) -> None:
    check_equal(bench, "ddp", WHOLE_ONLY[case])


def check_equal(bench: Bench, sharing: str, overrides: list[str], shaped: bool = False) -> None:
    config, part, work = bench.work(overrides)
    size = part.layout.size
    shift = np.linspace(-1e-2, 1e-2, size, dtype=np.float32)
    shapes = [Gradient(0.9, shift), Gradient(pull=0.2)] if shaped else []
    expected = BatchTrainer().train(replace(work, gradients=shapes))
    config, part, work = bench.work(overrides)
    got = bench.trainer(sharing, config, part).train(replace(work, gradients=shapes))
    assert np.abs(got.delta - expected.delta).max() <= 2e-6 * max(1, np.abs(expected.delta).max())
    assert (got.num_steps, got.num_predictions) == (expected.num_steps, expected.num_predictions)
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert got.first_loss == pytest.approx(expected.first_loss, rel=1e-6)


@dataclass
class Striking:
    """The text of `work`; before its batch `number` it does as `strike` says."""

    work: LocalWork
    number: int
    strike: Callable[[], None]

    def sample(self, batch_size: int, rng: np.random.Generator) -> Any:
        self.number -= 1
        if self.number == 0:
            self.strike()
        return self.work.dataset.sample(batch_size, rng)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        return self.work.dataset.epoch(batch_size, rng)

    def validation(self, batch_size: int, max_examples: int) -> Iterator[Any]:
        return self.work.dataset.validation(batch_size, max_examples)

    def sample_validation(self, batch_size: int, num_examples: int, rng: np.random.Generator) -> Iterator[Any]:
        return self.work.dataset.sample_validation(batch_size, num_examples, rng)


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_a_rank_that_is_killed_changes_no_bit(bench: Bench, sharing: str, caplog: pytest.LogCaptureFixture) -> None:
    config, part, work = bench.work([])
    expected = bench.trainer(sharing, config, part).train(work)
    config, part, work = bench.work([])
    before = bench.shared.ranks.pids

    def kill() -> None:
        os.kill(before[0], signal.SIGKILL)

    got = bench.trainer(sharing, config, part).train(replace(work, dataset=Striking(work, 3, kill)))
    assert got.delta.tobytes() == expected.delta.tobytes()
    assert (got.loss, got.first_loss) == (expected.loss, expected.first_loss)
    assert bench.shared.ranks.pids != before
    assert "rank 1 was ended by signal 9; all are started again, and the round too" in caplog.text


def test_a_round_that_is_out_of_time_stops_all_ranks_at_one_batch_and_the_next_one_is_as_ever(bench: Bench) -> None:
    config, part, work = bench.work([])
    trainer = bench.trainer("ddp", config, part)
    expected, pids = trainer.train(work), bench.shared.ranks.pids
    checks = iter([False, False, False, True])  # one a batch

    def check() -> None:
        if next(checks):
            raise OutOfTime("AGFL-POLICY-012", "out of time")

    config, part, work = bench.work([])
    with pytest.raises(OutOfTime):
        bench.trainer("ddp", config, part).train(replace(work, check_deadline=check))
    config, part, work = bench.work([])
    assert bench.trainer("ddp", config, part).train(work).delta.tobytes() == expected.delta.tobytes()
    assert bench.shared.ranks.pids == pids, "they stayed warm"


@pytest.mark.parametrize("defect", [FileNotFoundError("the text"), RuntimeError("as gloo has it")])
def test_a_defect_of_the_node_itself_is_no_lost_rank(bench: Bench, defect: Exception) -> None:
    def fail() -> None:
        raise defect

    config, part, work = bench.work([])
    with pytest.raises(type(defect)) as raised:
        bench.trainer("ddp", config, part).train(replace(work, dataset=Striking(work, 2, fail)))
    assert raised.value is defect


def test_a_rank_that_is_told_to_end_is_none_that_ended_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a defect of the node would look like a lost rank, and the round begin again."""
    bench.shared.end()
    monkeypatch.setattr(ranks, "launch", forked_slow_leaver)
    config, part, work = bench.work([])
    bench.trainer("ddp", config, part).train(work)
    assert bench.shared.end() == []


def test_a_rank_that_hangs_is_lost_once_it_is_silent_for_too_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, part, work = bench.work([])
    expected = bench.trainer("ddp", config, part).train(work)
    bench.shared.end()
    monkeypatch.setattr("agfl_client.parallel.group.SILENT_S", 3.0)
    monkeypatch.setattr(ranks, "_END_S", 0.2)
    config, part, work = bench.work([])
    hanging = Striking(work, 3, lambda: os.kill(bench.shared.ranks.pids[0], signal.SIGSTOP))
    got = bench.trainer("ddp", config, part).train(replace(work, dataset=hanging))
    bench.shared.end()  # the next ones are as patient as ever
    assert got.delta.tobytes() == expected.delta.tobytes()
    assert "rank 1 was ended by signal 9; all are started again" in caplog.text


@pytest.mark.parametrize("batch_size", [2, 4096], ids=["its sums are awaited", "it does not read"])
def test_a_rank_that_hangs_does_not_stop_the_node_beyond_its_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    bench.shared.ranks.start()
    monkeypatch.setattr(ranks, "_MOMENT_S", 0.2)
    config, part, work = bench.work([f"training.batch_size={batch_size}"])
    hanging = Striking(work, 1, lambda: os.kill(bench.shared.ranks.pids[0], signal.SIGSTOP))
    began, deadline = time.monotonic(), Deadline.after(1)
    trainer = replace(bench.trainer("ddp", config, part), deadline=deadline)
    with pytest.raises(OutOfTime):
        trainer.train(replace(work, dataset=hanging, check_deadline=deadline.check))
    assert time.monotonic() - began < 10, "not the five minutes of one that is silent"
    assert not bench.shared.ranks.pids, "it was ended"


def test_what_is_not_read_is_not_sent_for_ever() -> None:
    ours, its = socket.socketpair()
    with its, pytest.raises(RankLostError):
        Line(ours, FROM_RANK, 0.2).send(Note("much", bytes(10**7)))
    ours.close()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_hold_each_row_once(count: int) -> None:
    ids = torch.arange(10).view(5, 2)
    texts = tuple((str(i), str(i)) for i in range(5))
    for batch in (TokenBatch(ids, ids + 1), TensorBatch((ids, ids[:, 0])), PairBatch(ids, ids > 2, ids, ids, texts)):
        shares = [rows for rows, is_real in split(batch, count) if is_real]
        assert len(shares) == min(count, 5)
        for name in vars(batch):
            parts = [getattr(rows, name) for rows in shares]
            whole = getattr(batch, name)
            if isinstance(batch, TensorBatch):
                parts, whole = [part[1] for part in parts], whole[1]
            if isinstance(whole, Tensor):
                assert torch.equal(torch.cat(parts), whole)
            else:
                assert sum(parts, ()) == whole
    assert all(rows.inputs.shape[0] == 1 for rows, is_real in split(TokenBatch(ids, ids), 8) if not is_real)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ("many", r"^--parallel: must be one of auto, single, ddp, fsdp2, or .*, got 'many' \[AGFL-CONFIG-251\]"),
        ("ddp:0", "AGFL-CONFIG-251"),
        ("ddp:" + "9" * 5000, "AGFL-CONFIG-251"),
        ("ddp", r"^--parallel: with ddp and --device cpu the number of ranks must be in \[2, 64\], got 1 \[AGFL-CON"),
        ("single:2", r"must be in \[1, 1\], got 2"),
        ("fsdp2:65", r"must be in \[2, 64\], got 65"),
    ],
)
def test_a_choice_that_this_machine_has_not_is_refused(choice: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Parallel.of(choice, "cpu")


def test_auto_takes_one_device_unless_there_are_more_and_shares_what_does_not_fit(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = run_config().client_plan
    assert Parallel.of("auto", "cpu") == Parallel("single", ("cpu",))
    two = Parallel.of("auto:2", "cpu")
    assert two.devices == ("cpu", "cpu")
    assert two.sharing(plan, 1) == "ddp"
    monkeypatch.setattr("agfl_client.parallel.choice._device_bytes", lambda device: 1000.0)
    assert two.sharing(plan, 1) == "fsdp2"
    assert two.sharing(run_config(*WHOLE_ONLY["widths"]).client_plan, 2) == "ddp", "the only one that serves it"


@pytest.mark.parametrize(
    ("setting", "needs"),
    [
        (WHOLE_ONLY["widths"], "elastic"),
        (WHOLE_ONLY["a step size that is found"], "training.optimizer delta_sgd"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name_before_text_is_read(
    run_config: MakeConfig,
    make_owners: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    setting: list[str],
    needs: str,
) -> None:
    read: list[str] = []
    monkeypatch.setattr(Node, "_rows", lambda *_: read.append("text"))
    owner, rules = make_owners(1) / "owner-00.jsonl", Policy(allow_plain=True, runs="all")
    node = Node("owner-00", owner, parallel=Parallel.of("fsdp2:2", "cpu"), policy=rules)
    line = f"--parallel: must be one that can serve {needs}; it is not"
    with pytest.raises(ConfigError, match=re.escape(line)):
        node.handle_round(request_of(run_config(*setting), evaluate=False))
    assert not read
