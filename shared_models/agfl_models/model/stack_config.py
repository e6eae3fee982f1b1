"""The configuration of a stack of layers: the decoder is one, the encoder another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.layers import LayerConfig
from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.connection import Norm, Residual, bridge_weights, connection_parameters
from agfl_models.layers.layer import LAYERS, LayerConfigBase
from agfl_models.registry import Registry
from agfl_models.validation import Config

MAX_LAYERS = 4096  # of a stack, written out: a configuration may come from a server that one does not trust
MAX_ALTERNATIVES = 64  # of a choice
_REPEAT: Literal["repeat group"] = "repeat group"  # a tag that no key can be mistaken for


def _tag_repeat(item: Any) -> Any:
    # pydantic tells the members of a union apart by `type`; a repeat group is known by its `repeat` instead.
    if isinstance(item, dict) and "type" not in item:
        if "repeat" not in item:
            raise BrokenRule("AGFL-CONFIG-120", "must have a `type`, or `repeat` and `layers`")
        return {"type": _REPEAT, **item}
    return item


class RepeatConfig(Config):
    """`layers` written out `repeat` times, each time with parameters of its own."""

    type: Literal["repeat group"] = Field(default=_REPEAT, exclude=True)
    repeat: int = Field(gt=0, le=MAX_LAYERS)
    layers: Annotated[tuple[LayerItem, ...], Field(min_length=1, max_length=MAX_LAYERS, fail_fast=True)]


class ChoiceConfig(Config):
    """Alternatives for one place, of which a search settles one; choices of one name switch together."""

    type: Literal["choice"]
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    of: Annotated[tuple[_Alternative, ...], Field(min_length=2, max_length=MAX_ALTERNATIVES, fail_fast=True)]


_Alternative = Annotated[tuple["LayerItem", ...], Field(min_length=1, max_length=MAX_LAYERS, fail_fast=True)]
AnyItem: TypeAlias = LayerConfigBase | RepeatConfig | ChoiceConfig
ITEMS = Registry(Config, beyond=LAYERS)
LayerItem = Annotated[Annotated[AnyItem, ITEMS], BeforeValidator(_tag_repeat)]
ITEMS.register(RepeatConfig)
ITEMS.register(ChoiceConfig)


def _refuse_too_many(items: tuple[AnyItem, ...]) -> tuple[AnyItem, ...]:
    count = _num_layers(items)
    if count > MAX_LAYERS:
        raise BrokenRule("AGFL-CONFIG-121", f"must be at most {MAX_LAYERS} with repeats written out, got {count}")
    return items


def _num_layers(items: Iterable[AnyItem]) -> int:
    """Return how many layers `written_out` yields, of a choice the alternative that has most."""
    count = 0
    for item in items:
        if isinstance(item, RepeatConfig):
            count += item.repeat * _num_layers(item.layers)
        elif isinstance(item, ChoiceConfig):
            count += max(map(_num_layers, item.of))
        else:
            count += 1
    return count


StackItems = Annotated[
    tuple[LayerItem, ...], Field(min_length=1, max_length=MAX_LAYERS, fail_fast=True), AfterValidator(_refuse_too_many)
]


class EncoderConfig(Config):
    """The stack that reads the source; embedding, width, `residual` and `norm` are the model's."""

    layers: StackItems


@dataclass(frozen=True)
class Place:
    """A layer in its stack: what flows past it is `width` wide."""

    name: str
    width: int
    layer: LayerConfigBase

    @property
    def widths(self) -> tuple[int, int, int]:
        """Width of the flow, of the layer's input, and of the layer's output."""
        return self.width, self.layer.width_in, self.layer.width_out


@dataclass(frozen=True)
class Part:
    """A part of the model, for a person to read; `settings` is its configuration as "key=value"."""

    name: str
    settings: str
    parameters: int
    flops_per_token: int


