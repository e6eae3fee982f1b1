"""Shows a run on a terminal: one line a round, and a bar over the clients of the round under way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agfl_models.tasks.task import MainMetric
from agfl_server.rounds.observer import DISCONNECTED, IMPLAUSIBLE, Observer, Row


class ProgressObserver(Observer):
    """An observer for people; on something that is no terminal only the lines are printed."""

    def __init__(self, console: Console, main_metric: MainMetric) -> None:
        self._main_metric = main_metric
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("clients"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._num_rounds = 0

    def __enter__(self) -> ProgressObserver:
        if _is_live(self._progress.console):
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def waiting(self, connected: int, needed: int) -> None:
        """Say how many nodes are missing."""
        self._say(f"waiting for nodes: {connected} of {needed} connected")

    def connected(self, name: str) -> None:
        """Name the node."""
        self._progress.update(self._task, description=f"connected {escape(name)}")

    def tokenizer_round(self, merges: int, max_merges: int, cohort: int) -> None:
        """Start the bar over the cohort anew; the label counts the merges."""
        self._progress.reset(self._task, total=cohort, description=f"tokenizer: {merges} of {max_merges} merges")

    def read(self, line: str) -> None:
        """Say what was found in the file."""
        self._say(escape(line))

    def tokenizer_trained(self, merges: int, max_merges: int) -> None:
        """One line for the whole tokenizer."""
        self._say(f"tokenizer: {merges} of {max_merges} merges")

    def optimizer_chosen(self, method: str) -> None:
        """Name the method."""
        self._say(f"the server now steps by {escape(method)}")

    def remarked(self, line: str) -> None:
        """Say it."""
        self._say(f"[yellow]{escape(line)}[/]")

    def diverged(self, owners: int) -> None:
        """Say how many."""
        self._say(f"[yellow]updates or losses of {owners} owners are not finite and count as none[/]")

    def rings_planned(self, num_open: int, width_by_tier: Sequence[float]) -> None:
        """Say in which widths the owners train."""
        widths = ", ".join(f"{width:g}" for width in width_by_tier)
        self._say(f"owners now train the model in widths, by tier: {widths}")

    def search_started(self, candidates: Sequence[str], skipped: Mapping[str, str]) -> None:
        """Name who races, and who does not."""
        self._say(f"[bold]search among {len(candidates)} candidates[/]: {escape(', '.join(candidates))}")
        for name, reason in skipped.items():
            self._say(f"{escape(name)} takes no part: {escape(reason)}")

    def candidate_started(self, name: str, rounds: int) -> None:
        """Say whose rounds follow."""
        self._say(f"candidate {escape(name)}, to round {rounds}")

    def candidate_measured(self, name: str, rounds: int, loss: float | None) -> None:
        """Give the loss that ranks it."""
        self._say(f"[bold]candidate {escape(name)} after round {rounds}: eval loss {_number(loss, 4)}[/]")

    def candidate_left(self, name: str, fate: str) -> None:
        """Say who went, and why."""
        self._say(f"[yellow]candidate {escape(name)} {escape(fate)}[/]")

    def search_finished(self, chosen: str, candidate_rounds: int, exhaustive_rounds: int) -> None:
        """Name the winner, and what the race took."""
        took = f"{candidate_rounds} rounds of candidates, {exhaustive_rounds} for all to the end"
        self._say(f"[bold]the search chose {escape(chosen)}[/] ({took})")

    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        """Start the bar over the cohort anew."""
        self._num_rounds = num_rounds
        label = f"round {round_number}/{num_rounds}" if round_number <= num_rounds else "last evaluation"
        self._progress.reset(self._task, total=cohort, description=label)

    def client_finished(self, name: str) -> None:
        """One client more: the rest of an exchange takes little time."""
        self._progress.advance(self._task)

    def refused(self, name: str, reason: str) -> None:
        """Name who was refused, and why."""
        said = f"{escape(name)} {reason}" if reason == DISCONNECTED else f"refused {escape(name)}: {escape(reason)}"
        self._say(f"[yellow]{said}[/]")

    def implausible(self, round_number: int, reason: str) -> None:
        """Say why the round is lost."""
        self._say(f"[red]round {round_number}: {IMPLAUSIBLE}; the sum is not used ({escape(reason)})[/]")

    def suspected(self, names: Sequence[str]) -> None:
        """Name the group, of whom one lies."""
        self._say(f"[red]{IMPLAUSIBLE}: one of {escape(', '.join(names))}; sums go on without them for a while[/]")

    def silent(self, names: Sequence[str]) -> None:
        """Name who did not answer."""
        self._say(f"[yellow]silent: {escape(', '.join(names))}; others are asked for a while[/]")

    def kept(self, round_number: int, folder: str) -> None:
        """Say where the model is."""
        self._say(f"[yellow]the last good model, that of round {round_number}, is in {escape(folder)}[/]")

    def rolled_back(self, round_number: int, to_round: int, loss: float | None) -> None:
        """Say which model is given up, and for which."""
        found = "" if loss is None else f" (loss {_number(loss, 4)})"
        self._say(
            f"[red]the losses refute the model of round {round_number}: back to that of round {to_round}{found}[/]"
        )

    def repeated(self, round_number: int, exchange: int, reason: str) -> None:
        """Say that the round starts again."""
        self._say(f"[yellow]round {round_number}: exchange {exchange + 1} failed ({escape(reason)})[/]")

    def round_finished(self, row: Row) -> None:
        """One line a round."""
        self._say(
            f"round {row['round']:>3}/{self._num_rounds}   train loss {_number(row['train/loss'])}   "
            f"{row['clients']} clients   {_number(row['seconds'], 1)} s"
        )

    def evaluated(self, row: Row) -> None:
        """The evaluation of a model on the owners' held-out examples."""
        head = f"model of round {row['round']}"
        if row["eval/loss"] is None:
            self._say(f"[bold]{head}[/]: no owner has anything to evaluate on")
            return
        quality = f"{_number(row[self._main_metric.name])} {self._main_metric.title}"
        self._say(f"[bold]{head}: {quality}[/]   eval loss {_number(row['eval/loss'])}")

    def _say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True)


class BaselineBar:
    """A bar over the rounds of all who train without a federation; a line at the start and at the end."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("baselines", total=None)
        self._started = time.monotonic()

    def __enter__(self) -> BaselineBar:
        self._progress.console.print("baselines: each owner alone, and all text in one place", highlight=False)
        if _is_live(self._progress.console):
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_live(self._progress.console):
            self._progress.stop()
        if kind is None:
            self._progress.console.print(f"baselines: {time.monotonic() - self._started:.1f} s", highlight=False)

    def update(self, finished: int, total: int) -> None:
        """Show how many rounds are done."""
        self._progress.update(self._task, completed=finished, total=total)


def _is_live(console: Console) -> bool:
    """Whether a bar can move there: on a terminal, or in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def _number(value: int | float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
