"""What a run asks of a client: the part of its configuration that travels, is hashed as it travels, and is pinned.

The server's own business is not in it: how it steps, how long it waits, how it searches, where it keeps what. So a
client of an older version takes part in a run whose server steps in a way that it has never heard of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from agfl_models.bounded import Rounds, Seed, load_json
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.model.config import ModelConfig
from agfl_models.model.families import AnyModelConfig, refuse_misfit, vocabulary_of
from agfl_models.model.rings import Rings
from agfl_models.plugins import Plugins
from agfl_models.registry import only_plugins
from agfl_models.tasks import TaskConfig, build_task
from agfl_models.tasks.config import TextTaskConfig
from agfl_models.tasks.task import AnyTask
from agfl_models.tokenizers.tokenizer import BPETokenizerConfig, BytesTokenizerConfig, Pair, TokenizerConfig
from agfl_models.validation import Config, validate
from agfl_protocol.config.elastic_config import WidthsConfig
from agfl_protocol.config.sums_config import SumsConfig
from agfl_protocol.config.training_config import EvaluationConfig, TrainingConfig
from agfl_protocol.methods.method import MethodConfig
from agfl_protocol.methods.registry import MethodConfigs, refuse_misfits
from agfl_protocol.plans.plan_fields import canonical
from agfl_protocol.plans.trainer_needs import refuse_unserved

ConfigT = TypeVar("ConfigT", bound=MethodConfig)
# Of one machine, or its owner's own.
_LOCAL: dict[str, Any] = {"model": {"folder"}, "tokenizer": {"text"}}
_LENGTHS = {"sequence_length", "context_length", "source_length", "target_length"}  # of tasks, in tokens
_SOURCE = "client plan from the server"


class _Pinned(Config):
    plugins: Plugins = ()


class RunBase(Config):
    """What server and clients both know of a run.

    plugins: of which it has parts; each as this machine must have it, too.
    """

    plugins: Plugins = ()  # the first: nothing below is known without them
    seed: Seed = 0
    num_rounds: Rounds
    task: TaskConfig
    tokenizer: TokenizerConfig = BytesTokenizerConfig()
    model: AnyModelConfig
    training: TrainingConfig
    aggregation: SumsConfig
    elastic: WidthsConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _only_pinned_plugins(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the pins before anything else, since a plug-in's own code looks at its part of the content."""
        if not isinstance(content, dict):
            return handler(content)
        pinned = _Pinned.model_validate({"plugins": content.get("plugins", ())}).plugins
        with only_plugins(plugin.name for plugin in pinned):
            return handler(content)

    @model_serializer(mode="wrap")
    def _without_absent_plugins(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out that there are none, so that a run from before there were any is the same text."""
        written: dict[str, Any] = content(self)
        if not self.plugins:
            written.pop("plugins", None)
        return written

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        self.task.check_model(self.model)
        self._refuse_misfit_of_tokenizer()
        unbounded = self.training.local_steps is None and self.aggregation.max_weight is None
        if self.aggregation.weighting in ("tokens", "alignment") and unbounded:
            raise BrokenRule(
                "AGFL-CONFIG-152",
                "aggregation.max_weight (in tokens) is required with training.local_epochs and weighting "
                f"{self.aggregation.weighting!r}, since it bounds what one owner can weigh, got None",
            )
        return self

    def _refuse_misfit_of_tokenizer(self) -> None:
        if not isinstance(self.task, TextTaskConfig):
            if self.tokenizer != BytesTokenizerConfig():
                rule = f"must be left out for task {self.task.type}, which reads no text"
                raise BrokenRule("AGFL-CONFIG-153", f"tokenizer: {rule}, got type {self.tokenizer.type}")
            return
        refuse_misfit(self.tokenizer, self.model)
        vocab_size = vocabulary_of(self.model)
        if vocab_size != self.tokenizer.vocab_size:
            rule = f"must be {self.tokenizer.vocab_size} as tokenizer.vocab_size (type {self.tokenizer.type})"
            raise BrokenRule("AGFL-CONFIG-154", f"model.vocab_size {rule}, got {vocab_size}")

    @property
    def max_rings(self) -> int:
        """How many rings the model has; 1 for a model that is not elastic."""
        return len(self.elastic.widths) if self.elastic is not None else 1

    def narrowed_model(self, num_rings: int) -> AnyModelConfig:
        """Return the configuration of the model's first rings."""
        if self.elastic is None or not isinstance(self.model, ModelConfig):
            return self.model
        return self.model.narrowed(self.elastic.widths[num_rings - 1])

    def build_rings(self) -> Rings | None:
        """Return which parameter is of which ring; None for a model that is not elastic."""
        if self.elastic is None or not isinstance(self.model, ModelConfig):
            return None
        return Rings.of(self.model, self.elastic.widths)

    @property
    def max_weight(self) -> float:
        """The public cap of one client's weight, in predictions trained on in a round."""
        if self.aggregation.max_weight is not None:
            return self.aggregation.max_weight
        factor = 3 if self.aggregation.weighting == "alignment" else 1  # so much more an aligned update may weigh
        return float(factor * (self.training.local_steps or 1) * self.training.batch_size * self.task.max_predictions)

    def build_task(self) -> AnyTask:
        """Return the task, one on text with the tokenizer."""
        return build_task(self.task, self.tokenizer, self.model)

    @property
    def pretrained(self) -> Path | None:
        """This machine's copy of the pretrained model from which the run starts, if it does."""
        return self.model.folder if isinstance(self.model, HuggingFaceConfig) else None

    def with_pretrained(self, folder: Path | None, name: str) -> Self:
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
                raise ConfigError("AGFL-CONFIG-155", f"task.{field}: {rule}, got {length}")
        return self.model_copy(update={"model": model})

    def with_merges(self, merges: Sequence[Pair]) -> Self:
        """Return the run with a tokenizer that has learned `merges`."""
        assert isinstance(self.tokenizer, BPETokenizerConfig), self.tokenizer.type
        tokenizer = self.tokenizer.model_copy(update={"merges": tuple(merges), "text": None})
        return self.model_copy(update={"tokenizer": tokenizer})


class ClientPlan(RunBase):
    """What travels to a client.

    methods: of those that a run may do without, what each needs to know on a client; sorted by type, each once.
    """

    methods: Annotated[MethodConfigs, Field(max_length=16)] = ()

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        types = [method.type for method in self.methods]
        if types != sorted(set(types)):
            raise BrokenRule("AGFL-CONFIG-156", f"methods: must be sorted by type, each once, got {', '.join(types)}")
        bound = [method.type for method in self.methods if not method.is_chosen]
        if len(bound) > 1:
            rule = "must hold one at most that comes with a server optimizer"
            raise BrokenRule("AGFL-CONFIG-215", f"methods: {rule}, got {', '.join(bound)}")
        refuse_misfits(self)
        refuse_unserved(self)
        return self

    def method(self, kind: type[ConfigT]) -> ConfigT | None:
        """Return the configuration of a method; None where the run does without it."""
        return next((method for method in self.methods if isinstance(method, kind)), None)

    @property
    def max_models(self) -> int:
        """How many models a round may broadcast."""
        return max((method.max_models for method in self.methods), default=1)

    @property
    def keeps_state(self) -> bool:
        """Whether owners keep state from round to round."""
        return any(method.keeps_state for method in self.methods)

    def fields(self) -> dict[str, Any]:
        """Return what travels as plain data: without folders and files, which are each machine's own."""
        return self.model_dump(mode="json", exclude=_LOCAL)

    def to_json(self) -> str:
        """Return the canonical text, which is what travels and what is hashed."""
        return canonical(self.fields())

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical text, in hexadecimal."""
        return hash_of(self.to_json())


@lru_cache(maxsize=2)  # every message of an exchange asks, and a vocabulary can make it long
def hash_of(text: str) -> str:
    """Return the SHA-256 of a client plan as it travels, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def client_plan_from_json(text: str) -> ClientPlan:
    """Read a client plan that came over the wire.

    Raises:
        ConfigError: it is malformed, breaks a rule, or is not the canonical text of what it says.
    """
    try:
        content = load_json(text)
    except ValueError as error:
        raise ConfigError("AGFL-CONFIG-157", f"{_SOURCE}: malformed JSON: {error}") from None
    plan = validate(ClientPlan, content, _SOURCE)
    if plan.to_json() != text:
        raise ConfigError(
            "AGFL-CONFIG-158", f"{_SOURCE}: must be canonical JSON (sorted keys, no spaces, every field); it is not"
        )
    return plan


def model_of(plan: RunBase) -> str:
    """Return a name for the model that is trained: a plan has as many as models, whatever else a request may change."""
    model = plan.model_dump(mode="json", include={"model"}, exclude=_LOCAL)["model"]
    return hash_of(canonical(model))[:16]
