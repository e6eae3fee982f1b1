"""Plug-ins: installed distributions that offer models, tasks, layers or methods; loaded only where a person names them.

A distribution offers a part as an entry point of one of the groups below, whose name is the type's own:

    [project.entry-points."agfl.tasks"]
    digits = "agfl_digits:DigitsConfig"

Finding and hashing runs none of its code. Who names it is the operator or researcher in a run's configuration, the
owner in a policy, and the user of a model on the command line; no message does.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from agfl_models.bounded import shown
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.layers.layer import LAYERS
from agfl_models.model.base_config import FAMILIES
from agfl_models.registry import loading
from agfl_models.tasks.config import TASKS
from agfl_models.validation import Config, nearest, validate

MAX_PLUGINS = 16
# Of each group, what takes a class that a plug-in offers and returns its names. agfl_protocol adds methods.
GROUPS: dict[str, Callable[[Any], Sequence[str]]] = {
    "agfl.layers": LAYERS.add,
    "agfl.models": FAMILIES.add,
    "agfl.tasks": TASKS.add,
}
_SHOWN = 12  # hexadecimal digits of a hash
_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_loaded: dict[str, Plugin] = {}


class Plugin(Config):
    """One plug-in, as a plan pins it.

    name: of the distribution, normalized (PEP 503). files: SHA-256 of its files, in hexadecimal; see `pin_of`.
    """

    name: Annotated[str, Field(max_length=64, pattern=_NAME)]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.!+_-]{1,64}$")]
    files: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def __str__(self) -> str:
        return f"{self.name} {self.version} (files {self.files[:_SHOWN]})"


class _Named(Config):
    plugins: Annotated[
        tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_PLUGINS, fail_fast=True)
    ] = ()


def _refuse_unloaded(plugins: tuple[Plugin, ...]) -> tuple[Plugin, ...]:
    names = [plugin.name for plugin in plugins]
    if names != sorted(set(names)):
        raise BrokenRule("AGFL-CONFIG-220", f"must be sorted by name, each once, got {', '.join(names)}")
    for plugin in plugins:
        own = _loaded.get(plugin.name)
        if own is None:
            raise BrokenRule("AGFL-CONFIG-221", f"{plugin} must be enabled by the policy here, got it disabled")
        if own != plugin:
            raise BrokenRule("AGFL-CONFIG-222", f"must be {plugin} here, too, got {own.version} ({own.files[:_SHOWN]})")
    return plugins


# Plug-ins that a configuration needs: those that are enabled in this process, and no others.
Plugins = Annotated[tuple[Plugin, ...], Field(max_length=MAX_PLUGINS, fail_fast=True), AfterValidator(_refuse_unloaded)]


def names_in(content: Any, source: str) -> tuple[str, ...]:
    """Return the names that `plugins` of plain data from `source` holds; a pin has one, too; raises ConfigError."""
    listed = content.get("plugins") if isinstance(content, dict) else None
    if isinstance(listed, list | tuple):
        listed = [one.get("name") if isinstance(one, dict) else one for one in listed]
    return () if listed is None else validate(_Named, {"plugins": listed}, source).plugins


def enable(names: Iterable[str], field: str = "plugins") -> tuple[Plugin, ...]:
    """Load plug-ins that a person has named, each once in a process; return them, sorted.

    field: what that person wrote the names in.

    Raises:
        ConfigError: one is not installed, offers nothing, cannot be pinned, or does not load; then nothing of it stays.
    """
    if isinstance(names, str):
        raise ConfigError("AGFL-CONFIG-273", f"{field}: must be a list of names, got {shown(names)}")
    return tuple(_enabled(name, field) for name in sorted({normalized(name) for name in names}))


def is_enabled(name: str) -> bool:
    """Whether a plug-in is loaded in this process."""
    return name in _loaded


def _enabled(name: str, field: str) -> Plugin:
    if name in _loaded:
        return _loaded[name]
    try:
        one = distribution(name)
        if normalized(one.name) != name:  # its folder is called so
            raise PackageNotFoundError(name)
    except (PackageNotFoundError, ValueError):
        known = [normalized(one.name) for one in installed()]
        hint = nearest(name, known) if known else " (none is installed)"
        raise ConfigError(
            "AGFL-CONFIG-223", f"{field}: must be an installed plug-in, got {shown(name)}{hint}"
        ) from None
    offered = offers(one)
    if not offered:
        groups = ", ".join(sorted(GROUPS))
        raise ConfigError("AGFL-CONFIG-224", f"{field}: {name} must offer entry points in one of {groups}, has none")
    plugin, own_files = pin_of(one, field), set(_own_files(one, field).values())
    with loading(name) as under_way:
        for entry in offered:
            _register(entry, f"{field}: {name}: {entry.group} {entry.name}")
        for kind in under_way.kinds:
            if _file_of(kind) not in own_files:
                rule = "must be in one of the plug-in's own files, which a plan pins; is in"
                raise ConfigError("AGFL-CONFIG-229", f"{field}: {name}: {kind.__name__} {rule} {kind.__module__}")
    _loaded[name] = plugin
    return plugin


def _register(entry: EntryPoint, where: str) -> None:
    try:
        kind = entry.load()
    except (Exception, SystemExit) as error:  # whatever somebody's module raises
        line = f"{where}: cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigError("AGFL-CONFIG-225", line) from None
    if not isinstance(kind, type):
        raise ConfigError("AGFL-CONFIG-226", f"{where}: must be a class, got {shown(str(kind))}")
    try:
        names = GROUPS[entry.group](kind)
    except ConfigError as error:
        raise ConfigError.of(error, f"{where}: {error.sentence}") from None
    except Exception as error:  # what is no part at all has none of what is asked for
        line = f"{where}: must be a part of a run, {shown(str(kind))} is none ({type(error).__name__}: {error})"
        raise ConfigError("AGFL-CONFIG-274", line) from None
    if entry.name not in names:  # people see the entry point before anything is loaded
        raise ConfigError("AGFL-CONFIG-271", f"{where}: must be called as in a configuration, {' or '.join(names)}")


def installed() -> Iterator[Distribution]:
    """Yield the installed distributions that offer anything, by name; none of their code runs."""
    by_name: dict[str, Distribution] = {}
    for one in distributions():
        with suppress(Exception):  # of any distribution on this machine the metadata may be damaged
            if offers(one):
                by_name.setdefault(normalized(one.name), one)  # of two the one that Python imports
    return (by_name[name] for name in sorted(by_name))


def offers(one: Distribution) -> Sequence[EntryPoint]:
    """Return what a distribution offers, sorted by group and name."""
    return sorted(
        (entry for entry in one.entry_points if entry.group in GROUPS), key=lambda entry: (entry.group, entry.name)
    )


def described(one: Distribution) -> str:
    """Return what is installed, for people: as `pin_of` has it, or why that cannot be, and what it offers."""
    try:
        what = str(pin_of(one, "plugins"))
    except ConfigError as error:
        what = f"{one.version}; {error.sentence}"
    return f"{what}: {', '.join(f'{entry.group} {entry.name}' for entry in offers(one))}"


def pin_of(one: Distribution, field: str) -> Plugin:
    """Return an installed distribution as it is pinned: its version, and what is in the files that it was installed as.

    That is the SHA-256 over path and content of each file in its RECORD, in the order of their paths; but not of what
    installers and builders write by themselves: compiled code, scripts, and metadata beside the entry points.

    Raises:
        ConfigError: its files are not known, as of an editable installation, or cannot be read.
    """
    name, digest = normalized(one.name), hashlib.sha256()
    for path, place in _own_files(one, field).items():
        try:
            content = place.read_bytes()
        except OSError as error:
            line = f"{field}: {name}: {path}: cannot be read: {error.strerror}"
            raise ConfigError("AGFL-CONFIG-228", line) from None
        digest.update(f"{len(path)}:{path}{len(content)}:".encode() + content)
    return validate(Plugin, {"name": name, "version": one.version, "files": digest.hexdigest()}, f"{field}: {name}")


def _own_files(one: Distribution, field: str) -> dict[str, Path]:
    """Return where a distribution's files are, by path, in the order of these; of its metadata the entry points."""
    name = normalized(one.name)
    try:
        if one.read_text("RECORD") is None or _is_editable(one):
            raise ValueError("its files are not known, as where it is editable")
        files = {file.as_posix(): file for file in one.files or ()}
    except Exception as error:  # a RECORD can be malformed in many ways
        rule = "must be installed as a wheel (pip install without -e), so that its files can be compared"
        raise ConfigError("AGFL-CONFIG-227", f"{field}: {name} {rule}: {error}") from None
    own: dict[str, Path] = {}
    for path, file in sorted(files.items()):
        folder, _, rest = path.partition("/")
        if folder.endswith(".dist-info"):
            if rest == "entry_points.txt":
                own[rest] = Path(str(file.locate())).resolve()
        elif not path.startswith("../") and "__pycache__" not in file.parts:
            own[path] = Path(str(file.locate())).resolve()
    return own


def _file_of(kind: Any) -> Path | None:
    """Return the file in which a class stands; None of one that stands in none."""
    module = sys.modules.get(getattr(kind, "__module__", ""))
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).resolve()


def _is_editable(one: Distribution) -> bool:
    origin = json.loads(one.read_text("direct_url.json") or "{}")
    return bool((origin.get("dir_info") or {}).get("editable"))


def normalized(name: str) -> str:
    """Return a distribution's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
