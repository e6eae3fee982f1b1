"""Accuracy and macro-averaged F1 of a classifier, as functions of sums: what was right, wrong and missed, by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ACCURACY, MACRO_F1 = SCORES = ("eval/accuracy", "eval/macro_f1")  # in percent
_KINDS = ("true_positives", "false_positives", "false_negatives")


def names(num_labels: int) -> tuple[str, ...]:
    """Return the names of the sums, three a label."""
    return tuple(f"eval/label_{label}/{kind}" for label in range(num_labels) for kind in _KINDS)


def classification_sums(predicted: Sequence[int], right: Sequence[int], num_labels: int) -> dict[str, float]:
    """Return the sums of some examples: the label that was found for each, and the right one."""
    sums = dict.fromkeys(names(num_labels), 0.0)
    for one, other in zip(predicted, right, strict=True):
        if one == other:
            sums[f"eval/label_{one}/true_positives"] += 1
        else:
            sums[f"eval/label_{one}/false_positives"] += 1
            sums[f"eval/label_{other}/false_negatives"] += 1
    return sums


def classification_scores(sums: Mapping[str, float], num_labels: int) -> dict[str, float]:
    """Return accuracy and macro F1 in percent; nothing without an example.

    Macro F1 is the mean over the labels that were found or right at least once, as scikit-learn takes it.
    """
    table = [[sums[f"eval/label_{label}/{kind}"] for kind in _KINDS] for label in range(num_labels)]
    examples = sum(right + missed for right, _, missed in table)
    if examples == 0:
        return {}
    f1 = [2 * right / (2 * right + wrong + missed) for right, wrong, missed in table if right + wrong + missed > 0]
    return {ACCURACY: 100 * sum(right for right, _, _ in table) / examples, MACRO_F1: 100 * sum(f1) / len(f1)}
