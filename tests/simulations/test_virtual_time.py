"""Virtual time: rounds take what owners' devices take, on any engine alike, by the rules of the real server."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from tests.forked_workers import ForkedWorker
from tests.simulations.run_result import result

from agfl_models.errors import ConfigError, DataError
from agfl_protocol.config.devices_config import DevicesConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_server.rounds.observer import Observer
from agfl_sim.engines.grid import InProcessGrid
from agfl_sim.engines.inline_engine import InlineEngine
from agfl_sim.engines.processes_engine import ProcessesEngine
from agfl_sim.report.devices_section import devices_section
from agfl_sim.virtual_time.answers import read_answers
from agfl_sim.virtual_time.devices import Absences, Device, devices_of
from agfl_sim.virtual_time.virtual_grid import VirtualGrid

SECURE = "aggregation={type: secure, min_cohort: 3, max_colluders: 1, round_timeout_s: 40}"
SPREAD = (
    "data.devices={seconds_per_step: {median: 6, sigma: 1.5}, latency_s: 0.5, availability: {share: 0.8, away_s: 50}}"
)
HEAD = "owner,seconds_per_step,upload_mbit_s,download_mbit_s,away\n"
Configs = Callable[..., RunConfig]
MakeOwners = Callable[[int], Path]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def with_trace(run_config: Configs, folder: Path, lines: list[str], *overrides: str) -> RunConfig:
    path = folder / "trace.csv"
    path.write_text(HEAD + "".join(f"{line}\n" for line in lines))
    return run_config(f"data.devices={{trace: {path}, latency_s: 0.5}}", "evaluation.every=1000", *overrides)


def test_stragglers_and_absences_are_the_same_on_every_engine(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path, workers: list[ForkedWorker]
) -> None:
    speeds = ["1,80,80,", "2,80,80,", "3,80,80,", "2,80,80,7-90;200-230", "4,80,80,", "30,80,80,"]
    lines = [f"owner-{number:02},{speed}" for number, speed in enumerate(speeds)]
    config = with_trace(run_config, tmp_path, lines, SECURE, "evaluation.max_examples=4")
    owners = sorted(make_owners(6).iterdir())
    engines = {
        "one": InlineEngine(config, owners, "cpu", 1),
        "two": InlineEngine(config, owners, "cpu", 2),
        "processes": ProcessesEngine(config, owners, "cpu", 2),
    }
    for name, engine in engines.items():
        engine.run(tmp_path / name, resume=False, observer=Observer())
    first, *others = (tmp_path / name for name in engines)
    late = {one.owner for one in read_answers(first / "virtual_time" / "answers.jsonl") if one.is_late}
    assert late == {"owner-03", "owner-05"}
    for other in others:
        assert result(other) == result(first)
        assert [row["seconds"] for row in rows_of(other)] == [row["seconds"] for row in rows_of(first)]
        for kept in ("now", "answers.jsonl"):
            assert (other / "virtual_time" / kept).read_text() == (first / "virtual_time" / kept).read_text()


def test_a_round_takes_what_its_slowest_owner_takes(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    """Two steps, a way of half a second each, and the bytes of one owner's messages at the speed of its line."""
    lines = ["owner-00,1,800,800,", "owner-01,10,0.8,1.6,", "owner-02,2,800,800,"]
    config = with_trace(run_config, tmp_path, lines, "num_rounds=2")
    InlineEngine(config, sorted(make_owners(3).iterdir()), "cpu").run(
        tmp_path / "run", resume=False, observer=Observer()
    )
    row = rows_of(tmp_path / "run")[2]  # before the first one, owners are asked who they are and what they approve
    up, down = row["bytes_up"] / 3, row["bytes_down"] / 3
    assert row["seconds"] == pytest.approx(2 * 10 + 2 * 0.5 + up / 1e5 + down / 2e5, rel=1e-3)
    assert (row["clients"], row["refused"]) == (3, 0)


class Lines(Observer):
    def __init__(self) -> None:
        self.refusals: list[tuple[str, str]] = []

    def refused(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))


def test_who_misses_the_deadline_is_late_by_name(run_config: Configs, make_owners: MakeOwners, tmp_path: Path) -> None:
    lines = ["owner-00,1,80,80,", "owner-01,600,80,80,", "owner-02,2,80,80,"]
    config = with_trace(run_config, tmp_path, lines, "aggregation.round_timeout_s=100", "num_rounds=1")
    observer = Lines()
    InlineEngine(config, sorted(make_owners(3).iterdir()), "cpu").run(tmp_path / "run", resume=False, observer=observer)
    # The server's rule for stragglers: three times the median of those who answered, and half a minute.
    ((name, reason),) = observer.refusals
    waited = re.fullmatch(r"no reply within ([\d.]+) s", reason)
    assert name == "owner-01"
    assert waited is not None
    assert float(waited[1]) == pytest.approx(3 * (2 + 4) / 2 + 3 * 1 + 30, rel=0.02)
    (_, row) = rows_of(tmp_path / "run")
    assert (row["clients"], row["refused"]) == (2, 1)
    assert 0 <= row["seconds"] - float(waited[1]) < 3
    answers = {one.owner: one for one in read_answers(tmp_path / "run" / "virtual_time" / "answers.jsonl")}
    assert answers["owner-01"].is_late
    assert answers["owner-01"].seconds > 1200
    html = devices_section(tmp_path / "run")
    assert "1 of 3 answers with an update came too late" in " ".join(html.split())


