"""What a run tells the person who watches it. The base class keeps silent; the commands override what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from agfl_protocol.config.run_config import RunConfig

Row = Mapping[str, int | float | None]
DISCONNECTED = "disconnected"  # a reason that is no refusal
IMPLAUSIBLE = "one owner or more sent what no honest one sends"


class Observer:
    """Called by the round loop; every method may be overridden."""

    def opened(self, config: RunConfig, folder: Path) -> None:
        """The run begins, or goes on, in `folder`; metrics.jsonl there has the rows of the rounds before."""

    def saved(self, rows: Sequence[Row]) -> None:
        """These rows are complete and were added to metrics.jsonl."""

    def finished(self, model: Path) -> None:
        """The last round is done; the trained model is in the folder `model`."""

    def measured(self, round_number: int, model: Callable[[], nn.Module]) -> Mapping[str, float]:
        """Return what to add to a round's row under `central/`, on data of the watcher's own.

        Called for each model that is evaluated; `model` builds it.
        """
        return {}

    def waiting(self, connected: int, needed: int) -> None:
        """Fewer nodes are there than a round needs."""

    def absent(self, reasons: Mapping[str, str]) -> None:
        """Why each owner that is not there takes no part, while more are needed."""

    def held_out(self, name: str, seconds: float) -> None:
        """An owner refused; it is asked again once it is started anew, or after so many seconds."""

    def missing(self, names: Sequence[str]) -> None:
        """A sum is over whole groups of owners, and none can be without these."""

    def connected(self, name: str) -> None:
        """A node said who it is, and was believed."""

    def identified(self, name: str, software: str) -> None:
        """A node said which version of the package it runs."""

    def pending(self, name: str, run_id: str) -> None:
        """A node waits for its owner to approve the plan of the run."""

    def read(self, line: str) -> None:
        """A file of the operator's own was read: a line on what was found in it."""

    def tokenizer_round(self, merges: int, max_merges: int, cohort: int) -> None:
        """With `merges` of at most `max_merges` learned, a request to count was broadcast to `cohort` clients."""

    def tokenizer_trained(self, merges: int, max_merges: int) -> None:
        """The tokenizer is learned; it has fewer than `max_merges` where the text has no more pairs to merge."""

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        """A round was broadcast to `cohort` clients."""

    def client_finished(self, name: str) -> None:
        """A client has done its work of this exchange; what it found out is in no sum yet."""

    def replied(self, name: str) -> None:
        """A client's reply was added to the sum."""

    def refused(self, name: str, reason: str) -> None:
        """A node's reply, or the node itself, was refused."""

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        """A round is repeated because too few updates came."""

    def round_finished(self, row: Row) -> None:
        """A round is done; `row` is its line of metrics.jsonl, evaluation excepted."""

    def optimizer_chosen(self, method: str) -> None:
        """From the next round on the server steps by another method of its portfolio."""

    def rings_planned(self, num_open: int, width_by_tier: Sequence[float]) -> None:
        """From the next round on, owners of each tier train the model in this width; `num_open` rings are open."""

    def remarked(self, line: str) -> None:
        """What a method says of a round."""

    def diverged(self, owners: int) -> None:
        """What so many owners computed in this round is not finite; it is not in the sum."""

    def implausible(self, round_number: int, reason: str) -> None:
        """The round's sum is none of honest owners: one or more sent what no honest one sends. It is not used."""

    def suspected(self, names: Sequence[str]) -> None:
        """Sums with these owners are bad, and good without them: one of them lies. They are left out for a while."""

    def silent(self, names: Sequence[str]) -> None:
        """These did not answer in time; others are asked for a while."""

    def kept(self, round_number: int, folder: str) -> None:
        """The run ends early; the last good model, that of `round_number`, is in `folder`."""

    def delivered(self, names: Sequence[str]) -> None:
        """These have the trained model now."""

    def rolled_back(self, round_number: int, to_round: int, loss: float | None) -> None:
        """Losses refute the model of `round_number`; the run goes on from that of `to_round`, which has `loss`."""

    def evaluated(self, row: Row) -> None:
        """The evaluation of an earlier round's model has arrived."""

    def search_started(self, candidates: Sequence[str], skipped: Mapping[str, str]) -> None:
        """A race of architectures begins, or goes on; skipped: name -> why this one does not take part."""

    def candidate_started(self, name: str, rounds: int) -> None:
        """It is a candidate's turn to train, to `rounds` rounds in all; rounds are told as those of any run."""

    def candidate_measured(self, name: str, rounds: int, loss: float | None) -> None:
        """A candidate reached a loss; None: it died."""

    def candidate_left(self, name: str, fate: str) -> None:
        """A candidate is out of the race."""

    def search_finished(self, chosen: str, candidate_rounds: int, exhaustive_rounds: int) -> None:
        """The race is over; the run trains the chosen architecture."""


class Observers(Observer):
    """Tells several observers the same, in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name not in vars(Observer):
            return super().__getattribute__(name)

        def tell(*arguments: Any, **named: Any) -> dict[str, float]:
            measured: dict[str, float] = {}
            for observer in self._observers:
                measured |= getattr(observer, name)(*arguments, **named) or {}
            return measured

        return tell
