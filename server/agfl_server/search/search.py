"""Architecture search: each candidate of the slate is an ordinary run, a few rounds at a time; the best one goes on.

OUTPUT/search/NAME is the folder of such a run; its measured.json holds what it reached at the end of each rung, so that
an interrupted race, which is run again from its start, trains nothing twice. OUTPUT/search/search.json tells of the
race, and chosen.yaml is the run that it ended with, as a person would write it.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.store import CONFIG_FILE
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_models.validation import dump_yaml
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_server.rounds.attempts import RunContext
from agfl_server.rounds.cohort_sums import DivergedError
from agfl_server.rounds.loop import run_rounds
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState
from agfl_server.rounds.tokenizer_training import train_tokenizer, with_public_tokenizer
from agfl_server.run.opened_run import open_run
from agfl_server.run.other_run import refuse_other
from agfl_server.run.run_folder import RunFolder
from agfl_server.search.race import Measured, Race, run_race
from agfl_server.search.slate import Candidate, Slate, make_slate

CHOSEN_FILE, RACE_FILE, _MEASURED_FILE = "chosen.yaml", "search.json", "measured.json"


def run_search(context: RunContext, folder: RunFolder, *, resume: bool) -> RunConfig:
    """Race the slate of `context.config`; leave the chosen candidate in `folder` as a run to resume, and return it.

    Raises:
        AgflError: one line for a person; what was measured stays, and the race can be resumed.
    """
    search, observer = context.config.search, context.observer
    assert search is not None
    slate = open_search(context.config, folder, resume=resume)
    learned = _with_tokenizer(replace(context, config=slate.candidates[0].config), RunFolder(folder.search), resume)
    if folder.has_checkpoint:  # the race is over, whatever its settings are now
        return _with_merges_of(learned, _chosen_before(slate, folder.search / RACE_FILE).config)
    observer.search_started([candidate.name for candidate in slate.candidates], slate.skipped)

    def measure(candidate: Candidate, rounds: int) -> Measured:
        config = _with_merges_of(learned, candidate.config)
        return _measure(replace(context, config=config), RunFolder(folder.search / candidate.name), rounds)

    announced: set[str] = set()

    def follow(race: Race) -> None:
        for runner in race.runners:
            if runner.fate and runner.name not in announced:
                announced.add(runner.name)
                observer.candidate_left(runner.name, runner.fate)
        _write(folder.search / RACE_FILE, json.dumps(_content(race), indent=1))

    rungs = _rungs(context.config, folder.search / RACE_FILE)
    race = run_race(search, rungs, slate, measure, follow)
    chosen = race.alive[0].candidate
    observer.search_finished(chosen.name, race.candidate_rounds, race.exhaustive_rounds)
    _write(folder.search / CHOSEN_FILE, _as_written(chosen, race))
    folder.take_over(RunFolder(folder.search / chosen.name))
    return _with_merges_of(learned, chosen.config)


def open_search(config: RunConfig, folder: RunFolder, *, resume: bool) -> Slate:
    """Return the slate of a search that is to begin or to go on in `folder`; nothing is written.

    Raises:
        ConfigError: as `make_slate`, or the folder holds a run already.
        CheckpointError: the folder holds no search, or another one.
    """
    slate = make_slate(config)
    if not resume:
        folder.refuse_existing_run()
        return slate
    if not folder.search.exists():
        raise CheckpointError("AGFL-CHECKPOINT-030", f"--resume: {folder.search}: must hold a search, found none")
    home = RunFolder(folder.search)
    learned = slate.candidates[0].config
    if (home.path / CONFIG_FILE).exists():
        learned = home.resolved(learned)
    if folder.has_checkpoint:  # the race is over, whatever its settings are now
        chosen = _chosen_before(slate, folder.search / RACE_FILE).config
        folder.refuse_other_run(_with_merges_of(learned, chosen))
        return slate
    _rungs(config, folder.search / RACE_FILE)
    for candidate in slate.candidates:
        _read_measured(RunFolder(folder.search / candidate.name), _with_merges_of(learned, candidate.config))
    return slate


def _rungs(config: RunConfig, race_file: Path) -> tuple[int, ...]:
    """Return the rungs; those of a race that has begun stay, even if the run is to have more rounds now."""
    assert config.search is not None
    if config.search.rungs is not None or not race_file.exists():
        return config.search.rungs_of(config.num_rounds)
    rungs, _ = _read_race(race_file)
    if sum(rungs) > config.num_rounds:
        rule = f"num_rounds must be at least {sum(rungs)}, the rounds of the race that has begun"
        raise CheckpointError("AGFL-CHECKPOINT-031", f"--resume: {race_file}: {rule}, got {config.num_rounds}")
    return rungs


def _chosen_before(slate: Slate, race_file: Path) -> Candidate:
    """Return the candidate that won a race which is over."""
    _, alive = _read_race(race_file)
    if len(alive) != 1:
        raise CheckpointError(
            "AGFL-CHECKPOINT-032",
            f"search: {race_file}: is damaged: must name one winner, names {', '.join(alive) or 'none'}",
        )
    found = next((candidate for candidate in slate.candidates if candidate.name in alive), None)
    if found is None:
        names = ", ".join(candidate.name for candidate in slate.candidates)
        raise CheckpointError(
            "AGFL-CHECKPOINT-033",
            f"--resume: {race_file}: search.slate must still hold the chosen {alive[0]}, got {names}",
        )
    return found


def _read_race(race_file: Path) -> tuple[tuple[int, ...], list[str]]:
    """Return the rungs of a race, and the names of those who are still in it."""
    try:
        race = json.loads(race_file.read_text("utf-8"))
        alive = [str(one["name"]) for one in race["candidates"] if not one["fate"]]
        return tuple(int(rounds) for rounds in race["rungs"]), alive
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("AGFL-CHECKPOINT-034", f"search: {race_file}: is damaged: {error!r}") from None


def _with_tokenizer(context: RunContext, home: RunFolder, resume: bool) -> RunConfig:
    """Return the run with its tokenizer, learned once for all candidates and kept in the search's own config.yaml."""
    is_begun = resume and (home.path / CONFIG_FILE).exists()
    config = home.resolved(context.config) if is_begun else context.config
    config = with_public_tokenizer(config, context.observer)
    home.write_config(config)
    if not config.tokenizer.is_trained:
        config, _ = train_tokenizer(
            replace(
                context,
                config=config,
            )
        )
        home.write_config(config)
    return config


