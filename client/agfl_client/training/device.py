"""Which device trains: what the owner named, or the best that is there."""

from __future__ import annotations

import torch

from agfl_models.errors import ConfigError

AUTO = "auto"


def choose_device(name: str) -> str:
    """Return `name` if this machine has it; "auto" takes cuda, then mps, then cpu.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            "AGFL-CONFIG-186", f"--device: must be auto, cpu, or a device of this machine, got {name!r} ({reason})"
        ) from None
    return name
