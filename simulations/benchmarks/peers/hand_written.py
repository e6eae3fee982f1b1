"""The limit on workload C: the gradients of its perceptron written by hand, and each step made in place; no wire."""

from __future__ import annotations

import torch
from meter import Meter
from torch import Tensor
from workloads import Users, Workload, batches, flat


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train."""
    model = work.model()
    parameters: list[Tensor] = list(model.parameters())
    with torch.no_grad():
        for number in range(1, rounds + 1):
            start = [parameter.clone() for parameter in parameters]
            total = [torch.zeros_like(parameter) for parameter in parameters]
            examples = 0
            for user in work.cohort_of(number):
                inputs, labels = users.in_order(user, number)
                torch._foreach_copy_(parameters, start)
                for batch in batches(work, inputs.float().div_(255), labels):
                    _step(parameters[::2], parameters[1::2], *batch, work.lr)
                torch._foreach_add_(total, parameters, alpha=len(labels))
                examples += len(labels)
            torch._foreach_div_(total, examples)
            torch._foreach_copy_(parameters, total)
            meter.round_ends(flat(model))


def _step(weights: list[Tensor], biases: list[Tensor], x: Tensor, labels: Tensor, lr: float) -> None:
    """Take one step of SGD on the mean cross entropy of linear layers with ReLU between them."""
    outputs = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        outputs.append(torch.addmm(bias, outputs[-1], weight.T).relu_())
    slope = torch.softmax(torch.addmm(biases[-1], outputs[-1], weights[-1].T), 1)
    slope[torch.arange(len(labels)), labels] -= 1
    slope /= len(labels)
    for i in reversed(range(len(weights))):
        before = (slope @ weights[i]).mul_(outputs[i] > 0) if i else slope
        weights[i].addmm_(slope.T, outputs[i], alpha=-lr)
        biases[i].sub_(slope.sum(0), alpha=lr)
        slope = before
