"""One YAML file describes a run: what its owners are asked for, and all that is the server's or a simulation's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from agfl_models.bounded import Owners, few, shown
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.model.config import ModelConfig
from agfl_models.plugins import enable, names_in, normalized
from agfl_models.reading.corpora import corpus_of
from agfl_models.validation import Config, dump_yaml, load_yaml, read_yaml, validate
from agfl_protocol.config.defaults import TakenDefault, with_defaults
from agfl_protocol.config.devices_config import DevicesConfig
from agfl_protocol.config.elastic_config import ElasticConfig, Width, WidthsConfig
from agfl_protocol.config.search_config import SearchConfig
from agfl_protocol.config.sums_config import SumsConfig
from agfl_protocol.methods.registry import MethodConfigs, refuse_misfits
from agfl_protocol.optimizers import ServerOptimizerConfig
from agfl_protocol.plans.client_plan import ClientPlan, RunBase
from agfl_protocol.plans.trainer_needs import refuse_unserved
from agfl_protocol.version import PROTOCOL_VERSION

ConfigT = TypeVar("ConfigT", bound=Config)
Tracking = Literal["tensorboard", "mlflow", "wandb"]
# Keys on which no round depends, and paths of one machine.
_LOCAL: dict[str, Any] = {
    **dict.fromkeys(("data", "baselines", "search", "tracking"), True),
    "model": {"folder"},
    "tokenizer": {"text"},
}


class AggregationConfig(SumsConfig):
    """How updates become one step of the global model.

    round_timeout_s: how long the server waits for a cohort.
    """

    server_optimizer: ServerOptimizerConfig
    round_timeout_s: Annotated[float, Field(gt=0, le=30 * 86400)] = 3600.0


class DataConfig(Config):
    """Where a simulation's owners come from. A deployed client ignores it: each owner names its own text.

    path: folder of one file or folder NAME an owner; None takes a shipped corpus, divided by `partition`. columns: what
    the task's columns are called in the files of `path`. corpus: None takes the task's own.
    dirichlet_alpha, shards_per_owner, size_sigma: of the partitions dirichlet, shards and lognormal; see
    `agfl_sim.skewed`.
    max_widths: of an elastic model, how many owners have a device that holds which width; None lets all hold all.
    devices: how long owners take, in a time that is made up; None lets them take as long as this machine does.
    """

    path: Path | None = None
    columns: Annotated[dict[str, str], BeforeValidator(few)] = Field(default_factory=dict)
    corpus: str | None = None
    partition: Literal["natural", "grouped", "iid", "dirichlet", "shards", "lognormal"] = "grouped"
    dirichlet_alpha: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.5
    shards_per_owner: Owners = 2
    size_sigma: Annotated[float, Field(ge=0, le=10)] = 1.0
    num_owners: Owners | None = 24
    max_widths: Annotated[dict[Width, Owners] | None, BeforeValidator(few)] = None
    devices: DevicesConfig | None = None

    @field_validator("path", mode="before")
    @classmethod
    def _path_is_given(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():  # which is the folder one stands in, to `pathlib`
            raise BrokenRule("AGFL-CONFIG-137", f"must name a folder, got {path!r}")
        return path


class RunConfig(RunBase):
    """Everything that defines a federated run; a file may leave open what `agfl_protocol.config.defaults` fills in.

    methods: what is added to the training of owners, beside what `aggregation` says.
    baselines: a simulation also trains each owner's own model, the global one further at each owner, and one with all
    text in one place, to compare the global model with. A deployment ignores it, as it ignores `data`: nobody has
    all text there.
    search: architectures race, for all rounds or some, and the one that wins is trained to the last.
    tracking: where metrics go beside the run's folder. It is the operator's own business, which no client hears of.
    """

    aggregation: AggregationConfig
    elastic: ElasticConfig | None = None
    methods: Annotated[MethodConfigs, Field(max_length=16)] = ()
    data: DataConfig = DataConfig()
    baselines: bool = False
    search: SearchConfig | None = None
    tracking: Annotated[tuple[Tracking, ...], Field(max_length=8)] = ()

    @field_validator("methods")
    @classmethod
    def _are_chosen(cls, methods: MethodConfigs) -> MethodConfigs:
        bound = next((method for method in methods if not method.is_chosen), None)
        if bound is not None:
            raise BrokenRule("AGFL-CONFIG-138", f"{bound.type} comes with what aggregation says, got it by itself")
        return methods

    @model_validator(mode="after")
    def _search_fits_model(self) -> RunConfig:
        if not isinstance(self.model, ModelConfig):
            if self.search is not None:
                raise BrokenRule(
                    "AGFL-CONFIG-139", f"search: needs a model made of layers, got family {self.model.family}"
                )
        elif self.search is None and self.model.choices:
            raise BrokenRule(
                "AGFL-CONFIG-140",
                f"search: required where model.layers hold a choice, got {', '.join(self.model.choices)}",
            )
        return self

    @model_validator(mode="after")
    def _search_is_part_of_run(self) -> RunConfig:
        rounds = sum(self.search.rungs or ()) if self.search is not None else 0
        if rounds > self.num_rounds:
            raise BrokenRule(
                "AGFL-CONFIG-141", f"search.rungs: must sum to at most num_rounds = {self.num_rounds}, got {rounds}"
            )
        return self

    @model_validator(mode="after")
    def _corpus_is_of_task(self) -> RunConfig:
        if self.data.corpus is not None:
            try:
                corpus_of(self.task.type, self.data.corpus)
            except ConfigError as error:
                raise BrokenRule.of(error) from None
        return self

    @model_validator(mode="after")
    def _devices_hold_widths_of_model(self) -> RunConfig:
        devices = sorted(self.data.max_widths or ())
        if devices and self.elastic is None:
            raise BrokenRule(
                "AGFL-CONFIG-142", f"data.max_widths: needs elastic, whose widths the devices hold, got {devices}"
            )
        if self.elastic is not None and not set(devices) <= set(self.elastic.widths):
            rule = f"must be among elastic.widths {list(self.elastic.widths)}"
            raise BrokenRule("AGFL-CONFIG-143", f"data.max_widths: {rule}, got {devices}")
        return self

    @model_validator(mode="after")
    def _devices_know_steps(self) -> RunConfig:
        if self.data.devices is not None and self.training.local_steps is None:
            rule = "data.devices: needs training.local_steps, since a device takes so long for a step"
            raise BrokenRule("AGFL-CONFIG-286", f"{rule}, got local_epochs {self.training.local_epochs}")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> RunConfig:
        plan = self.client_plan
        types = [method.type for method in plan.methods]
        if len(set(types)) != len(types):
            raise BrokenRule("AGFL-CONFIG-144", f"methods: must name each once, got {', '.join(types)}")
        refuse_misfits(plan)
        refuse_unserved(plan)
        return self

    @property
    def client_plan(self) -> ClientPlan:
        """What clients get to know of the run."""
        methods = (*self.methods, *self.aggregation.server_optimizer.client_methods)
        shared = {name: getattr(self, name) for name in RunBase.model_fields}
        return ClientPlan.model_construct(
            **shared
            | {
                "aggregation": _part(SumsConfig, self.aggregation),
                "elastic": None if self.elastic is None else _part(WidthsConfig, self.elastic),
                "methods": tuple(sorted(methods, key=lambda method: method.type)),
            }
        )

    def to_yaml(self) -> str:
        """Return the configuration with every default filled in."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def defining(self) -> dict[str, Any]:
        """What defines the run, as JSON.

        `num_rounds`, `evaluation`, `data`, `baselines`, `search`, `tracking` and paths of one machine may change.
        """
        return self.model_dump(mode="json", exclude={"num_rounds": True, "evaluation": True, **_LOCAL})

    @property
    def hash(self) -> str:
        """SHA-256 of what defines the run."""
        text = json.dumps({"protocol": PROTOCOL_VERSION, **self.defining}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _part(base: type[ConfigT], config: Config) -> ConfigT:
    """Return the fields that a configuration has from its base."""
    part = base.model_construct(**{name: getattr(config, name) for name in base.model_fields})
    assert isinstance(part, base)
    return part


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration; each override is `a.b.c=VALUE` with VALUE in YAML.

    Raises:
        ConfigError: names the file, the field, the rule and the value.
    """
    return load_with_defaults(path, overrides)[0]


def load_finished(path: Path) -> RunConfig:
    """Read the configuration of a run that is over, of whose plug-ins there may be another version now."""
    content = read_yaml(path)
    return fill({**content, "plugins": list(names_in(content, str(path)))}, (), str(path))[0]


def load_with_defaults(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    """Read a run configuration, and say what it left open and took; raises as `load_run_config`."""
    return fill(read_yaml(path), overrides, str(path))


def fill(
    content: Mapping[str, Any], overrides: Sequence[str], source: str
) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    """Return the run that plain data from `source` describes, and what it took; raises as `load_run_config`."""
    changed = deepcopy(dict(content))
    for override in overrides:
        _apply(changed, override)
    try:
        return _filled(changed, source)
    except ConfigError as error:
        if not overrides or not _holds(content, source):
            raise
        # The file is as it should be, so what was set is not.
        raise ConfigError.of(error, f"--set: {error.sentence.removeprefix(f'{source}: ')}") from None


def _filled(content: Mapping[str, Any], source: str) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    filled, taken = with_defaults(_with_plugins(content, source))
    return validate(RunConfig, filled, source), taken


def _with_plugins(content: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Load the plug-ins that a run names, and return the run with each as it is installed; a pin that is there stays.

    Who reads a run's configuration wrote it, or asked for it by name; what a message holds does not come here.
    """
    names = names_in(content, source)
    if not names:
        return content
    pins = {plugin.name: plugin.model_dump() for plugin in enable(names, f"{source}: plugins")}
    stated = {normalized(one["name"]): one for one in content["plugins"] if isinstance(one, dict)}
    return {**content, "plugins": [stated.get(name, pin) for name, pin in pins.items()]}


def _holds(content: Mapping[str, Any], source: str) -> bool:
    """Whether a configuration is good as it stands in its file."""
    try:
        _filled(content, source)
    except ConfigError:
        return False
    return True


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            "AGFL-CONFIG-145", f"--set: must be KEY=VALUE (as in training.local_steps=5), got {shown(override)}"
        )
    if not text.strip():
        rule = "must have a value (null for none), got none; is a shell variable not set?"
        raise ConfigError("AGFL-CONFIG-146", f"--set {key}: {rule}")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            "AGFL-CONFIG-147", f"--set {key}: malformed YAML value {shown(text)}: {' '.join(str(error).split())}"
        ) from None
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        if isinstance(node, list) and parent.isdecimal() and int(parent) < len(node):
            node = node[int(parent)]
        elif isinstance(node, dict):
            node = node.setdefault(parent, {})
        else:
            raise ConfigError("AGFL-CONFIG-148", f"--set {key}: {shown(parent)} names nothing in the configuration")
    if not isinstance(node, dict):
        raise ConfigError("AGFL-CONFIG-149", f"--set {key}: {shown(last)} names nothing in the configuration")
    node[last] = value
