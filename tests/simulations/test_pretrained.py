"""A federation that adapts a pretrained model: only the adapter travels, and an ordinary model comes out."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file
from tests.tiny_pretrained import quiet, write_pretrained
from typer.testing import CliRunner

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_models import cli as model_cli
from agfl_models.errors import AgflError, CheckpointError, ConfigError
from agfl_models.files.store import load_model
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import PretrainedFolder, transformers_library
from agfl_models.reading.corpora import Corpus
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.messages import wire
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_protocol.plans.plan import Plan
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.run import simulate

CONFIG = """
seed: 7
num_rounds: 3
task: {type: language_modeling, sequence_length: 16}
tokenizer: {type: huggingface}
model:
  family: huggingface
  architecture: causal
  lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}
training: {optimizer: {type: adamw, lr: 0.05}, batch_size: 4, local_steps: 6}
aggregation: {type: plain, server_optimizer: {type: fedavg}}
evaluation: {every: 3, max_examples: 8}
"""
ADAPTER = 2 * 4 * (32 + 16 + 32)  # layers, rank, outputs of the three targets
QUESTIONS = {
    "context": "the sea saw a ship",
    "question": "what saw a ship",
    "answers": {"text": ["sea"], "answer_start": [4]},
}
RunOne = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "llama", "llama")


@pytest.fixture
def config(tmp_path: Path, llama: Path, make_owners: Callable[[int], Path]) -> Callable[..., RunConfig]:
    def make(*overrides: str) -> RunConfig:
        (tmp_path / "run.yaml").write_text(CONFIG)
        here = (f"model.folder={llama}", f"data.path={make_owners(3)}")
        return load_run_config(tmp_path / "run.yaml", (*here, *overrides))

    return make


@pytest.fixture
def run(tmp_path: Path) -> RunOne:
    """Simulate a run in the folder `run`; return its rows."""

    def run_one(config: RunConfig, observer: Observer | None = None) -> list[dict[str, Any]]:
        simulate(config, tmp_path / "run", "inline", False, observer or Observer())
        return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    return run_one


class Tap(ClientApp):
    """A ClientApp whose messages are kept."""

    def __init__(self, app: ClientApp, kept: list[tuple[Message, Message]]) -> None:
        super().__init__()
        self.app, self.kept = app, kept

    def __call__(self, message: Message, context: Context) -> Message:
        content = RecordDict(dict(message.content))  # of which the node lets go
        reply = self.app(message, context)
        message.content = content
        self.kept.append((message, reply))
        return reply


def nodes_of(
    owners: Path, pretrained: dict[str, Path | None], kept: list[tuple[Message, Message]] | None = None
) -> InProcessGrid:
    """Return a Grid of nodes with a copy of the pretrained model each."""
    apps: dict[int, ClientApp] = {}
    for i, path in enumerate(sorted(owners.iterdir())):
        node = Node(
            path.stem, path, "cpu", pretrained=pretrained[path.stem], policy=Policy(allow_plain=True, runs="all")
        )
        apps[1000 + i] = Tap(create_client_app(node), [] if kept is None else kept)
    return InProcessGrid(apps, 1)


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_run_lowers_the_loss_and_sends_the_adapter_alone(
    aggregation: str, config: Callable[..., RunConfig], run: RunOne
) -> None:
    rows = run(config(f"aggregation.type={aggregation}"))
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"] - 0.05
    assert rows[-1]["eval/bits_per_byte"] < rows[0]["eval/bits_per_byte"]
    first = rows[1]
    assert first["clients"] == 3
    sent = 3 * 4 * ADAPTER  # bytes, in fields of 32 bits
    overhead = 3 * (1500 if aggregation == "plain" else 4000)
    assert sent < first["bytes_up"] < sent + overhead
    assert sent < first["bytes_down"] < sent + overhead + 3 * 3000  # with the configuration


def test_what_travels_is_what_is_trained_and_no_path(
    tmp_path: Path, config: Callable[..., RunConfig], llama: Path, make_owners: Callable[[int], Path]
) -> None:
    owners = make_owners(3)
    kept: list[tuple[Message, Message]] = []
    with nodes_of(owners, {path.stem: llama for path in owners.iterdir()}, kept) as grid:
        state = run_federation(grid, config("num_rounds=1"), tmp_path / "run")
    assert state.model.shape == (ADAPTER,)
    rounds = [pair for pair in kept if pair[0].metadata.message_type == wire.TRAIN]
    assert rounds
    for request, reply in rounds:
        assert request.content.array_records["arrays"]["model"].shape == (ADAPTER,)
        lanes = reply.content.array_records["arrays"]["lanes"].shape[0]
        assert ADAPTER / 2 < lanes < ADAPTER / 2 + 100
        sent = str(request.content["config"]["client_plan"])
        assert PretrainedFolder(llama).fingerprint in sent
        assert str(llama) not in sent
        assert str(tmp_path) not in sent


def test_what_is_not_adapted_stays_as_it_was_bit_for_bit_and_the_merged_model_computes_the_same(
    tmp_path: Path, config: Callable[..., RunConfig], run: RunOne, llama: Path
) -> None:
    run(config())
    done = CliRunner().invoke(model_cli.app, ["merge", str(tmp_path / "run"), str(tmp_path / "merged")])
    assert done.output == (
        f"wrote {tmp_path / 'merged'}; load it with AutoModelForCausalLM.from_pretrained('{tmp_path / 'merged'}')\n"
    )
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = ("q_proj", "v_proj", "down_proj")
    assert changed == {name for name in before if name.rsplit(".", 2)[1] in targets}
    library = transformers_library()
    model, saved = load_model(tmp_path / "run")
    with quiet():
        merged = library.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        tokenizer = library.AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids_BT = torch.tensor([tokenizer.encode("the sea saw a ship", add_special_tokens=False)])
    with torch.no_grad():
        assert torch.allclose(merged(ids_BT).logits, model(ids_BT), atol=1e-5)
        original = library.AutoModelForCausalLM.from_pretrained(llama)
        assert not torch.allclose(merged(ids_BT).logits, original(ids_BT).logits, atol=1e-2)
    assert saved.model.family == "huggingface"
    again = CliRunner().invoke(model_cli.app, ["merge", str(tmp_path / "run"), str(tmp_path / "merged")])
    assert isinstance(again.exception, CheckpointError)
    assert "must be a new or empty folder" in str(again.exception)


def test_the_saved_model_is_the_adapter_and_names_what_it_adapts(
    tmp_path: Path, config: Callable[..., RunConfig], run: RunOne, llama: Path
) -> None:
    run(config("model.folder=" + str(shutil.copytree(llama, tmp_path / "copy"))))
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == ADAPTER
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size < 4 * ADAPTER + 4000
    _, saved = load_model(tmp_path / "run")
    assert isinstance(saved.model, HuggingFaceConfig)
    assert saved.model.folder == tmp_path / "copy"
    assert saved.model.fingerprint == PretrainedFolder(llama).fingerprint
    shown = CliRunner().invoke(model_cli.app, ["describe", str(tmp_path / "run")]).output
    assert "LlamaForCausalLM" in shown
    assert f"{ADAPTER:,}" in shown
    written = CliRunner().invoke(model_cli.app, ["generate", str(tmp_path / "run"), "the sea", "--max-tokens", "5"])
    assert written.output.startswith("the sea")
    (tmp_path / "copy" / "config.json").write_text((llama / "config.json").read_text() + " ")
    with pytest.raises(ConfigError, match=r"config\.yaml: model\.folder: must be a copy of the run's pretrained model"):
        load_model(tmp_path / "run")
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(AgflError, match=r"^pretrained: .*AGFL-PRETRAINED-001"):
        load_model(tmp_path / "run")


def test_everything_can_be_trained_too(
    tmp_path: Path, config: Callable[..., RunConfig], run: RunOne, llama: Path
) -> None:
    before = (llama / "model.safetensors").read_bytes()
    whole = config("model.lora=null", "training.optimizer={type: sgd, lr: 0.3}")
    rows = run(whole)
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"] - 0.05
    assert rows[1]["bytes_up"] > 3 * 4 * whole.model.num_parameters() > 3 * 4 * 20_000
    done = CliRunner().invoke(model_cli.app, ["merge", str(tmp_path / "run"), str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert (llama / "model.safetensors").read_bytes() == before
    model, _ = load_model(tmp_path / "run")
    with quiet():
        merged = transformers_library().AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids_BT = torch.tensor([[5, 6, 7]])
    assert torch.equal(merged(ids_BT).logits, model(ids_BT))


@pytest.mark.parametrize(
    ("kind", "row", "overrides"),
    [
        ("bert", QUESTIONS, ("task={type: question_answering, context_length: 24}", "model.head={type: span}")),
        (
            "t5",
            {"source": "the sea saw a ship", "target": "Ein Schiff kam"},
            ("task={type: translation, source_length: 16, target_length: 8}", "model.lora.targets=[q, v]"),
        ),
    ],
)
def test_every_task_runs_on_a_pretrained_model(
    kind: str,
    row: dict[str, Any],
    overrides: tuple[str, ...],
    tmp_path: Path,
    config: Callable[..., RunConfig],
    run: RunOne,
) -> None:
    first = next(iter(row))
    (tmp_path / "rows").mkdir()
    for owner in range(2):
        rows = [{**row, first: f"{row[first]} {owner} {i}"} for i in range(12)]
        (tmp_path / "rows" / f"owner-{owner}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    architecture = "encoder" if kind == "bert" else "seq2seq"
    targets = "model.lora.targets=[query, value]"
    folder = write_pretrained(tmp_path / kind, kind)
    here = (f"model.folder={folder}", f"data.path={tmp_path / 'rows'}", f"model.architecture={architecture}", targets)
    rows = run(config(*here, "num_rounds=1", *overrides))
    assert rows[0]["eval/loss"] > 0
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]
    assert rows[-1]["eval/f1" if kind == "bert" else "eval/bleu"] is not None
    done = CliRunner().invoke(model_cli.app, ["merge", str(tmp_path / "run"), str(tmp_path / "merged")])
    assert done.exit_code == 0, done.exception


def test_a_run_goes_on_and_not_on_another_model(
    tmp_path: Path, config: Callable[..., RunConfig], run: RunOne, llama: Path
) -> None:
    run(config("num_rounds=1"))
    simulate(config("num_rounds=2"), tmp_path / "run", "inline", True, Observer())
    other = write_pretrained(tmp_path / "other", "llama", seed=1)
    with pytest.raises(CheckpointError, match=r"another configuration: model\.[a-z_]+ was "):
        simulate(config("num_rounds=3", f"model.folder={other}"), tmp_path / "run", "inline", True, Observer())


class Refusals(Observer):
    """Keeps what is refused."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def refused(self, name: str, reason: str) -> None:
        self.lines[name] = reason


