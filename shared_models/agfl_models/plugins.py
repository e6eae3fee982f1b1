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
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from agfl_models.bounded import shown
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.layers.layer import LAYERS
from agfl_models.model.base_config import FAMILIES
from agfl_models.registry import registering_for
from agfl_models.tasks.config import TASKS
from agfl_models.validation import Config, validate

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

    name: of the distribution, normalized (PEP 503). files: SHA-256 of its files, in hexadecimal; see `found`.
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
        ConfigError: one is not installed, offers nothing, cannot be pinned, or does not load.
    """
    return tuple(_enabled(name, field) for name in sorted({normalized(name) for name in names}))


def is_enabled(name: str) -> bool:
    """Whether a plug-in is loaded in this process."""
    return name in _loaded


def _enabled(name: str, field: str) -> Plugin:
    if name in _loaded:
        return _loaded[name]
    try:
        one = distribution(name)
    except (PackageNotFoundError, ValueError):
        known = ", ".join(normalized(one.name) for one in installed()) or "none"
        raise ConfigError(
            "AGFL-CONFIG-223", f"{field}: must be installed plug-ins, got {shown(name)} (known: {known})"
        ) from None
    offered = offers(one)
    if not offered:
        groups = ", ".join(sorted(GROUPS))
        raise ConfigError("AGFL-CONFIG-224", f"{field}: {name} must offer entry points in one of {groups}, has none")
    plugin = found(one, field)
    with registering_for(name):
        for entry in offered:
            _register(entry, f"{field}: {name}: {entry.group} {entry.name}")
    _loaded[name] = plugin
    return plugin


def _register(entry: EntryPoint, where: str) -> None:
    try:
        kind = entry.load()
    except Exception as error:  # whatever somebody's module raises
        line = f"{where}: cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigError("AGFL-CONFIG-225", line) from None
    if not isinstance(kind, type):
        raise ConfigError("AGFL-CONFIG-226", f"{where}: must be a class, got {shown(str(kind))}")
    try:
        names = GROUPS[entry.group](kind)
    except ConfigError as error:
        raise ConfigError.of(error, f"{where}: {error.sentence}") from None
    if entry.name not in names:  # people see the entry point before anything is loaded
        raise ConfigError("AGFL-CONFIG-271", f"{where}: must be called as in a configuration, {' or '.join(names)}")


def installed() -> Iterator[Distribution]:
    """Yield the installed distributions that offer anything, by name; none of their code runs."""
    by_name = {normalized(one.name): one for one in distributions() if one.name and offers(one)}
    return (by_name[name] for name in sorted(by_name))


def offers(one: Distribution) -> Sequence[EntryPoint]:
    """Return what a distribution offers, sorted by group and name."""
    return sorted(
        (entry for entry in one.entry_points if entry.group in GROUPS), key=lambda entry: (entry.group, entry.name)
    )


def described(one: Distribution) -> str:
    """Return what is installed, for people: as `found` has it, or why that cannot be, and what it offers."""
    try:
        what = str(found(one, "plugins"))
    except ConfigError as error:
        what = f"{one.version}; {error.sentence}"
    return f"{what}: {', '.join(f'{entry.group} {entry.name}' for entry in offers(one))}"


def found(one: Distribution, field: str) -> Plugin:
    """Return an installed distribution as it is pinned: its version, and what is in the files that it was installed as.

    That is the SHA-256 over path and content of each file in its RECORD, in the order of their paths; but not of what
    installers and builders write by themselves: compiled code, scripts, and metadata beside the entry points.

    Raises:
        ConfigError: its files are not known, as of an editable installation, or one is missing.
    """
    name = normalized(one.name)
    if one.files is None or _is_editable(one):
        rule = "must be installed as a wheel (pip install without -e), so that its files can be compared"
        raise ConfigError("AGFL-CONFIG-227", f"{field}: {name} {rule}")
    digest = hashlib.sha256()
    for file in sorted(one.files, key=lambda file: file.as_posix()):
        path = file.as_posix()
        if file.hash is None or path.startswith("../") or (".dist-info/" in path and file.name != "entry_points.txt"):
            continue
        try:
            content = file.read_binary()
        except OSError as error:
            line = f"{field}: {name}: {path}: cannot be read: {error.strerror}"
            raise ConfigError("AGFL-CONFIG-228", line) from None
        relative = file.name if ".dist-info/" in path else path
        digest.update(f"{len(relative)}:{relative}{len(content)}:".encode() + content)
    return validate(Plugin, {"name": name, "version": one.version, "files": digest.hexdigest()}, f"{field}: {name}")


def _is_editable(one: Distribution) -> bool:
    text = one.read_text("direct_url.json")
    try:
        origin = json.loads(text) if text else {}
    except ValueError:
        return False
    return isinstance(origin, dict) and bool(origin.get("dir_info", {}).get("editable"))


def normalized(name: str) -> str:
    """Return a distribution's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
