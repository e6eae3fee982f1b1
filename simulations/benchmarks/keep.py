"""Runs a benchmark or a shipped run in full and keeps what it printed; makes pages of all that is kept.

    python simulations/benchmarks/keep.py secure_sums/secure_sum.py --quick   # results/secure_sum-quick.txt, RESULTS.md
    python simulations/benchmarks/keep.py agfl-simulate translation-full
    python simulations/benchmarks/keep.py                         # RESULTS.md alone

A result replaces the one of the same command before it. What failed changes nothing.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from agfl_models import machine
from agfl_models.version import VERSION

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results", FOLDER / "RESULTS.md"
TABLE = FOLDER.parents[1] / "docs" / "results.md"  # between these two lines of it
BEGIN, END = "<!-- should-i-join -->\n", "<!-- /should-i-join -->\n"
COLUMNS = (
    "task, metric",
    "untrained",
    "own model",
    "global model",
    "global, trained further at home",
    "all text in one place",
    "better off",
    "median owner",
)
HEAD = """# What benchmarks and shipped runs printed

Each ran in full, as its command says, on the machine and at the commit beside it. `keep.py` wrote this page; change
nothing here by hand.
"""


def keep(name: str, arguments: list[str]) -> Path:
    """Run a benchmark below this folder or a command of ours, show what it prints, and keep that; return the file.

    A command runs in a folder of its own, which goes with what it left there.

    Raises:
        CalledProcessError: it failed; nothing is kept.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    lines = []
    is_script = name.endswith(".py")
    words = [sys.executable, FOLDER / name] if is_script else [Path(sys.executable).parent / name]
    command = [*map(str, words), *arguments]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=None if is_script else folder) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    shown = shlex.join(["python", f"simulations/benchmarks/{name}", *arguments] if is_script else [name, *arguments])
    head = [
        f"$ {shown}",
        f"{started:%Y-%m-%d %H:%M} UTC, {time.monotonic() - clock:.0f} s, agfl {VERSION}, commit {_commit()}",
        f"{machine.usable_cpus()} processors, {', '.join(machine.kind().values())}",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub('[^A-Za-z0-9_]+', '-', ' '.join([Path(name).stem, *arguments]))}.txt"
    path.write_text("\n".join(head) + "\n\n" + "".join(lines), encoding="utf-8")
    return path


def page(results: Path) -> str:
    """Return RESULTS.md: each kept output as it was printed, in the order of names."""
    kept = (f"## {path.stem}\n\n```\n{path.read_text(encoding='utf-8').rstrip()}\n```\n" for path in _files(results))
    return "\n".join([HEAD, *kept])


def should_i_join(results: Path) -> str:
    """Return the table of the kept `TASK-full` runs, a row each.

    Better off: owners with the global model, and with it trained further, than alone. Median owner: what it has alone,
    with the global model, and with it trained further.
    """
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [_joined(path) for path in _files(results) if path.stem.endswith("-full")]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _joined(path: Path) -> tuple[str, ...]:
    """Return a row of what a run printed at its end."""
    text = path.read_text(encoding="utf-8")
    name = path.stem.removeprefix("agfl-simulate-")
    metric, numbers = _found(r"^(.+): (global model .+)$", text).groups()
    values = dict(re.findall(r"(" + "|".join(COLUMNS[2:6]) + r") (\S+?)(?:,|$)", numbers))
    untrained = _found(r"^model of round 0: (\S+)", text)[1]
    joined = _found(r"for (\d+) of (\d+) owners .* global model is better", text)
    median, alone = _found(rf"median owner has (\S+) {metric} with it and (\S+) alone", text).groups()
    further, better = _found(
        r"further at home, the global model reaches (\S+) and is better .* for (\d+) of", text
    ).groups()
    link = f"[`{name.removesuffix('-full')}`](benchmarks.md#{path.stem.lower()}), {metric}"
    owners = f"{joined[1]} / {better} of {joined[2]}"
    return link, untrained, *(values[column] for column in COLUMNS[2:6]), owners, f"{alone}, {median}, {further}"


def _found(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, pattern
    return found


def _write_pages() -> None:
    PAGE.write_text(page(RESULTS), encoding="utf-8")
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(f"{before}{BEGIN}\n{should_i_join(RESULTS)}\n{END}{after}", encoding="utf-8")


def _files(results: Path) -> list[Path]:
    return sorted(results.glob("*.txt"))


def _commit() -> str:
    """Return the commit of the code; "-dirty" if it is changed, whatever results were kept since."""
    git = ["git", "-C", str(FOLDER.resolve())]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    ours = ("simulations/benchmarks/results", "simulations/benchmarks/RESULTS.md", "docs/results.md")
    kept = [f":(exclude,top){path}" for path in ours]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":(top)", *kept]).returncode
    return f"{found}{'-dirty' if changed else ''}" if found else "unknown"


def main() -> None:
    """Keep one, or make the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", nargs="?", help="of a benchmark, as in secure_sums/secure_sum.py, or of a command of ours"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own")
    options = parser.parse_args()
    if options.name:
        keep(options.name, options.arguments)
    _write_pages()


if __name__ == "__main__":
    main()
