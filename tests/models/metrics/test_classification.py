"""Accuracy and macro-F1 of summed confusion matrices are those of all owners' examples, computed one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.metrics.pairs import added

from agfl_models.metrics.classification import classification_scores, classification_sums, names

NUM_CLASSES = 5
LABELS = st.lists(st.tuples(st.integers(0, NUM_CLASSES - 1), st.integers(0, NUM_CLASSES - 1)), max_size=30)
FEW_LABELS = st.lists(st.tuples(st.integers(1, 2), st.integers(2, 3)), max_size=10)
Labels = list[tuple[int, int]]  # (hypothesis, reference)


def sums_of(labels: Labels) -> dict[str, float]:
    return classification_sums([h for h, _ in labels], [r for _, r in labels], NUM_CLASSES)


def macro_f1(labels: Labels) -> float:
    """Follow the definition: per class the harmonic mean of precision and recall, then the mean over classes."""
    f1 = []
    for c in {label for pair in labels for label in pair}:
        right = sum(h == r == c for h, r in labels)
        claimed, true = sum(h == c for h, _ in labels), sum(r == c for _, r in labels)
        precision, recall = right / claimed if claimed else 0.0, right / true if true else 0.0
        f1.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(f1) / len(f1)


@settings(max_examples=250)
@given(st.one_of(LABELS, FEW_LABELS).filter(bool))
def test_scores_are_those_of_the_definitions(labels: Labels) -> None:
    found = classification_scores(sums_of(labels), NUM_CLASSES)
    accuracy = sum(h == r for h, r in labels) / len(labels)
    assert found == pytest.approx({"eval/accuracy": accuracy, "eval/macro_f1": macro_f1(labels)}, rel=1e-9, abs=1e-9)


@given(LABELS, LABELS)
def test_sums_of_owners_are_the_sums_of_their_examples(left: Labels, right: Labels) -> None:
    both = sums_of(left + right)
    assert added(sums_of(left), sums_of(right)) == both
    assert tuple(both) == names(NUM_CLASSES)
    assert sum(both.values()) == len(left + right)


def test_rows_are_references() -> None:
    sums = sums_of([(1, 0), (1, 0), (3, 3)])
    assert {name: value for name, value in sums.items() if value} == {"eval/confusion/0/1": 2, "eval/confusion/3/3": 1}


def test_a_class_that_does_not_occur_does_not_count() -> None:
    labels = [(0, 0), (0, 0), (1, 1), (0, 1)]
    expected = {"eval/accuracy": 0.75, "eval/macro_f1": (4 / 5 + 2 / 3) / 2}
    assert classification_scores(sums_of(labels), NUM_CLASSES) == pytest.approx(expected)


def test_no_example_means_no_score() -> None:
    assert classification_scores(sums_of([]), NUM_CLASSES) == {}
