"""A number is used up before anybody is asked under it, and what the trips brought is there after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agfl_models.errors import CheckpointError
from agfl_server.rounds.journal import Entry, Journal

COHORT, REQUEST = ("alice", "bob"), "ab" * 32


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path)
    journal.begin("run")
    return journal


def opened(entry: Entry) -> Entry:
    return replace(entry, round=1, is_open=True, cohort=COHORT, request=REQUEST)


def test_a_run_is_named_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert not journal.is_begun
    with pytest.raises(CheckpointError, match=rf"^exchange: {tmp_path}/.*: .*AGFL-CHECKPOINT-026"):
        _ = journal.run_id
    journal.begin()
    other = Journal(tmp_path / "other")
    other.begin()
    assert journal.is_begun
    assert journal.run_id == Journal(tmp_path).run_id != other.run_id
    assert len(journal.run_id) == 32


def test_a_number_is_used_up_once_it_is_opened_and_never_comes_again(tmp_path: Path, journal: Journal) -> None:
    """Each is asked of a server that was started anew."""
    numbers = []
    for _ in range(3):
        entry = Journal(tmp_path).current(0)
        assert entry == Journal(tmp_path).current(0), "looking uses nothing up"
        Journal(tmp_path).open(opened(entry))
        Journal(tmp_path).close(1)
        numbers.append(entry.exchange)
    assert numbers == [1, 2, 3]
    assert Journal(tmp_path).current(7).exchange == 8, "the model has seven behind it"


def test_an_open_exchange_is_returned_again_unless_the_model_has_it_behind_it(tmp_path: Path, journal: Journal) -> None:
    entry = opened(journal.current(0))
    journal.open(entry).write("3-sum", {"lanes": b"12345678"})
    again = Journal(tmp_path)
    assert again.current(0) == entry
    assert again.open(entry).read("3-sum") == {"lanes": b"12345678"}
    assert again.current(1) == Entry("run", 2)


@pytest.mark.parametrize("moment", range(5))
def test_a_kill_while_the_next_one_is_opened_asks_nobody_for_the_last_one_again(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """What its trips brought may be gone already, and its owners are through with it: they would refuse for ever."""
    first = opened(journal.current(0))
    journal.open(first).write("shares", {"alice": b"1"})
    steps = 0

    def until_killed(genuine: Callable[..., None]) -> Callable[..., None]:
        def step(*given: object) -> None:
            nonlocal steps
            if steps == moment:
                raise InterruptedError
            steps += 1
            genuine(*given)

        return step

    with monkeypatch.context() as patch:
        for name in ("_clear", "_write"):
            patch.setattr(Journal, name, until_killed(getattr(Journal, name)))
        with suppress(InterruptedError):
            journal.open(replace(first, exchange=2))
    assert steps == min(moment, 4)
    again = Journal(tmp_path)
    found = again.current(0)
    if found.exchange == 1:
        assert again.open(found).read("shares") == {"alice": b"1"}
    else:
        assert found.exchange == 2


def test_what_the_trips_brought_goes_with_its_exchange(journal: Journal) -> None:
    first = opened(journal.current(0))
    records = journal.open(first)
    assert records.read("1-keys") is None
    records.write("1-keys", {"bob": b"\x00\xff", "alice": b""})
    assert records.read("1-keys") == {"alice": b"", "bob": b"\x00\xff"}
    # The same number for another request: of what was asked before nothing may be mixed in.
    assert journal.open(replace(first, request="cd" * 32)).read("1-keys") is None
    records.write("1-keys", {"bob": b"1"})
    journal.close(1)
    assert journal.open(opened(journal.current(0))).read("1-keys") is None


def test_whoever_was_refused_stays_known_for_the_round(tmp_path: Path, journal: Journal) -> None:
    journal.open(opened(journal.current(0)))
    journal.close(1, {"bob", "alice"})
    assert Journal(tmp_path).refused(1) == {"alice", "bob"}
    assert Journal(tmp_path).refused(2) == frozenset()


def test_only_an_exchange_under_way_is_taken_back(tmp_path: Path, journal: Journal) -> None:
    assert journal.take_back(0) == 0
    journal.open(opened(journal.current(0)))
    journal.close(1)
    assert journal.take_back(0) == 1
    records = journal.open(opened(journal.current(0)))
    records.write("1-keys", {"bob": b"1"})
    assert Journal(tmp_path).take_back(2) == 2, "a model has it behind it"
    assert records.read("1-keys") == {"bob": b"1"}
    assert Journal(tmp_path).take_back(1) == 1
    assert Journal(tmp_path).current(0).exchange == 2
    assert records.read("1-keys") is None


def test_nobody_but_the_operator_may_read_it(tmp_path: Path, journal: Journal) -> None:
    journal.open(opened(journal.current(0))).write("5-openings", {"bob": b"secret"})
    files = sorted((tmp_path / "exchange").iterdir())
    assert [path.name for path in files] == ["5-openings.safetensors", "exchange.json"]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "\0",
        '{"version": 1, "run_id": "a"}',
        '{"version": 2, "run_id": "a", "cohort": [], "refused": []}',
    ],
)
def test_a_damaged_state_is_one_line(tmp_path: Path, journal: Journal, content: str) -> None:
    path = tmp_path / "exchange" / "exchange.json"
    path.write_text(content)
    for ask in (
        lambda: journal.run_id,
        lambda: journal.current(0),
        lambda: journal.take_back(0),
        lambda: journal.refused(1),
    ):
        with pytest.raises(CheckpointError, match=rf"^exchange: {path}: is damaged: [^\n]*AGFL-CHECKPOINT-02"):
            ask()
    assert path.read_text() == content


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"{}"])
def test_a_damaged_record_is_one_line(tmp_path: Path, journal: Journal, content: bytes) -> None:
    records = journal.open(opened(journal.current(0)))
    path = tmp_path / "exchange" / "1-keys.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^exchange: {path}: is damaged: [^\n]*AGFL-CHECKPOINT-02"):
        records.read("1-keys")


def test_a_disk_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "exchange").touch()
    with pytest.raises(CheckpointError, match=rf"^exchange: {tmp_path}/exchange/exchange\.json: cannot be written: "):
        Journal(tmp_path).begin("run")


def test_the_state_is_as_the_docs_show_it(tmp_path: Path, journal: Journal) -> None:
    journal.open(opened(journal.current(0)))
    assert json.loads((tmp_path / "exchange" / "exchange.json").read_text()) == {
        "version": 1,
        "run_id": "run",
        "exchange": 1,
        "round": 1,
        "is_open": True,
        "cohort": ["alice", "bob"],
        "refused": [],
        "request": REQUEST,
    }
