"""A search over real nodes: interrupted anywhere it ends as it would have, and the run is that of chosen.yaml."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from agfl_models.errors import CheckpointError, ConfigError, RoundError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.store import load_model
from agfl_models.model.config import ModelConfig
from agfl_models.model.model import AutoGenModel
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.update import Layout
from agfl_server.app import run_federation
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.observer import Observer, Row
from agfl_server.run.run_folder import RunFolder
from agfl_server.search.search import CHOSEN_FILE, RACE_FILE
from agfl_server.search.skipping import BLOCKS_FILE, models_without_a_block
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.inline_engine import InlineEngine

MakeConfig = Callable[..., RunConfig]
SEARCH = "search={slate: [configured, mingru, gru, attention+mingru], rungs: [1, 2]}"
MODEL = """model={vocab_size: 259, dim: 16, layers: [{repeat: 2, layers: [{type: attention, num_heads: 2},
  {type: ff, hidden_dim: 24}]}]}"""
OVERRIDES = (SEARCH, MODEL, "num_rounds=4", "training.local_steps=1", "aggregation.server_optimizer={type: fedadam}")


class PulledPlugError(BaseException):
    """Nothing in the product catches it."""


@dataclass
class Watcher(Observer):
    """Notes what the search tells, copies what is in the folder at times, and ends the process at event `stop`."""

    folder: Path
    stop: int | None = None
    copied_every: int | None = None
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def search_started(self, candidates: Sequence[str], skipped: Mapping[str, str]) -> None:
        self._note("started", *candidates)

    def candidate_started(self, name: str, rounds: int) -> None:
        self._note("turn", name, rounds)

    def candidate_measured(self, name: str, rounds: int, loss: float | None) -> None:
        self._note("measured", name, rounds, loss)

    def candidate_left(self, name: str, fate: str) -> None:
        self._note("left", name, fate)

    def search_finished(self, chosen: str, candidate_rounds: int, exhaustive_rounds: int) -> None:
        self._note("chosen", chosen, candidate_rounds, exhaustive_rounds)

    def round_finished(self, row: Row) -> None:
        self._note("round", row["round"])

    def evaluated(self, row: Row) -> None:
        self._note("evaluated", row["round"])

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        number = len(self.events)
        if self.copied_every and number % self.copied_every == 2:
            shutil.copytree(self.folder, cut_short(self.folder, number))
        if number == self.stop:
            raise PulledPlugError


def cut_short(folder: Path, number: int) -> Path:
    """Return where there is what a kill at an event would have left of the run in `folder`."""
    return folder.with_name(f"{folder.name}-{number}")


@dataclass
class Runs:
    """Runs the tiny federation, each time with new nodes."""

    config: MakeConfig
    owners: Path
    grid: Callable[..., InProcessGrid]

    def run(
        self,
        folder: Path,
        *overrides: str,
        resume: bool = False,
        stop: int | None = None,
        copied_every: int | None = None,
    ) -> Watcher:
        watcher, config = Watcher(folder, stop, copied_every), self.config(*OVERRIDES, *overrides)
        run_federation(self.grid(self.owners), config, folder, resume=resume, observer=watcher)
        return watcher


@pytest.fixture
def runs(run_config: MakeConfig, make_owners: Callable[..., Path], open_grid: Callable[..., InProcessGrid]) -> Runs:
    return Runs(run_config, make_owners(3), open_grid)


@dataclass
class Whole:
    """A run that nobody interrupted: where it is, and what it told."""

    folder: Path
    events: list[tuple[Any, ...]]

    def copied(self, folder: Path) -> Path:
        """Return a copy of it that may be changed."""
        return Path(shutil.copytree(self.folder, folder, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def kept() -> dict[str, Whole]:
    return {}


@pytest.fixture
def whole(runs: Runs, kept: dict[str, Whole], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """It takes a second, so all tests of this file have the same one."""
    if not kept:
        folder = tmp_path_factory.mktemp("searched") / "run"
        kept["one"] = Whole(folder, runs.run(folder, copied_every=5).events)
    return kept["one"]


def result(folder: Path) -> dict[str, Any]:
    """All that a search and its run leave, but for names of runs and how long they took."""
    files = [
        *folder.glob("model/*"),
        folder / "config.yaml",
        *folder.glob("search/*.json"),
        folder / "search/chosen.yaml",
    ]
    files = [path for path in files if path.name != "exchange.json"]
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for home in [folder, *sorted(path for path in (folder / "search").iterdir() if path.is_dir())]:
        rows = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        found[f"rows of {home.name if home != folder else 'the run'}"] = [{**row, "seconds": 0} for row in rows]
        config = load_run_config(home / "config.yaml")
        state = load_checkpoint(home / "checkpoints", config.hash)
        found[f"state of {home.name if home != folder else 'the run'}"] = (state.round, state.model.tobytes())
    return found


def test_search_tells_what_happens_and_leaves_a_chosen_run(whole: Whole) -> None:
    events = whole.events
    turns = [event[1:] for event in events if event[0] == "turn"]
    assert turns[:4] == [("configured", 1), ("mingru", 1), ("gru", 1), ("attention+mingru", 1)]
    assert [rounds for _, rounds in turns[4:]] == [3, 3]
    losses = {event[1]: event[3] for event in events if event[0] == "measured" and event[2] == 1}
    assert {name for name, _ in turns[4:]} == {min(losses, key=lambda name: losses[name]), "configured"}
    (chosen,) = [event for event in events if event[0] == "chosen"]
    after = events[events.index(chosen) :]
    assert [number for kind, number, *_ in after if kind == "round"] == [4], "it goes on after its three rounds"
    assert chosen[2:] == (2 * 1 + 2 * 3, 4 * 3)
    told = json.loads((whole.folder / "search" / RACE_FILE).read_text())
    assert [one["name"] for one in told["candidates"] if not one["fate"]] == [chosen[1]]
    assert [one["losses"][0] for one in told["candidates"]] == list(losses.values())
    for name in losses:
        assert (whole.folder / "search" / name / "metrics.jsonl").exists()


def test_run_is_that_of_chosen_yaml_but_for_its_draws(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    """They follow from the number of the exchange, and a search has one counter with all its candidates."""
    written = whole.folder / "search" / CHOSEN_FILE
    plain = load_run_config(written)
    assert plain.search is None
    assert "type: choice" not in written.read_text()
    run_federation(runs.grid(runs.owners), plain, tmp_path / "plain")
    for name in ("model/config.yaml", "config.yaml"):
        assert (whole.folder / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_interrupted_search_ends_with_the_bits_of_an_uninterrupted_one(
    runs: Runs, whole: Whole, tmp_path: Path
) -> None:
    expected = result(whole.folder)
    for stop in range(2, len(whole.events) + 1, 5):
        folder = Path(shutil.copytree(cut_short(whole.folder, stop), tmp_path / f"stopped-{stop}"))
        runs.run(folder, resume=True)
        assert result(folder) == expected, whole.events[stop - 1]


@pytest.mark.parametrize("written", [0, 1])
def test_killed_while_the_winner_is_taken_over_a_search_goes_on(
    runs: Runs, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """It copies two files into the run's own folder."""
    left = iter([True] * written)

    def cut_short(path: Path, content: bytes) -> None:
        is_copy = "search" not in path.relative_to(tmp_path).parts and path.name != "plan.json"
        if is_copy and not next(left, False):
            raise PulledPlugError
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("agfl_server.run.run_folder.write_atomically", cut_short)
        with pytest.raises(PulledPlugError):
            runs.run(tmp_path / "run")
    assert not RunFolder(tmp_path / "run").has_checkpoint
    runs.run(tmp_path / "run", resume=True)
    assert result(tmp_path / "run") == result(whole.folder)


