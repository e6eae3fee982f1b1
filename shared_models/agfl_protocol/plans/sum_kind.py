"""Of which kind a sum is: of draws that are never the same again, or of all that an owner has.

Sampled sums may be over any owners who are there: what is drawn afresh hides who they are, up to an error that grows
less with each pair of sums. Exact sums subtract to the last bit, hence they are over whole groups of the plan only.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agfl_protocol.plans.client_plan import ClientPlan

MAX_SAMPLED_EXAMPLES = 512  # of a sum that any owners may be in, unless an owner's policy says another number


class Kind(Enum):
    """The kind of a sum."""

    SAMPLED = "sampled"
    EXACT = "exact"


def kind_of(
    plan: ClientPlan, *, train: bool, evaluate: bool, full: bool, counts: bool, max_sampled_examples: int
) -> Kind:
    """Return the kind of a sum, from what is asked alone.

    evaluate: on examples drawn afresh; full: on all that is held out, which never rides along with training. counts: of
    pairs of tokens. max_sampled_examples: the most of each that an owner draws.
    """
    if full or counts or (train and plan.training.local_steps is None):
        return Kind.EXACT
    draws = [plan.evaluation.max_examples] if evaluate else []
    if train:
        draws.append((plan.training.local_steps or 0) * plan.training.batch_size)
        draws += [method.max_drawn for method in plan.methods]
    return Kind.SAMPLED if max(draws, default=0) <= max_sampled_examples else Kind.EXACT


def may_train_exactly(plan: ClientPlan) -> bool:
    """Whether rounds of this run are exact sums, or may be where they evaluate, too."""
    asked = {"train": True, "evaluate": True, "full": False, "counts": False}
    return kind_of(plan, **asked, max_sampled_examples=MAX_SAMPLED_EXAMPLES) is Kind.EXACT


def num_examples(plan: ClientPlan, *, train: bool, evaluate: bool) -> int | None:
    """Return how many examples an owner draws for a sum, for its ledger; None where it looks at all it has."""
    steps = plan.training.local_steps
    if train and steps is None:
        return None
    trained = (steps or 0) * plan.training.batch_size if train else 0
    return trained + (plan.evaluation.max_examples if evaluate else 0)
