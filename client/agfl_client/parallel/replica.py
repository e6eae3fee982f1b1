"""A run's model as one of several ranks trains it: all of it (DDP), or a share of each parameter (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from agfl_client.parallel.group import broadcast
from agfl_client.parallel.link import Recipe
from agfl_client.parallel.shares import Dealer, Inbox
from agfl_client.training.part import Part
from agfl_client.training.trainer import BatchTrainer
from agfl_models.model.config import ModelConfig
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Layout, Vector


def new_part(plan: ClientPlan, recipe: Recipe, device: str) -> Part:
    """Build what a rank trains, its share of it where parameters are shared, on `device`."""
    if recipe.sharing == "ddp":
        return Part.of(plan, plan.build_rings(), recipe.num_rings, device)
    from agfl_client.parallel.sharded import shard  # late: it loads what DDP does without

    return shard(Part.of(plan, None, recipe.num_rings, "cpu"), device)


def train_share(part: Part, work: LocalWork, shares: Dealer | Inbox, start: Vector, find_unused: bool) -> LocalResult:
    """Train this rank's part of a round; all ranks call it together.

    part: of `new_part`, or for DDP one that the node has anyway. work: what is trained, but for model, layout and data;
    the shifts of its gradients (d,) and `start` (d,) are those of rank 0, and on others only as large.
    """
    part.layout.load(part.model, broadcast(start))
    gradients = [one if one.shift is None else replace(one, shift=broadcast(one.shift)) for one in work.gradients]
    whole = _replicated(part, find_unused) if type(part.layout) is Layout else nullcontext(part.model)
    with whole as model:
        given = replace(work, model=model, layout=part.layout, dataset=shares, gradients=gradients, widths=part.widths)
        # The dealer has looked, before it dealt. To read the weights is a collective: all ranks do, or none.
        given = replace(given, check_deadline=lambda: None, start=None)
        return BatchTrainer(total=shares.total).train(given)


def leaves_unused(plan: ClientPlan) -> bool:
    """Whether a step may leave parameters of a run's model without a gradient; our own layers leave none."""
    return not isinstance(plan.model, ModelConfig)


@contextmanager
def _replicated(part: Part, find_unused: bool) -> Iterator[nn.Module]:
    """Yield the model with its gradients joined, for one round."""
    device = torch.device(part.device)
    # A new one each round: it orders its sums by the steps it has seen, and a rank that was started again saw none.
    replicated = DistributedDataParallel(
        part.model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,  # else each rank would hold the gradient twice
        init_sync=False,  # trained weights are those that were broadcast, others of the plan's seed
    )
    try:
        yield replicated
    finally:
        # Else that of a round that was given up would go on joining gradients until it is collected as garbage.
        replicated._remove_autograd_hooks()  # type: ignore[no-untyped-call]
