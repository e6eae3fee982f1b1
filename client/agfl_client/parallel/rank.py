"""Another rank's process: trains its shares of a node's rounds, until that is gone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress

import numpy as np
import torch

from agfl_client.parallel import group
from agfl_client.parallel.link import TO_RANK, Begin, Forget, Line, RankLostError, Ready, Recipe, Train
from agfl_client.parallel.replica import leaves_unused, new_part, train_share
from agfl_client.parallel.shares import GivenUpError, Inbox
from agfl_client.training.part import Part
from agfl_models import plugins
from agfl_models.tasks.task import AnyTask
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.methods.method import Gradient
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json


def main() -> None:
    """Entry point; the argument is the descriptor of the line to the node, stdin ends with the node."""
    begin_as_rank()
    line = Line(socket.socket(fileno=int(sys.argv[1])), TO_RANK)
    try:
        begin = line.receive()
        assert isinstance(begin, Begin), begin
        serve(line, begin)
    except RankLostError:
        sys.exit(1)  # which the node sees, if it is there


def begin_as_rank() -> None:
    """Have this process end with whoever started it, and not before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the node says when it is over
    threading.Thread(target=_leave_with_starter, daemon=True).start()


def _leave_with_starter() -> None:
    """End this process in whatever it does, once nobody holds the other end of stdin."""
    while os.read(0, 1):
        pass
    os._exit(0)


def serve(line: Line, begin: Begin) -> None:
    """Train what the node says; raises RankLostError once that or another rank is gone."""
    torch.set_num_threads(begin.num_threads)
    plugins.enable(begin.plugins)
    line.send(Ready())
    group.join(begin, [line])
    rank = _Rank(line, begin)
    while True:
        asked = line.receive()
        if isinstance(asked, Forget):
            rank.forget()
            continue
        assert isinstance(asked, Train), asked
        with suppress(GivenUpError):
            rank.train(asked)


class _Rank:
    """A rank, with the model of the last round, which the next one probably has, too."""

    def __init__(self, line: Line, begin: Begin) -> None:
        self._line, self._begin = line, begin
        self._kept: tuple[Recipe, ClientPlan, AnyTask, Part] | None = None

    def forget(self) -> None:
        self._kept = None

    def train(self, asked: Train) -> None:
        if self._kept is None or self._kept[0] != asked.recipe:
            self._kept = None
            self._kept = self._made(asked.recipe)
        _, plan, task, part = self._kept
        room = np.zeros(part.layout.size, np.float32)
        gradients = [
            Gradient(scale, None if dtype is None else room.astype(dtype), pull) for scale, dtype, pull in asked.shaping
        ]
        inbox = Inbox(self._line)
        rng = np.random.Generator(np.random.PCG64())
        rng.bit_generator.state = asked.draws
        work = LocalWork(
            part.model,
            part.layout,
            task,
            inbox,
            rng,
            plan.training,
            part.device,
            gradients,
            first_step=asked.first_step,
        )
        train_share(part, work, inbox, room, leaves_unused(plan))
        part.model.zero_grad(set_to_none=True)

    def _made(self, recipe: Recipe) -> tuple[Recipe, ClientPlan, AnyTask, Part]:
        plan = client_plan_from_json(recipe.plan).with_pretrained(self._begin.pretrained, "--pretrained")
        return recipe, plan, plan.build_task(), new_part(plan, recipe, self._begin.device)
