"""Text classification: the labels are the run's, and scores of owners' sums are those of all their examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models import AutoGenModel
from agfl_models.errors import ConfigError, DataError
from agfl_models.inference import Classifier
from agfl_models.metrics.classification import classification_scores, classification_sums
from agfl_models.model.config import ModelConfig
from agfl_models.tasks.evaluation import evaluate_rows
from agfl_models.tasks.text_classification import LabeledRow, TextClassification, TextClassificationConfig
from agfl_models.tokenizers.tokenizer import BytesTokenizerConfig
from agfl_models.validation import validate

LABELS = ("red", "green", "blue")
CONFIG = TextClassificationConfig(type="text_classification", labels=LABELS, sequence_length=8)
TASK = TextClassification(CONFIG, BytesTokenizerConfig().build())
ENCODER: dict[str, Any] = {
    "family": "encoder",
    "vocab_size": 259,
    "dim": 8,
    "head": {"type": "classification", "num_classes": 3},
    "layers": [{"type": "causal_conv"}],
}
ROWS = [LabeledRow(text=f"text {i}", label=LABELS[i % 3]) for i in range(30)]
pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(one=pairs, other=pairs)
def test_scores_of_summed_owners_are_those_of_all_examples(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    sums = [classification_sums([a for a, _ in owner], [b for _, b in owner], 4) for owner in (one, other)]
    scores = classification_scores({name: sums[0][name] + sums[1][name] for name in sums[0]}, 4)
    found, right = (np.array(part) for part in zip(*one, *other, strict=True))
    assert scores["eval/accuracy"] == pytest.approx(100 * np.mean(found == right))
    f1 = []
    for label in set(found.tolist()) | set(right.tolist()):
        hits = np.sum((found == label) & (right == label))
        precision, recall = hits / max(np.sum(found == label), 1), hits / max(np.sum(right == label), 1)
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert scores["eval/macro_f1"] == pytest.approx(100 * np.mean(f1))


def test_evaluation_counts_every_row_and_padding_changes_nothing() -> None:
    model = AutoGenModel(ENCODER, seed=0)
    metrics = evaluate_rows(model, TASK, ROWS)
    found = [next(iter(one)) for row in ROWS for one in Classifier(model, TASK).classify([row.text])]
    right = sum(label == row.label for label, row in zip(found, ROWS, strict=True))
    assert metrics["eval/accuracy"] == pytest.approx(100 * right / len(ROWS))
    assert set(metrics) <= set(TASK.metrics)


def test_a_label_of_an_owner_that_the_run_does_not_declare_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data: label: .*got 'pink'.*AGFL-DATA-072"):
        TASK.prepare([*ROWS, LabeledRow(text="a", label="pink")])


def test_the_head_has_a_class_for_each_label() -> None:
    CONFIG.check_model(ModelConfig.model_validate(ENCODER))
    wrong = ModelConfig.model_validate({**ENCODER, "head": {"type": "classification", "num_classes": 4}})
    with pytest.raises(ValueError, match=r"^model\.head\.num_classes: must be 3, the number of task\.labels, got 4$"):
        CONFIG.check_model(wrong)
    with pytest.raises(ConfigError, match=r"labels: must differ from each other, got 'a' twice"):
        validate(TextClassificationConfig, {"type": "text_classification", "labels": ["a", "a"]}, "task")


def test_the_most_probable_label_comes_first_and_a_blank_text_has_none() -> None:
    some, none = Classifier(AutoGenModel(ENCODER, seed=0).eval(), TASK).classify(["abc", " "])
    assert none == {}
    assert set(some) == set(LABELS)
    assert list(some.values()) == sorted(some.values(), reverse=True)
    assert sum(some.values()) == pytest.approx(1.0, rel=1e-5)
