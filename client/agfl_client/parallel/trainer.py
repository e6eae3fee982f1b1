"""The shipped trainer over several ranks: the same batches and steps, each rank with its share of each batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from agfl_client.parallel import group
from agfl_client.parallel.link import Forget, GiveUp, RankLostError, Recipe, Train
from agfl_client.parallel.ranks import Ranks
from agfl_client.parallel.replica import leaves_unused, new_part, train_share
from agfl_client.parallel.shares import Dealer
from agfl_client.policy import PolicyViolation
from agfl_client.training.deadline import NO_DEADLINE, Deadline
from agfl_client.training.part import Part
from agfl_models.errors import ConfigError
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Vector

_ATTEMPTS = 3  # what ended a rank that often in one round will end it again
log = logging.getLogger("agfl.client")


class SharedTraining:
    """What a node keeps for training on several ranks, from round to round: these, and its share of a model."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._kept: tuple[Recipe, Part] | None = None

    def own_part(self, recipe: Recipe, plan: ClientPlan) -> Part:
        """Return the share of a model that this rank trains, as it was in the last round if that was of the same."""
        if self._kept is None or self._kept[0] != recipe:
            self._kept = None
            self._kept = recipe, new_part(plan, recipe, self.ranks.devices[0])
        return self._kept[1]

    def forget(self) -> None:
        """Let all ranks let go of the model."""
        self._kept = None
        try:
            self.ranks.tell(Forget())
        except RankLostError:  # which the next round says
            self.end()

    def end(self) -> list[str]:
        """End the ranks, and return how those ended that failed."""
        self._kept = None  # its mesh is that of the group that ends
        return self.ranks.end()


@dataclass(frozen=True)
class ParallelTrainer(LocalTrainer):
    """Trains as `BatchTrainer` does, up to how sums are rounded.

    part: what the node has of the model anyway; deadline: of the round, which waiting for ranks keeps as well.
    """

    shared: SharedTraining
    recipe: Recipe
    plan: ClientPlan
    part: Part
    deadline: Deadline = NO_DEADLINE

    def train(self, work: LocalWork) -> LocalResult:
        """Train on all ranks. If one is lost, all are started again, and the round as well, with the same bits.

        Raises:
            PolicyViolation: the deadline passes.
            ConfigError: ranks were lost too often.
        """
        with self.shared.ranks.bounded(self.deadline):
            return self._train_again(work)

    def _train_again(self, work: LocalWork) -> LocalResult:
        start, draws = work.layout.flatten(work.model), work.rng.bit_generator.state
        for _ in range(_ATTEMPTS):
            work.check_deadline()
            work.rng.bit_generator.state = draws
            try:
                return self._train(work, start)
            except PolicyViolation:
                self._give_up()
                raise
            except Exception as error:
                lost = self.shared.end()
                # What gloo raises once a rank is lost is a RuntimeError, as much else is: how that ended tells.
                if not isinstance(error, RankLostError) and not (lost and isinstance(error, RuntimeError)):
                    raise
                how = "; ".join(lost) or str(error)
                log.warning("%s; all are started again, and the round too, if there is time", how)
        line = f"--parallel: the ranks of this owner must live through a round, and did not in {_ATTEMPTS} attempts"
        raise ConfigError("AGFL-CONFIG-254", line)

    def _train(self, work: LocalWork, start: Vector) -> LocalResult:
        ranks = self.shared.ranks
        ranks.start(self.deadline)
        shaping = tuple((g.scale, None if g.shift is None else g.shift.dtype.str, g.pull) for g in work.gradients)
        ranks.tell(Train(self.recipe, work.rng.bit_generator.state, shaping, work.first_step))
        is_whole = self.recipe.sharing == "ddp"
        part = self.part if is_whole else self.shared.own_part(self.recipe, self.plan)
        if not is_whole:
            self.part.model.to("cpu")  # its place on the device is for the shares

        def check() -> None:
            work.check_deadline()
            group.be_patient(self.deadline)  # a rank of another machine that hangs cannot be killed

        dealer = Dealer(work.dataset, ranks.others, check)
        try:
            return train_share(part, work, dealer, start, leaves_unused(self.plan))
        finally:
            part.model.zero_grad(set_to_none=True)
            self.part.model.to(self.part.device)

    def _give_up(self) -> None:
        try:
            self.shared.ranks.tell(GiveUp())
        except RankLostError:
            self.shared.end()
