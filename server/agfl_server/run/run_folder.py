"""The output folder of a run: resolved configuration, metrics, checkpoints, and the trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agfl_models.errors import CheckpointError, ConfigError
from agfl_models.files.durable_files import not_read, not_written, read_json_lines, write_atomically
from agfl_models.files.file_systems import sync
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.files.store import CONFIG_FILE, METRICS_FILE, save_model
from agfl_models.files.store_files import MODEL_FOLDER, REPORT_FILE
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.folder_lock import held
from agfl_protocol.plans.plan import Plan, plan_from_json
from agfl_protocol.update import Layout
from agfl_server.rounds.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    rounds_done,
    save_checkpoint,
    with_confirmed_on_disk,
)
from agfl_server.rounds.observer import Row
from agfl_server.rounds.state import ServerState
from agfl_server.run.other_run import refuse_other

_PLAN_FILE = "plan.json"
_NOT_OVERWRITTEN = (CONFIG_FILE, MODEL_FOLDER, "checkpoints", REPORT_FILE)


@dataclass(frozen=True)
class RunFolder:
    """Layout: config.yaml, plan.json, metrics.jsonl, exchange/, checkpoints/, model/ and search/.

    And settings.json and sittings.json: what `--set` changed, and which commands worked on the run.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the server state of the last rounds lies."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a round, from `round: 0`, the untrained model."""
        return self.path / METRICS_FILE

    @property
    def search(self) -> Path:
        """Where the candidates of a search have their folders."""
        return self.path / "search"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state from which a run can go on."""
        return has_checkpoint(self.checkpoints)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a second process from running in the folder; one that is made here goes if a refusal leaves it empty.

        Raises:
            ConfigError: there is one already, or the folder cannot be made.
        """
        is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_made(error) from None
        refusal = ConfigError(
            "AGFL-CONFIG-076", f"{self.path}: must serve one run at a time, and one is running already"
        )
        try:
            with held(self.path, refusal):
                yield
        except BaseException:
            if is_new:
                with suppress(OSError):  # it holds something
                    self.path.rmdir()
            raise

    def refuse_existing_run(self) -> None:
        """Raise ConfigError if the folder holds a run already, or files of somebody else's that a run would overwrite.

        A run that ended before its first round has left an empty metrics.jsonl, and may begin again.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("AGFL-CONFIG-077", f"{self.path}: must be a folder, is a file")
        has_rows = self.metrics.exists() and self.metrics.stat().st_size > 0
        if has_rows or self.has_checkpoint or self.search.exists():
            raise ConfigError(
                "AGFL-CONFIG-078",
                f"{self.path}: must be a folder without a run; continue the run in it with --resume, or move it away",
            )
        if not self.metrics.exists():
            found = next((name for name in _NOT_OVERWRITTEN if (self.path / name).exists()), None)
            hint = folder_hint(self.path)
            if found or hint:
                held_there = f"holds a {found} that no run of ours wrote" if found else "is taken"
                raise ConfigError(
                    "AGFL-CONFIG-079", f"{self.path}: must be a folder for this run alone, {held_there}{hint}"
                )

    def refuse_other_run(self, config: RunConfig) -> None:
        """Check that the folder holds a run that can go on as `config` says.

        Raises:
            CheckpointError: it holds none, or another one.
            ConfigError: `num_rounds` are fewer than are done.
        """
        done = rounds_done(self.checkpoints, config.hash, config.defining)
        if config.num_rounds < done:
            raise ConfigError(
                "AGFL-CONFIG-080", f"num_rounds: must be at least {done}, the rounds done, got {config.num_rounds}"
            )

    def begin(self, config: RunConfig) -> None:
        """Start a new run; raises ConfigError if there is one or it cannot be written."""
        self.refuse_existing_run()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.metrics.touch()  # first: it says that what follows is a run's
        except OSError as error:
            raise self._not_made(error) from None
        self.write_config(config)

    def take_over(self, other: RunFolder) -> None:
        """Copy another run's state, for it to go on here; its checkpoint comes last, since with it there is a run.

        Raises:
            CheckpointError: the state cannot be read or written.
        """
        newest = newest_checkpoint(other.checkpoints)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for path in (other.metrics, newest):
                write_atomically(self.path / path.relative_to(other.path), path.read_bytes())
        except OSError as error:
            raise CheckpointError(
                "AGFL-CHECKPOINT-017", f"{other.path}: cannot be copied to {self.path}: {error.strerror}"
            ) from None

    def resolved(self, config: RunConfig) -> RunConfig:
        """Return the configuration of a run that is to go on, with the merges that the run has learned, if it has.

        Raises:
            CheckpointError: the folder holds no run, or another one.
        """
        if config.tokenizer.is_trained:
            return config
        try:
            written = load_run_config(self.path / CONFIG_FILE)
        except ConfigError as error:
            raise CheckpointError.of(error, f"--resume: {error.sentence}") from None
        learned = written.tokenizer.merges if isinstance(written.tokenizer, BPETokenizerConfig) else None
        found = config if learned is None else config.with_merges(learned)
        refuse_other(f"--resume: {self.path}", written.hash, found.hash, written.defining, found.defining)
        return found

    def has_tokenizer(self, config: RunConfig) -> bool:
        """Whether the run's tokenizer is known here, or was never to be learned."""
        return config.tokenizer.is_trained or (
            (self.path / CONFIG_FILE).exists() and self.resolved(config).tokenizer.is_trained
        )

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml, every default filled in; raises ConfigError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / CONFIG_FILE, config.to_yaml().encode())
        except OSError as error:
            raise self._not_made(error) from None

    def resume(self, config: RunConfig) -> ServerState:
        """Return the state after the last whole round; rows of later rounds are dropped from metrics.jsonl.

        Raises:
            CheckpointError: as `load_checkpoint` and `read_json_lines`, or the file cannot be written.
        """
        state = load_checkpoint(self.checkpoints, config.hash, config.defining)
        try:
            kept = [json.dumps(row) + "\n" for row in read_json_lines(self.metrics) if row["round"] < state.round]
            write_atomically(self.metrics, "".join(kept).encode())
        except (KeyError, TypeError):
            raise CheckpointError(
                "AGFL-CHECKPOINT-018", f"metrics: {self.metrics}: each row must say its round, one does not"
            ) from None
        except OSError as error:
            raise not_written(f"metrics: {self.metrics}", error) from None
        self.write_config(config)
        return state

    def read_plan(self) -> Plan | None:
        """Return what owners were asked to approve, if they were; raises CheckpointError."""
        try:
            return plan_from_json((self.path / _PLAN_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ConfigError as error:
            raise CheckpointError.of(error, f"plan: {self.path / _PLAN_FILE}: is damaged: {error.sentence}") from None
        except OSError as error:
            raise not_read(self.path / _PLAN_FILE, error) from None

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json; raises CheckpointError if it cannot be written."""
        try:
            write_atomically(self.path / _PLAN_FILE, plan.to_json().encode())
        except OSError as error:
            raise not_written(f"plan: {self.path / _PLAN_FILE}", error) from None

    def save(self, config: RunConfig, state: ServerState, rows: Sequence[Row]) -> ServerState:
        """Make a round durable: the rows that are complete, then its checkpoint, from which a run resumes.

        Return the state as it goes on, without what the checkpoint can give back.

        Raises:
            CheckpointError: the disk is full or not writable; the last checkpoint stays as it is.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                sync(file.fileno(), self.metrics)
        except OSError as error:
            raise not_written(f"metrics: {self.metrics}", error) from None
        path = save_checkpoint(self.checkpoints, state, config.hash, config.defining)
        return with_confirmed_on_disk(state, path)

    def save_model(self, config: RunConfig, layout: Layout, state: ServerState) -> None:
        """Write model/model.safetensors with its configuration, for `agfl-model`."""
        weights = layout.state_dict(state.model)
        widths = config.elastic.widths if config.elastic is not None else None
        save_model(self.path / "model", config.model, weights, config.task, config.tokenizer, widths)

    def _not_made(self, error: OSError) -> ConfigError:
        return ConfigError("AGFL-CONFIG-081", f"{self.path}: cannot be written: {error.strerror}")
