"""Each rule has one code, in one place of the source and in docs/errors.md; what a rule is, an error's class says."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"AGFL-([A-Z]+)-(\d{3})")


@cache
def trees() -> dict[str, ast.Module]:
    """Return the source, by path below the root."""
    folders = (ROOT / folder for folder in ("shared_models", "client", "server", "simulations"))
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in files}


@cache
def areas() -> dict[str, str]:
    """Return the area of each class of errors; one that states none has that of its base."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known = {"AgflError": "", "BrokenRule": "CONFIG"}
    while found := {
        node.name: stated_area(node) or known[base.id]
        for node in classes
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in known and node.name not in known
    }:
        known |= found
    return known


def stated_area(node: ast.ClassDef) -> str:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "area":
            return str(ast.literal_eval(statement.value))
    return ""


@cache
def raisers(path: str) -> dict[str, str]:
    """Return the functions that are given a code and raise an error with it, and its area."""
    return {
        function.name: areas()[call.func.id]
        for function in ast.walk(trees()[path])
        if isinstance(function, ast.FunctionDef) and "code" in [argument.arg for argument in function.args.args]
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in areas()
    }


def without_code(path: str) -> Iterator[str]:
    """Yield the calls that make an error without a literal code of its area."""
    tree = trees()[path]
    known = areas() | raisers("shared_models/agfl_protocol/secagg/errors.py") | raisers(path)
    passed_on = {
        id(call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in raisers(path)
        for call in ast.walk(function)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in known:
            codes = [CODE.fullmatch(str(one.value)) for one in call.args[:2] if isinstance(one, ast.Constant)]
            given = [code[1] for code in codes if code is not None]
            if id(call) not in passed_on and given != [known[call.func.id]]:
                yield f"{path}:{call.lineno}: {ast.unparse(call)[:80]}"


def codes_of_source() -> Counter[str]:
    return Counter(
        node.value
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    )


def test_every_error_is_raised_with_a_code_of_its_area() -> None:
    assert [line for path in trees() for line in without_code(path)] == []


def test_every_class_of_errors_has_an_area() -> None:
    assert [name for name, area in areas().items() if not area] == ["AgflError"]


def test_a_code_stands_for_one_rule() -> None:
    assert [code for code, count in codes_of_source().items() if count > 1] == []


def test_the_docs_list_every_code_once_and_no_other() -> None:
    listed = re.findall(r"(?m)^\| (AGFL-[A-Z]+-\d{3}) \| .+ \|$", (ROOT / "docs" / "errors.md").read_text())
    assert Counter(listed) == codes_of_source()
