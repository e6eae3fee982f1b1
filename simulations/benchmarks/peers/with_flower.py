"""Flower's own simulation on Ray: its strategy for federated averaging, and clients that map the data to memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, ConfigRecordValues, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from meter import Meter
from torch.optim import SGD
from workloads import WORKLOADS, Users, Workload, batches, loss


@cache
def _users(name: str, folder: str) -> Users:
    return Users.read(WORKLOADS[name], Path(folder))


class Told(FedAvg):
    """Asks each of a cohort's places for one of its users, which the others ask for, too."""

    def __init__(self, work: Workload, folder: str, meter: Meter) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_available_nodes=work.cohort,
            min_train_nodes=work.cohort,
        )
        self._work, self._folder, self._meter = work, folder, meter

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Name the user of each message."""
        asked = list(super().configure_train(server_round, arrays, config, grid))
        for message, user in zip(asked, self._work.cohort_of(server_round), strict=True):
            told: dict[str, ConfigRecordValues] = {
                "user": user,
                "round": server_round,
                "work": self._work.name,
                "folder": self._folder,
            }
            message.content = RecordDict({"arrays": arrays, "config": ConfigRecord(told)})
        return asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the end of the round."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self._meter.round_ends(np.concatenate([array.numpy().reshape(-1) for array in arrays.values()]))
        return arrays, metrics


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the user that a message names."""
    torch.set_num_threads(1)
    told, arrays = message.content.config_records["config"], message.content.array_records["arrays"]
    work = WORKLOADS[str(told["work"])]
    users = _users(work.name, str(told["folder"]))
    number, user = (int(str(told[key])) for key in ("round", "user"))
    model = work.model()
    model.load_state_dict(arrays.to_torch_state_dict())
    optimizer = SGD(model.parameters(), lr=work.lr)
    inputs, labels = users.in_order(user, number)
    for batch in batches(work, inputs, labels):
        optimizer.zero_grad()
        torch.autograd.backward(loss(model, *batch))
        optimizer.step()
    found = RecordDict()
    found["arrays"] = ArrayRecord(model.state_dict())
    found["metrics"] = MetricRecord({"num-examples": len(labels)})
    return Message(found, reply_to=message)


def run(work: Workload, users: Users, rounds: int, meter: Meter) -> None:
    """Train, with an actor a processor."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # else actors starve where anything else runs
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Told(work, str(users.folder), meter)
        strategy.start(grid, ArrayRecord(OrderedDict(work.model().state_dict())), num_rounds=rounds)

    processors = len(os.sched_getaffinity(0))
    settings: dict[str, dict[str, ConfigRecordValues]] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": processors},
    }
    run_simulation(server, app, work.cohort, backend_config=settings)
