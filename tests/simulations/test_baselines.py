"""The baselines train as a client trains, and what the report says of them is what their file says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.commands import Started

from agfl_client.training.evaluation import evaluate
from agfl_client.training.trainer import BatchTrainer, train
from agfl_models.examples import read_rows
from agfl_models.model.families import build_model
from agfl_models.tasks.evaluation import HeldOut
from agfl_models.tasks.language_modeling import TokenStream
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.randomness import generator
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import initial_state
from agfl_sim.baselines.baselines import FILE, ScoreFile, run_baselines
from agfl_sim.baselines.comparison import CENTRALIZED, GLOBAL, LOCAL, MODELS, TUNED, Score
from agfl_sim.baselines.learners import Bench
from agfl_sim.partition import owner_files
from agfl_sim.run import simulate

STEPS = "training={optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_steps: 2}"
ADAMW = "training={optimizer: {type: adamw, lr: 0.01}, batch_size: 4, local_steps: 2}"
EPOCHS = "training={optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_epochs: 1}"
WEIGHT = "aggregation.max_weight=1000"
TRANSLATION = (
    "task={type: translation, target_length: 8}",
    "model={family: encoder_decoder, vocab_size: 259, dim: 8, encoder: {layers: [{type: ff}]}, "
    "layers: [{type: attention, num_heads: 1, cross: true}]}",
)
QUESTIONS = (
    "task={type: question_answering, context_length: 64}",
    "model={family: encoder, vocab_size: 259, dim: 8, head: {type: span}, layers: [{type: ff}]}",
)
MakeConfig = Callable[..., RunConfig]


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


def no_progress(finished: int, total: int) -> None:
    """Nobody watches."""


def bench_of(config: RunConfig, owners: Sequence[Path]) -> Bench:
    """A bench as `run_baselines` makes it; the model that it begins with is the global one, too."""
    layout, state = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "run")
    task: Any = config.build_task()
    rows = {path.stem: read_rows(path, config.task.row) for path in sorted(owners)}
    datasets = {name: task.prepare(own) for name, own in rows.items()}
    return Bench(config, task, rows, datasets, layout, state.model, state.model, "cpu")


@pytest.fixture
def bench(run_config: MakeConfig, make_owners: Callable[..., Path]) -> Callable[..., Bench]:
    """Return the bench of `count` owners with short documents."""

    def make(count: int, *overrides: str) -> Bench:
        return bench_of(run_config(*overrides), sorted(make_owners(count).iterdir()))

    return make


@pytest.fixture
def finished(run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path) -> tuple[Path, list[Path]]:
    """A run of three rounds among three owners that has ended, without baselines so far; and the owners' files."""
    config = run_config(f"data.path={make_owners(3)}")
    return tmp_path / "run", simulate(config, tmp_path / "run", "inline", False, Observer())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


@pytest.mark.parametrize("training", [(STEPS,), (ADAMW,), (EPOCHS, WEIGHT)], ids=["sgd", "adamw", "epochs"])
def test_all_text_of_one_owner_in_one_place_is_that_owner_alone(
    bench: Callable[..., Bench], training: Sequence[str]
) -> None:
    one = bench(1, *training, "num_rounds=9")
    pool, alone, _ = one.learners
    assert (pool.model, alone.model, pool.rounds) == (CENTRALIZED, LOCAL, alone.rounds)
    assert one.train(pool) == [replace(score, model=CENTRALIZED) for score in one.train(alone)]


@pytest.mark.parametrize("overrides", [TRANSLATION, QUESTIONS], ids=["translation", "question_answering"])
def test_so_it_is_in_every_task(run_config: MakeConfig, tmp_path: Path, overrides: Sequence[str]) -> None:
    config = run_config(*overrides, "data={partition: natural, num_owners: 1}", "num_rounds=2")
    one = bench_of(config, owner_files(config, tmp_path / "text"))
    pool, alone, _ = one.learners
    scores = one.train(alone)
    assert one.task.main_metric.name in scores[0].metrics
    assert one.train(pool) == [replace(score, model=CENTRALIZED) for score in scores]


