"""What the golden runs are, and what is kept of each: the bits that no redesign may change.

    python -m tests.golden.runs            # compares, and names what differs
    python -m tests.golden.runs --write    # writes values.json: only where a change of bits is meant

Of each run: SHA-256 of the final weights, of the lanes that one client sent in every exchange, and the metrics. Plain
and secure sums must end with the same weights. They hold on one kind of machine; elsewhere the metrics must be close.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from tests.tiny_pretrained import write_pretrained

import agfl_sim.engines.opened_owners
from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_models import machine
from agfl_models.examples import Row, TextRow, write_rows
from agfl_models.reading.corpora import corpus_of
from agfl_protocol.config.run_config import load_run_config
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.observer import Row as Metrics
from agfl_sim.cli import SHIPPED_CONFIGS
from agfl_sim.run import simulate

VALUES = Path(__file__).with_name("values.json")
WATCHED = "owner-00"
TINY = """
seed: 7
num_rounds: 3
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 16, layers: [{type: attention, num_heads: 2}, {type: ff, hidden_dim: 24}]}
training: {optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_steps: 2}
aggregation: {server_optimizer: {type: nesterov}, max_colluders: 1, min_cohort: 3}
evaluation: {every: 2, max_examples: 8}
"""
WORDS = ["the", "sea", "saw", "a", "ship", "and", "no", "man", "knew", "when", "it", "came", "to", "shore"]
MIXED = "model.layers=[{type: attention, num_heads: 4}, {type: ff, hidden_dim: 24}, {type: rnn, cell: mingru}]"
ELASTIC = (MIXED, "data.max_widths={0.25: 3, 0.5: 3, 1.0: 3}", "aggregation.min_cohort=3")
EPOCHS = ("aggregation.max_weight=1000", "training.local_steps=null", "training.local_epochs=1")
AUTO = "{type: auto, every: 1, arms: [{type: fedavg, lr: 0.01}, {type: fedavg, lr: 1}, {type: fedavg, lr: 30}]}"
SHORT = ("num_rounds=2", "training.local_steps=2", "evaluation={every: 1, max_examples: 4}")
FEW_MERGES = ("tokenizer.vocab_size=300", "model.vocab_size=300", "aggregation.max_colluders=1")


@dataclass(frozen=True)
class Golden:
    """A run: the tiny one, or a shipped one, with what is set; torn after a round, and resumed, where that is named."""

    settings: tuple[str, ...] = ()
    shipped: str | None = None
    num_owners: int = 4
    sums: tuple[str, ...] = ("plain", "secure")
    stops_after: int | None = None
    pretrained: bool = False


def _server(optimizer: str, *settings: str, **others: Any) -> Golden:
    return Golden((f"aggregation.server_optimizer={optimizer}", *settings), **others)


RUNS = {
    "shipped language_modeling": Golden((*SHORT, "aggregation.max_colluders=1"), "language_modeling"),
    "shipped translation": Golden((*SHORT, *FEW_MERGES), "translation"),
    "shipped summarization": Golden((*SHORT, *FEW_MERGES), "summarization"),
    "shipped question_answering": Golden((*SHORT, *FEW_MERGES), "question_answering"),
    "nesterov": Golden(),
    "fedavg": _server("{type: fedavg}"),
    "fedavgm": _server("{type: fedavgm}"),
    "fedadagrad": _server("{type: fedadagrad}"),
    "fedadam": _server("{type: fedadam}"),
    "fedyogi": _server("{type: fedyogi}"),
    "fedexp": _server("{type: fedexp}", "training.batch_size=1", "training.local_steps=1"),
    "auto": _server(AUTO, "num_rounds=5", "training.optimizer.lr=0.01"),
    "scaffold": _server("{type: scaffold}", "aggregation.weighting=uniform", "num_rounds=4"),
    "feddyn": _server("{type: feddyn}", "aggregation.weighting=uniform", "num_rounds=4"),
    "fedcm": Golden(("methods=[{type: fedcm, alpha: 0.3}]", "num_rounds=4")),
    "alignment": Golden(("aggregation.weighting=alignment",)),
    "q-ffl": Golden(("aggregation.weighting=loss", "aggregation.fairness_q=2")),
    "fednova": Golden(("aggregation.averaging=normalized", *EPOCHS)),
    "fedprox": Golden(("training.proximal_mu=0.1",)),
    "delta_sgd": Golden(("training.optimizer={type: delta_sgd}",)),
    "adamw": Golden(("training.optimizer={type: adamw, lr: 0.01}",)),
    "fixed clip": Golden(("aggregation.clip_l2=0.5",)),
    "clips of exact sums": Golden(("aggregation.averaging=mean", *EPOCHS)),
    "few of many": Golden(("aggregation.cohort_size=3",), num_owners=6),
    "geometric_median": Golden(("aggregation.group_rule=geometric_median",), num_owners=12, sums=("secure",)),
    "elastic": Golden(("elastic={widths: [0.25, 0.5, 1.0]}", *ELASTIC), num_owners=9),
    "elastic with growth": Golden(
        (
            "elastic={widths: [0.25, 0.5, 1.0], growth: {patience: 1, min_gain: 0.2}}",
            *ELASTIC,
            "num_rounds=6",
            "evaluation.every=1",
        ),
        num_owners=9,
    ),
    "search": Golden(
        (
            "search={slate: [configured, mingru, gru, attention+mingru], rungs: [1, 2]}",
            "num_rounds=4",
            "training.local_steps=1",
        )
    ),
    "layers": Golden(
        (
            "model.layers=[{type: rnn, cell: lstm}, {type: rnn, cell: gru}, {type: rnn, cell: gated_delta}, "
            "{type: attention, num_heads: 2, num_kv_heads: 1, window: 4}, {type: ff, activation: swiglu}]",
            "num_rounds=2",
        )
    ),
    "learned tokenizer": Golden(
        ("tokenizer={type: bpe, vocab_size: 270, merges_per_round: 4}", "model.vocab_size=270")
    ),
    "resumed": Golden(("num_rounds=4",), stops_after=2),
    "resumed auto": _server(AUTO, "num_rounds=5", "training.optimizer.lr=0.01", stops_after=3),
    "lora": Golden(
        (
            "tokenizer={type: huggingface}",
            "model={family: huggingface, architecture: causal, lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj]}}",
            "training={optimizer: {type: adamw, lr: 0.05}, batch_size: 4, local_steps: 2}",
        ),
        pretrained=True,
    ),
}


def values_of(golden: Golden) -> dict[str, Any]:
    """Run it and return what is kept of it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in golden.sums:
            with _watched() as lanes:
                rows, model = _run(golden, Path(name), kind)
            found[kind] = hashlib.sha256(model).hexdigest()
            if kind == "plain":
                found["lanes"] = lanes.hexdigest()
        found["metrics"] = rows
    return found


