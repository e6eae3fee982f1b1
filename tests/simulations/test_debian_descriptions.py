"""The script that fetches Debian's descriptions, from a mirror on this machine with a few packages."""

from __future__ import annotations

import bz2
import lzma
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agfl_models.examples import read_rows
from agfl_models.tasks.summarization import SummaryRow
from agfl_models.tasks.translation import TranslationRow

SCRIPT = Path(__file__).parents[2] / "simulations/corpora/debian_descriptions.py"
PACKAGES = """Package: bridge
Maintainer: Ann Able <ann@example.org>
Architecture: amd64

Package: tunnel
Maintainer: Ann Able <ann@example.org>

Package: ferry
Maintainer: The Ferry Team <ferry@example.org>
"""
ENGLISH = """Package: bridge
Description-md5: 1
Description-en: crosses a river
 A bridge crosses a river
 or a road.
 .
 It stands: long.

Package: tunnel
Description-md5: 2
Description-en: goes below
 A tunnel goes below.

Package: ferry
Description-md5: 3
Description-en: floats
 A ferry floats.

Package: gone
Description-md5: 4
Description-en: has no maintainer
 Nobody keeps it.
"""
GERMAN = """Package: bridge
Description-md5: 1
Description-de: überquert einen Fluss
 Eine Brücke überquert einen Fluss.
 .
 Sie steht lange.

Package: tunnel
Description-md5: 2
Description-de: geht unten durch
 Ein Absatz,
 .
 wo Englisch keinen hat.

Package: ferry
Description-md5: 3
Description-de: floats
 Eine Fähre schwimmt.
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    main = tmp_path / "mirror/dists/bookworm/main"
    (main / "binary-amd64").mkdir(parents=True)
    (main / "i18n").mkdir()
    (main / "binary-amd64/Packages.xz").write_bytes(lzma.compress(PACKAGES.encode()))
    (main / "i18n/Translation-en.xz").write_bytes(lzma.compress(ENGLISH.encode()))
    (main / "i18n/Translation-de.bz2").write_bytes(bz2.compress(GERMAN.encode()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "mirror"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_owners_get_the_paragraphs_that_both_languages_have(mirror: str, tmp_path: Path) -> None:
    done = fetch("translation", tmp_path / "out", "--mirror", mirror, "--min-rows", "1")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out: 2 owners, 5 rows\n"), done.stderr
    ann = read_rows(tmp_path / "out/Ann-Able.jsonl", TranslationRow)
    assert [(row.source, row.target) for row in ann] == [
        ("crosses a river", "überquert einen Fluss"),
        ("A bridge crosses a river or a road.", "Eine Brücke überquert einen Fluss."),
        ("It stands: long.", "Sie steht lange."),
        ("goes below", "geht unten durch"),
    ]
    (ferry,) = read_rows(tmp_path / "out/The-Ferry-Team.jsonl", TranslationRow)
    assert (ferry.source, ferry.target) == ("A ferry floats.", "Eine Fähre schwimmt.")
    assert done.stderr.count("Translation-de.bz2") == 1, "its digest is to be kept with results"


def test_descriptions_go_with_their_summary_lines_and_small_owners_are_left_out(mirror: str, tmp_path: Path) -> None:
    done = fetch("summarization", tmp_path / "out", "--mirror", mirror, "--min-rows", "2")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out: 1 owners, 2 rows\n"), done.stderr
    bridge, tunnel = read_rows(tmp_path / "out/Ann-Able.jsonl", SummaryRow)
    assert (bridge.document, bridge.summary) == (
        "A bridge crosses a river or a road. It stands: long.",
        "crosses a river",
    )
    assert (tunnel.document, tunnel.summary) == ("A tunnel goes below.", "goes below")


def test_what_cannot_be_had_is_one_line(mirror: str, tmp_path: Path) -> None:
    done = fetch("translation", tmp_path / "out", "--mirror", mirror, "--language", "tlh")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Translation-tlh.bz2" in done.stderr.splitlines()[-1]
    assert "404" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    refused = fetch("summarization", tmp_path / "full", "--mirror", mirror)
    assert "File exists" in refused.stderr.splitlines()[-1]