def test_an_owner_with_another_copy_or_none_is_one_line_on_both_sides(
    tmp_path: Path,
    config: Callable[..., RunConfig],
    llama: Path,
    make_owners: Callable[[int], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, broken = write_pretrained(tmp_path / "other", "llama", seed=1), shutil.copytree(llama, tmp_path / "broken")
    owners, refusals = make_owners(5), Refusals()
    copies: dict[str, Path | None] = {f"owner-0{i}": llama for i in range(5)}
    copies |= {"owner-01": other, "owner-02": None, "owner-04": broken}
    with nodes_of(owners, copies) as grid, caplog.at_level(logging.ERROR, "agfl.client"):
        (broken / "model.safetensors").unlink()  # after its owner's node has started
        state = run_federation(grid, config("num_rounds=1"), tmp_path / "run", observer=refusals)
    assert state.round == 1
    mine, found = PretrainedFolder(llama).fingerprint, PretrainedFolder(other).fingerprint
    rule = f"must be a copy of the run's pretrained model, with fingerprint {mine}"
    assert refusals.lines == {
        "owner-01": f"--pretrained: {rule}, got {found} [AGFL-CONFIG-027]",
        "owner-02": "--pretrained: required with model.family huggingface, got none [AGFL-CONFIG-026]",
        "owner-04": "pretrained: this owner's pretrained model cannot be used",
    }
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert refusals.lines["owner-01"] in log
    assert refusals.lines["owner-02"] in log
    assert f"pretrained: {broken}: must hold weights as model.safetensors, found none" in log


def test_a_server_can_name_no_folder_of_an_owner(config: Callable[..., RunConfig], llama: Path) -> None:
    content = json.loads(config().with_pretrained(llama, "model.folder").client_plan.to_json())
    content["model"]["folder"] = str(llama)
    with pytest.raises(ConfigError, match=r"must be canonical JSON .*AGFL-CONFIG-158"):
        client_plan_from_json(json.dumps(content, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("tokenizer={type: bytes}",), "tokenizer.type: must be huggingface with model.family huggingface, got bytes"),
        (
            ("model={vocab_size: 259, dim: 8, layers: [{type: ff}]}",),
            "model.family: must be huggingface with tokenizer.type huggingface, got decoder",
        ),
        (("model.family=hugging_face",), "model: unknown 'family' 'hugging_face' (did you mean 'huggingface'?)"),
        (
            ("model.architecture=encoder", "model.head={type: span}"),
            "model.architecture must be causal for task language_modeling, got encoder",
        ),
        (
            ("task={type: question_answering}", "tokenizer={type: huggingface}"),
            "model.architecture must be encoder for task question_answering, got causal",
        ),
    ],
)
def test_a_run_that_cannot_be_is_one_line(
    overrides: tuple[str, ...], line: str, config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*overrides)
    assert caught.value.sentence == f"--set: {line}"


def test_sequences_past_the_models_last_position_are_refused_at_the_start(
    config: Callable[..., RunConfig], run: RunOne, tmp_path: Path
) -> None:
    run(config("task.sequence_length=64", "num_rounds=1"))
    with pytest.raises(
        ConfigError, match=r"^task\.sequence_length: must be at most 64, the positions of .*, got 65.*AGFL-CONFIG-155"
    ):
        simulate(config("task.sequence_length=65"), tmp_path / "long", "inline", False, Observer())
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    ("name", "kind", "smaller"),
    [
        ("smollm2_lora", "llama", ("model.num_layers=1", "data.partition=natural")),
        ("minilm_questions", "bert", ("task.context_length=32", "training.batch_size=2")),
    ],
)
def test_the_examples_run(
    name: str, kind: str, smaller: tuple[str, ...], tmp_path: Path, run: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model in the place of the real one, and a few rows of each owner of a corpus."""
    whole = Corpus.load
    monkeypatch.setattr(Corpus, "load", lambda corpus: {owner: rows[:8] for owner, rows in whole(corpus).items()})
    folder = write_pretrained(tmp_path / kind, kind)
    path = Path(__file__).parents[2] / "simulations" / "pretrained" / f"{name}.yaml"
    short = ("num_rounds=1", "training.local_steps=1", "evaluation.max_examples=2")
    rows = run(load_run_config(path, (f"model.folder={folder}", *short, *smaller)))
    assert rows[-1]["eval/loss"] > 0


def test_a_run_without_a_folder_is_one_line(config: Callable[..., RunConfig], run: RunOne, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.folder: .*AGFL-CONFIG-026"):
        run(config("model.folder=null"))
    with pytest.raises(AgflError, match="^" + re.escape(f"pretrained: {tmp_path / 'none'}: no such folder")):
        run(config(f"model.folder={tmp_path / 'none'}"))
    assert not (tmp_path / "run" / "config.yaml").exists(), "nothing is begun"


def test_an_owners_policy_counts_what_is_trained(
    tmp_path: Path, config: Callable[..., RunConfig], llama: Path, make_owners: Callable[[int], Path]
) -> None:
    owner = next(make_owners(1).iterdir())
    node = Node(
        "owner-00",
        owner,
        "cpu",
        pretrained=llama,
        policy=Policy(allow_plain=True, runs="all", max_parameters=ADAPTER - 1),
    )
    plan = Plan.of(config().with_pretrained(llama, "model.folder").client_plan, "run", ["owner-00"], 1)
    line = rf"^max_parameters: must be at least {ADAPTER}, the run's, .*AGFL-POLICY-003"
    with pytest.raises(PolicyViolation, match=line):
        node.propose(wire.ProposeRequest(plan.to_json()))