def _run(golden: Golden, folder: Path, kind: str) -> tuple[list[dict[str, Any]], bytes]:
    (folder / "tiny.yaml").write_text(TINY)
    path = folder / "tiny.yaml" if golden.shipped is None else SHIPPED_CONFIGS / f"{golden.shipped}.yaml"
    settings = [*golden.settings, f"aggregation.type={kind}"]
    settings.append(f"data.path={_owners(folder / f'owners-{kind}', golden)}")
    if golden.pretrained:
        settings.append(f"model.folder={write_pretrained(folder / 'llama', 'llama')}")
    config, output = load_run_config(path, settings), folder / kind
    if golden.stops_after is not None:
        with suppress(_PulledPlugError):
            simulate(config, output, "inline", False, _Interrupter(golden.stops_after), "cpu")
    simulate(config, output, "inline", golden.stops_after is not None, Observer(), "cpu")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["bytes_up"], row["bytes_down"]
    return rows, (output / "model" / "model.safetensors").read_bytes()


def _owners(folder: Path, golden: Golden) -> Path:
    """Write the owners' files: words at random, of a shipped run the first rows of its corpus."""
    folder.mkdir()
    corpus = [] if golden.shipped is None else list(corpus_of(golden.shipped, None).load().values())
    for i in range(golden.num_owners):
        words = random.Random(i)
        rows: list[Row] = [TextRow(text=" ".join(words.choices(WORDS, k=12))) for _ in range(6 + 2 * i)]
        if corpus:
            rows = [row for owner in corpus[i :: golden.num_owners] for row in owner[:2]][:30]
        write_rows(folder / f"owner-{i:02}.jsonl", rows)
    return folder


@contextmanager
def _watched() -> Iterator[Any]:
    """Yield the digest of all lanes that one client sends in the open."""
    digest = hashlib.sha256()

    def create(node_of: Callable[[Context], Node]) -> ClientApp:
        app = create_client_app(node_of)
        noting = _noting(app, digest.update)
        return lambda message, context: (noting if node_of(context).name == WATCHED else app)(message, context)  # type: ignore[return-value]

    with mock.patch.object(agfl_sim.engines.opened_owners, "create_client_app", create):
        yield digest


def _noting(app: ClientApp, note: Callable[[bytes], None]) -> ClientApp:
    def call(message: Message, context: Context) -> Message:
        reply = app(message, context)
        arrays = reply.content.get("arrays") if reply.has_content() else None
        if isinstance(arrays, ArrayRecord) and "lanes" in arrays:
            note(np.ascontiguousarray(arrays["lanes"].numpy()).tobytes())
        return reply

    return call  # type: ignore[return-value]  # a grid only calls it


class _PulledPlugError(BaseException):
    """Nothing in the product catches it."""


class _Interrupter(Observer):
    def __init__(self, ends_at: int) -> None:
        self._ends_at = ends_at

    def round_finished(self, row: Metrics) -> None:
        if row["round"] == self._ends_at:
            raise _PulledPlugError


def main() -> None:
    """Compare, or write."""
    found = {name: values_of(golden) for name, golden in RUNS.items()}
    if "--write" in sys.argv:
        VALUES.write_text(json.dumps({"machine": machine.kind(), "runs": found}, indent=1, sort_keys=True) + "\n")
        return
    kept = json.loads(VALUES.read_text())["runs"]
    different = [f"{name}: {key}" for name, run in found.items() for key in run if run[key] != kept[name][key]]
    sys.exit("\n".join(different) or 0)


if __name__ == "__main__":
    main()