def test_owner_alone_trains_as_the_only_client_of_a_federation_does(bench: Callable[..., Bench]) -> None:
    """Round after round with SGD, which keeps nothing from one to the next: the same bits, of the best round."""
    two = bench(2, STEPS, "training.optimizer.lr=4", "num_rounds=5")
    best = set()
    for learner in two.learners[1:3]:
        model = build_model(two.config.model, seed=0)
        two.layout.load(model, two.initial)
        dataset = two.datasets[learner.name]
        expected = []
        for number in range(1, 6):
            rng = generator(two.config.seed, learner.name, number, "batches")
            BatchTrainer().train(LocalWork(model, two.layout, two.task, dataset, rng, two.config.training))
            expected.append(evaluate(model, HeldOut(two.task, dataset, 4, two.config.evaluation.max_examples)))
        qualities = [two.task.eval_metrics(sums)["eval/bits_per_byte"] for sums in expected]
        (score,) = two.train(learner)
        assert score.round == 1 + int(np.argmin(qualities))
        assert score.sums == expected[score.round - 1]
        best.add(score.round)
    assert best != {5}, "the rate is so high that the last model is not the best of all owners"


def test_owner_trains_the_global_model_on_where_the_federation_ended(bench: Callable[..., Bench]) -> None:
    """A quarter as long, rounded up, with the batches of the rounds that would have come; the best model counts."""
    two = bench(2, STEPS, "training.optimizer.lr=4", "num_rounds=9")
    start = two.initial * np.float32(0.9)
    for learner in replace(two, final=start).learners[3:]:
        assert (learner.model, learner.rounds) == (TUNED, 3)
        model, dataset, expected = build_model(two.config.model, seed=0), two.datasets[learner.name], []
        two.layout.load(model, start)
        for number in range(10, 13):
            rng = generator(two.config.seed, learner.name, number, "batches")
            BatchTrainer().train(LocalWork(model, two.layout, two.task, dataset, rng, two.config.training))
            expected.append(evaluate(model, HeldOut(two.task, dataset, 4, two.config.evaluation.max_examples)))
        (score,) = replace(two, final=start).train(learner)
        assert score.sums == min(expected, key=lambda sums: two.task.eval_metrics(sums)["eval/bits_per_byte"])


