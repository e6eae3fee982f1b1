"""What a folder of ours is, for a command that wanted another one: it is named, with a way on.

Known by the names in it alone; nothing is read.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from agfl_models.files.store_files import CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, WEIGHTS_FILE


def folder_hint(path: Path) -> str:
    """Return "; it is ..." with how to get at what is in it, of a folder of ours; empty of any other."""
    kind = _kind(path) if path.is_dir() else ""
    return f"; it is {kind}" if kind else ""


def _kind(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    shown = shlex.quote(str(folder))
    if "nodes" in names and "server.key" in names:
        run = folder / "run"
        if (run / MODEL_FOLDER / CONFIG_FILE).exists():
            return f"a federation's folder of agfl-server, and its model is in {shlex.quote(str(run))}"
        if run.is_dir():
            return f"a federation's folder of agfl-server without a model: go on with {_server(shown)} --resume"
        return f"a federation's folder of agfl-server that has not run yet: {_server(shown)}"
    if "ca.key" in names:
        return "the authority of a federation, which only agfl-server renew needs (--ca)"
    if "transport.key" in names:
        return "an owner's keys of agfl-client keygen (--keys)"
    if {METRICS_FILE, CONFIG_FILE} <= names:
        return _run(folder, shown)
    if {WEIGHTS_FILE, CONFIG_FILE} <= names:
        return f"a trained model: agfl-model describe {shown}"
    if any(name.startswith("round-") and name.endswith(".safetensors") for name in names):
        return f"the checkpoints of the run in {shlex.quote(str(folder.parent))}"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "a Hugging Face model, which model.folder of a run, or --pretrained, names"
    return ""


def _run(folder: Path, shown: str) -> str:
    if (folder / MODEL_FOLDER / CONFIG_FILE).exists():
        return f"a run, and its model is in it: agfl-model describe {shown}"
    if (folder.parent / "server.key").exists():
        return f"a run that has not finished: go on with {_server(shlex.quote(str(folder.parent)))} --resume"
    return f"a run that has not finished: go on with agfl-simulate and its configuration, --output {shown} --resume"


def _server(folder: str) -> str:
    return f"agfl-server start --federation {folder}"
