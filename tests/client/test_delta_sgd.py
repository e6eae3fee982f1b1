"""Delta-SGD takes the steps of Kim et al. 2024, Algorithm 1, against an oracle written from the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agfl_client.training.optimizers.delta_sgd import DeltaSGD

Vector = NDArray[np.float64]


def oracle(
    x: Vector, gradient: Callable[[Vector], Vector], lr: float, gamma: float, delta: float, steps: int
) -> Iterator[tuple[Vector, float]]:
    """Yield x and eta after each step."""
    eta, theta, before = lr, 1.0, None
    for _ in range(steps):
        g = gradient(x)
        if before is not None:
            x_before, g_before = before
            smooth = float(gamma * np.linalg.norm(x - x_before) / (2 * np.linalg.norm(g - g_before)))
            eta_next = min(smooth, math.sqrt(1 + delta * theta) * eta)
            eta, theta = eta_next, eta_next / eta
        before = x, g
        x = x - eta * g
        yield x, eta


def bowl(curvature: float) -> Callable[[Vector], Vector]:
    """The gradient of a quadratic, steeper in some directions, with a wave on it."""
    scales = curvature * np.linspace(0.1, 1.0, 6)
    return lambda x: scales * x + 0.1 * curvature * np.sin(3 * x)


@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
@pytest.mark.parametrize(("gamma", "delta"), [(2.0, 0.1), (1.0, 0.5)])
def test_steps_are_those_of_the_paper(curvature: float, gamma: float, delta: float) -> None:
    gradient, start = bowl(curvature), np.arange(1.0, 7.0)
    parts = [torch.nn.Parameter(torch.tensor(part)) for part in (start[:2], start[2:])]
    optimizer = DeltaSGD(parts, 0.2, gamma, delta)
    for x, eta in oracle(start, gradient, 0.2, gamma, delta, 30):
        slope = torch.tensor(gradient(torch.cat([part.detach() for part in parts]).numpy()))
        parts[0].grad, parts[1].grad = slope[:2], slope[2:]
        optimizer.step()
        np.testing.assert_allclose(torch.cat([p.detach() for p in parts]).numpy(), x, rtol=1e-10, atol=1e-10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(eta, rel=1e-10)


def test_a_first_step_that_is_far_too_long_is_taken_back() -> None:
    """Plain SGD with this step would diverge: the curvature is 300 and 2 / 300 < 0.2."""
    gradient = bowl(300.0)
    parameter = torch.nn.Parameter(torch.arange(1.0, 7.0, dtype=torch.float64))
    optimizer = DeltaSGD([parameter], 0.2, 1.0, 0.1)
    for _ in range(200):
        parameter.grad = torch.tensor(gradient(parameter.detach().numpy()))
        optimizer.step()
    assert float(parameter.detach().norm()) < 0.1


def test_a_constant_gradient_puts_no_bound_but_that_of_growth() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = DeltaSGD([parameter], 0.2, 2.0, 0.1)
    for _ in range(3):
        parameter.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * math.sqrt(1.1) * math.sqrt(1 + 0.1 * math.sqrt(1.1)))


@pytest.mark.parametrize("slopes", [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, math.inf, 1.0], [1.0, math.nan, 1.0]])
def test_no_gradient_ends_in_an_error(slopes: list[float]) -> None:
    """A server that makes up the model could ask for one."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = DeltaSGD([parameter], 0.2, 2.0, 0.1)
    for slope in slopes:
        parameter.grad = torch.full((3,), slope, dtype=torch.float64)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] > 0
