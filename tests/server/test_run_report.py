"""A deployed run's report: written under way and afterwards, with no text in it but what the model writes by itself."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.commands import run

from agfl_protocol.config.run_config import RunConfig
from agfl_server.app import run_federation
from agfl_server.federation import federation_folder
from agfl_server.report.plain_text import plain
from agfl_server.report.samples_section import MAX_SHOWN, samples_section
from agfl_server.run.sittings import SittingLog, read_sittings
from agfl_sim.engines.grid import InProcessGrid

HOSTILE = "</bdi><script>alert(1)</script>\x1b[2J\u202eevil\u2066\x00<!-- &amp; \ud800"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


@pytest.fixture
def federation(
    config_file: Path,
    run_config: Callable[..., RunConfig],
    make_owners: Callable[..., Path],
    tmp_path: Path,
    open_grid: Callable[..., InProcessGrid],
) -> Path:
    """A federation folder with a finished run."""
    folder = tmp_path / "federation"
    federation_folder.init(folder, config_file.read_text(), [])
    with SittingLog(["agfl-server", "start"]) as sitting:
        run_federation(open_grid(make_owners(3)), run_config("num_rounds=2"), folder / "run", sitting=sitting)
    return folder


def test_the_report_shows_the_run_and_what_the_model_writes_by_itself(federation: Path, tmp_path: Path) -> None:
    done = run("agfl-server", "report", "--federation", federation)
    assert (done.returncode, done.stdout) == (0, f"report: {federation / 'run' / 'report.html'}\n"), done.stderr
    page = (federation / "run" / "report.html").read_text()
    assert "The server holds no text of its owners" in page
    assert page.count("<bdi") == 3
    assert "<code>agfl-server start</code>" in page
    assert [one.outcome for one in read_sittings(federation / "run")] == ["finished"]
    again = run("agfl-server", "report", "--federation", federation, "--output", tmp_path / "copy.html")
    assert again.returncode == 0
    assert (tmp_path / "copy.html").read_text() == page, "the same model writes the same"


def test_a_run_under_way_has_a_report_of_what_there_is(federation: Path) -> None:
    model = federation / "run" / "model"
    for path in model.iterdir():
        path.unlink()
    model.rmdir()
    assert run("agfl-server", "report", "--federation", federation).returncode == 0
    assert 'id="samples"' not in (federation / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl: must hold at least one round, is empty"),
        (lambda run: (run / "config.yaml").unlink(), "run: must hold a run that has begun, holds none"),
        (lambda run: (run / "sittings.json").write_text("{"), "sittings.json: must hold JSON, cannot be read"),
        (lambda run: (run / "model" / "model.safetensors").write_bytes(b"x"), "model.safetensors: corrupt"),
    ],
)
def test_what_cannot_be_reported_is_one_line(federation: Path, spoil: Callable[[Path], object], problem: str) -> None:
    spoil(federation / "run")
    done = run("agfl-server", "report", "--federation", federation)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert problem in done.stderr


def test_no_federation_is_one_line(tmp_path: Path) -> None:
    done = run("agfl-server", "report", "--federation", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must be a federation folder" in done.stderr


@given(st.text(st.characters(), max_size=60).map("x{}".format) | st.just(HOSTILE))
def test_what_a_model_writes_stays_text(text: str) -> None:
    section = samples_section([{"The model": text}], "note")
    assert Tags(section).tags == {"h2", "div", "table", "thead", "tbody", "tr", "th", "td", "bdi", "p"}
    section.encode()  # without half a surrogate pair
    shown = unescape(section.split('<bdi dir="auto">')[1].split("</bdi>")[0])
    assert not set(shown) & set("\x00\x1b\x7f\x85\r\u202e\u2066\u200f\u2028")


def test_an_empty_output_is_told() -> None:
    assert "<small>(nothing)</small>" in samples_section([{"The model": "\n "}], "note")


def test_text_is_cut_and_heaps_of_accents_are_thinned() -> None:
    assert plain("x" * 500, MAX_SHOWN) == "x" * MAX_SHOWN + "…"
    assert plain("a" + "\u0301" * 50 + "b") == "a" + "\u0301" * 8 + "b"
    assert plain("Grüße\n\tसंसार 😀") == "Grüße\n\tसंसार 😀"
    assert plain("a\r\nb\x07") == "a\nb\N{REPLACEMENT CHARACTER}"
