"""NVFlare's own simulation: its job of federated averaging, and a client for each place of a cohort.

Its simulator has no population: a client trains in each round on the user whose turn it is at its place. Each client
is a process that stays, as is the default; with fewer processes (`threads`), one begins anew for each client's task.
The clients run this file as their training script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import nvflare.client as flare
import torch
from meter import Meter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.script_runner import ScriptRunner
from torch import Tensor, nn
from torch.optim import SGD
from workloads import WORKLOADS, Users, Workload, batches, loss


class Learner(nn.Module):
    """A workload's model, which a job names by its class."""

    def __init__(self, workload: str) -> None:
        super().__init__()
        self.workload, self.module = workload, WORKLOADS[workload].model()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.module(x)
        return logits


class Clock(FLComponent):  # type: ignore[misc]  # NVFlare may not be installed
    """Notes each round as it ends, in the process of the simulator's server."""

    def __init__(self, rounds: int, out: str) -> None:
        super().__init__()
        self.rounds, self.out = rounds, out  # where a job looks for what it is to make one with
        self._meter = Meter(rounds, Path(out))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Note the end of the aggregation."""
        if event_type == AppEventType.AFTER_AGGREGATION:
            arrays = fl_ctx.get_prop(AppConstants.AGGREGATION_RESULT).params.values()
            self._meter.round_ends(np.concatenate([np.asarray(array).reshape(-1) for array in arrays]))


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train; the meter that counts is the one of the server's process, below which are the clients'."""
    job = FedAvgJob(Learner(work.name), n_clients=work.cohort, num_rounds=rounds, min_clients=work.cohort)
    job.to_server(Clock(rounds, str(meter.out)))
    job.to_clients(ScriptRunner(__file__, script_args=f"{work.name} {users.folder} {work.cohort}"))
    with tempfile.TemporaryDirectory() as folder:
        if status := job.simulator_run(folder, n_clients=work.cohort):
            sys.exit(status)


def train() -> None:
    """Train, round after round, on the user at this client's place of the cohort."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("folder", type=Path)
    parser.add_argument("cohort", type=int)
    told = parser.parse_args()
    torch.set_num_threads(1)
    work = WORKLOADS[told.workload].cut(told.cohort)
    users, model = Users.read(work, told.folder), Learner(work.name)
    flare.init()
    place = int(flare.get_site_name().rpartition("-")[2]) - 1
    while flare.is_running():
        received = flare.receive()
        number = received.current_round + 1
        model.load_state_dict(received.params)
        optimizer = SGD(model.parameters(), lr=work.lr)
        inputs, labels = users.in_order(work.cohort_of(number)[place], number)
        for batch in batches(work, inputs, labels):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, *batch))
            optimizer.step()
        steps = {"NUM_STEPS_CURRENT_ROUND": len(labels)}  # what NVFlare weights by
        flare.send(flare.FLModel(params=model.state_dict(), meta=steps))


if __name__ == "__main__":
    train()
