"""The plain loop: federated averaging as anyone writes it in PyTorch, with no wire; the reference of all engines."""

from __future__ import annotations

from copy import deepcopy

import torch
from meter import Meter
from torch.optim import SGD
from workloads import Users, Workload, batches, flat, loss


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train; every user gets a copy of the model and an optimizer."""
    model = work.model()
    for number in range(1, rounds + 1):
        total = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        examples = 0
        for user in work.cohort_of(number):
            inputs, labels = users.in_order(user, number)
            own = deepcopy(model)
            optimizer = SGD(own.parameters(), lr=work.lr)
            for batch in batches(work, inputs, labels):
                optimizer.zero_grad()
                error = loss(own, *batch)
                torch.autograd.backward(error)
                optimizer.step()
            for name, value in own.state_dict().items():
                total[name] += len(labels) * value
            examples += len(labels)
        model.load_state_dict({name: value / examples for name, value in total.items()})
        meter.round_ends(flat(model))
