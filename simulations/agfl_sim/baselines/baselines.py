"""The baselines of a finished run, in baselines.jsonl: models of one owner each, and one of all text in one place.

Only a simulation can make them: nobody else has the text of all owners.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any

from agfl_client.training.device import AUTO, choose_device
from agfl_models.errors import CheckpointError, DataError
from agfl_models.examples import Row
from agfl_models.files.durable_files import read_json_lines, write_atomically
from agfl_models.files.file_systems import sync
from agfl_models.files.store import CONFIG_FILE
from agfl_models.machine import usable_cpus
from agfl_models.tasks.task import AnyTask, Dataset
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.optimizers import build_optimizer
from agfl_server.rounds.checkpoint import load_checkpoint
from agfl_server.rounds.state import initial_state
from agfl_server.run.run_folder import RunFolder
from agfl_sim.baselines.comparison import GLOBAL, MODELS, Comparison, Score
from agfl_sim.baselines.learners import Bench, log

FILE = "baselines.jsonl"
Place = tuple[int, str]  # of a score in the file
Progress = Callable[[int, int], None]  # (rounds of learners that are done, rounds in all)


def run_baselines(
    folder: Path, owners: Sequence[Path], resume: bool, progress: Progress, device: str = AUTO
) -> Comparison:
    """Train and judge all baselines of the finished run in `folder`; what `resume` finds done there is kept.

    owners: their files. device: where they train, "auto" or a PyTorch device. progress: called from several threads,
    one at a time.

    Raises:
        AgflError: one line for a person.
    """
    config = load_run_config(folder / CONFIG_FILE)  # the merges that the run has learned are in this one
    bench = _bench(config, folder, owners, choose_device(device))
    store = ScoreFile(folder / FILE, _key(config, owners))
    found = {_place(score): score for score in store.begin(resume)}
    found |= {_place(score): score for score in _train(bench, found.keys(), store, progress)}
    own = [found[place] for place in sorted(found)]
    scores = sorted([*own, *bench.together(own)], key=_place)
    store.finish(scores)
    return Comparison.of(config.task.main_metric, scores, bench.budget)


def _bench(config: RunConfig, folder: Path, owners: Sequence[Path], device: str) -> Bench:
    layout, initial = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "")
    final = load_checkpoint(RunFolder(folder).checkpoints, config.hash)
    task: AnyTask = config.build_task()
    rows: dict[str, list[Row]] = {}
    datasets: dict[str, Dataset[Any]] = {}
    for path in sorted(owners, key=lambda path: path.stem):
        try:
            own = config.task.read(path)[0]
            datasets[path.stem], rows[path.stem] = task.prepare(own), own
        except DataError as error:
            log.warning("%s is left out of the baselines, as its node refused each round: %s", path.stem, error)
    return Bench(config, task, rows, datasets, layout, initial.model, final.model, device)


def _train(bench: Bench, done: Collection[Place], store: ScoreFile, progress: Progress) -> list[Score]:
    """Return the scores that are not `done`; as many learners train at a time as there are processors."""
    missing = [who for who in bench.learners if not all(_place_of(who.model, judge) in done for judge in who.judges)]
    to_judge = [name for name in bench.rows if _place_of(GLOBAL, name) not in done]
    total, lock = sum(who.rounds for who in bench.learners), Lock()
    finished = total - sum(who.rounds for who in missing)

    def advance() -> None:
        nonlocal finished
        with lock:
            finished += 1
            progress(finished, total)

    progress(finished, total)
    bench = replace(bench, advance=advance)
    scores: list[Score] = []
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="baseline") as pool:
        work: list[Future[list[Score]]] = [pool.submit(bench.train, who) for who in missing]
        work += [pool.submit(bench.judge_global, name) for name in to_judge]
        try:
            for future in as_completed(work):
                store.append(future.result())
                scores += future.result()
        except BaseException:
            bench.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return scores


def _key(config: RunConfig, owners: Iterable[Path]) -> str:
    """Return what scores depend on, as a short digest: those of another run are not taken for this one's."""
    files = [(path.stem, hashlib.sha256(path.read_bytes()).hexdigest()) for path in owners]
    parts = [config.hash, config.num_rounds, config.evaluation.max_examples, sorted(files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _place(score: Score) -> Place:
    return _place_of(score.model, score.owner)


def _place_of(model: str, owner: str | None) -> Place:
    """Order by model; all owners together come first, then each by name."""
    return MODELS.index(model), owner or ""


class ScoreFile:
    """One JSON object a score: grows while learners finish, and in the end has an order of its own."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def begin(self, resume: bool) -> list[Score]:
        """Return the owners' scores that an interrupted run has left, and keep only their lines."""
        kept = self._read() if resume and self._path.exists() else []
        self.finish(kept)
        return kept

    def append(self, scores: Sequence[Score]) -> None:
        """Make scores durable."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(map(self._line, scores))
                file.flush()
                sync(file.fileno(), self._path)
        except OSError as error:
            raise self._unwritable(error) from None

    def finish(self, scores: Sequence[Score]) -> None:
        """Replace the content."""
        try:
            write_atomically(self._path, "".join(map(self._line, scores)).encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def _read(self) -> list[Score]:
        try:
            own = [row for row in read_json_lines(self._path) if row.pop("run") == self._key]
            return [Score(**row) for row in own if row["owner"] is not None]
        except (KeyError, TypeError) as error:
            raise CheckpointError("AGFL-CHECKPOINT-041", f"baselines: {self._path}: is damaged: {error!r}") from None

    def _line(self, score: Score) -> str:
        return json.dumps({"run": self._key, **asdict(score)}) + "\n"

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError("AGFL-CHECKPOINT-042", f"baselines: {self._path}: cannot be written: {error.strerror}")
