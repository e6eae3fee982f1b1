"""No configuration takes a number that is none in float32."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import agfl_models
import agfl_protocol
from agfl_models.errors import ConfigError
from agfl_models.validation import Config, validate
from agfl_protocol.config.training_config import SGDConfig
from agfl_protocol.plans.plan import Plan


def configurations() -> list[type[Config]]:
    """Every configuration class that a run may hold."""
    packages = ("agfl_models", "agfl_protocol")
    for package in (agfl_models, agfl_protocol):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return [
        one
        for one in descendants(Config)
        if one.__module__.partition(".")[0] in packages and ".web." not in one.__module__
    ]


def descendants(base: type[Config]) -> Iterator[type[Config]]:
    for one in base.__subclasses__():
        yield one
        yield from descendants(one)


def shapes(value: float) -> Iterator[Any]:
    """A number as it may stand in a field: by itself, or in a sequence or a mapping."""
    yield from (value, [value], [value, value], {0.5: value}, {"a": value})


def takes(config: type[Config], field: str, value: Any) -> bool:
    try:
        config.model_validate({field: value})
    except ValidationError as error:
        return all(not problem["loc"] or problem["loc"][0] != field for problem in error.errors())
    return True


def test_no_field_of_any_configuration_takes_what_float32_cannot_hold() -> None:
    known = configurations()
    assert {"SGDConfig", "FedAdamConfig", "FedDynMethodConfig", "LoRAConfig", "SumsConfig", "SearchConfig"} <= {
        one.__name__ for one in known
    }
    taken = [
        f"{config.__name__}.{field}: {value}"
        for config in known
        for field in config.model_fields
        if (config, field) != (Plan, "config")  # a client plan, which is read by that class
        for number in (1e39, -1e39, math.inf, -math.inf, math.nan)
        for value in shapes(number)
        if takes(config, field, value)
    ]
    assert taken == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"lr": 1e39}, r"^here: lr: .*less than or equal to 1000000.*, got 1e\+39 \[AGFL-CONFIG-011\]$"),
        ({"lr": 1e-39}, r"^here: lr: must be at least 1e-12 where it is not 0, got 1e-39 \[AGFL-CONFIG-250\]$"),
        (
            {"lr": 1, "weight_decay": 1e-39},
            r"^here: weight_decay: must be at least 1e-12 where it is not 0, got 1e-39 \[AGFL-CONFIG-250\]$",
        ),
    ],
)
def test_a_number_out_of_bounds_is_refused_in_one_line(values: dict[str, float], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        validate(SGDConfig, {"type": "sgd", **values}, "here")
