"""The one list of an owner's files, for every command: what is hidden is left alone, what cannot be read is named."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agfl_models.errors import DataError
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.reading.arrow.dataset_folders import check_shards, dataset_files, is_dataset


class Format(Enum):
    """What a file holds, by its suffix; the value is the usual one."""

    JSONL = ".jsonl"
    JSON = ".json"
    CSV = ".csv"
    TSV = ".tsv"
    TEXT = ".txt"
    PARQUET = ".parquet"
    ARROW = ".arrow"


TABLES = frozenset((Format.PARQUET, Format.ARROW))  # of typed columns, in parts; all others are text
_FORMATS = {form.value: form for form in Format} | {
    ".ndjson": Format.JSONL,
    ".jsonlines": Format.JSONL,
    ".tab": Format.TSV,
    ".text": Format.TEXT,
    ".pq": Format.PARQUET,
    ".feather": Format.ARROW,
    ".ipc": Format.ARROW,
    ".arrows": Format.ARROW,
}
_GZIP = ".gz"
_PACKED = frozenset((".zip", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".tar", ".tgz", ".7z", ".rar"))
# What systems and editors put beside a person's files, without showing it or without asking.
_UNSEEN = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "__pycache__", "lost+found"))
_UNSEEN |= {"$recycle.bin", "system volume information", "icon\r"}
_UNSEEN |= {"_success", "_metadata", "_common_metadata"}  # of Spark
# What people put there about the files; named, and no reason to stop.
_ABOUT = frozenset(("readme", "license", "licence", "notice", "copying", "authors", "changelog", "citation"))
READ = "a .jsonl, .csv, .tsv, .txt, .json, .parquet or .arrow file, or .gz of one"
_OLDEST_PYARROW = 21  # those before 14.0.1 ran code that a file brought along


@dataclass(frozen=True)
class DataFile:
    """A file of an owner; stem: its name without the suffixes, which is the owner's NAME in a folder of owners."""

    path: Path
    format: Format
    stem: str
    is_gzip: bool = False


@dataclass(frozen=True)
class Listing:
    """The files to be read, in the order of their paths, and by name what lies beside them and is not read."""

    files: tuple[DataFile, ...]
    left_out: tuple[Path, ...] = ()


def is_hidden(name: str) -> bool:
    """Whether people do not see a file or folder of this name, or do not take it for their own text."""
    plain = name.lower()
    return plain.startswith((".", "~$")) or plain.endswith("~") or plain in _UNSEEN


def data_file(path: Path) -> DataFile:
    """Return the file with what its suffix says, however that is written.

    Raises:
        DataError: it is of a kind that is not read, or nothing that can be read.
    """
    stem, suffix = _split(path.name)
    is_gzip = suffix == _GZIP
    if is_gzip:
        stem, suffix = _split(stem)
    if suffix not in _FORMATS or not stem:
        raise DataError("AGFL-DATA-032", f"data: {path}: {_rule(suffix, is_gzip)}")
    inner = _split(stem)[1]
    if _FORMATS[suffix] is Format.TEXT and _FORMATS.get(inner, Format.TEXT) is not Format.TEXT:
        rule = f"must be named for what it holds, got {inner!r} and {suffix!r}"  # as Windows does, which hides the last
        raise DataError("AGFL-DATA-033", f"data: {path}: {rule}")
    _refuse_special(path)
    if _FORMATS[suffix] in TABLES:
        _refuse_without_pyarrow(path)
    return DataFile(path, _FORMATS[suffix], unicodedata.normalize("NFC", stem), is_gzip)


def list_files(path: Path) -> Listing:
    """Return an owner's files: the one at `path`, or all in the folder there and in those below it.

    Hidden ones are left alone, links are followed, and a file that several of them lead to is read once.

    Raises:
        DataError: names what is not there, cannot be opened, or is of a kind that is not read.
    """
    if not _is_folder(path):
        return Listing((data_file(path),))
    _refuse_other_folder(path)
    found: list[Path] = []
    _walk(path, found, set())
    check_shards(found)
    left_out = [file for file in found if _is_about(file)]
    once = {os.path.realpath(file): file for file in sorted(set(found) - set(left_out), reverse=True)}
    return Listing(tuple(data_file(file) for file in sorted(once.values())), tuple(sorted(left_out)))


