"""Delta-SGD: a client finds its own step size from how fast the gradient changes along its way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class DeltaSGD(Optimizer):
    """Kim et al. 2024, arXiv:2306.11201, Algorithm 1, with one step size for all parameters.

    eta_k = min(gamma |x_k - x_{k-1}| / (2 |g_k - g_{k-1}|), sqrt(1 + delta theta_{k-1}) eta_{k-1}) and theta_k =
    eta_k / eta_{k-1}; the first step is `lr`, theta_0 is 1. A gradient that does not change
    puts no bound, nor does a step that did not move.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, gamma: float, delta: float) -> None:
        super().__init__(params, {"lr": lr, "gamma": gamma, "delta": delta})
        assert len(self.param_groups) == 1, "one step size for all"
        self._before: list[tuple[Tensor, Tensor]] = []
        self._ratio = 1.0  # theta

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step along the gradients of the parameters that have one."""
        assert closure is None, "gradients are at hand"
        (group,) = self.param_groups
        moving = [cast("nn.Parameter", parameter) for parameter in group["params"] if parameter.grad is not None]
        now = [(parameter.detach().clone(), cast("Tensor", parameter.grad).clone()) for parameter in moving]
        if self._before:
            size = self._next_size(group, now)
            group["lr"], self._ratio = size, size / group["lr"]
        for parameter, (_, gradient) in zip(moving, now, strict=True):
            parameter.sub_(gradient, alpha=group["lr"])
        self._before = now

    def _next_size(self, group: dict[str, Any], now: list[tuple[Tensor, Tensor]]) -> float:
        pairs = list(zip(now, self._before, strict=True))
        moved = _norm(point - point_before for (point, _), (point_before, _) in pairs)
        turned = _norm(gradient - gradient_before for (_, gradient), (_, gradient_before) in pairs)
        growth: float = math.sqrt(1 + group["delta"] * self._ratio) * group["lr"]
        bound: float = group["gamma"] * moved / (2 * turned) if turned > 0 else 0.0
        return min(bound, growth) if bound > 0 else growth  # else, or not a number: no step would be the last one


def _norm(parts: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))