def test_who_is_away_is_not_asked_and_answers_once_it_is_back(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    """One is away for the first round; another one leaves in it, before it has sent what it trained."""
    lines = ["owner-00,1,80,80,", "owner-01,1,80,80,3-20", "owner-02,1,80,80,0-15", "owner-03,2,80,80,"]
    config = with_trace(run_config, tmp_path, lines, "num_rounds=2", "aggregation.min_cohort=2")
    InlineEngine(config, sorted(make_owners(4).iterdir()), "cpu").run(
        tmp_path / "run", resume=False, observer=Observer()
    )
    answers = read_answers(tmp_path / "run" / "virtual_time" / "answers.jsonl")
    first = min(one.sent for one in answers)
    asked = {one.owner: one.seconds for one in answers if one.sent == first}
    assert asked.keys() == {"owner-00", "owner-01", "owner-03"}
    assert first + asked["owner-01"] == pytest.approx(20, abs=0.1)
    _, one, two = rows_of(tmp_path / "run")
    assert (one["clients"], two["clients"]) == (3, 4)


def test_a_run_goes_on_at_the_moment_at_which_it_stopped(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    config, owners = run_config(SPREAD, "num_rounds=2"), sorted(make_owners(4).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "run", resume=False, observer=Observer())
    stopped = float((tmp_path / "run" / "virtual_time" / "now").read_text())
    before = len(read_answers(tmp_path / "run" / "virtual_time" / "answers.jsonl"))
    longer = run_config(SPREAD, "num_rounds=3")
    InlineEngine(longer, owners, "cpu").run(tmp_path / "run", resume=True, observer=Observer())
    answers = read_answers(tmp_path / "run" / "virtual_time" / "answers.jsonl")
    assert len(answers) > before
    assert all(one.sent >= stopped for one in answers[before:])


@pytest.mark.parametrize("seed", range(5))
def test_absences_are_found_at_any_moment_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    turns = list(accumulate(rng.randint(1, 5) for _ in range(20)))
    absences = Absences(iter(list(zip(turns[::2], turns[1::2], strict=True))))
    away = {moment for start, end in zip(turns[::2], turns[1::2], strict=True) for moment in range(start, end)}
    moments = list(range(turns[-1] + 3))
    rng.shuffle(moments)
    for moment in moments:
        back = next(m for m in range(moment, turns[-1] + 4) if m not in away)
        assert absences.back_at(moment) == back
        assert absences.next_turn(moment) == next((turn for turn in turns if turn > moment), float("inf"))


def test_owners_drawn_are_there_for_their_share_and_as_fast_as_the_spread_says() -> None:
    config = DevicesConfig.model_validate(
        {"seconds_per_step": {"median": 3, "sigma": 0.5}, "availability": {"share": 0.7, "away_s": 10}}
    )
    found = list(devices_of(config, 7, [f"owner-{i}" for i in range(400)]).values())
    assert sorted(one.seconds_per_step for one in found)[200] == pytest.approx(3, rel=0.1)
    for moment in (0.0, 1000.0):
        there = sum(one.absences.back_at(moment) == moment for one in found) / 400
        assert there == pytest.approx(0.7, abs=0.08)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("owner,fast\na,1\n", r"must have the columns owner, seconds_per_step.*, got 'owner, fast'.*-265"),
        (HEAD, r"must have the columns .*, got 'no row'.*-265"),
        (HEAD + "a,1,1,1,\n", r"must have a line for each owner, has none for 1, 'b' among them.*-266"),
        (HEAD + "a,x,1,1,\nb,1,1,1,\n", r"owner 'a': seconds_per_step: must be a number from 1e-9 .*, got 'x'.*-268"),
        (HEAD + "a,1,1e-320,1,\nb,1,1,1,\n", r"owner 'a': upload_mbit_s: must be a number from 1e-9 .*-268"),
        (HEAD + "a,1,1,1,\nb,1,1,1,60-90,300-900\n", r"owner 'b': must have 5 fields in each line.*-287"),
        (HEAD + "a,1,1,1,\nb,1,1,1\n", r"owner 'b': must have 5 fields in each line.*-287"),
        (HEAD + "a,1,1,1,\nb,1,1,1,\na,2,2,2,\n", r"must have one line for each owner, got 'a' again.*-288"),
        (HEAD + "a,1,1,1,5-3\nb,1,1,1,\n", r"owner 'a': away: must be spans one after the other.*, got '5-3'.*-267"),
        (HEAD + "a,1,1,1,5\nb,1,1,1,\n", r"owner 'a': away: must be a number.*, got ''.*-268"),
        (HEAD + '"a\n', r"must be a CSV file, is not.*-264"),
        (None, r"must be a CSV file, is not: .*No such file.*-264"),
    ],
)
def test_a_bad_trace_is_one_line(text: str | None, line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=line):
        devices_of(DevicesConfig(trace=path), 0, ["a", "b"])


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("data.devices={latency_s: 1}", r"data.devices.*seconds_per_step: required where there is no trace.*-263"),
        (
            "data.devices={trace: t.csv, upload_mbit_s: {median: 1}}",
            r"trace: has the devices one by one, got upload_mbit_s beside it.*-260",
        ),
    ],
)
def test_devices_that_say_too_little_or_too_much_are_refused(run_config: Configs, setting: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_config(setting)


def test_devices_need_steps(run_config: Configs) -> None:
    with pytest.raises(ConfigError, match=r"data.devices: needs training.local_steps.*got local_epochs 2.*-286"):
        run_config(SPREAD, "training.local_steps=null", "training.local_epochs=2", "aggregation.max_weight=500")


def test_a_week_in_which_everybody_is_away_takes_no_time(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    owners = sorted(make_owners(3).iterdir())
    lines = [f"owner-0{number},1,80,80,0-604800;700000-1000000000" for number in range(3)]
    started = time.process_time()
    week = with_trace(run_config, tmp_path, lines, "num_rounds=1")
    InlineEngine(week, owners, "cpu").run(tmp_path / "run", resume=False, observer=Observer())
    assert time.process_time() - started < 5
    assert all(one.sent >= 604800 for one in read_answers(tmp_path / "run" / "virtual_time" / "answers.jsonl"))


def test_where_nothing_is_ahead_the_run_ends_in_one_line_after_the_server_could_say_why() -> None:
    device = Device("owner-00", 1.0, 1.0, 1.0, 0.0, Absences(iter([(1.0, 2.0)])))
    with InProcessGrid({}, 1) as inner:
        grid = VirtualGrid(inner, {7: device}, lambda message: 0, 0.0, lambda moment: None, lambda answer: None)
        for moment in (1.0, 2.0, 62.0):
            grid.wait(0.1, math.inf)
            assert grid.now() == moment
        with pytest.raises(ConfigError, match=r"enough owners must be there .*: from 62 s on it is 1, for ever.*-289"):
            grid.wait(0.1, math.inf)


def test_slow_lines_are_asked_who_they_are_all_the_same(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    lines = [f"owner-0{number},1,0.1,0.1," for number in range(3)]
    config = with_trace(run_config, tmp_path, lines, "num_rounds=1")
    config = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"devices": DevicesConfig(trace=tmp_path / "trace.csv", latency_s=20)}
            )
        }
    )
    InlineEngine(config, sorted(make_owners(3).iterdir()), "cpu").run(
        tmp_path / "run", resume=False, observer=Observer()
    )
    assert rows_of(tmp_path / "run")[1]["clients"] == 3