def list_owners(folder: Path) -> tuple[dict[str, Path], tuple[Path, ...]]:
    """Return what each owner has in a folder of owners by NAME, sorted, and what is not read there.

    An owner is a file, or a folder of files.

    Raises:
        DataError: as `list_files`, and two owners have one NAME.
    """
    _refuse_other_folder(folder)
    if is_dataset(folder):
        raise DataError(
            "AGFL-DATA-034", f"data.path: {folder}: must be a folder of owners, got what `datasets` saved of one"
        )
    owners: dict[str, Path] = {}
    left_out = []
    for path in sorted(_entries(folder)):
        if _is_about(path):
            left_out.append(path)
            continue
        if _is_folder(path):
            list_files(path)  # says early what is not read
            name = unicodedata.normalize("NFC", path.name)
        else:
            name = data_file(path).stem
        if name in owners:
            raise DataError(
                "AGFL-DATA-035", f"data.path: {folder}: must hold one file an owner, got {owners[name]} and {path}"
            )
        owners[name] = path
    return dict(sorted(owners.items())), tuple(left_out)


def _refuse_other_folder(folder: Path) -> None:
    """Raise DataError if this is one of our folders, whose files are not training text, or if it cannot be read."""
    try:
        hint = folder_hint(folder)
    except OSError as error:
        raise not_read(folder, error) from None
    if hint:
        raise DataError("AGFL-DATA-036", f"data: {folder}: must be a folder of texts{hint}")


def _walk(folder: Path, found: list[Path], above: set[str]) -> None:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that it stands in
    if is_dataset(folder):
        found += dataset_files(folder)
        return
    for entry in sorted(_entries(folder)):
        if _is_folder(entry):
            _walk(entry, found, above | {real})
        else:
            found.append(entry)


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if not is_hidden(name)]
    except OSError as error:
        raise not_read(folder, error) from None


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        where = f", a link to {os.readlink(path)}" if path.is_symlink() else ""
        raise DataError("AGFL-DATA-037", f"data: {path}: no such file or folder{where}") from None
    except (OSError, ValueError) as error:
        raise not_read(path, error) from None


def _refuse_special(path: Path) -> None:
    """Refuse pipes and devices, which may have no end, and what cannot be opened."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError("AGFL-DATA-038", f"data: {path}: must be a file or a folder, got a pipe, socket or device")
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise not_read(path, error) from None


def _refuse_without_pyarrow(path: Path) -> None:
    try:
        import pyarrow
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            "AGFL-DATA-039", f"data: {path}: needs the extra `data` (pip install 'agfl[data]'): {reason}"
        ) from None
    if int(pyarrow.__version__.split(".")[0]) < _OLDEST_PYARROW:
        rule = f"needs pyarrow {_OLDEST_PYARROW} or newer (pip install 'agfl[data]')"
        raise DataError("AGFL-DATA-040", f"data: {path}: {rule}, got {pyarrow.__version__}")


def _split(name: str) -> tuple[str, str]:
    """Return ("a.b", ".c") of "a.b.C ", as Windows takes names; a name that only begins with a dot has no suffix."""
    stem, dot, suffix = name.rstrip(" ").rpartition(".")
    return (stem, f".{suffix.lower()}") if dot else (suffix, "")


def _is_about(path: Path) -> bool:
    stem, suffix = _split(path.name)
    is_text = _FORMATS.get(suffix) is Format.TEXT or suffix not in _FORMATS
    if path.name.lower() == "dataset_infos.json":  # as older folders of a hub have it
        return True
    return stem.lower() in _ABOUT and is_text and suffix != _GZIP and not _is_folder(path)


def _rule(suffix: str, is_gzip: bool) -> str:
    if suffix in _PACKED:
        return f"must be {READ}; unpack it first, got {suffix!r}"
    got = repr(suffix) if suffix else "no suffix"
    return f"must be {READ}, got {got}{f' before {_GZIP!r}' if is_gzip else ''}"


def not_read(path: Path, error: OSError | ValueError) -> DataError:
    """Return the error of a file or folder that the system does not give."""
    return DataError("AGFL-DATA-041", f"data: {path}: cannot be read: {getattr(error, 'strerror', None) or error}")
