"""Distributions as an installer leaves them in a folder of site-packages, for plug-ins under test."""

from __future__ import annotations

import base64
import hashlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agfl_models import plugins
from agfl_models.layers.layer import LAYERS
from agfl_models.model.base_config import FAMILIES
from agfl_models.tasks.config import TASKS
from agfl_protocol.config.trainer_config import TRAINERS
from agfl_protocol.methods.method import METHOD_CONFIGS
from agfl_protocol.methods.registry import METHODS

EXAMPLES = Path(__file__).parents[1] / "simulations" / "examples"


def install(
    folder: Path, name: str, version: str, files: Mapping[str, str], offers: Mapping[str, Mapping[str, str]]
) -> Path:
    """Write a distribution of these files; offers: what each group's entry points name. Return `folder`."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    entries = "".join(
        f"[{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in of.items()) for group, of in offers.items()
    )
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content = {**files, f"{info}/METADATA": metadata, f"{info}/entry_points.txt": entries}
    record = ""
    for path, text in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    (folder / info / "RECORD").write_text(f"{record}{info}/RECORD,,\n")
    return folder


def install_digits(folder: Path, *, version: str | None = None, more: str = "") -> Path:
    """Write the example plug-in; version and `more` code make it another one."""
    project = tomllib.loads((EXAMPLES / "digits_plugin" / "pyproject.toml").read_text())["project"]
    code = (EXAMPLES / "own_model_on_digits.py").read_text() + more
    files, offers = {"own_model_on_digits.py": code}, project["entry-points"]
    return install(folder, project["name"], version or project["version"], files, offers)


OWN_TASK = """
from typing import Literal
from agfl_models.examples import Row
from agfl_models.tasks.config import TASKS
from agfl_models.tasks.own_task import OwnTaskConfig
from agfl_models.tasks.task import MainMetric


class OwnConfig(OwnTaskConfig):
    row = Row
    main_metric = MainMetric("eval/loss", "loss", 0.0, 9.0, higher_is_better=False)
    type: Literal["own_task"]

    def collate(self, rows):
        raise NotImplementedError

    def loss(self, model, batch):
        raise NotImplementedError

    def evaluate(self, model, batch):
        raise NotImplementedError

    def scores(self, sums):
        raise NotImplementedError
"""


@contextmanager
def registries_kept(*, is_empty: bool = False) -> Iterator[None]:
    """Forget in the end what plug-ins registered in this block; is_empty: forget before it that any is enabled."""
    kept = [FAMILIES, TASKS, LAYERS, METHOD_CONFIGS, TRAINERS]
    names = ("_kinds", "_types", "_origins")
    before = [{name: dict(getattr(one, name)) for name in names} for one in kept]
    loaded, methods, modules = dict(plugins._loaded), list(METHODS), set(sys.modules)
    if is_empty:
        plugins._loaded.clear()
    try:
        yield
    finally:
        for one, dicts in zip(kept, before, strict=True):
            for name, content in dicts.items():
                setattr(one, name, content)
        METHODS[:] = methods
        plugins._loaded.clear()
        plugins._loaded.update(loaded)
        for name in set(sys.modules) - modules:
            if name.startswith("own_") or name == "elsewhere":
                del sys.modules[name]