def _with_merges_of(learned: RunConfig, config: RunConfig) -> RunConfig:
    merges = learned.tokenizer.merges if isinstance(learned.tokenizer, BPETokenizerConfig) else None
    return config if merges is None else config.with_merges(merges)


def _measure(context: RunContext, folder: RunFolder, rounds: int) -> Measured:
    """Train a candidate to `rounds` rounds in all, from where it is, and evaluate it; nothing is measured twice."""
    config = context.config.model_copy(update={"num_rounds": rounds})
    known = _read_measured(folder, config)
    found = next((measured for measured in known if measured.rounds == rounds), None)
    if found is not None:
        return found
    context.observer.candidate_started(folder.path.name, rounds)
    context = replace(context, config=config)
    try:
        loss = _trained_loss(context, folder, rounds)
        measured = Measured(rounds, loss) if math.isfinite(loss) else Measured(rounds, None, f"its loss is {loss}")
    except DivergedError:
        measured = Measured(rounds, None, "its training diverged: updates or losses are not finite")
    content = {"config_hash": config.hash, "measured": [asdict(one) for one in (*known, measured)]}
    _write(folder.path / _MEASURED_FILE, json.dumps(content))
    context.observer.candidate_measured(folder.path.name, rounds, measured.loss)
    return measured


def _trained_loss(context: RunContext, folder: RunFolder, rounds: int) -> float:
    config, rows = context.config, list[Row]()
    is_new = not folder.has_checkpoint
    if is_new:
        folder.begin(config)
    federation, state = open_run(context, folder, is_new=is_new)
    if state.round > rounds:
        rule = f"must be at most at round {rounds}, the end of a rung of this search"
        raise CheckpointError(
            "AGFL-CHECKPOINT-035", f"--resume: {folder.path}: {rule}, got {state.round} (were search.rungs changed?)"
        )

    def save(state: ServerState, complete: list[Row]) -> ServerState:
        rows.extend(complete)
        return folder.save(config, state, complete)

    run_rounds(federation, state, save)
    loss = rows[-1].get("eval/loss")
    if loss is None:
        raise ConfigError(
            "AGFL-CONFIG-187", "search: needs validation text to compare candidates on, no owner holds any out"
        )
    return float(loss)


def _read_measured(folder: RunFolder, config: RunConfig) -> tuple[Measured, ...]:
    path = folder.path / _MEASURED_FILE
    if not path.exists():
        return ()
    try:
        content = json.loads(path.read_text("utf-8"))
        found_hash, measured = str(content["config_hash"]), tuple(Measured(**one) for one in content["measured"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("AGFL-CHECKPOINT-036", f"search: {path}: is damaged: {error}") from None
    if found_hash != config.hash:
        written = None
        with suppress(ConfigError):
            written = load_run_config(folder.path / CONFIG_FILE).defining
        refuse_other(f"--resume: {folder.path}", found_hash, config.hash, written, config.defining)
    return measured


def _content(race: Race) -> dict[str, Any]:
    """Return the race so far, as the report reads it."""
    return {
        "rungs": race.rungs,
        "candidate_rounds": race.candidate_rounds,
        "exhaustive_rounds": race.exhaustive_rounds,
        "reference_flops": race.slate.reference_flops,
        "skipped": dict(race.slate.skipped),
        "candidates": [
            {
                "name": runner.name,
                "num_parameters": runner.candidate.num_parameters,
                "flops_per_token": runner.candidate.flops_per_token,
                "losses": [measured.loss for measured in runner.measured],
                "fate": runner.fate,
            }
            for runner in race.runners
        ],
    }


def _as_written(chosen: Candidate, race: Race) -> str:
    """Return a run configuration that says what the user's file said, but for the layers that were chosen."""
    head = f"# A search among {len(race.runners)} candidates chose {chosen.name}.\n"
    return head + dump_yaml(chosen.config.model_dump(mode="json", exclude_unset=True), is_compact=True)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise CheckpointError("AGFL-CHECKPOINT-037", f"search: {path}: cannot be written: {error.strerror}") from None
