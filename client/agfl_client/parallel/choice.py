"""On which devices of this machine a run is trained, and how they share its model: what `--parallel` says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from agfl_client.training.device import choose_device
from agfl_client.training.memory_estimate import trained_bytes
from agfl_models.errors import ConfigError
from agfl_protocol.plans.client_plan import ClientPlan

if TYPE_CHECKING:
    from agfl_client.parallel.door import Door

Sharing: TypeAlias = Literal["single", "ddp", "fsdp2"]
_MODES = ("auto", *get_args(Sharing))
_MAX_RANKS = 64


@dataclass(frozen=True)
class Parallel:
    """What an owner chose.

    devices: of each rank here, the first of which is the node's own; others: ranks elsewhere; door: where they join.
    """

    mode: str
    devices: tuple[str, ...]
    others: int = 0
    door: Door | None = None

    @staticmethod
    def of(text: str, device: str) -> Parallel:
        """Return what `MODE`, `MODE:RANKS` or either with `+OTHERS` means on a device as `choose_device` takes it.

        Without a number there is a rank for each CUDA device that is visible, or one.

        Raises:
            ConfigError: it is malformed, or this machine has fewer devices; or the device is not there.
        """
        found = re.fullmatch(r"(\w+)(?::([1-9][0-9]{0,3}))?(?:\+([1-9][0-9]{0,3}))?", text)
        others = int(found[3] or 0) if found is not None else 0
        if found is None or found[1] not in _MODES or (others and found[1] == "single"):
            rule = (
                f"must be one of {', '.join(_MODES)}, or one of them with the number of ranks, as in ddp:2 or ddp:2+4"
            )
            raise ConfigError("AGFL-CONFIG-251", f"--parallel: {rule}, got {text!r}")
        mode, chosen = found[1], choose_device(device)
        most = _MAX_RANKS if chosen == "cpu" else torch.cuda.device_count() if chosen == "cuda" else 1
        visible = 1 if chosen == "cpu" else most
        count = int(found[2] or (1 if mode == "single" else visible))
        least, most = (1, 1) if mode == "single" else (1 if mode == "auto" or others else 2, most)
        if not least <= count <= most or count + others > _MAX_RANKS or (others and chosen == "mps"):
            rule = f"with {mode} and --device {device} the number of ranks must be in [{least}, {max(least, most)}]"
            raise ConfigError("AGFL-CONFIG-252", f"--parallel: {rule}, got {count}")
        if count == 1:
            return Parallel(mode if others else "single", (chosen,), others)
        return Parallel(mode, tuple("cpu" if chosen == "cpu" else f"cuda:{rank}" for rank in range(count)), others)

    def sharing(self, plan: ClientPlan, num_rings: int) -> Sharing:
        """Return how a run's model of so many rings is shared here.

        Raises:
            ConfigError: not in the way that the owner chose. The server gets the line, so it does not say which.
        """
        if self.mode == "auto":
            if not _unserved(plan, "fsdp2") and trained_bytes(plan, num_rings) > _device_bytes(self.devices[0]):
                return "fsdp2"
            return "single" if _unserved(plan, "ddp") else "ddp"
        sharing: Sharing = "ddp" if self.mode == "ddp" else "fsdp2" if self.mode == "fsdp2" else "single"
        for setting in _unserved(plan, sharing):
            raise ConfigError("AGFL-CONFIG-253", f"--parallel: must be one that can serve {setting}; it is not")
        return sharing


def _device_bytes(device: str) -> float:
    """Return the memory of a device; infinite for CPUs, whose ranks hold whole flat vectors in the same memory."""
    return math.inf if device == "cpu" else float(torch.cuda.get_device_properties(device).total_memory)


def _unserved(plan: ClientPlan, sharing: Sharing) -> list[str]:
    """Return what of a run cannot be trained in this way, as a person wrote it."""
    return [] if sharing == "single" else list(_not_shared(plan, sharing))


def _not_shared(plan: ClientPlan, sharing: Sharing) -> Iterator[str]:
    training = plan.training
    if training.trainer is not None:
        yield f"training.trainer {training.trainer.type}"
    if sharing == "fsdp2":
        if plan.elastic is not None:
            yield "elastic"  # its widths are masks over whole parameters
        if training.optimizer.type == "delta_sgd":
            yield "training.optimizer delta_sgd"  # its norms would be those of a rank's share
