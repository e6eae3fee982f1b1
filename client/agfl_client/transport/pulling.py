"""A message is fetched level by level, and the numbers in it only once it is known how many bytes they may have.

Flower sends a message as a tree of objects. Its levels are known: the message, its content, records, arrays, and the
pieces of arrays. All but the pieces are small, so they come first; then the owner's side says, from what the records
tell, how many bytes of arrays it takes. A server can neither fill our memory nor make a small message large on arrival.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flwr.app import Array, ConfigRecord, RecordDict

from agfl_models.bounded import load_json, shown
from agfl_models.errors import WireError
from agfl_protocol.messages.array_bytes import joined

MAX_OBJECT_BYTES = 8 << 20  # Flower cuts arrays into pieces of 5 MiB; the configuration of a run has at most 4
MAX_ARRAYS_BYTES = 256 << 20  # where nobody says better
_SLACK_BYTES = 4096  # headers of arrays
_MIN_PIECE_BYTES = 1 << 16
_RECORD_TYPES = ("ConfigRecord", "ArrayRecord", "MetricRecord")
_LEVELS: tuple[tuple[tuple[str, ...], int], ...] = (  # what stands on a level, and how many of it at most
    (("Message",), 1),
    (("RecordDict",), 1),
    (_RECORD_TYPES, 4),
    (("Array",), 16),
)

Fetch: TypeAlias = Callable[[Sequence[str], Callable[[str, int], None]], dict[str, bytes]]
Allowance: TypeAlias = Callable[[str, RecordDict], int]


def take_little(kind: str, header: RecordDict) -> int:
    """Return how many bytes of arrays a message of any kind may have, where nobody says better."""
    return MAX_ARRAYS_BYTES


def pull_message(root: str, kind: str, fetch: Fetch, allowance: Allowance) -> dict[str, bytes]:
    """Return the objects of a message by id.

    fetch: gets objects by id, and calls its second argument with id and size of each as it arrives, which may raise.
    allowance: of a kind of message and of its records without arrays, the most bytes of arrays that are taken.

    Raises:
        WireError: the message is not made as Flower makes them, or its arrays have more bytes.
        AgflError: as `allowance`.
    """
    contents: dict[str, bytes] = {}
    ids, names = [root], dict[str, str]()
    for types, most in _LEVELS:
        _require(len(ids) <= most, "AGFL-WIRE-005", f"must have at most {most} of {'/'.join(types)}, got {len(ids)}")
        level = fetch(ids, _ignore)
        contents |= level
        ids = []
        for content in level.values():
            name, children, body = _parts(content)
            _require(name in types, "AGFL-WIRE-006", f"must have {'/'.join(types)} here, got {shown(name)}")
            leaf = name in ("ConfigRecord", "MetricRecord")
            _require(not (leaf and children), "AGFL-WIRE-007", f"a {name} must have no children")
            if name == "RecordDict":
                names = {key: value for key, value in _mapping(body).items() if isinstance(value, str)}
            ids += children
        ids = list(dict.fromkeys(ids))
    allowed = allowance(kind, _records(names, contents)) + _SLACK_BYTES
    contents |= _pieces(_copies(contents), fetch, allowed)
    return contents


def join_arrays(contents: dict[str, bytes]) -> dict[str, Array]:
    """Return the arrays of a message whose objects are `contents`, which each piece leaves as it is used up.

    Raises:
        ValueError, TypeError, KeyError: an array is not made as Flower makes them.
    """
    left = _copies(contents)

    def take(piece: str) -> bytes:
        left[piece] -= 1
        return contents[piece] if left[piece] else contents.pop(piece)

    arrays = {name: content for name, content in contents.items() if content.startswith(b"Array ")}
    return {name: joined(content, take) for name, content in arrays.items()}


def _pieces(copies: Counter[str], fetch: Fetch, allowed: int) -> dict[str, bytes]:
    """Fetch the pieces of arrays, each counted as often as it stands in one; stop as soon as they are too many."""
    rule = f"must have at most {allowed} bytes of arrays"
    most = 16 + allowed // _MIN_PIECE_BYTES
    _require(copies.total() <= most, "AGFL-WIRE-008", f"{rule}, in at most {most} pieces, got {copies.total()}")
    lock, total = threading.Lock(), 0

    def count(piece: str, size: int) -> None:
        nonlocal total
        with lock:
            total += copies[piece] * size
            _require(total <= allowed, "AGFL-WIRE-009", f"{rule}, got more")

    pieces = fetch(list(copies), count) if copies else {}
    for content in pieces.values():
        name, children, _ = _parts(content)
        _require(
            name == "ArrayChunk" and not children, "AGFL-WIRE-010", f"must have ArrayChunk here, got {shown(name)}"
        )
    return pieces


def _copies(contents: Mapping[str, bytes]) -> Counter[str]:
    """Return how often each piece stands in the arrays: equal pieces are sent once."""
    copies: Counter[str] = Counter()
    for content in contents.values():
        name, children, body = _parts(content)
        if name != "Array":
            continue
        places = _mapping(body).get("arraychunk_ids")
        fits = isinstance(places, list) and all(type(i) is int and 0 <= i < len(children) for i in places)
        _require(fits, "AGFL-WIRE-011", "arraychunk_ids: must be a list of places among the children")
        copies.update(children[i] for i in places or ())
    return copies


def _records(names: Mapping[str, str], contents: Mapping[str, bytes]) -> RecordDict:
    header = RecordDict()
    for name, object_id in names.items():
        content = contents.get(object_id, b"")
        if content.startswith(b"ConfigRecord "):
            try:
                header[name] = ConfigRecord.inflate(content)
            except Exception as error:  # of many kinds, from as many libraries
                raise WireError(
                    "AGFL-WIRE-012", f"message: must have records of Flower's form ({type(error).__name__})"
                ) from None
    return header


def _parts(content: bytes) -> tuple[str, list[str], memoryview]:
    """Return type, ids of the children and body of an object, which begins with "TYPE ID,ID,... LENGTH" and a 0."""
    end = content.find(b"\x00")
    head = content[: max(end, 0) or 80]
    fields = head.decode("ascii", errors="replace").split(" ")
    _require(
        end > 0 and len(fields) == 3,
        "AGFL-WIRE-013",
        f"must have objects of Flower's form, got {shown(head[:80])}",
    )
    return fields[0], [child for child in fields[1].split(",") if child], memoryview(content)[end + 1 :]


def _mapping(body: memoryview) -> dict[str, Any]:
    try:
        found: dict[str, Any] = load_json(str(body, "utf-8"), MAX_OBJECT_BYTES)
    except ValueError as error:
        raise WireError("AGFL-WIRE-014", f"message: must be in JSON: {error}") from None
    _require(isinstance(found, dict), "AGFL-WIRE-015", "must have mappings in JSON")
    return found


def _require(condition: bool, code: str, rule: str) -> None:
    if not condition:
        raise WireError(code, f"message: {rule}")


def _ignore(object_id: str, size: int) -> None:
    pass
