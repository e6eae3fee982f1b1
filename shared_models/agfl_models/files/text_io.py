"""How the commands of agfl-model read and write text: from an argument, a file, standard input or a person."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from agfl_models.errors import ConfigError, DataError
from agfl_models.reading.encodings import decode

STANDARD_INPUT = Path("-")
# What moves the cursor or changes a terminal's settings: a model may have learned it from anybody.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def texts(name: str, argument: str | None) -> Iterator[str]:
    """Yield the argument, or the lines of standard input: asked for one by one where a person types them."""
    if argument is not None:
        yield checked(name, argument)
    elif sys.stdin.isatty():
        yield from _asked(name)
    else:
        yield from lines(STANDARD_INPUT)


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text, without their ends; standard input's as they come, in UTF-8.

    Raises:
        DataError: the file cannot be read, or a line is no text.
    """
    if path != STANDARD_INPUT:
        text = _text(path)
        yield from text.removesuffix("\n").split("\n") if text else ()
        return
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line, f"{_name(path)}: line {number}").rstrip("\r\n")
            yield text.removeprefix("\ufeff") if number == 1 else text


def whole(path: Path) -> str:
    """Return a text, in any encoding that owners' files may have, without the end of its last line.

    Raises:
        DataError: as `lines`.
    """
    return _text(path).removesuffix("\n")


def checked(name: str, argument: str) -> str:
    """Return the argument; raises ConfigError where its bytes are no text."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError("AGFL-CONFIG-016", f"{name}: must be UTF-8 text, got {argument[:40]!r}") from None
    return argument


def show(pieces: Iterable[str]) -> None:
    """Print the pieces of a text as they come, and end the line."""
    on_terminal = sys.stdout.isatty()
    for piece in pieces:
        sys.stdout.write(piece.translate(_CONTROLS) if on_terminal else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _asked(name: str) -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  for arrow keys and earlier lines
    prompt = f"{name}> " if sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            sys.stdout.write("\n")
            return
        if line.strip():
            yield checked(name, line)


def _text(path: Path) -> str:
    with _opened(path) as file:
        return decode(file.read(), _name(path)).text


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError("AGFL-DATA-054", f"{_name(path)}: cannot be read: {error.strerror}") from None


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte {content[error.start]:#04x} at {error.start}"
        raise DataError("AGFL-DATA-055", f"{where}: must be UTF-8 text, got {got}") from None


def _name(path: Path) -> str:
    return "standard input" if path == STANDARD_INPUT else str(path)
