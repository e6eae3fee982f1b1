"""Accuracy and macro-F1 of classes, as a function of the confusion matrix.

C is the number of classes. Unlike the other metrics' sums, these have names that depend on a number: `names(C)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SCORES = ("eval/accuracy", "eval/macro_f1")


def names(num_classes: int) -> tuple[str, ...]:
    """Return the names of the C * C sums, row by row: eval/confusion/REFERENCE/HYPOTHESIS."""
    return tuple(f"eval/confusion/{i}/{j}" for i in range(num_classes) for j in range(num_classes))


def classification_sums(hypotheses: Sequence[int], references: Sequence[int], num_classes: int) -> dict[str, float]:
    """Return how often each class was taken for each: whole numbers."""
    sums = dict.fromkeys(names(num_classes), 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        sums[f"eval/confusion/{reference}/{hypothesis}"] += 1
    return sums


def classification_scores(sums: Mapping[str, float], num_classes: int) -> dict[str, float]:
    """Return accuracy and macro-F1, 0 to 1; nothing where there was no example.

    Macro-F1 is the mean over the classes that occur in references or hypotheses, as scikit-learn's
    `f1_score(average="macro")`: a class that no owner has does not count as a failure.
    """
    counts_CC = np.array([sums[name] for name in names(num_classes)]).reshape(num_classes, num_classes)
    total = counts_CC.sum()
    if total == 0:
        return {}
    right_C = counts_CC.diagonal()
    occurrences_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1)  # F1 = 2 TP / (2 TP + FP + FN)
    occurs_C = occurrences_C > 0
    f1 = 2 * right_C[occurs_C] / occurrences_C[occurs_C]
    return {"eval/accuracy": float(right_C.sum() / total), "eval/macro_f1": float(f1.mean())}
