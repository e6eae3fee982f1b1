"""The primitives know no Flower, no PyTorch, no files and no log, and draw nothing from NumPy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from agfl_protocol import secagg
from agfl_protocol.secagg.draws import OS_DRAWS, Draws

SOURCES = sorted(Path(secagg.__path__[0]).glob("*.py"))
ALLOWED = {"cryptography", "numpy", "agfl_protocol.secagg", "agfl_protocol.identity.identity", "agfl_models.errors"}
STANDARD = {
    "collections",
    "concurrent",
    "dataclasses",
    "functools",
    "hashlib",
    "re",
    "secrets",
    "struct",
    "typing",
    "__future__",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_secagg_imports_primitives_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            allowed = any(name == module or name.startswith(module + ".") for module in ALLOWED)
            assert allowed or name.split(".")[0] in STANDARD, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_secagg_neither_writes_nor_draws_from_numpy(path: Path) -> None:
    text = path.read_text()
    for word in ("open(", "print(", "logging", "np.random", "import random", "pickle", "time."):
        assert word not in text


def test_whoever_is_deployed_draws_from_the_operating_system() -> None:
    """What a simulation puts in its place stays there: nothing that a client or server has is made from it."""
    root = Path(__file__).parents[3]
    deployed = [path for folder in ("client", "server", "shared_models") for path in (root / folder).rglob("*.py")]
    kinds = [
        node.name
        for path in deployed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "Draws" in map(ast.unparse, node.bases)
    ]
    assert kinds == []
    assert type(OS_DRAWS) is Draws
    assert len({OS_DRAWS.below(2**256) for _ in range(9)}) == 9
