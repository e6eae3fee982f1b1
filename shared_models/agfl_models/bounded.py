"""What comes from outside has a bound before it is read, and another one before it is shown."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from agfl_models.errors import BrokenRule

MAX_SHOWN = 80  # characters of a value in an error
MAX_DEPTH = 64  # lists and mappings within each other: three times what a model of nested repeats takes
MAX_ITEMS = 64  # of a mapping that may have any keys
MAX_JSON = 4 << 20  # characters: a run with the most merges has 1 MB


# Of fields of a configuration, which may come from a server that one does not trust: generous, and finite.
Size = Annotated[int, Field(gt=0, le=1 << 16)]  # width of a layer, or how many heads or ranks it has
VocabSize = Annotated[int, Field(gt=0, le=1 << 20)]
Length = Annotated[int, Field(gt=0, le=1 << 17)]  # of a sequence, in tokens
Rounds = Annotated[int, Field(gt=0, le=1_000_000)]  # rounds, steps
Examples = Annotated[int, Field(gt=0, le=10_000_000)]
Owners = Annotated[int, Field(gt=0, le=1 << 20)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]

# Of factors in float32 arithmetic: a product of several is finite there, and the square of one is no denormal, which
# some processors take for zero.
LEAST_FACTOR, MOST_FACTOR = 1e-12, 1e6


def _no_denormal(value: float) -> float:
    if 0 < value < LEAST_FACTOR:
        raise BrokenRule("AGFL-CONFIG-250", f"must be at least {LEAST_FACTOR:g} where it is not 0, got {value:g}")
    return value


Factor = Annotated[float, Field(gt=0, le=MOST_FACTOR), AfterValidator(_no_denormal)]
FactorOrZero = Annotated[float, Field(ge=0, le=MOST_FACTOR), AfterValidator(_no_denormal)]


def few(value: Any) -> Any:
    """Refuse a mapping of many items before each of them makes an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_ITEMS:
        raise ValueError(f"must have at most {MAX_ITEMS} items, got {len(value)}")
    return value


class _Repr(reprlib.Repr):
    """Looks at the first few items of the first few levels only, and says what a number is that has no text."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 4, 8, 8, 8
        self.maxstring = self.maxother = self.maxlong = MAX_SHOWN - 2

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out long numbers, and takes quadratic time for shorter ones.
        return super().repr_int(x, level) if x.bit_length() <= 4 * MAX_SHOWN else f"a number of {x.bit_length()} bits"


_REPR = _Repr()


def shown(value: object) -> str:
    """Return a value as an error shows it: on one line, at most `MAX_SHOWN` characters, made in bounded memory."""
    text = _REPR.repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def read_at_most(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a file, or None where it has more bytes, which are not read; raises OSError."""
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None


def load_json(text: str, max_length: int = MAX_JSON) -> Any:
    """Return the plain data of a JSON document; raises ValueError, also where it is too long or too deep."""
    if len(text) > max_length:
        raise ValueError(f"must have at most {max_length} characters, got {len(text)}")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"must nest at most {MAX_DEPTH} deep") from None
    level, depth = [content], 0
    while level:
        level, depth = [item for node in level for item in _items(node)], depth + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"must nest at most {MAX_DEPTH} deep")
    return content


def _items(node: object) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
