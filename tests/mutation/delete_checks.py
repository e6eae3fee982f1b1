"""Delete the security checks of the secure sum one at a time, in a copy; every mutant must fail a test.

A check is a call whose result is thrown away and whose name says that it checks (`require`, `verify`, `_check_...`,
or one of the ledger's notes), or an `if` that only raises. All tests run once to learn which of them run which line;
then each mutant meets those that run it, and no others. Whole it takes about an hour on two processors:

    python tests/mutation/delete_checks.py [--every 20] [--workers 2]
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

from coverage import CoverageData

ROOT = Path(__file__).parents[2]
COMPONENTS = ("server", "client", "shared_models", "simulations")
CHECKED = (
    "client/agfl_client/secure/masking.py",
    "client/agfl_client/approval/approvals.py",
    "client/agfl_client/approval/approval_files.py",
    "client/agfl_client/ledger/ledger.py",
    "client/agfl_client/ledger/ledger_file.py",
    "client/agfl_client/secure/secure_member.py",
    "client/agfl_client/secure/sum_rules.py",
    "client/agfl_client/saved_model.py",
    "server/agfl_server/transport/gate.py",
    "server/agfl_server/transport/bodies.py",
    "server/agfl_server/aggregation/secure_sum.py",
    "server/agfl_server/transport/superlink.py",
    "server/agfl_server/transport/objects/whole_reply.py",
    "server/agfl_server/aggregation/unmasking.py",
    "shared_models/agfl_protocol/plans/plan.py",
    "shared_models/agfl_protocol/plans/plan_fields.py",
    "server/agfl_server/aggregation/uploads.py",
    "shared_models/agfl_protocol/secagg/context.py",
    "shared_models/agfl_protocol/secagg/identity.py",
    "shared_models/agfl_protocol/secagg/keys.py",
    "shared_models/agfl_protocol/secagg/members.py",
    "shared_models/agfl_protocol/secagg/parameters.py",
    "shared_models/agfl_protocol/secagg/rings.py",
    "shared_models/agfl_protocol/secagg/shamir.py",
    "shared_models/agfl_protocol/folder_lock.py",
    "shared_models/agfl_protocol/identity/identity.py",
    "shared_models/agfl_protocol/messages/secure_wire.py",
    "shared_models/agfl_protocol/messages/counting.py",
    "shared_models/agfl_protocol/messages/header.py",
    "shared_models/agfl_protocol/methods/candidates.py",
    "shared_models/agfl_protocol/methods/clipping.py",
    "shared_models/agfl_protocol/methods/elastic.py",
    "client/agfl_client/training/pair_counts.py",
    "client/agfl_client/training/deadline.py",
    "client/agfl_client/training/trainer.py",
    "client/agfl_client/transport/bounded_http.py",
    "client/agfl_client/transport/pulling.py",
    "shared_models/agfl_models/bounded.py",
    "shared_models/agfl_models/validation.py",
    "shared_models/agfl_protocol/transforms/quantization.py",
    "shared_models/agfl_protocol/transforms/codec.py",
)
SUITE = tuple(f"tests/{part}" for part in ("protocol", "client", "models", "server", "attacks"))
# Slow: whole runs, whose checks have tests of their own.
LEFT_OUT = (
    "tests/attacks/test_attack_lies.py",
    "tests/attacks/test_attack_poisoning.py::test_attack_no_lie_of_one_in_five_wrecks_a_run",
    "tests/attacks/test_attack_poisoning.py::test_the_benchmark_prints_its_table",
)
_SETTLED_S = 60
_MEMORY_BYTES = 9 << 30  # of addresses, in each process: PyTorch alone takes three
CHECK_NAME = re.compile(r"_?require|verify|announce|leave|sign|open|_?check(_\w+)?")


@dataclass(frozen=True)
class Mutant:
    """A check, from its first to its last line (from 1), that is replaced by `pass`."""

    file: str
    first: int
    last: int
    text: str


def mutants() -> list[Mutant]:
    """Return all mutants, file by file and from top to bottom."""
    return [mutant for file in CHECKED for mutant in _mutants_of(file)]


def tests_by_line(copy: Path) -> dict[tuple[str, int], list[str]]:
    """Run all tests once; return {(file, line): the tests that run it, the quickest first}.

    Raises SystemExit: one fails without any mutant.
    """
    report = copy / "durations.xml"
    measured = [f"--cov={copy / component}" for component in COMPONENTS]
    left_out = [f"--deselect={path}" for path in LEFT_OUT]
    command = ["-n", "auto", "--dist", "loadfile", *measured, "--cov-context=test", "--cov-report=", *left_out]
    done = _pytest(copy, [*command, f"--junitxml={report}", "-o", "junit_family=xunit1", *SUITE])
    if done.returncode != 0:
        raise SystemExit(f"the suite fails without any mutant:\n{done.stdout.decode()[-2000:]}")
    seconds = {}
    for case in ElementTree.parse(report).iter("testcase"):
        seconds[f"{case.get('file')}::{case.get('name')}"] = float(case.get("time", 0))
    data = CoverageData(str(copy / ".coverage"))
    data.read()
    found: dict[tuple[str, int], list[str]] = {}
    for file in CHECKED:
        for line, contexts in data.contexts_by_lineno(str(copy / file)).items():
            ids = {context.partition("|")[0] for context in contexts} - {""}
            found[file, line] = sorted(ids, key=lambda test: (seconds.get(test, _SETTLED_S), test))
    return found


def survives(mutant: Mutant, copy: Path, tests: Sequence[str]) -> bool:
    """Delete the check in the copy, run the tests, restore the file."""
    path = copy / mutant.file
    source = path.read_text()
    lines = source.splitlines()
    indent = re.match(r"\s*", lines[mutant.first - 1])
    assert indent is not None
    lines[mutant.first - 1 : mutant.last] = [indent.group() + "pass"]
    path.write_text("\n".join(lines) + "\n")
    try:
        return passes(copy, tests)
    finally:
        path.write_text(source)


def passes(copy: Path, tests: Sequence[str]) -> bool:
    """Whether these tests pass in the copy; they stop at the first that fails."""
    if not tests:
        return True
    done = _pytest(copy, ["-x", *tests])
    # 2: the mutant cannot even be imported; below 0: the system ended it, where a bound of memory was deleted.
    if done.returncode > 2:
        raise SystemExit(f"the suite did not run (exit code {done.returncode}):\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def _pytest(copy: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join(str(copy / component) for component in COMPONENTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, check=False, preexec_fn=_limit_memory
    )


def _limit_memory() -> None:
    """Let a mutant without its bound of memory take its own share, and not the machine's."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def make_copy(folder: Path) -> Path:
    """Return a copy of the code and the tests, in which mutants can be made."""
    copy = folder / "copy"
    for name in (*COMPONENTS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def main() -> None:
    """Run all tests, then meet each mutant, and exit 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every k-th mutant")
    parser.add_argument("--workers", type=int, default=1, help="mutants that are met at a time")
    options = parser.parse_args()
    chosen = mutants()[:: options.every]
    with tempfile.TemporaryDirectory() as name:
        copies: Queue[Path] = Queue()
        for i in range(options.workers):
            copies.put(make_copy(Path(name) / str(i)))
        found = tests_by_line(Path(name) / "0" / "copy")

        def meet(mutant: Mutant) -> tuple[bool, int, float]:
            lines = range(mutant.first, mutant.last + 1)
            tests = list(dict.fromkeys(test for line in lines for test in found.get((mutant.file, line), [])))
            copy, started = copies.get(), time.monotonic()
            try:
                return survives(mutant, copy, tests), len(tests), time.monotonic() - started
            finally:
                copies.put(copy)

        survivors = 0
        with ThreadPoolExecutor(options.workers) as pool:
            for number, (mutant, (survived, tests, seconds)) in enumerate(
                zip(chosen, pool.map(meet, chosen), strict=True), 1
            ):
                survivors += survived
                verdict = f"{'SURVIVED' if survived else 'killed'} {seconds:.0f} s of {tests} tests"
                print(f"{number}/{len(chosen)} {verdict} {mutant.file}:{mutant.first} {mutant.text}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    sys.exit(1 if survivors else 0)


def _mutants_of(file: str) -> Iterator[Mutant]:
    source = (ROOT / file).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr | ast.If) and _is_check(node):
            assert node.end_lineno is not None
            text = " ".join((ast.get_source_segment(source, node) or "").split())
            yield Mutant(file, node.lineno, node.end_lineno, text[:80])


def _is_check(node: ast.Expr | ast.If) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.body[0], ast.Raise) and not node.orelse
    if not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return CHECK_NAME.fullmatch(name) is not None


if __name__ == "__main__":
    main()
