"""What a run takes where its file leaves the training or the server's step open: one table, each row with its reason.

The table is applied to the file, before it is checked: what it fills in is part of the run like what was written there,
so it is in config.yaml, in the hash, and in what clients get. A client fills in nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from agfl_protocol.config import presets

Content: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class TakenDefault:
    """A setting that was left out (`section.key`), what it became, in plain data, and why."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class _Row:
    """`value` says what `setting` becomes in a run, and is None where the row does not apply."""

    setting: str
    value: Callable[[Content], Any]
    reason: str


def with_defaults(content: Content) -> tuple[dict[str, Any], tuple[TakenDefault, ...]]:
    """Return a run's plain data with what it leaves open filled in, and what was taken.

    A key that is there is stated, whatever it holds.
    """
    filled, taken = dict(content), list[TakenDefault]()
    for row in _TABLE:
        section, key = row.setting.split(".")
        stated = filled.get(section, {})
        if not isinstance(stated, Mapping) or key in stated:
            continue  # what is no mapping will be refused
        value = row.value(filled)
        if value is not None:
            filled[section] = {**stated, key: value}
            taken.append(TakenDefault(row.setting, value, row.reason))
    return filled, tuple(taken)


def _of_preset(run: Content) -> Any:
    lr = presets.client_lr(_server_optimizer(run))
    return None if lr is None else {"type": "sgd", "lr": lr}


def _if_pretrained(run: Content) -> Any:
    return {"type": "adamw", "lr": 2e-4} if _section(run, "model").get("family") == "huggingface" else None


def _if_untuned(run: Content) -> Any:
    return None if "optimizer" in _section(run, "training") or _of_preset(run) else 1.0


def _if_no_epochs(run: Content) -> Any:
    return 24 if _section(run, "training").get("local_epochs") is None else None


def _if_epochs(run: Content) -> Any:
    """FedExP, weights by loss and the methods for which owners keep state need plain means; see `AggregationConfig`."""
    if _section(run, "training").get("local_epochs") is None:
        return None
    takes_steps_apart = _server_optimizer(run).get("type") not in ("fedexp", "scaffold", "feddyn")
    return "normalized" if takes_steps_apart and _section(run, "aggregation").get("weighting") != "loss" else None


def _always(value: Any) -> Callable[[Content], Any]:
    return lambda run: value


def _section(run: Content, name: str) -> Content:
    found = run.get(name)
    return found if isinstance(found, Mapping) else {}


def _server_optimizer(run: Content) -> Content:
    return _section(_section(run, "aggregation"), "server_optimizer")


# The first row that applies fills in a setting; later ones find it stated.
_TABLE = (
    _Row("training.max_grad_norm", _if_untuned, "bounds a step, whatever the rate"),
    _Row(
        "training.optimizer", _of_preset, "tuned together with the server's rate (Reddi et al. 2021, arXiv:2003.00295)"
    ),
    _Row("training.optimizer", _if_pretrained, "a pretrained model wants small steps, of like size in all its layers"),
    _Row(
        "training.optimizer",
        _always({"type": "sgd", "lr": 0.5}),
        "AdamW's moments start anew each round, and learn little in a few steps",
    ),
    _Row(
        "training.local_steps", _if_no_epochs, "few, so that owners' models stay together; enough to be worth a round"
    ),
    _Row(
        "aggregation.server_optimizer",
        _always({"type": "auto"}),
        "Nesterov, unless the loss on what owners hold out says that another step is better",
    ),
    _Row(
        "aggregation.averaging",
        _if_epochs,
        "epochs are as many steps as an owner has text for; none pulls further for that (FedNova)",
    ),
)