@dataclass(frozen=True)
class StackConfig:
    """Resolved layers in a row and what joins them.

    prefix: of the names of its parts, "" or "encoder."; causal: a decoder, where no position sees a later one;
    memory_dim: width of the encoder's output that its cross-attention looks at, None without an encoder.
    """

    prefix: str
    causal: bool
    memory_dim: int | None
    dim: int
    residual: Residual
    norm: Norm
    layers: tuple[LayerConfig, ...] = ()

    def with_layers(self, items: Iterable[AnyItem]) -> Self:
        """Return the stack with `items`, repeats written out and every default filled in; raises ConfigError."""
        layers: list[LayerConfig] = []
        width = self.dim
        for index, layer in enumerate(written_out(items)):
            placed = layer.in_stack(self.causal, self.memory_dim)
            layers.append(placed.resolved(width, self.residual != "none", f"{self.prefix}layers.{index}"))
            width = layers[-1].width_out if self.residual == "none" else self.dim
        return replace(self, layers=tuple(layers))

    @property
    def width_out(self) -> int:
        """Width of the last hidden state."""
        return self.layers[-1].width_out if self.residual == "none" else self.dim

    def narrowed(self, width: float) -> Self:
        """Return the stack of each layer's first inner units, with as wide a flow past them; raises ConfigError."""
        layers = (layer.narrowed(width, f"{self.prefix}layers.{index}") for index, layer in enumerate(self.layers))
        return replace(self, layers=tuple(layers))

    @property
    def looks_at_memory(self) -> bool:
        """Whether a layer looks at the encoder's output."""
        return any(layer.needs_memory for layer in self.layers)

    def places(self) -> Iterator[Place]:
        """Yield the layers in order, with the width of what flows past them."""
        width = self.dim
        for index, layer in enumerate(self.layers):
            yield Place(f"{self.prefix}layers.{index}", width, layer)
            width = layer.width_out if self.residual == "none" else self.dim

    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield everything that has parameters or costs time, in the order of the forward pass."""
        for index, place in enumerate(self.places()):
            parameters = connection_parameters(*place.widths, self.residual, self.norm)
            weights = bridge_weights(*place.widths, self.residual)
            if parameters:
                settings = f"residual={self.residual} norm={self.norm}"
                yield Part(f"{self.prefix}connections.{index}", settings, parameters, 2 * weights)
            layer = place.layer
            parameters, flops = layer.num_parameters(), layer.flops_per_token(context_length)
            yield Part(place.name, settings_of(layer), parameters, flops)

    def bridges(self) -> Iterator[str]:
        """Yield a sentence on each place where a linear bridge joins unequal widths."""
        before = "the input" if self.residual == "none" else "the residual stream"
        for place in self.places():
            width, width_in, width_out = place.widths
            label = f"{place.name} ({place.layer.type})"
            if width_in != width:
                yield f"{before}, {width} wide, and {label}, {width_in} wide, are joined by a linear bridge"
            if self.residual == "none":
                before = label
            elif width_out != width:
                yield f"{label}, {width_out} wide, and {before}, {width} wide, are joined by a linear bridge"

    def refuse_misplaced_layers(self) -> None:
        """Raise ConfigError if a layer cannot do its work in this stack."""
        for place in self.places():
            layer = place.layer
            if layer.needs_memory and self.memory_dim is None:
                raise ConfigError(
                    "AGFL-CONFIG-122", f"{place.name}.cross: needs the decoder of family encoder_decoder, got true"
                )
            if isinstance(layer, AttentionConfig) and layer.causal and not self.causal:
                raise ConfigError("AGFL-CONFIG-123", f"{place.name}.causal: must be false in an encoder, got true")

    def refuse_looking_ahead(self) -> None:
        """Raise ConfigError if a position may see a later one, as it must not under a language-model head."""
        for place in self.places():
            if not place.layer.is_causal:
                rule = "must be causal under a language-model head, where no position sees a later one"
                raise ConfigError("AGFL-CONFIG-124", f"{place.name}: {rule}, got {settings_of(place.layer)}")


def settings_of(config: Config, keys: set[str] | None = None) -> str:
    """Return a configuration as "type key=value key=value" for a person to read."""
    stated = config.model_dump(include=keys, exclude_none=True)
    kind = [stated.pop("type")] if "type" in stated else []
    return " ".join(kind + [f"{key}={value}" for key, value in stated.items()])


def written_out(items: Iterable[AnyItem], picks: Mapping[str, int] | None = None) -> Iterator[LayerConfig]:
    """Yield the layers, repeat groups written out, and of each choice the alternative in `picks`, or the first."""
    for item in items:
        if isinstance(item, RepeatConfig):
            for _ in range(item.repeat):
                yield from written_out(item.layers, picks)
        elif isinstance(item, ChoiceConfig):
            yield from written_out(item.of[(picks or {}).get(item.name, 0)], picks)
        else:
            yield item


def choices_of(items: Iterable[AnyItem]) -> Iterator[ChoiceConfig]:
    """Yield all choices, those within others too."""
    for item in items:
        if isinstance(item, ChoiceConfig):
            yield item
        groups = item.of if isinstance(item, ChoiceConfig) else (item.layers,) if isinstance(item, RepeatConfig) else ()
        for group in groups:
            yield from choices_of(group)
