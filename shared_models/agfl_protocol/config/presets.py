"""Rates that others have tuned: Reddi et al. 2021 (arXiv:2003.00295), for each of their six tasks and five methods.

The numbers are the best of their grids of powers of sqrt(10), as TensorFlow Federated's `optimization` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

Preset = Literal["cifar100", "emnist_cr", "emnist_ae", "shakespeare", "stackoverflow_nwp", "stackoverflow_lr"]


class _Tuned(NamedTuple):
    """log10 of the client's rate, of the server's, and of tau, where the method has one."""

    client_lr: float
    lr: float
    tau: float | None = None


_TUNED: dict[Preset, dict[str, _Tuned]] = {
    "cifar100": {
        "fedadagrad": _Tuned(-1, -1, -2),
        "fedadam": _Tuned(-1.5, 0, -1),
        "fedyogi": _Tuned(-1.5, 0, -1),
        "fedavgm": _Tuned(-1.5, 0),
        "fedavg": _Tuned(-1, 0.5),
    },
    "emnist_cr": {
        "fedadagrad": _Tuned(-1.5, -1, -2),
        "fedadam": _Tuned(-1.5, -2.5, -4),
        "fedyogi": _Tuned(-1.5, -2.5, -4),
        "fedavgm": _Tuned(-1.5, -0.5),
        "fedavg": _Tuned(-1, 0),
    },
    "emnist_ae": {
        "fedadagrad": _Tuned(1.5, -1.5, -3),
        "fedadam": _Tuned(1, -1.5, -3),
        "fedyogi": _Tuned(1, -1.5, -3),
        "fedavgm": _Tuned(0.5, 0),
        "fedavg": _Tuned(1, 0),
    },
    "shakespeare": {
        "fedadagrad": _Tuned(0, -0.5, -1),
        "fedadam": _Tuned(0, -2, -3),
        "fedyogi": _Tuned(0, -2, -3),
        "fedavgm": _Tuned(0, -0.5),
        "fedavg": _Tuned(0, 0),
    },
    "stackoverflow_nwp": {
        "fedadagrad": _Tuned(-0.5, -1.5, -4),
        "fedadam": _Tuned(-0.5, -2, -5),
        "fedyogi": _Tuned(-0.5, -2, -5),
        "fedavgm": _Tuned(-0.5, 0),
        "fedavg": _Tuned(-0.5, 0),
    },
    "stackoverflow_lr": {
        "fedadagrad": _Tuned(2, 1, -2),
        "fedadam": _Tuned(2, -0.5, -5),
        "fedyogi": _Tuned(2, -0.5, -5),
        "fedavgm": _Tuned(2, 0),
        "fedavg": _Tuned(2, 0),
    },
}


def server_settings(method: str, preset: Preset) -> dict[str, float]:
    """Return `lr`, and `tau` where the method has one."""
    tuned = _TUNED[preset][method]
    return {"lr": _power(tuned.lr)} | ({} if tuned.tau is None else {"tau": _power(tuned.tau)})


def client_lr(server_optimizer: Mapping[str, Any]) -> float | None:
    """Return the rate of plain SGD on the clients that was tuned together with the preset, if there is one."""
    preset, method = server_optimizer.get("preset"), server_optimizer.get("type")
    tuned = _TUNED[preset].get(str(method)) if is_preset(preset) else None
    return None if tuned is None else _power(tuned.client_lr)


def is_preset(name: object) -> TypeGuard[Preset]:
    """Whether there is a preset of this name."""
    return name in get_args(Preset)


def _power(exponent: float) -> float:
    """Return 10 to the power of `exponent`, to four digits, as a person would write it."""
    return float(f"{10.0**exponent:.4g}")