def test_a_killed_run_goes_on_with_its_own_trace_and_its_report_reads_what_a_kill_cut_off(
    run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    lines = [f"owner-0{number},1,80,80," for number in range(3)]
    config, owners = with_trace(run_config, tmp_path, lines, "num_rounds=1"), sorted(make_owners(3).iterdir())
    InlineEngine(config, owners, "cpu").run(tmp_path / "run", resume=False, observer=Observer())
    answers = tmp_path / "run" / "virtual_time" / "answers.jsonl"
    with answers.open("a") as file:
        file.write('{"sent": 4')
    longer = with_trace(run_config, tmp_path, lines, "num_rounds=2")
    InlineEngine(longer, owners, "cpu").run(tmp_path / "run", resume=True, observer=Observer())
    assert len(read_answers(answers)) == 6
    other = with_trace(run_config, tmp_path, ["owner-00,9,80,80,", *lines[1:]], "num_rounds=3")
    with pytest.raises(ConfigError, match=r"must be the trace with which the run began, got another.*-296"):
        InlineEngine(other, owners, "cpu").run(tmp_path / "run", resume=True, observer=Observer())


@pytest.mark.parametrize("kept", ["soon", "", "nan", "inf", "-1"])
def test_what_a_run_kept_and_cannot_be_read_is_one_line(
    kept: str, run_config: Configs, make_owners: MakeOwners, tmp_path: Path
) -> None:
    place = tmp_path / "run" / "virtual_time"
    place.mkdir(parents=True)
    (place / "now").write_text(kept)
    (place / "answers.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"must hold answers of owners' devices.*-088"):
        devices_section(tmp_path / "run")
    config, owners = run_config(SPREAD, "num_rounds=1"), sorted(make_owners(3).iterdir())
    with pytest.raises(ConfigError, match=r"now: must hold seconds, as a run left it.*-269"):
        InlineEngine(config, owners, "cpu").run(tmp_path / "run", resume=True, observer=Observer())
