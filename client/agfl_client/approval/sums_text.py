"""What an owner adds to the sums of a run beside its update, method by method, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from agfl_models.tasks.task import AnyTask
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_protocol.methods.method import Round
from agfl_protocol.methods.registry import methods_of
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.transforms.codec import task_bounds


def sums_lines(plan: ClientPlan) -> Iterator[str]:
    """Yield a line for the task and one for each method that adds anything, with what one owner adds at most."""
    task = _task(plan)
    yield f"  task: {_shown((*task.train_sums, *task.eval_sums), task_bounds(plan, task))}"
    for method in methods_of(Round(plan, plan.max_models, rings=plan.build_rings())):
        names = (*method.sums, *method.eval_sums)
        if names:
            yield f"  {method.name}: {_shown(names, method.bounds)}"


def _task(plan: ClientPlan) -> AnyTask:
    learns = isinstance(plan.tokenizer, BPETokenizerConfig) and not plan.tokenizer.is_trained
    return (plan.with_merges(()) if learns else plan).build_task()  # its sums are the same with any tokens


def _shown(names: Iterable[str], bounds: Mapping[str, float]) -> str:
    """Return sums with their bounds; those that only differ in a number at the end as one."""
    shown = []
    for (_, most), numbered in groupby(names, lambda name: (name.rstrip("0123456789"), bounds.get(name))):
        first, *others = numbered
        shown.append(first + (f" to {others[-1]}" if others else "") + ("" if most is None else f" (at most {most:g})"))
    return ", ".join(shown)
