"""Training without a federation: an owner alone, or all text in one place, with the client's own trainer.

A learner begins with the run's initial model and takes as many steps as it took in the federation, the one with all
text as many as all owners together; and each owner trains the global model further at home, a quarter as long. A
learner keeps the optimizer of the shipped trainer where a client begins anew each round, and of the models along the
way the best one counts, by the very text that it is then judged by: all of that favors it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from agfl_client.training.evaluation import evaluate
from agfl_client.training.optimizers.local_optimizer import new_optimizer
from agfl_client.training.trainer import BatchTrainer, train
from agfl_models.examples import Row
from agfl_models.model.families import build_model
from agfl_models.tasks import build_task
from agfl_models.tasks.dataset import split_rows
from agfl_models.tasks.evaluation import HeldOut
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.randomness import generator
from agfl_protocol.update import Layout, Vector
from agfl_sim.baselines.comparison import CENTRALIZED, GLOBAL, LOCAL, TUNED, Budget, Score

log = logging.getLogger("agfl.sim")
NUM_POINTS = 8  # models along the way of which the best one counts
Sums = dict[str, dict[str, float]]  # of the task's evaluation, by owner


class StoppedError(Exception):
    """The work was to stop."""


@dataclass(frozen=True)
class Learner:
    """Who trains without a federation.

    model: LOCAL, TUNED or CENTRALIZED. name: its batches follow from it; an owner's are those of the federation.
    rounds: as a client counts them. judges: on whose validation text it is judged.
    """

    model: str
    name: str
    rounds: int
    judges: Sequence[str]


@dataclass(frozen=True)
class Bench:
    """What all learners of a run share.

    rows, datasets: by owner. initial, final: the model before the first and after the last round, float32 (d,).
    advance: called after each round of a learner. stop: ends all work at the next occasion.
    """

    config: RunConfig
    task: AnyTask
    rows: Mapping[str, Sequence[Row]]
    datasets: Mapping[str, Dataset[Any]]
    layout: Layout
    initial: Vector
    final: Vector
    device: str
    advance: Callable[[], None] = lambda: None
    stop: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def pool(self) -> Dataset[Any]:
        """The training examples of all owners as those of one."""
        fraction = self.config.task.validation_fraction
        # A blank document is none to a task, so it must not decide on which side another one is.
        shown = [[row for row in rows if not row.is_blank] for rows in self.rows.values()]
        rows = [row for own in shown for row in split_rows(own, fraction)[0]]
        undivided = self.config.task.model_copy(update={"validation_fraction": 0.0})
        task: AnyTask = build_task(undivided, self.config.tokenizer, self.config.model)
        return task.prepare(rows)

    @property
    def learners(self) -> list[Learner]:
        """Everyone who trains, the longest work first: the pool sees as many examples as the federation did."""
        config, names = self.config, list(self.rows)
        rounds = config.num_rounds * min(config.aggregation.cohort_size or len(names), len(names))
        if config.training.local_epochs:
            rounds = max(1, round(rounds / len(names)))  # an epoch of the pool is one of every owner
        pool = Learner(CENTRALIZED, "+".join(names), rounds, names)
        alone = [Learner(LOCAL, name, config.num_rounds, [name]) for name in names]
        return [pool, *alone, *(Learner(TUNED, name, self._rounds_at_home, [name]) for name in names)]

    @property
    def _rounds_at_home(self) -> int:
        return math.ceil(self.config.num_rounds / 4)

    @property
    def budget(self) -> Budget:
        """How long the learners train."""
        training, pool = self.config.training, self.learners[0]
        unit, count = ("batches", training.local_steps) if training.local_steps else ("epochs", training.local_epochs)
        assert count is not None
        alone, at_home = count * self.config.num_rounds, count * self._rounds_at_home
        return Budget(unit, alone, at_home, count * pool.rounds, NUM_POINTS)

    def judge_global(self, name: str) -> list[Score]:
        """Return what the global model reaches at an owner."""
        torch.set_num_threads(1)
        return self._scores(GLOBAL, self.config.num_rounds, self._judge(self._load(self.final), [name]))

    def train(self, learner: Learner) -> list[Score]:
        """Train a learner; return what the best of its models reaches at each of its judges.

        Raises:
            StoppedError: `stop` was set.
        """
        torch.set_num_threads(1)  # as a node does, for the same bits
        goes_on = learner.model == TUNED
        start, past = (self.final, self.config.num_rounds) if goes_on else (self.initial, 0)
        model = self._load(start)
        alone = self.config.training.model_copy(update={"proximal_mu": 0.0})  # there is no global model to stay near
        shipped = BatchTrainer(new_optimizer(alone, model))
        dataset = self.pool if learner.model == CENTRALIZED else self.datasets[learner.name]
        points = {math.ceil(learner.rounds * i / NUM_POINTS) for i in range(1, NUM_POINTS + 1)}
        best: tuple[int, Sums] | None = None
        for number in range(1, learner.rounds + 1):
            rng = generator(self.config.seed, learner.name, past + number, "batches")
            # Each learner goes through a schedule of the rate once, in however many rounds it has.
            pace = 1 + (number - 1) * self.config.num_rounds // learner.rounds
            work = LocalWork(model, self.layout, self.task, dataset, rng, alone, self.device)
            result = train(replace(work, first_step=alone.first_step(pace)), shipped)
            self._pause()
            if not np.isfinite(result.delta).all():
                log.warning("%s alone: training diverged in round %d", learner.name, number)
                break
            if number in points:
                sums = self._judge(model, learner.judges)
                if best is None or self._quality(sums) > self._quality(best[1]):
                    best = number, sums
        return self._scores(learner.model, *(best or (0, self._judge(self._load(start), learner.judges))))

    def together(self, scores: Sequence[Score]) -> list[Score]:
        """Return each model's score on the validation text of all owners together."""
        totals: dict[str, dict[str, float]] = {}
        for score in scores:
            total = totals.setdefault(score.model, dict.fromkeys(self.task.eval_sums, 0.0))
            for name, value in score.sums.items():
                total[name] += value
        return [Score(model, None, None, self.task.eval_metrics(sums), sums) for model, sums in totals.items()]

    def _load(self, vector: Vector) -> nn.Module:
        model = build_model(self.config.model, seed=0).to(self.device)
        self.layout.load(model, vector)
        return model

    def _pause(self) -> None:
        self.advance()
        if self.stop.is_set():
            raise StoppedError

    def _judge(self, model: nn.Module, names: Sequence[str]) -> Sums:
        size, examples = self.config.training.batch_size, self.config.evaluation.max_examples
        sums: Sums = {}
        for name in names:
            if self.stop.is_set():
                raise StoppedError
            sums[name] = evaluate(model, HeldOut(self.task, self.datasets[name], size, examples, self.device))
        return sums

    def _quality(self, sums: Sums) -> float:
        """Return the main metric over all judges together, so that more is better."""
        metric = self.task.main_metric
        total = {name: sum(own[name] for own in sums.values()) for name in self.task.eval_sums}
        value = self.task.eval_metrics(total).get(metric.name, math.nan)
        return -math.inf if not math.isfinite(value) else value if metric.higher_is_better else -value

    def _scores(self, model: str, number: int, sums: Sums) -> list[Score]:
        return [Score(model, name, number, self.task.eval_metrics(own), own) for name, own in sums.items()]
