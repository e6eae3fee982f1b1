"""One YAML file describes a run; server, clients and simulation read the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from agfl_models.bounded import Examples, Owners, Rounds, Seed, few, load_json, shown
from agfl_models.errors import ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.model.families import AnyModelConfig, build_tokenizer, refuse_misfit
from agfl_models.model.rings import Rings
from agfl_models.reading.corpora import corpus_of
from agfl_models.tasks import TaskConfig
from agfl_models.tasks.task import AnyTask
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, Pair, TokenizerConfig
from agfl_models.validation import Config, dump_yaml, load_yaml, read_yaml, validate
from agfl_protocol.config.defaults import TakenDefault, with_defaults
from agfl_protocol.config.elastic_config import ElasticConfig, Width
from agfl_protocol.config.optimizer_config import (
    ClientOptimizerConfig,
    FedDynConfig,
    FedExPConfig,
    PortfolioConfig,
    ScaffoldConfig,
    ServerOptimizerConfig,
)
from agfl_protocol.config.search_config import SearchConfig
from agfl_protocol.methods.registry import refuse_misfits

PROTOCOL_VERSION = 2
# Keys on which no round depends, and paths of one machine.
_LOCAL: dict[str, Any] = {"data": True, "baselines": True, "search": True, "model": {"folder"}, "tokenizer": {"text"}}

_LENGTHS = {"sequence_length", "context_length", "source_length", "target_length"}  # of tasks, in tokens


class TrainingConfig(Config):
    """What a client does in a round: `local_steps` batches, or `local_epochs` passes over its text.

    proximal_mu: pull toward the global model, mu / 2 |x - x_0|^2 beside the loss (FedProx, Li et al. 2020,
    arXiv:1812.06127, Algorithm 2).
    """

    optimizer: ClientOptimizerConfig
    proximal_mu: NonNegativeFloat = 0.0
    batch_size: Annotated[int, Field(gt=0, le=1 << 16)] = 16
    local_steps: Rounds | None = None
    local_epochs: Rounds | None = None
    max_grad_norm: PositiveFloat | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingConfig:
        if (self.local_steps is None) == (self.local_epochs is None):
            got = f"{self.local_steps} and {self.local_epochs}"
            raise ValueError(f"exactly one of local_steps and local_epochs must be given, got {got}")
        return self


class AggregationConfig(Config):
    """How updates become one step of the global model.

    type: "secure" lets the server learn only the sum; "plain" shows it every owner's update.
    cohort_size: owners asked each round; None asks all that are there.
    min_cohort: a round with fewer updates is repeated, at most `max_attempts` times in all. None takes 2, or with
    "secure" max_colluders + 3, or all if they are fewer. max_colluders: owners that may conspire with the server; None
    takes a third of the roster, at least 1. Every client applies its own owner's bounds, whatever stands here.
    weighting: by predictions trained on (tokens; of question answering, questions), alike ("uniform"), or by the loss
    to the power `fairness_q`, so that the owners whom the model serves worst count most, at most 16 times what others
    do; a loss counts as at most `max_loss` (q-FFL, Li et al. 2020, arXiv:1905.10497, Algorithm 2); or by predictions
    times exp(`alignment_kappa` cos), a factor in [1/3, 3], where cos is between the owner's update and the global
    model's last step ("alignment").
    clip_l2: bound of the L2 norm of one owner's update; "auto" learns it from how many exceed it (`clipping`).
    max_weight: cap of one owner's weight, in predictions; None means one round's `local_steps` batches, of "alignment"
    three times that. averaging: of what clients moved in all, or "normalized", of what they moved in a step, for
    clients that take unequal numbers of them. group_rule: "geometric_median" sums each group of the plan by itself and
    steps by what most of them say, so that one owner's lie decides no round; the server then learns each group's sum.
    With server_optimizer scaffold or feddyn owners keep state from round to round, and all must weigh alike.
    """

    type: Literal["secure", "plain"] = "secure"
    server_optimizer: ServerOptimizerConfig
    cohort_size: Owners | None = None
    min_cohort: Owners | None = None
    max_colluders: Owners | None = None
    max_attempts: Annotated[int, Field(gt=0, le=1000)] = 3
    round_timeout_s: Annotated[float, Field(gt=0, le=30 * 86400)] = 3600.0
    clip_l2: PositiveFloat | Literal["auto"] = "auto"
    weighting: Literal["tokens", "uniform", "loss", "alignment"] = "tokens"
    fairness_q: NonNegativeFloat = 1.0
    max_loss: PositiveFloat = 10.0
    alignment_kappa: NonNegativeFloat = 1.0
    max_weight: PositiveFloat | None = None
    averaging: Literal["mean", "normalized"] = "mean"
    group_rule: Literal["mean", "geometric_median"] = "mean"

    @model_validator(mode="after")
    def _groups_are_sums(self) -> AggregationConfig:
        if self.group_rule == "mean":
            return self
        is_summed = isinstance(self.server_optimizer, ScaffoldConfig | FedDynConfig | FedExPConfig)
        if self.type == "plain" or is_summed or self.weighting == "loss" or self.cohort_size is not None:
            got = f"{self.type}, {self.server_optimizer.type}, {self.weighting} and {self.cohort_size}"
            rule = "needs type secure, no scaffold, feddyn or fedexp, no weighting by loss and no cohort_size"
            raise ValueError(f"group_rule {self.group_rule} {rule}, got {got}")
        return self


class EvaluationConfig(Config):
    """The global model is evaluated on the owners' validation text every `every` rounds and after the last one.

    max_examples: that each owner draws afresh where evaluation rides along with training, and of all that it holds out
    the most that it evaluates after the last round; of language modeling, sequences.
    """

    every: Rounds = 5
    max_examples: Examples = 128


class DataConfig(Config):
    """Where a simulation's owners come from. A deployed client ignores it: each owner names its own text.

    path: folder of one file or folder NAME an owner; None takes a shipped corpus, divided by `partition`. columns: what
    the task's columns are called in the files of `path`. corpus: None takes the task's own.
    max_widths: of an elastic model, how many owners have a device that holds which width; None lets all hold all.
    """

    path: Path | None = None
    columns: Annotated[dict[str, str], BeforeValidator(few)] = Field(default_factory=dict)
    corpus: str | None = None
    partition: Literal["natural", "grouped", "iid"] = "grouped"
    num_owners: Owners | None = 24
    max_widths: Annotated[dict[Width, Owners] | None, BeforeValidator(few)] = None

    @field_validator("path", mode="before")
    @classmethod
    def _path_is_given(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():  # which is the folder one stands in, to `pathlib`
            raise ValueError(f"must name a folder, got {path!r}")
        return path


class RunConfig(Config):
    """Everything that defines a federated run; a file may leave open what `agfl_protocol.config.defaults` fills in.

    baselines: a simulation also trains each owner's own model, the global one further at each owner, and one with all
    text in one place, to compare the global model with. A deployment ignores it, as it ignores `data`: nobody has
    all text there.
    search: architectures race, for all rounds or some, and the one that wins is trained to the last.
    """

    seed: Seed = 0
    num_rounds: Rounds
    task: TaskConfig
    tokenizer: TokenizerConfig = BytesTokenizerConfig()
    model: AnyModelConfig
    training: TrainingConfig
    aggregation: AggregationConfig
    elastic: ElasticConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    data: DataConfig = DataConfig()
    baselines: bool = False
    search: SearchConfig | None = None

    @model_validator(mode="after")
    def _search_fits_model(self) -> RunConfig:
        if isinstance(self.model, HuggingFaceConfig):
            if self.search is not None:
                raise ValueError(f"search: needs a model made of layers, got family {self.model.family}")
        elif self.search is None and self.model.choices:
            raise ValueError(f"search: required where model.layers hold a choice, got {', '.join(self.model.choices)}")
        return self

    @model_validator(mode="after")
    def _search_is_part_of_run(self) -> RunConfig:
        rounds = sum(self.search.rungs or ()) if self.search is not None else 0
        if rounds > self.num_rounds:
            raise ValueError(f"search.rungs: must sum to at most num_rounds = {self.num_rounds}, got {rounds}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        self.task.check_model(self.model)
        refuse_misfit(self.tokenizer, self.model)
        if self.model.vocab_size != self.tokenizer.vocab_size:
            rule = f"must be {self.tokenizer.vocab_size} as tokenizer.vocab_size (type {self.tokenizer.type})"
            raise ValueError(f"model.vocab_size {rule}, got {self.model.vocab_size}")
        try:
            corpus_of(self.task.type, self.data.corpus)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        unbounded = self.training.local_steps is None and self.aggregation.max_weight is None
        if self.aggregation.weighting in ("tokens", "alignment") and unbounded:
            raise ValueError(
                "aggregation.max_weight (in tokens) is required with training.local_epochs and weighting "
                f"{self.aggregation.weighting!r}, since it bounds what one owner can weigh, got None"
            )
        return self

    @model_validator(mode="after")
    def _devices_hold_widths_of_model(self) -> RunConfig:
        devices = sorted(self.data.max_widths or ())
        if devices and self.elastic is None:
            raise ValueError(f"data.max_widths: needs elastic, whose widths the devices hold, got {devices}")
        if self.elastic is not None and not set(devices) <= set(self.elastic.widths):
            rule = f"must be among elastic.widths {list(self.elastic.widths)}"
            raise ValueError(f"data.max_widths: {rule}, got {devices}")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> RunConfig:
        refuse_misfits(self)
        return self

    @property
    def max_rings(self) -> int:
        """How many rings the model has; 1 for a model that is not elastic."""
        return len(self.elastic.widths) if self.elastic is not None else 1

    def narrowed_model(self, num_rings: int) -> AnyModelConfig:
        """Return the configuration of the model's first rings."""
        if self.elastic is None or isinstance(self.model, HuggingFaceConfig):
            return self.model
        return self.model.narrowed(self.elastic.widths[num_rings - 1])

    def build_rings(self) -> Rings | None:
        """Return which parameter is of which ring; None for a model that is not elastic."""
        if self.elastic is None or isinstance(self.model, HuggingFaceConfig):
            return None
        return Rings.of(self.model, self.elastic.widths)

    @property
    def max_models(self) -> int:
        """How many models a round may broadcast."""
        optimizer = self.aggregation.server_optimizer
        return optimizer.num_models if isinstance(optimizer, PortfolioConfig) else 1

    @property
    def max_weight(self) -> float:
        """The public cap of one client's weight, in predictions trained on in a round."""
        if self.aggregation.max_weight is not None:
            return self.aggregation.max_weight
        factor = 3 if self.aggregation.weighting == "alignment" else 1  # so much more an aligned update may weigh
        return float(factor * (self.training.local_steps or 1) * self.training.batch_size * self.task.max_predictions)

    def to_json(self) -> str:
        """Return the configuration as clients receive it: without data and folders, which are each owner's own."""
        return json.dumps(self.model_dump(mode="json", exclude=_LOCAL), sort_keys=True)

    def to_yaml(self) -> str:
        """Return the configuration with every default filled in."""
        return dump_yaml(self.model_dump(mode="json"))

    def build_task(self) -> AnyTask:
        """Return the task, with the tokenizer."""
        return self.task.build(build_tokenizer(self.tokenizer, self.model))

    @property
    def pretrained(self) -> Path | None:
        """This machine's copy of the pretrained model from which the run starts, if it does."""
        return self.model.folder if isinstance(self.model, HuggingFaceConfig) else None

    def with_pretrained(self, folder: Path | None, name: str) -> RunConfig:
        """Return the run with this machine's copy of its pretrained model, if it has one.

        Raises:
            ConfigError, PretrainedError: as `pinned`, or the task's sequences are longer than the model's positions.
        """
        if not isinstance(self.model, HuggingFaceConfig):
            return self
        model = self.model.pinned(folder, name)
        for field in _LENGTHS & type(self.task).model_fields.keys():
            length, most = getattr(self.task, field), model.max_length
            if length > most:
                rule = f"must be at most {most}, the positions of the pretrained model"
                raise ConfigError(f"task.{field}: {rule}, got {length}")
        return self.model_copy(update={"model": model})

    def with_merges(self, merges: Sequence[Pair]) -> RunConfig:
        """Return the run with a tokenizer that has learned `merges`."""
        assert isinstance(self.tokenizer, BPETokenizerConfig), self.tokenizer.type
        tokenizer = self.tokenizer.model_copy(update={"merges": tuple(merges), "text": None})
        return self.model_copy(update={"tokenizer": tokenizer})

    @property
    def defining(self) -> dict[str, Any]:
        """What defines the run, as JSON; `num_rounds`, `evaluation`, `data`, `baselines` and `search` may change."""
        return self.model_dump(mode="json", exclude={"num_rounds": True, "evaluation": True, **_LOCAL})

    @property
    def hash(self) -> str:
        """SHA-256 of what defines the run."""
        text = json.dumps({"protocol": PROTOCOL_VERSION, **self.defining}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration; each override is `a.b.c=VALUE` with VALUE in YAML.

    Raises:
        ConfigError: names the file, the field, the rule and the value.
    """
    return load_with_defaults(path, overrides)[0]


def load_with_defaults(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    """Read a run configuration, and say what it left open and took; raises as `load_run_config`."""
    content = read_yaml(path)
    for override in overrides:
        _apply(content, override)
    try:
        return _filled(content, str(path))
    except ConfigError as error:
        if not overrides or not _holds(path):
            raise
        # The file is as it should be, so what was set is not.
        raise ConfigError(f"--set: {str(error).removeprefix(f'{path}: ')}") from None


def _filled(content: dict[str, Any], source: str) -> tuple[RunConfig, tuple[TakenDefault, ...]]:
    filled, taken = with_defaults(content)
    return validate(RunConfig, filled, source), taken


def _holds(path: Path) -> bool:
    """Whether a configuration is good as it stands in its file."""
    try:
        _filled(read_yaml(path), str(path))
    except ConfigError:
        return False
    return True


def run_config_from_json(text: str) -> RunConfig:
    """Read a configuration that came over the wire.

    Raises:
        ConfigError: as `load_run_config`.
    """
    try:
        content = load_json(text)
    except ValueError as error:
        raise ConfigError(f"run configuration from the server: malformed JSON: {error}") from None
    return validate(RunConfig, content, "run configuration from the server")


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set: must be KEY=VALUE (as in training.local_steps=5), got {shown(override)}")
    if not text.strip():
        rule = "must have a value (null for none), got none; is a shell variable not set?"
        raise ConfigError(f"--set {key}: {rule}")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: malformed YAML value {shown(text)}: {' '.join(str(error).split())}") from None
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        if isinstance(node, list) and parent.isdecimal() and int(parent) < len(node):
            node = node[int(parent)]
        elif isinstance(node, dict):
            node = node.setdefault(parent, {})
        else:
            raise ConfigError(f"--set {key}: {shown(parent)} names nothing in the configuration")
    if not isinstance(node, dict):
        raise ConfigError(f"--set {key}: {shown(last)} names nothing in the configuration")
    node[last] = value
