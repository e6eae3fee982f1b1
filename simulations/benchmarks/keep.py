"""Runs a benchmark in full and keeps what it printed; makes RESULTS.md of all that is kept.

    python simulations/benchmarks/keep.py secure_sum.py --quick   # results/secure_sum-quick.txt, then RESULTS.md
    python simulations/benchmarks/keep.py                         # RESULTS.md alone

A result replaces the one of the same command before it. A benchmark that failed changes nothing.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from agfl_models import machine
from agfl_models.version import VERSION

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results", FOLDER / "RESULTS.md"
HEAD = """# What the benchmarks printed

Each ran in full, as its command says, on the machine and at the commit beside it. `keep.py` wrote this page; change
nothing here by hand.
"""


def keep(script: str, arguments: list[str]) -> Path:
    """Run a benchmark, show what it prints, and keep that with what it was run on; return the file.

    Raises:
        CalledProcessError: it failed; nothing is kept.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    lines = []
    command = [sys.executable, str(FOLDER / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    shown = shlex.join(["python", f"simulations/benchmarks/{script}", *arguments])
    head = [
        f"$ {shown}",
        f"{started:%Y-%m-%d %H:%M} UTC, {time.monotonic() - clock:.0f} s, agfl {VERSION}, commit {_commit()}",
        f"{machine.usable_cpus()} processors, {', '.join(machine.kind().values())}",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub('[^A-Za-z0-9_]+', '-', ' '.join([Path(script).stem, *arguments]))}.txt"
    path.write_text("\n".join(head) + "\n\n" + "".join(lines), encoding="utf-8")
    return path


def page(results: Path) -> str:
    """Return RESULTS.md: each kept output as it was printed, in the order of names."""
    kept = (f"## {path.stem}\n\n```\n{path.read_text(encoding='utf-8').rstrip()}\n```\n" for path in _files(results))
    return "\n".join([HEAD, *kept])


def _files(results: Path) -> list[Path]:
    return sorted(results.glob("*.txt"))


def _commit() -> str:
    found = subprocess.run(
        ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Keep one, or make the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", nargs="?", help="name of a file beside this one")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own")
    options = parser.parse_args()
    if options.script:
        keep(options.script, options.arguments)
    PAGE.write_text(page(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
