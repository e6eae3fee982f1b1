"""A run's model of which each rank holds a share of every parameter (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from agfl_client.parallel.group import mesh
from agfl_client.training.part import Part
from agfl_models.model.blocks import blocks_of
from agfl_models.model.sequence_model import trained_parameters
from agfl_protocol.update import Layout, Vector


def shard(part: Part, device: str) -> Part:
    """Share the parameters of `part` among all ranks, who call this together; a rank has its shares on `device`."""
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
