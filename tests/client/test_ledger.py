"""The ledger: on disk before anything leaves, never shorter, and no exchange goes on again in which a vector left."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_client.ledger.ledger import Ledger
from agfl_client.ledger.ledger_file import LEDGER_FILE, read_entries
from agfl_client.ledger.ledger_state import Asked, History, Pairs
from agfl_client.policy import Policy
from agfl_models.errors import ConfigError, IdentityError
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.context import ExchangeId
from agfl_protocol.secagg.errors import ProtocolViolation

ASKED = Asked(Kind.SAMPLED, train=True, evaluate=False, count=False, cohort=3, examples=96)
NAMES = ("a", "b", "c")
POLICY = Policy()


def at(exchange: int, round_number: int = 1, run_id: str = "run") -> ExchangeId:
    return ExchangeId(run_id, round_number, exchange)


def take_part(ledger: Ledger, exchange: ExchangeId, survivors: tuple[str, ...] = NAMES, asked: Asked = ASKED) -> None:
    ledger.announce(exchange, asked, POLICY)
    ledger.leave(exchange, NAMES)
    ledger.sign(exchange, survivors)
    ledger.open(exchange)


STEPS: Mapping[str, Callable[[Ledger, ExchangeId, Policy], None]] = {
    "announce": lambda ledger, exchange, policy: ledger.announce(exchange, ASKED, policy),
    "leave": lambda ledger, exchange, _: ledger.leave(exchange, NAMES),
    "sign": lambda ledger, exchange, _: ledger.sign(exchange, NAMES[:2]),
    "open": lambda ledger, exchange, _: ledger.open(exchange),
}


def _refusal(act: Callable[[], None]) -> str | None:
    try:
        act()
    except ProtocolViolation as error:
        return str(error)
    return None


def known(ledger: History) -> Any:
    """All that a ledger can be asked for."""
    return [
        (
            run,
            ledger.plan(run),
            ledger.merges(run),
            ledger.last_exchange(run),
            [ledger.has_left(run, i) for i in range(8)],
            [(ledger.announcements(run, i), ledger.uploads(run, i)) for i in range(5)],
            ledger.signed(run),
            [ledger.pairs(run, name) for name in NAMES],
        )
        for run in ledger.runs()
    ]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([*STEPS, "restart"]),
            st.none() | st.builds(ExchangeId, st.sampled_from(["r", "s"]), st.integers(1, 2), st.integers(1, 4)),
        ),
        max_size=40,
    ),
    announcements=st.integers(1, 4),
    uploads=st.integers(1, 3),
)
def test_no_vector_leaves_twice_and_numbers_only_grow_whatever_is_restarted(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, ExchangeId | None]],
    announcements: int,
    uploads: int,
) -> None:
    folder = tmp_path_factory.mktemp("node")
    ledger = Ledger(folder, "a")
    policy = Policy(announcements_per_round=announcements, uploads_per_round=uploads)
    done: list[tuple[str, ExchangeId]] = []
    exchange = ExchangeId("r", 1, 1)
    for step, other in steps:
        exchange = other or exchange  # none: the same as in the step before
        if step == "restart":
            before = known(ledger)
            ledger = Ledger(folder, "a")
            assert known(ledger) == before
            continue
        line = _refusal(lambda: STEPS[step](ledger, exchange, policy))  # noqa: B023
        if line is None:
            done.append((step, exchange))
        else:
            assert line.startswith("exchange: ")
            assert f"got {exchange} [AGFL-SECURE-" in line
    for run in ("r", "s"):
        of_run = [(step, exchange) for step, exchange in done if exchange.run_id == run]
        left = [exchange.exchange for step, exchange in of_run if step == "leave"]
        assert left == sorted(set(left)), "each once, upward"
        assert [e.exchange for _, e in of_run] == sorted(e.exchange for _, e in of_run)
        for exchange in {e for _, e in of_run}:
            order = [step for step, e in of_run if e == exchange]
            assert sorted(order, key=list(STEPS).index) == order
            assert order.count("leave") <= 1
            assert max(order.count("sign"), order.count("open")) <= order.count("leave")
        for number in (1, 2):
            in_round = [step for step, e in of_run if e.round == number]
            assert in_round.count("announce") <= announcements
            assert in_round.count("leave") <= uploads


def test_each_trip_comes_once_and_after_the_one_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    later = ["leave", "sign", "open"]
    for done, step in enumerate(["announce", *later]):
        for early in later[done:]:
            with pytest.raises(
                ProtocolViolation, match=r"^exchange: .* got run run round 1 exchange 1 \[AGFL-SECURE-\d+\]$"
            ):
                STEPS[early](ledger, at(1), POLICY)
        STEPS[step](ledger, at(1), POLICY)
        for late in ["announce", *later][1 if done == 0 else 0 : done + 1]:
            with pytest.raises(
                ProtocolViolation, match=r"^exchange: .* got run run round 1 exchange 1 \[AGFL-SECURE-\d+\]$"
            ):
                STEPS[late](ledger, at(1), POLICY)
        assert len(read_entries(tmp_path / LEDGER_FILE)) == done + 1


@pytest.mark.parametrize(
    ("exchange", "line"),
    [
        (at(4, 2), r"^exchange: .*got run run round 2 exchange 4.*AGFL-SECURE-013"),
        (at(5, 2), r"^exchange: .*got run run round 2 exchange 5.*AGFL-SECURE-013"),
        (at(5, 3), r"^exchange: .*got run run round 3 exchange 5.*AGFL-SECURE-013"),
        (
            at(6, 2),
            r"^exchange: .* uploads_per_round allows, got .*AGFL-SECURE-014",
        ),
        (
            at(6, 1),
            r"^exchange: must be among the .* that this owner's announcements_per_round allows, got .*AGFL-SECURE-014",
        ),
    ],
)
def test_the_lines_say_what_was_answered(exchange: ExchangeId, line: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    policy = Policy(announcements_per_round=2, uploads_per_round=1)
    for number in (1, 2):
        ledger.announce(at(number, 1), ASKED, policy)
    ledger.announce(at(5, 2), ASKED, policy)
    ledger.check_announce(at(5, 2), policy)
    ledger.leave(at(5, 2), NAMES)
    with pytest.raises(ProtocolViolation, match=line):
        ledger.announce(exchange, ASKED, policy)
    ledger.check_announce(at(6, 3), policy)
    ledger.check_announce(at(1, 1, "other"), policy)


def test_each_candidate_of_a_search_has_rounds_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    asked = [
        Asked(Kind.SAMPLED, train=True, evaluate=False, count=False, cohort=3, stage=stage)
        for stage in ("one", "two", "three")
    ]
    for number, one in enumerate(asked, start=1):
        take_part(ledger, at(number), asked=one)
        with pytest.raises(ProtocolViolation, match=r"uploads_per_round.*AGFL-SECURE-014"):
            ledger.check_announce(at(number + 1), Policy(uploads_per_round=1), one.stage)
    assert [ledger.uploads("run", 1, one.stage) for one in asked] == [1, 1, 1]
    ledger.announce(at(9), asked[0], POLICY)
    with pytest.raises(ProtocolViolation, match="AGFL-SECURE-013"):
        ledger.check_announce(at(9), POLICY, "two")


def test_survivors_are_among_the_dealers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.announce(at(1), ASKED, POLICY)
    ledger.leave(at(1), ("a", "b"))
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*got run.*AGFL-SECURE-018"):
        ledger.sign(at(1), NAMES)
    ledger.sign(at(1), ("b", "a"))
    assert ledger.signed("run") == {1: frozenset({"a", "b"})}


def test_pairs_are_of_sums_with_and_without(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    full = Asked(Kind.EXACT, train=False, evaluate=True, count=False, cohort=3)
    for number, survivors in enumerate([NAMES, NAMES, ("a", "b"), NAMES], start=1):
        take_part(ledger, at(number, number), survivors)
    take_part(ledger, at(5, 5), ("a", "b"), full)
    assert ledger.pairs("run", "c") == Pairs(3, 1)
    assert ledger.pairs("run", "c").k == 2 * 3 * 1 / 4
    assert ledger.pairs("run", "b") == Pairs(4, 0)
    assert ledger.pairs("run", "b").k == 0
    assert ledger.pairs("run", "a") == Pairs(4, 0), "this owner was never away"
    take_part(ledger, at(8, 6))
    assert ledger.pairs("run", "a") == Pairs(5, 2), "the numbers 6 and 7 were asked for without it"
    ledger.announce(at(9, 7), ASKED, POLICY)
    assert ledger.pairs("run", "a") == Pairs(5, 3), "until it signs, the sum may be without it"
    assert ledger.pairs("run", "stranger") == Pairs(0, 5)
    assert ledger.pairs("other", "a").k == 0
    read = History(read_entries(tmp_path / LEDGER_FILE), "a")
    assert known(read) == known(ledger), "who only reads finds the same"


def test_every_line_says_what_happened(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.approve("run", "f00d")
    ledger.approve("run", "f00d")
    asked = Asked(
        Kind.EXACT,
        train=True,
        evaluate=True,
        count=False,
        cohort=2,
        drawn=("a", "b"),
        stage="s",
        request="beef",
        merges="cafe",
    )
    take_part(ledger, at(1), ("a", "c"), asked)
    entries = read_entries(tmp_path / LEDGER_FILE)
    place = {"run": "run", "round": 1, "exchange": 1}
    told = [{k: v for k, v in entry.items() if k not in ("hash", "time", "n")} for entry in entries]
    assert told == [
        {"event": "approved", "run": "run", "plan": "f00d"},
        {
            **place,
            "event": "announced",
            "asked": ["train", "evaluate"],
            "kind": "exact",
            "cohort": 2,
            "examples": None,
            "drawn": ["a", "b"],
            "stage": "s",
            "request": "beef",
            "merges": "cafe",
        },
        {**place, "event": "left", "names": ["a", "b", "c"]},
        {**place, "event": "signed", "lost": ["b"]},
        {**place, "event": "opened"},
    ]
    assert [entry["n"] for entry in entries] == [1, 2, 3, 4, 5]
    assert (tmp_path / LEDGER_FILE).stat().st_mode & 0o777 == 0o600
    assert (Ledger(tmp_path, "a").plan("run"), Ledger(tmp_path, "a").merges("run")) == ("f00d", "cafe")


def test_it_is_on_disk_before_anything_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, "a")
    synced: list[int] = []
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    ledger.approve("run", "f00d")
    take_part(ledger, at(1))
    sizes = [len(line) + 1 for line in (tmp_path / LEDGER_FILE).read_bytes().split(b"\n")[:-1]]
    assert synced == [sum(sizes[: i + 1]) for i in range(5)]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_nothing_happens_that_cannot_be_written(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.announce(at(1), ASKED, POLICY)
    write = os.write

    def full(descriptor: int, content: bytes = b"") -> int:
        if call == "write":
            write(descriptor, content[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    line = r"^ledger\.jsonl: .*AGFL-CONFIG-062"
    with pytest.raises(ConfigError, match=line):
        ledger.leave(at(1), NAMES)
    assert not ledger.has_left("run", 1)
    monkeypatch.undo()
    ledger.leave(at(1), NAMES)
    again = Ledger(tmp_path, "a")
    assert again.has_left("run", 1)
    assert len(read_entries(tmp_path / LEDGER_FILE)) == 2


def test_a_last_line_that_was_cut_short_anywhere_is_taken_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path, "a")
    take_part(ledger, at(1))
    ledger.announce(at(2), ASKED, POLICY)
    path = tmp_path / LEDGER_FILE
    whole = path.read_bytes()
    last = whole[whole[:-1].rindex(b"\n") + 1 :]
    for cut in range(1, len(last)):
        path.write_bytes(whole[:-cut])
        assert len(read_entries(path)) == 4, "who only reads leaves it out"
        caplog.clear()
        with caplog.at_level(logging.WARNING, "agfl.client"):
            mended = Ledger(tmp_path, "a")
        assert path.read_bytes() == whole[: -len(last)]
        assert [record.message for record in caplog.records] == [
            f"ledger.jsonl: its last line was cut short by a crash; its {len(last) - cut} bytes are removed"
        ]
        assert mended.last_exchange("run") == at(1)
    mended.announce(at(2), ASKED, POLICY)
    assert len(read_entries(path)) == 5


def test_a_torn_line_longer_than_what_is_read_at_once_is_taken_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    take_part(ledger, at(1))
    path = tmp_path / LEDGER_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * (3 * 2**16))
    Ledger(tmp_path, "a")
    assert path.read_bytes() == whole
    path.write_bytes(b"{" * (3 * 2**16))
    assert Ledger(tmp_path, "a").runs() == ()


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("change", ["drop", "change", "swap", "twice", "other hash", "no json", "no number"])
def test_a_broken_chain_is_refused_at_its_line(place: int, change: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    take_part(ledger, at(1))
    ledger.announce(at(2), ASKED, POLICY)
    path = tmp_path / LEDGER_FILE
    lines = path.read_text().split("\n")
    entry = json.loads(lines[place])
    at_line = place + 1
    if change == "drop":
        del lines[place]
    elif change == "change":
        lines[place] = json.dumps(entry | {"round": 7})
    elif change == "swap":
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    elif change == "twice":
        lines.insert(place, lines[place])
        at_line += 1
    elif change == "other hash":
        lines[place] = json.dumps(entry | {"hash": "0" * 64})
    elif change == "no number":
        lines[place] = lines[place].replace('"round":1', '"round":NaN')
    else:
        lines[place] = "what?"
    path.write_text("\n".join(lines))
    for read in (lambda: Ledger(tmp_path, "a"), lambda: read_entries(path)):
        with pytest.raises(ConfigError, match=rf"ledger\.jsonl:{at_line}: must ") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_line_of_another_kind_is_refused_at_its_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.announce(at(1), ASKED, POLICY)
    ledger._file.append("announced", {"run": "run"})
    with pytest.raises(ConfigError, match=r"^ledger\.jsonl:2: .*AGFL-CONFIG-065"):
        Ledger(tmp_path, "a")


def test_a_file_that_got_shorter_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.announce(at(1), ASKED, POLICY)
    os.truncate(tmp_path / LEDGER_FILE, 10)
    with pytest.raises(ConfigError, match=r"^ledger\.jsonl: .*AGFL-CONFIG-062"):
        ledger.leave(at(1), NAMES)


def test_a_ledger_open_to_others_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, "a")
    (tmp_path / LEDGER_FILE).chmod(0o640)
    with pytest.raises(IdentityError, match="AGFL-IDENTITY-018"):
        Ledger(tmp_path, "a")
