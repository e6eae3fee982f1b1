"""Laws of the house that no linter knows: who may import what of Flower, and no branch on being a simulation."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("server", "client", "shared_models", "simulations") for path in (ROOT / folder).rglob("*.py")
)
# A benchmark may take apart what it measures; it is no part of the product.
PRODUCT = [path for path in SOURCES if "benchmarks" not in path.parts]
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
MAY_USE_PRIVATE_FLOWER = {
    "superlink.py",
    "sent_objects.py",
    "object_calls.py",
    "whole_reply.py",
    "supernode.py",
    "grid.py",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_flower_stays_in_a_few_files(path: Path) -> None:
    flower = {module for module in imported_modules(path) if module.split(".")[0] == "flwr"}
    if path.name not in MAY_USE_PRIVATE_FLOWER:
        assert flower <= PUBLIC_FLOWER


@pytest.mark.parametrize("folder", ["server", "client", "shared_models"])
def test_no_branch_on_simulation(folder: str) -> None:
    branches = [
        f"{path}: {line}"
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(if|elif)\b.*(simulat|is_sim)", line)
    ]
    assert not branches


def test_security_names_an_attack_for_every_claim_and_every_attack_has_one() -> None:
    index = (ROOT / "SECURITY.md").read_text().split("## From claim to attack")[1].split("\n## ")[0]
    named = set(re.findall(r"\((tests/[\w/]+\.py)\)", index))
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]
    attacks = {f"tests/attacks/{path.name}" for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    assert attacks <= named


def test_no_folder_is_a_heap() -> None:
    """A reader finds a file by its folder's name."""
    files = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in files.items() if count > 15} == {}


def test_no_imports_go_in_a_circle() -> None:
    """Not even within functions; what only the type checker reads does not count."""
    modules = {
        ".".join(path.with_suffix("").parts[len(ROOT.parts) + 1 :]).removesuffix(".__init__"): path for path in PRODUCT
    }
    graph = {name: set(_imports(tree_of(path).body, modules)) - {name} for name, path in modules.items()}
    while leaves := {name for name, used in graph.items() if not used & graph.keys()}:
        graph = {name: used for name, used in graph.items() if name not in leaves}
    assert graph == {}


def _imports(nodes: Iterable[ast.AST], modules: Container[str]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            names = [member if member in modules else node.module for member in members]
        yield from (name for name in names if name in modules)
        yield from _imports(ast.iter_child_nodes(node), modules)
