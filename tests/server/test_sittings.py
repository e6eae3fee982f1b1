"""Each command that works on a run leaves one entry, at its start and its end; the report adds them up."""

from __future__ import annotations

import json
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from agfl_models import machine
from agfl_models.errors import AgflError, CheckpointError
from agfl_models.version import VERSION
from agfl_server.report.sittings_section import duration_text, sittings_section, total_time, when
from agfl_server.run.sittings import SITTINGS_FILE, Outcome, Sitting, SittingLog, read_sittings


def sitting(seconds: float | None, outcome: Outcome | None = "finished", *command: str) -> Sitting:
    entry: dict[str, Any] = {
        "started": "2026-03-01T10:00:00+01:00",
        "seconds": seconds,
        "outcome": outcome if seconds is not None else None,
        "version": "0.1.0",
        "command": command or ("agfl-simulate",),
        "machine": {"processor": "<fast>"},
    }
    return Sitting.model_validate(entry)


def test_an_entry_is_there_from_the_start_and_says_how_it_ended(tmp_path: Path) -> None:
    with SittingLog(["agfl-simulate", "a b"]) as log:
        assert read_sittings(tmp_path) == ()
        log.begin(tmp_path, resume=False)
        (open_entry,) = read_sittings(tmp_path)
        assert (open_entry.seconds, open_entry.outcome, open_entry.ended) == (None, None, None)
    (entry,) = read_sittings(tmp_path)
    assert entry.outcome == "finished"
    assert entry.seconds is not None
    assert (entry.version, entry.command, entry.machine) == (VERSION, ("agfl-simulate", "a b"), machine.kind())
    assert entry.started.utcoffset() is not None
    assert entry.started == open_entry.started


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt(), "interrupted"), (AgflError("AGFL-X-000", "x"), "failed")]
)
def test_an_end_by_an_error_is_told_and_the_error_stays(tmp_path: Path, error: BaseException, outcome: str) -> None:
    def run() -> None:
        with SittingLog() as log:
            log.begin(tmp_path, resume=False)
            raise error

    with pytest.raises(type(error)):
        run()
    assert [one.outcome for one in read_sittings(tmp_path)] == [outcome]


def test_a_resume_adds_an_entry_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    for number in range(3):
        with SittingLog([str(number)]) as log:
            log.begin(tmp_path, resume=number > 0)
    assert [one.command for one in read_sittings(tmp_path)] == [("0",), ("1",), ("2",)]
    with SittingLog(["new"]) as log:
        log.begin(tmp_path, resume=False)
    assert [one.command for one in read_sittings(tmp_path)] == [("new",)]


def test_a_refused_command_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AgflError), SittingLog():
        raise AgflError("AGFL-X-000", "refused before it began")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "must hold JSON"),
        ("[]", r"must be a mapping, got \[\]"),
        ('{"sittings": [{"seconds": -1}]}', "required but missing"),
        ('{"sittings": [], "more": 1}', "unknown key 'more'"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / SITTINGS_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*sittings\.json: [^\n]*{problem}[^\n]*$"):
        read_sittings(tmp_path)
    with pytest.raises(CheckpointError), SittingLog() as log:
        log.begin(tmp_path, resume=True)
    assert (tmp_path / SITTINGS_FILE).read_text() == content


def test_an_entry_needs_a_time_zone(tmp_path: Path) -> None:
    content = sitting(1.0).model_dump(mode="json") | {"started": "2026-03-01T10:00:00"}
    (tmp_path / SITTINGS_FILE).write_text(json.dumps({"sittings": [content]}))
    with pytest.raises(CheckpointError, match="AGFL-CONFIG-011"):
        read_sittings(tmp_path)


def test_the_total_is_at_least_what_is_known() -> None:
    assert total_time([sitting(50.0), sitting(30.0)]) == "1 min 20 s"
    assert total_time([sitting(50.0), sitting(None), sitting(30.0)]) == "at least 1 min 20 s"
    assert total_time([sitting(None)]) == "unknown"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3599.6, "1 h 0 min"), (97380, "27 h 3 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_section_has_dates_with_their_zone_and_a_command_to_paste() -> None:
    command = ("agfl-simulate", "a b.yaml", "--set", "data.path=it's <here>")
    page = sittings_section([sitting(90.0, "interrupted"), sitting(None, None, *command)])
    assert "2026-03-01 10:00:00 UTC+01:00" in page
    assert "2026-03-01 10:01:30 UTC+01:00</td><td>1 min 30 s</td><td>interrupted" in page
    assert "goes on, or was killed" in page
    shown = unescape(page.split("<code>")[1].split("</code>")[0])  # the last sitting comes first
    assert tuple(shlex.split(shown)) == command
    assert "<fast>" not in page
    assert when([sitting(90.0)]) == "2026-03-01 10:00:00 UTC+01:00 to 2026-03-01 10:01:30 UTC+01:00, agfl 0.1.0"
    assert (sittings_section([]), when([])) == ("", "")
