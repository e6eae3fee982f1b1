"""Each task as a whole federation: it learns and says every metric; in one, secure sums change neither.

That they change no bit of a model in any task, see tests/golden.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agfl_models.examples import Row, TextRow, write_rows
from agfl_models.tasks.question_answering import QuestionRow
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.text_classification import LabeledRow
from agfl_models.tasks.translation import TranslationRow
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.report.samples import write_samples

ROUNDS, NUM_OWNERS = 2, 10
BOTH = "question_answering"
WORDS = {"sea": "Meer", "ship": "Schiff", "shore": "Ufer", "saw": "sah", "old": "alt", "man": "Mann"}
ENCODER_DECODER = (
    "{family: encoder_decoder, vocab_size: 275, dim: 16, encoder: {layers: [{type: rnn}, {type: ff, hidden_dim: 16}]}, "
    "layers: [{type: rnn}, {type: attention, cross: true, num_heads: 2}]}"
)
TASKS = {
    "language_modeling": ("sequence_length: 16", "{vocab_size: 275, dim: 16, layers: [{type: rnn}]}"),
    "translation": ("source_length: 16, target_length: 12, num_beams: 2", ENCODER_DECODER),
    "summarization": ("source_length: 24, target_length: 12", ENCODER_DECODER),
    "question_answering": (
        "context_length: 32",
        "{family: encoder, vocab_size: 275, dim: 16, head: {type: span}, layers: [{type: attention, num_heads: 2}]}",
    ),
    "text_classification": (
        "labels: [sea, ship, shore, saw, old, man], sequence_length: 32",
        "{family: encoder, vocab_size: 275, dim: 16, head: {type: classification, num_classes: 6}, "
        "layers: [{type: causal_conv}]}",
    ),
}
QUALITY = {
    "language_modeling": {"eval/bits_per_byte", "eval/perplexity"},
    "translation": {"eval/bleu", "eval/chrf", "eval/bleu_long"},
    "summarization": {"eval/rouge1", "eval/rouge2", "eval/rougeL", "eval/beyond_ascii"},
    "question_answering": {"eval/exact_match", "eval/f1", "eval/unspaced"},
    "text_classification": {"eval/accuracy", "eval/macro_f1"},
}


SAMPLES = {
    "language_modeling": ("Owner", "Beginning of a text", "The model goes on"),
    "translation": ("Owner", "Source", "Reference", "The model"),
    "summarization": ("Owner", "Source", "Reference", "The model"),
    "question_answering": ("Owner", "Context", "Question", "Answers", "The model"),
    "text_classification": ("Owner", "Text", "Label", "The model"),
}


def row_of(task: str, words: list[str]) -> Row:
    text = " ".join(words)
    match task:
        case "language_modeling":
            return TextRow(text=text)
        case "translation":
            return TranslationRow(source=text, target=" ".join(WORDS[word] for word in words))
        case "summarization":
            return SummaryRow(document=text, summary=" ".join(words[:2]))
        case "text_classification":
            return LabeledRow(text=text, label=words[0])
    content: dict[str, Any] = {"context": text, "question": f"What follows {words[0]}?", "answers": words[1]}
    return QuestionRow.model_validate(content)


@pytest.fixture
def owners_of(tmp_path: Path) -> Callable[[str], list[Path]]:
    def make(task: str) -> list[Path]:
        paths = [tmp_path / "owners" / f"owner-{i}.jsonl" for i in range(NUM_OWNERS)]
        (tmp_path / "owners").mkdir()
        for i, path in enumerate(paths):
            draw = random.Random(i)
            write_rows(path, [row_of(task, draw.choices(list(WORDS), k=draw.randint(2, 6))) for _ in range(12)])
        return paths

    return make


@pytest.mark.parametrize("task", TASKS)
def test_federation_learns_the_task_and_says_every_metric(
    task: str, owners_of: Callable[[str], list[Path]], run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    settings, model = TASKS[task]
    owners, rows = owners_of(task), {}
    aggregations = ("plain", "secure") if task == BOTH else ("plain",)
    for aggregation in aggregations:
        config = run_config(
            f"num_rounds={ROUNDS}",
            f"task={{type: {task}, validation_fraction: 0.25, {settings}}}",
            "tokenizer={type: bpe, vocab_size: 275}",
            f"model={model}",
            "training={optimizer: {type: adamw, lr: 0.01}, batch_size: 4, local_steps: 4}",
            f"aggregation={{type: {aggregation}}}",
            "evaluation={every: 1, max_examples: 3}",
        )
        InlineEngine(config, owners).run(tmp_path / aggregation, resume=False, observer=Observer())
        lines = (tmp_path / aggregation / "metrics.jsonl").read_text().splitlines()
        keys_of_work = ("seconds", "bytes_up", "bytes_down")
        rows[aggregation] = [{k: v for k, v in json.loads(line).items() if k not in keys_of_work} for line in lines]
    samples = write_samples(tmp_path / "plain", owners)
    assert all(f'<bdi dir="auto">owner-{i}</bdi>' in samples for i in (0, 4, 9))
    assert all(f'<th scope="col">{name}</th>' in samples for name in SAMPLES[task])
    if task == BOTH:
        assert write_samples(tmp_path / "secure", owners) == samples, "the same model writes the same"
        weights = [(tmp_path / kind / "model" / "model.safetensors").read_bytes() for kind in aggregations]
        assert weights[0] == weights[1]
        assert rows["plain"] == rows["secure"]
    first, *_, last = rows["plain"]
    assert last["eval/loss"] < first["eval/loss"]
    assert all(row["train/loss"] > 0 for row in rows["plain"][1:])
    expected = QUALITY[task] | {"eval/loss", "eval/worst_decile"}
    for row in rows["plain"]:
        assert {key for key in row if key.startswith("eval/")} == expected
        assert all(isinstance(row[key], float) for key in expected)
