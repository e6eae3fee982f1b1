"""Delete the security checks of the secure sum one at a time, in a copy; every mutant must fail the suite.

A check is a call whose result is thrown away and whose name says that it checks (`require`, `verify`, `_check_...`,
or one of the ledger's notes), or an `if` that only raises. Run it whole, or every k-th mutant:

    python tests/mutation/delete_checks.py [--every 20]
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUZZ = ROOT / "tests/attacks/test_attack_fuzz.py"
COMPONENTS = ("server", "client", "shared_models", "simulations")
CHECKED = (
    "client/agfl_client/masking.py",
    "client/agfl_client/approvals.py",
    "client/agfl_client/approval_files.py",
    "client/agfl_client/ledger.py",
    "client/agfl_client/ledger_file.py",
    "client/agfl_client/secure_member.py",
    "client/agfl_client/sum_rules.py",
    "server/agfl_server/gate.py",
    "server/agfl_server/secure_sum.py",
    "server/agfl_server/superlink.py",
    "server/agfl_server/unmasking.py",
    "shared_models/agfl_protocol/plan.py",
    "shared_models/agfl_protocol/plan_fields.py",
    "server/agfl_server/uploads.py",
    "shared_models/agfl_protocol/secagg/context.py",
    "shared_models/agfl_protocol/secagg/identity.py",
    "shared_models/agfl_protocol/secagg/keys.py",
    "shared_models/agfl_protocol/secagg/members.py",
    "shared_models/agfl_protocol/secagg/parameters.py",
    "shared_models/agfl_protocol/secagg/rings.py",
    "shared_models/agfl_protocol/secagg/shamir.py",
    "shared_models/agfl_protocol/identity.py",
    "shared_models/agfl_protocol/secure_wire.py",
    "shared_models/agfl_protocol/counting.py",
    "shared_models/agfl_protocol/header.py",
    "shared_models/agfl_protocol/transforms/bounds.py",
    "client/agfl_client/pair_counts.py",
    "client/agfl_client/deadline.py",
    "client/agfl_client/training.py",
    "client/agfl_client/bounded_http.py",
    "client/agfl_client/pulling.py",
    "shared_models/agfl_models/bounded.py",
    "shared_models/agfl_models/validation.py",
    "shared_models/agfl_protocol/transforms/quantization.py",
    "shared_models/agfl_protocol/transforms/codec.py",
    "shared_models/agfl_protocol/header.py",
)
# Slow; what they attack has tests of its own. FUZZ comes last.
WHOLE_RUNS = (FUZZ.name, "test_attack_lies.py", "test_attack_poisoning.py")
SUITE = (  # the quick ones first, since the first failure ends it
    "tests/protocol/secagg",
    "tests/protocol/test_counting.py",
    "tests/protocol/test_header.py",
    "tests/protocol/test_bounds.py",
    "tests/protocol/test_identity.py",
    "tests/protocol/test_run_config.py",
    "tests/protocol/test_clip_bound.py",
    "tests/protocol/test_quantization.py",
    "tests/protocol/test_secure_wire.py",
    "tests/client/test_masking.py",
    "tests/client/test_pair_counts.py",
    "tests/protocol/test_plan.py",
    "tests/client/test_ledger.py",
    "tests/client/test_approvals.py",
    "tests/server/test_gate.py",
    "tests/server/test_secure_sum.py",
    *sorted(f"tests/attacks/{p.name}" for p in (ROOT / "tests/attacks").glob("test_*.py") if p.name not in WHOLE_RUNS),
    f"tests/attacks/{FUZZ.name}",
)
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


def survives(mutant: Mutant, copy: Path) -> bool:
    """Delete the check in the copy, run the suite, restore the file."""
    path = copy / mutant.file
    source = path.read_text()
    lines = source.splitlines()
    indent = re.match(r"\s*", lines[mutant.first - 1])
    assert indent is not None
    lines[mutant.first - 1 : mutant.last] = [indent.group() + "pass"]
    path.write_text("\n".join(lines) + "\n")
    try:
        return run_suite(copy) == 0
    finally:
        path.write_text(source)


def run_suite(copy: Path) -> int:
    """Return pytest's exit code over the suite in the copy: 0 if all tests pass, 1 if one fails."""
    path = os.pathsep.join(str(copy / component) for component in COMPONENTS)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITE]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)
    if done.returncode not in (0, 1, 2):  # 2: the mutant cannot even be imported
        raise SystemExit(f"the suite did not run (exit code {done.returncode}):\n{done.stdout.decode()[-2000:]}")
    return done.returncode


def make_copy(folder: Path) -> Path:
    """Return a copy of the code and the tests, in which mutants can be made."""
    copy = folder / "copy"
    for name in (*COMPONENTS, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def main() -> None:
    """Check the suite itself, then each mutant, and exit 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every k-th mutant")
    chosen = mutants()[:: parser.parse_args().every]
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        copy = make_copy(Path(name))
        if run_suite(copy) != 0:
            raise SystemExit("the suite fails without any mutant")
        for number, mutant in enumerate(chosen, start=1):
            started = time.monotonic()
            survived = survives(mutant, copy)
            survivors += [mutant] if survived else []
            verdict = "SURVIVED" if survived else "killed"
            where = f"{mutant.file}:{mutant.first}"
            print(
                f"{number}/{len(chosen)} {verdict} {time.monotonic() - started:.0f} s {where} {mutant.text}", flush=True
            )
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed")
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