def test_each_learner_goes_through_the_schedule_once(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool in twice as many rounds as the federation had, and an owner that trains on in a quarter of them."""
    two = bench(2, STEPS, "num_rounds=5", "training.schedule={type: warmup, warmup_steps: 10}")
    steps = list[int]()

    def noted(work: LocalWork, shipped: LocalTrainer) -> LocalResult:
        steps.append(work.first_step)
        return train(work, shipped)

    monkeypatch.setattr("agfl_sim.baselines.learners.train", noted)
    pool, alone, *_, tuned = two.learners
    for learner, expected in ((pool, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)), (alone, (0, 1, 2, 3, 4)), (tuned, (0, 2))):
        steps.clear()
        two.train(learner)
        assert steps == [2 * number for number in expected]


def test_optimizer_goes_on_from_round_to_round(bench: Callable[..., Bench]) -> None:
    """One round of six batches and three of two differ in nothing but the batches: here every batch is the same."""
    text = np.tile(np.arange(20, dtype=np.int32), 2)
    scores = []
    for steps, rounds in ((6, 1), (2, 3)):
        one = bench(1, ADAMW, f"training.local_steps={steps}", f"num_rounds={rounds}")
        (name,) = one.datasets
        stream = TokenStream(text[:17], text[17:], 16, 256, 257)  # one window is all there is to draw
        scores.append(replace(one, datasets={name: stream}).train(one.learners[1])[0].sums)
    assert scores[0] == scores[1]


def test_pool_holds_what_owners_train_on_and_nothing_else(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config(*TRANSLATION, "data={partition: natural, num_owners: 5}")
    five = bench_of(config, owner_files(config, tmp_path / "text"))
    datasets: Any = five.datasets.values()
    pool: Any = five.pool
    assert pool.held_out == []
    assert sorted(pool.train) == sorted(pair for dataset in datasets for pair in dataset.train)
    held_out = {pair.source for dataset in datasets for pair in dataset.held_out}
    assert held_out
    assert not held_out & {pair.source for pair in pool.train}


def test_blank_document_changes_no_owners_split(run_config: MakeConfig, tmp_path: Path) -> None:
    """If it counted, the only other one would be held out, since its digest is the smaller one."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n')
    one = bench_of(run_config(), [tmp_path / "a.jsonl"])
    pool: Any = one.pool
    own: Any = one.datasets["a"]
    assert pool.train.tolist() == own.train.tolist()


@pytest.mark.parametrize(
    ("overrides", "budget"),
    [
        ((STEPS,), ("batches", 6, 24)),
        ((STEPS, "aggregation.cohort_size=2"), ("batches", 6, 12)),
        ((EPOCHS, WEIGHT), ("epochs", 3, 3)),
        ((EPOCHS, WEIGHT, "aggregation.cohort_size=2"), ("epochs", 3, 2)),
    ],
)
def test_pool_sees_as_many_examples_as_the_federation(
    bench: Callable[..., Bench], overrides: Sequence[str], budget: tuple[str, int, int]
) -> None:
    four = bench(4, *overrides, "num_rounds=3")
    assert (four.budget.unit, four.budget.local, four.budget.centralized) == budget


def test_training_that_diverges_counts_as_the_untrained_model(bench: Callable[..., Bench]) -> None:
    wild = "{type: sgd, lr: 1.0e+6, weight_decay: 1.0e+6}"  # weights grow 1e12-fold a step
    one = bench(1, f"training={{optimizer: {wild}, local_steps: 8, max_grad_norm: null}}")
    (score,) = one.train(one.learners[1])
    assert score.round == 0
    assert score.sums == one.judge_global("owner-00")[0].sums  # of the bench, the untrained one


def test_global_numbers_are_those_of_the_last_round(finished: tuple[Path, list[Path]]) -> None:
    """The rounds know them only as sums over owners."""
    folder, owners = finished
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    comparison = run_baselines(folder, owners, False, no_progress)
    assert comparison.pooled[GLOBAL] == pytest.approx(last["eval/bits_per_byte"], rel=1e-6)
    pooled = next(line for line in lines_of(folder) if (line["model"], line["owner"]) == (GLOBAL, None))
    for name, value in pooled["metrics"].items():
        assert last[name] == pytest.approx(value, rel=1e-6), name


def test_file_has_every_model_at_every_owner_and_sums_that_add_up(finished: tuple[Path, list[Path]]) -> None:
    folder, owners = finished
    comparison = run_baselines(folder, owners, False, no_progress)
    lines, names = lines_of(folder), [path.stem for path in owners]
    assert [(line["model"], line["owner"]) for line in lines] == [(m, n) for m in MODELS for n in (None, *names)]
    for model in MODELS:
        pooled, *own = (line for line in lines if line["model"] == model)
        for name, total in pooled["sums"].items():
            assert total == sum(line["sums"][name] for line in own)
        assert comparison.pooled[model] == pooled["metrics"]["eval/bits_per_byte"]
        values = {line["owner"]: line["metrics"]["eval/bits_per_byte"] for line in own}
        assert {name: comparison.owners[name][model] for name in names} == values


def test_interrupted_anywhere_and_resumed_leaves_the_bytes_of_an_uninterrupted_one(
    finished: tuple[Path, list[Path]],
) -> None:
    folder, owners = finished
    comparison = run_baselines(folder, owners, False, no_progress)
    whole, total = (folder / FILE).read_bytes(), 3 * 3 + 9 + 3
    begun_with = []
    for moment in (1, 5, 10, 17):
        seen: list[int] = []

        def pull(done: int, rounds: int, moment: int = moment) -> None:
            assert rounds == total
            if done >= moment:
                raise PulledPlugError

        with pytest.raises(PulledPlugError):
            run_baselines(folder, owners, False, pull)
        with (folder / FILE).open("a") as file:
            file.write('{"run": "torn')  # as the last line may be
        assert run_baselines(folder, owners, True, lambda done, rounds, seen=seen: seen.append(done)) == comparison  # type: ignore[misc]
        assert (folder / FILE).read_bytes() == whole
        assert seen == list(range(seen[0], total + 1))
        begun_with.append(seen[0])
    assert begun_with[0] == 0
    assert begun_with[-1] > 0, "what was finished is not trained again"


def test_finished_baselines_are_not_trained_again(finished: tuple[Path, list[Path]]) -> None:
    folder, owners = finished
    first = run_baselines(folder, owners, False, no_progress)
    whole, seen = (folder / FILE).read_bytes(), []
    assert run_baselines(folder, owners, True, lambda done, total: seen.append((done, total))) == first
    assert seen == [(21, 21)]
    assert (folder / FILE).read_bytes() == whole


def test_score_whose_line_was_cut_short_anywhere_is_left_out(tmp_path: Path) -> None:
    """A line holds mappings, so one that ends in a brace need not be whole."""
    scores = [Score(LOCAL, name, 3, {"eval/loss": 1.5}, {"eval/nll": 3.0}) for name in ("alice", "bob")]
    ScoreFile(tmp_path / FILE, "key").finish(scores)
    whole = (tmp_path / FILE).read_bytes()
    for size in range(whole.index(b"\n") + 1, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        assert ScoreFile(tmp_path / FILE, "key").begin(resume=True) == scores[:1]
    assert ScoreFile(tmp_path / FILE, "other").begin(resume=True) == []


@pytest.mark.parametrize("model", MODELS)
def test_scores_of_a_learner_count_only_together(finished: tuple[Path, list[Path]], model: str) -> None:
    """A crash may have kept some of the lines that one learner left."""
    folder, owners = finished
    run_baselines(folder, owners, False, no_progress)
    whole = (folder / FILE).read_bytes()
    lines = whole.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"model": "%b", "owner": "' % model.encode() in line)
    (folder / FILE).write_bytes(b"".join(lines[:first] + lines[first + 1 :]))
    run_baselines(folder, owners, True, no_progress)
    assert (folder / FILE).read_bytes() == whole


@pytest.mark.parametrize("what", ["rounds", "max_examples", "text", "no resume"])
def test_scores_of_another_run_are_not_taken_for_this_ones(
    run_config: MakeConfig, finished: tuple[Path, list[Path]], what: str
) -> None:
    folder, owners = finished
    run_baselines(folder, owners, False, no_progress)
    path = f"data.path={owners[0].parent}"
    if what == "rounds":
        simulate(run_config(path, "num_rounds=4"), folder, "inline", True, Observer())
    if what == "max_examples":
        simulate(run_config(path, "evaluation.max_examples=1"), folder, "inline", True, Observer())
    if what == "text":
        with owners[1].open("a") as file:
            file.write('{"text": "one more"}\n')
    seen: list[int] = []
    run_baselines(folder, owners, what != "no resume", lambda done, total: seen.append(done))
    assert seen[0] == 0


def test_owner_whose_data_cannot_be_used_is_left_out(
    run_config: MakeConfig, finished: tuple[Path, list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, owners = finished
    owners[1].write_text('{"text": 3}\n')
    comparison = run_baselines(folder, owners, False, no_progress)
    assert list(comparison.owners) != []
    assert owners[1].stem not in comparison.owners
    assert f"{owners[1].stem} is left out of the baselines" in caplog.text


CONFIG = """
seed: 3
num_rounds: 4
task: {type: language_modeling, sequence_length: 32}
model: {vocab_size: 259, dim: 16, layers: [{type: ff, hidden_dim: 16}]}
training: {batch_size: 4, local_steps: 8}
aggregation: {type: plain, min_cohort: 2}
evaluation: {every: 4, max_examples: 8}
data: {partition: natural, num_owners: 8}
baselines: true
"""


def start(folder: Path, *arguments: str) -> Started:
    return Started("agfl-simulate", "small.yaml", *arguments, cwd=folder)


def test_command_makes_them_and_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(CONFIG)
    process, file = start(tmp_path, "--output", "run"), tmp_path / "run" / FILE
    while not file.exists() or file.read_bytes().count(b"\n") < 1:
        assert process.poll() is None, "it ended before its time"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, "Traceback" in errors) == (130, False), errors
    assert "stopped; go on with: agfl-simulate small.yaml --output run --resume\n" in output
    assert len(lines_of(tmp_path / "run")) < 27

    process = start(tmp_path, "--output", "run", "--resume")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(lines_of(tmp_path / "run")) == 36
    assert "bits per byte: global model " in output
    assert " of 8 owners (" in output
    assert "Should I join?" in (tmp_path / "run" / "report.html").read_text()
