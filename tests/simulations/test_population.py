"""Of a population only who is asked is there at all, and its runs have the bits of those over owners' files."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import agfl
from agfl.population import MadePopulation
from agfl_models.errors import AgflError, ConfigError, DataError, IdentityError
from agfl_models.examples import TextRow, read_rows
from agfl_models.files.durable_files import read_json_lines
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.sampling import sample_names
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.opened_owners import OpenedOwners
from agfl_sim.parquet_population import COPY, ParquetPopulation
from agfl_sim.population import Numbered
from agfl_sim.run import simulate

SCAFFOLD = (
    "aggregation={type: plain, weighting: uniform, cohort_size: 3, min_cohort: 2, server_optimizer: {type: scaffold}}",
)
MODEL = Path("model") / "model.safetensors"


class Watched(Sequence[str]):
    """Counts the names that are looked at."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self.looked_at = names, 0

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        self.looked_at += 1
        return self._names[number]


class Interrupter(Observer):
    def round_started(self, round_number: int, num_rounds: int, cohort: int) -> None:
        if round_number == 2:
            raise KeyboardInterrupt


def content_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write_table(path: Path, folder: Path, names: Sequence[str]) -> Path:
    """Write the rows of these owners' files one after another."""
    rows = [(name, row.text) for name in names for row in read_rows(folder / f"{name}.jsonl", TextRow)]
    parquet.write_table(pa.table({"owner": [name for name, _ in rows], "body": [text for _, text in rows]}), path)
    return path


