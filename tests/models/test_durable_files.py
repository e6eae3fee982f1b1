"""Of a file that is written, the old content or the new is there; of one that grows, its whole lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import read_json_lines, write_atomically

KILLED_WRITER = """
import resource, signal, sys
from pathlib import Path
from agfl_models.files.durable_files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores: the kernel kills in the midst of the write
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))
write_atomically(Path(sys.argv[1]), b"new" * 10**6, mode=0o600)
"""


def test_what_kills_left_half_written_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", mode=0o600)
    for _ in range(2):
        command = [sys.executable, "-c", KILLED_WRITER, str(path)]
        assert subprocess.run(command).returncode == -signal.SIGXFSZ
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2
    write_atomically(path, b"new", mode=0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    rows = [{"round": number, "sums": {"loss": 0.5}, "name": "a\u2028b"} for number in range(3)]
    whole = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / "rows.jsonl"
    for size in range(len(whole) + 1):
        path.write_text(whole[:size])
        assert read_json_lines(path) == rows[: whole[:size].count("\n")]
    assert [repr(row["round"]) for row in read_json_lines(path, parse_int=float)] == ["0.0", "1.0", "2.0"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"round": 0}\n{"round"\n', r"rows\.jsonl:2: must be one JSON object, got '\{\"round\"'"),
        (b'{"round": 0}\n\n[1]\n', r"rows\.jsonl:3: .*got '\[1\]'.*AGFL-CHECKPOINT-001"),
        (b"\xff\n", r"rows\.jsonl: cannot be read: .*utf-8.*AGFL-CHECKPOINT-004"),
        (None, r"rows\.jsonl: .*AGFL-CHECKPOINT-003"),
    ],
)
def test_lines_that_are_no_objects_are_one_line_of_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        read_json_lines(path)