def test_resumed_search_trains_nothing_twice(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    events = whole.events
    last_turn = max(i for i, event in enumerate(events) if event[0] == "turn")
    with pytest.raises(PulledPlugError):
        runs.run(tmp_path / "run", stop=last_turn + 3)  # after a round and the evaluation in the next one
    again = runs.run(tmp_path / "run", resume=True).events
    assert [event for event in again if event[0] == "turn"] == [events[last_turn]]
    finished = runs.run(tmp_path / "run", resume=True).events
    assert not [event for event in finished if event[0] in ("turn", "round")]


def test_more_rounds_later_are_of_the_chosen_candidate(runs: Runs, tmp_path: Path) -> None:
    """The rungs follow from num_rounds, but not once the race has begun."""
    slate = "search={slate: [configured, causal_conv]}"
    runs.run(tmp_path / "run", slate, "num_rounds=3")
    events = runs.run(tmp_path / "run", slate, "num_rounds=5", resume=True).events
    assert [event[:2] for event in events if event[0] in ("turn", "round")] == [("round", 4), ("round", 5)]


def test_a_damaged_race_is_one_line(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    told = whole.copied(tmp_path / "run") / "search" / RACE_FILE
    race = json.loads(told.read_text())
    nobody = {**race, "candidates": [{**one, "fate": "lost"} for one in race["candidates"]]}
    contents: list[Any] = [{}, [], {**race, "rungs": None}, nobody]
    for content in contents:
        told.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=rf"^search: {told}: is damaged: "):
            runs.run(tmp_path / "run", resume=True)


def test_rungs_are_part_of_the_run(run_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"search.rungs: must sum to at most num_rounds = 2, got 3"):
        run_config(*OVERRIDES, "num_rounds=2")


def test_tokenizer_is_learned_once_for_all(runs: Runs, tmp_path: Path) -> None:
    bpe = ("tokenizer={type: bpe, vocab_size: 264}", "model.vocab_size=264")
    runs.run(tmp_path / "run", *bpe)
    written = [tmp_path / "run" / "config.yaml", *(tmp_path / "run" / "search").rglob("config.yaml")]
    learned = [load_run_config(path).tokenizer for path in written]
    assert len(learned) == 1 + 1 + 4
    assert all(tokenizer == learned[0] for tokenizer in learned)
    assert learned[0].is_trained
    plain = load_run_config(tmp_path / "run" / "search" / CHOSEN_FILE)
    assert not plain.tokenizer.is_trained
    run_federation(runs.grid(runs.owners), plain, tmp_path / "plain")
    configs = [(tmp_path / name / "model" / "config.yaml").read_bytes() for name in ("run", "plain")]
    assert configs[0] == configs[1], "which holds the merges"


def test_secure_search_is_the_plain_one_bit_for_bit(run_config: MakeConfig, make_owners: Any, tmp_path: Path) -> None:
    owners = sorted(make_owners(4).glob("*.jsonl"))
    for kind in ("plain", "secure"):
        fewer = ("search.slate=[configured, mingru]", f"aggregation.type={kind}", "aggregation.min_cohort=3")
        config = run_config(*OVERRIDES, *fewer)
        InlineEngine(config, owners).run(tmp_path / kind, resume=False, observer=Observer())
    found = [
        [(tmp_path / kind / "search" / name).read_bytes() for kind in ("plain", "secure")]
        for name in (RACE_FILE, BLOCKS_FILE)
    ]
    assert all(plain == secure for plain, secure in found)
    weights = [(tmp_path / kind / "model" / "model.safetensors").read_bytes() for kind in ("plain", "secure")]
    assert weights[0] == weights[1]


def test_candidates_that_diverge_die_and_a_race_without_survivors_says_so(runs: Runs, tmp_path: Path) -> None:
    optimizer = "training.optimizer={type: sgd, lr: 1.0e+6, weight_decay: 1.0e+6}"  # weights grow 1e12-fold a step
    wild = (optimizer, "training.local_steps=4", "aggregation.max_attempts=1")
    with pytest.raises(RoundError, match="search: a candidate must have a finite loss after rung 1, none has"):
        runs.run(tmp_path / "run", *wild)
    told = json.loads((tmp_path / "run" / "search" / RACE_FILE).read_text())
    assert {one["fate"] for one in told["candidates"]} == {
        "died in rung 1: its training diverged: updates or losses are not finite"
    }


def test_what_does_not_belong_together_is_refused(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold a search, found none"):
        runs.run(tmp_path / "run", resume=True)
    whole.copied(tmp_path / "run")
    with pytest.raises(ConfigError, match="must be a folder without a run; continue the run in it with --resume"):
        runs.run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"another configuration: training\.batch_size was [0-9]+, now 3 "):
        runs.run(tmp_path / "run", "training.batch_size=3", resume=True)
    with pytest.raises(CheckpointError, match=r"search\.slate must still hold the chosen"):
        runs.run(tmp_path / "run", "search.slate=[mingru, ff]", "model.layers=[{type: rnn}, {type: ff}]", resume=True)


def test_what_does_not_belong_to_a_race_that_has_begun_is_refused(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    events = whole.events
    last_turn = max(i for i, event in enumerate(events) if event[0] == "turn")
    with pytest.raises(PulledPlugError):
        runs.run(tmp_path / "run", stop=last_turn + 1)
    with pytest.raises(CheckpointError, match=r"search/configured: .*: training\.batch_size was [0-9]+, now 3 "):
        runs.run(tmp_path / "run", "training.batch_size=3", resume=True)
    open_rungs = "search={slate: [configured, mingru, gru, attention+mingru]}"
    with pytest.raises(CheckpointError, match=r"num_rounds must be at least 3, the rounds of the race.*got 2"):
        runs.run(tmp_path / "run", open_rungs, "num_rounds=2", resume=True)
    with pytest.raises(CheckpointError, match=r"at round 2, the end of a rung of this search, got 3"):
        runs.run(tmp_path / "run", "search.rungs=[1, 1]", resume=True)


def test_once_the_race_is_over_its_settings_change_nothing(runs: Runs, whole: Whole, tmp_path: Path) -> None:
    whole.copied(tmp_path / "run")
    other = "search={slate: [configured, mingru, gru, attention+mingru], rungs: [2, 4], keep: 0.9}"
    events = runs.run(tmp_path / "run", other, "num_rounds=6", resume=True).events
    assert [event[:2] for event in events if event[0] in ("turn", "round")] == [("round", 5), ("round", 6)]


def test_what_a_rung_has_evaluated_is_not_evaluated_again(runs: Runs, tmp_path: Path) -> None:
    slate = "search={slate: [configured, mingru]}"
    events = runs.run(tmp_path / "run", slate, "num_rounds=3").events
    chosen = next(i for i, event in enumerate(events) if event[0] == "chosen")
    assert events[chosen + 1 :] == [("round", 3), ("evaluated", 3)]
    assert events.count(("evaluated", 2)) == 2, "of each candidate once"
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["round"] == 3
    assert last["eval/loss"] is not None


def test_a_search_without_validation_text_is_refused(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search: needs validation text to compare candidates on"):
        runs.run(tmp_path / "run", "task.validation_fraction=0")


def test_skipping_a_block_is_leaving_it_out(whole: Whole) -> None:
    """The model with a block's output weights at zero computes what one without that block does, exactly."""
    model, saved = load_model(whole.folder)
    assert isinstance(saved.model, ModelConfig)
    config, layout = saved.model.resolve(), Layout.of(model)
    ids = torch.arange(32).reshape(2, 16)
    told = json.loads((whole.folder / "search" / BLOCKS_FILE).read_text())
    skipped = list(models_without_a_block(config, layout, layout.flatten(model)))
    assert (
        [block["name"] for block in told["blocks"]]
        == [name for name, _, _ in skipped]
        == [f"layers.{i}" for i in range(4)]
    )
    for index, (_, _, vector) in enumerate(skipped):
        layout.load(model, vector)
        layers = [layer for i, layer in enumerate(config.layers) if i != index]
        shorter = AutoGenModel(config.model_copy(update={"layers": tuple(layers)}), seed=0)
        kept = [i for i in range(4) if i != index]
        for place, i in enumerate(kept):
            shorter.layers[place].load_state_dict(model.get_submodule(f"layers.{i}").state_dict())
            shorter.connections[place].load_state_dict(model.get_submodule(f"connections.{i}").state_dict())
        for part in ("embedding", "head"):
            shorter.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
        assert torch.equal(model(ids), shorter(ids))
    last = json.loads((whole.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert told["loss"] == last["eval/loss"]
    assert told["round"] == 4