def test_a_parquet_file_has_the_bits_of_owners_files_though_owners_are_closed_after_each_message(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_owners(7)
    config = run_config(f"data.path={folder}", *SCAFFOLD)
    simulate(config, tmp_path / "files", "inline", resume=False, observer=Observer())
    monkeypatch.setattr(InlineEngine, "_nodes", lambda self, run: OpenedOwners(self._owners, run, limit=1))
    names = sorted((path.stem for path in folder.iterdir()), reverse=True)
    path = write_table(tmp_path / "all.parquet", folder, names)
    config = run_config(f"data.path={path}", "data.columns={text: body}", *SCAFFOLD)
    simulate(config, tmp_path / "table", "auto", resume=False, observer=Observer())
    # The last evaluation is of a cohort, where one over files is of all.
    assert (tmp_path / "files" / MODEL).read_bytes() == (tmp_path / "table" / MODEL).read_bytes()


def test_of_a_million_owners_only_those_that_are_asked_have_rows_files_or_nodes(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    asked = set[int]()

    def rows(number: int) -> list[str]:
        asked.add(number)
        return [f"owner {number} saw the sea on day {day}" for day in range(8)]

    config = run_config("num_rounds=1", "aggregation.cohort_size=3")
    owners = MadePopulation(config, agfl.Population(1_000_000, rows), tmp_path / "run" / "owners")
    files = simulate(config, tmp_path / "run", "inline", resume=False, observer=Observer(), owners=owners)
    nodes = {path.name for path in (tmp_path / "run" / "nodes").iterdir()}
    assert {f"owner-{number:06}" for number in asked} == nodes == {path.stem for path in files}
    assert len(asked) == 6  # a round, and the last evaluation


def test_a_draw_looks_at_few_names_and_is_that_over_all_of_them() -> None:
    names = Watched(Numbered(1_000_000))
    drawn = sample_names(names, 100, 7, 3, ["owner-000017", "somebody"])
    assert names.looked_at < 200
    assert drawn == sorted(set(drawn))
    # As drawn before there were populations: a run that goes on must draw the same.
    assert drawn[:3] == ["owner-000746", "owner-023697", "owner-024971"]
    few = [f"owner-{i}" for i in range(9)]
    assert sample_names(few, 4, 7, 3) == ["owner-0", "owner-1", "owner-2", "owner-4"]
    assert sample_names(few, 4, 7, 3, few[2:5]) == ["owner-0", "owner-1", "owner-5", "owner-8"]
    assert sample_names(few, 4, 7, 3, few[:7]) == ["owner-0", "owner-1", "owner-2", "owner-4"]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"owner": ["a", "b", "a"], "text": ["x"] * 3}, "one after another: sort it by 'owner', got a again"),
        ({"who": ["a"], "text": ["x"]}, "must have a column 'owner', got who, text"),
        ({"owner": ["a", None], "text": ["x"] * 2}, "row 2: column 'owner' must name an owner, got null"),
        ({"owner": ["../a"], "text": ["x"]}, "must hold names that match"),
        ({"owner": np.zeros(0, str), "text": np.zeros(0, str)}, "must hold one row or more, got none"),
    ],
)
def test_a_file_that_is_no_population_is_refused_in_one_line(
    table: dict[str, list[str | None]], line: str, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    parquet.write_table(pa.table(table), tmp_path / "all.parquet")
    config = run_config(f"data.path={tmp_path / 'all.parquet'}")
    with pytest.raises(ConfigError, match=line):
        simulate(config, tmp_path / "run", "inline", resume=False, observer=Observer())


@pytest.mark.parametrize(
    ("settings", "engine", "line"),
    [
        (("aggregation.type=secure", "aggregation.cohort_size=9"), "auto", "must be plain with more than 1024 owners"),
        ((), "auto", "cohort_size: must say how many of 2,000 owners a round asks"),
        (("aggregation.cohort_size=9", "baselines=true"), "auto", "baselines: must be left out with a population"),
    ],
)
def test_what_would_need_all_owners_is_refused(
    settings: Sequence[str], engine: str, line: str, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = run_config(*settings)
    owners = MadePopulation(config, agfl.Population(2000, lambda number: ["x"]), tmp_path / "owners")
    with pytest.raises(ConfigError, match=line):
        simulate(config, tmp_path / "run", engine, resume=False, observer=Observer(), owners=owners)


def test_an_owner_has_the_same_rows_whenever_it_is_opened(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    texts = ["first"]
    made = MadePopulation(run_config(), agfl.Population(3, lambda number: texts), tmp_path / "owners")
    assert made.file_of(1) == made.file_of(1)
    texts[0] = "second"
    with pytest.raises(ConfigError, match="must be the rows that this owner had before"):
        made.file_of(1)
    with pytest.raises(ConfigError, match="owner-2: rows must not raise, raised ZeroDivisionError"):
        MadePopulation(run_config(), agfl.Population(3, lambda number: [str(1 // 0)]), tmp_path).content(2)


def test_a_count_or_rows_may_be_of_numpy_and_one_text_is_no_list_of_rows(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    def content(rows: Any) -> bytes:
        return MadePopulation(run_config(), agfl.Population(np.int64(9), lambda _: rows), tmp_path).content(1)  # type: ignore[arg-type]

    assert content(np.array(["a", "b"])) == content(iter("ab")) == content(["a", "b"])
    for rows, got in (("ab", "one text"), (np.array([], str), "none")):
        with pytest.raises(DataError, match=f"owner-1: must hold one row or more, got {got}"):
            content(rows)
    with pytest.raises(ConfigError, match="rows must not raise, raised TypeError"):
        content(None)
    with pytest.raises(ConfigError, match=r"count: must be a number from 1, got 2\.5"):
        MadePopulation(run_config(), agfl.Population(2.5, lambda _: ["x"]), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("broken", "code"), [(None, "AGFL-CONFIG-247"), ([{"body": "x"}], "AGFL-DATA-078")])
def test_an_owner_without_usable_rows_ends_the_run_instead_of_being_left_out(
    broken: object, code: str, run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    asked = list[int]()

    def rows(number: int) -> Any:
        asked.append(number)
        return broken if len(asked) == 5 else [f"owner {number} saw the sea on day {day}" for day in range(8)]

    config = run_config("num_rounds=3", "aggregation.cohort_size=3")
    owners = MadePopulation(config, agfl.Population(1000, rows), tmp_path / "run" / "owners")
    with pytest.raises(AgflError) as refused:
        simulate(config, tmp_path / "run", "inline", resume=False, observer=Observer(), owners=owners)
    assert refused.value.code == code
    rounds = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["round"] for row in rounds] == [0]  # the second round asked the fifth


def test_a_run_goes_on_with_its_own_population_alone_and_its_files_are_closed_to_others(
    run_config: Callable[..., RunConfig], make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_owners(7)
    names = sorted(path.stem for path in folder.iterdir())
    path = write_table(tmp_path / "a.parquet", folder, names)
    other = write_table(tmp_path / "b.parquet", folder, names[1:])

    def run(out: str, table: Path, observer: Observer, *, resume: bool = False) -> bytes:
        config = run_config(f"data.path={table}", "data.columns={text: body}", "num_rounds=2", *SCAFFOLD)
        simulate(config, tmp_path / out, "auto", resume=resume, observer=observer)
        return (tmp_path / out / MODEL).read_bytes()

    with pytest.raises(KeyboardInterrupt):
        run("torn", path, Interrupter())
    copy = tmp_path / "torn" / "owners" / COPY
    before, kept = copy.stat().st_ino, content_of(tmp_path / "torn")
    with pytest.raises(ConfigError, match="must be of the population with which the run began"):
        run("torn", other, Observer(), resume=True)
    assert content_of(tmp_path / "torn") == kept
    assert run("torn", path, Observer(), resume=True) == run("whole", path, Observer())
    assert copy.stat().st_ino == before
    assert {file.stat().st_mode & 0o777 for file in copy.parent.iterdir()} == {0o600}


def test_a_copy_replaces_an_old_one_whole_and_a_full_disk_is_called_so(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    long, path, folder = tmp_path / "long.parquet", tmp_path / "all.parquet", tmp_path / "owners"
    texts = [f"row {i} saw the sea" for i in range(5000)]
    parquet.write_table(pa.table({"owner": [f"o{i // 50}" for i in range(5000)], "text": texts}), long)
    ParquetPopulation(run_config(), long, folder).write()
    mapped = (folder / COPY).open("rb")  # as another process has it
    before = (folder / COPY).read_bytes()
    parquet.write_table(pa.table({"owner": ["a"], "text": [b"x"]}), path)
    binary = ParquetPopulation(run_config(), path, folder)
    binary.write()
    with mapped:
        assert mapped.read() == before
    assert binary.content(0) == b'{"text": "x"}\n'
    large = ParquetPopulation(run_config(), long, folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(ConfigError, match=f"owners: {folder}: cannot be written: File too large"):
            large.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name for file in folder.iterdir()} == {COPY, ".population"}


def test_what_stops_the_last_of_many_nodes_stops_the_run_before_it_begins(
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = run_config(f"data.path={make_owners(4)}", *SCAFFOLD)
    monkeypatch.setattr(InlineEngine, "_nodes", lambda self, run: OpenedOwners(self._owners, run, limit=1))
    state = tmp_path / "run" / "nodes" / "owner-03" / "state-x-y.safetensors"
    state.parent.mkdir(parents=True)
    state.touch(0o644)
    with pytest.raises(IdentityError, match="must be closed to group and others"):
        simulate(config, tmp_path / "run", "inline", resume=False, observer=Observer())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
