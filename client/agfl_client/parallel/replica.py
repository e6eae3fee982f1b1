"""A run's model as one of several ranks trains it: all of it (DDP), or a share of each parameter (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from agfl_client.parallel.group import broadcast, mesh
from agfl_client.parallel.link import Recipe
from agfl_client.parallel.shares import Dealer, Inbox
from agfl_client.training.part import Part
from agfl_client.training.trainer import BatchTrainer
from agfl_models.model.blocks import blocks_of
from agfl_models.model.config import ModelConfig
from agfl_models.model.sequence_model import trained_parameters
from agfl_protocol.local_trainer import LocalResult, LocalWork
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Layout, Vector


def new_part(plan: ClientPlan, recipe: Recipe, device: str) -> Part:
    """Build what a rank trains, its share of it where parameters are shared, on `device`."""
    if recipe.sharing == "ddp":
        return Part.of(plan, plan.build_rings(), recipe.num_rings, device)
    part = Part.of(plan, None, recipe.num_rings, "cpu")
    over = mesh(device)
    for block in list(blocks_of(part.model)):  # each is whole on a rank only while it computes
        fully_shard(block, mesh=over)
    fully_shard(part.model, mesh=over)
    return replace(part, layout=ShardedLayout(part.layout.names, part.layout.shapes, over=over))


@dataclass(frozen=True)
class ShardedLayout(Layout):
    """A layout whose tensors are shared by all ranks of `over`, who must call its methods together."""

    over: DeviceMesh = field(kw_only=True)

    def flatten(self, model: nn.Module) -> Vector:
        """Return the whole of `model`'s trained parameters, float32 (d,), on each rank."""
        whole = np.empty(self.size, np.float32)
        for place, parameter in zip(self.slices, trained_parameters(model).values(), strict=True):  # one at a time
            whole[place] = cast("DTensor", parameter).full_tensor().detach().to("cpu", torch.float32).reshape(-1)
        return whole

    def parts(self, vector: NDArray[np.floating[Any]]) -> Iterator[Tensor]:
        """Yield this rank's shares of a whole vector (d,), which each rank has, with the tensors' shapes."""
        for whole in super().parts(vector):
            yield distribute_tensor(whole, self.over, [Shard(0)], src_data_rank=None)


def train_share(part: Part, work: LocalWork, shares: Dealer | Inbox, start: Vector, find_unused: bool) -> LocalResult:
    """Train this rank's part of a round; all ranks call it together.

    part: of `new_part`, or for DDP one that the node has anyway. work: what is trained, but for model, layout and data;
    the shifts of its gradients (d,) and `start` (d,) are those of rank 0, and on others only as large.
    """
    part.layout.load(part.model, broadcast(start))
    gradients = [one if one.shift is None else replace(one, shift=broadcast(one.shift)) for one in work.gradients]
    whole = nullcontext(part.model) if isinstance(part.layout, ShardedLayout) else _replicated(part, find_unused)
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
