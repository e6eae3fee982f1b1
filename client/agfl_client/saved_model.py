"""The trained model at an owner: `start --save-model DIR` keeps the last one that the server sent, and nothing else.

DIR holds model.safetensors and config.yaml, as `agfl-model` reads them, and received.json, which says of which run and
round. The names are fixed, each file appears whole or not at all, and the next run's model takes their place: so a
server can write neither anything else nor more than the owner's policy permits of parameters.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agfl_models.errors import CheckpointError, ConfigError, WireError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.store import CONFIG_FILE, WEIGHTS_FILE, save_model
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import build_model
from agfl_models.model.rings import outline
from agfl_protocol.messages.wire import ModelRequest
from agfl_protocol.plans.client_plan import ClientPlan
from agfl_protocol.update import Layout

RECEIPT_FILE = "received.json"
_OURS = {WEIGHTS_FILE, CONFIG_FILE, RECEIPT_FILE}


@dataclass(frozen=True)
class SavedModel:
    """The folder of `--save-model`.

    Raises:
        ConfigError: it holds anything but a model that was received before.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise ConfigError("AGFL-CONFIG-067", f"--save-model: must name a folder, got the file {self.folder}")
        found = {path.name for path in self.folder.iterdir() if not path.name.startswith(".writing-")}
        if found and not (RECEIPT_FILE in found and found <= _OURS):
            rule = "must be a new or empty folder, or one with a model that this command saved"
            raise ConfigError("AGFL-CONFIG-068", f"--save-model: {self.folder}: {rule}; nothing else is replaced")

    @property
    def shown(self) -> tuple[str, str]:
        """How a line names the folder, and how a person types it."""
        return str(self.folder), shlex.quote(str(self.folder))

    @staticmethod
    def check(request: ModelRequest, config: ClientPlan) -> None:
        """Raise WireError where the vector is not of the model that `config` describes, or not finite."""
        size = config.model.num_parameters()
        if request.model.size != size:
            raise WireError(
                "AGFL-WIRE-001", f"model: must have {size} parameters as configured, got {request.model.size}"
            )
        if not np.isfinite(request.model).all():
            raise WireError("AGFL-WIRE-002", "model: must be finite, got NaN or infinity")

    def write(self, request: ModelRequest, config: ClientPlan) -> None:
        """Write a received model that was checked.

        Raises:
            CheckpointError: the folder cannot be written; the line has no path in it, since the server gets it.
        """
        layout = _layout(config)
        receipt = {"run": request.run_id, "round": request.round}
        widths = config.elastic.widths if config.elastic is not None else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / RECEIPT_FILE, (json.dumps(receipt) + "\n").encode())
            weights = layout.state_dict(request.model)
            save_model(self.folder, config.model, weights, config.task, config.tokenizer, widths)
        except OSError as error:
            raise CheckpointError(
                "AGFL-CHECKPOINT-012", f"model: cannot be written at this owner: {error.strerror}"
            ) from None
        except CheckpointError:
            raise CheckpointError("AGFL-CHECKPOINT-013", "model: cannot be written at this owner") from None


def _layout(config: ClientPlan) -> Layout:
    """Return the whole model's layout, where possible without the memory that its weights would take."""
    if isinstance(config.model, ModelConfig):
        return Layout.of(outline(config.model))
    return Layout.of(build_model(config.model, seed=0))
