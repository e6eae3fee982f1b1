"""The model's configuration: the plain list of layers of the design notes, or a full language model.

Both are one class. A model that states neither `dim` nor `vocab_size` is a plain chain of layers; one that
does is a residual stream `dim` wide with normalization, and with `vocab_size` also an embedding and a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from agfl_models.errors import ConfigError
from agfl_models.heads import LanguageModelHeadConfig
from agfl_models.layers import LayerConfig
from agfl_models.layers.attention import AttentionConfig
from agfl_models.layers.connection import Norm, Residual, bridge_weights, connection_parameters
from agfl_models.layers.layer import LayerConfigBase
from agfl_models.validation import Config

_REPEAT: Literal["repeat group"] = "repeat group"  # a tag that no key can be mistaken for


def _tag_repeat(item: Any) -> Any:
    # pydantic tells the members of a union apart by `type`; a repeat group is known by its `repeat` instead.
    if isinstance(item, dict) and "type" not in item:
        if "repeat" not in item:
            raise ValueError("must have a `type`, or `repeat` and `layers`")
        return {"type": _REPEAT, **item}
    return item


class RepeatConfig(Config):
    """`layers` written out `repeat` times, each time with parameters of its own."""

    type: Literal["repeat group"] = Field(default=_REPEAT, exclude=True)
    repeat: PositiveInt
    layers: tuple[LayerItem, ...] = Field(min_length=1)


LayerItem = Annotated[Annotated[LayerConfig | RepeatConfig, Field(discriminator="type")], BeforeValidator(_tag_repeat)]


@dataclass(frozen=True)
class Place:
    """A layer in its model: what flows past it is `width` wide."""

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


class ModelConfig(Config):
    """Layers, and for a language model what surrounds them.

    Attributes:
        vocab_size: number of tokens; None for a model from vectors to vectors.
        dim: width of the embedding and of the residual stream; by default the first layer's width.
        residual: placement of normalization (see `SublayerConnection`), or "none" for a plain chain; by
            default "pre" if `dim` or `vocab_size` is given, else "none".
        norm: by default "rmsnorm", in a plain chain "none".
        head: by default a tied language-model head if `vocab_size` is given.
        layers: layers and `{repeat: n, layers: [...]}` groups, which may be nested.
    """

    vocab_size: PositiveInt | None = None
    dim: PositiveInt | None = None
    residual: Residual | None = None
    norm: Norm | None = None
    head: LanguageModelHeadConfig | None = None
    layers: tuple[LayerItem, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_what_cannot_be_built(self) -> Self:
        try:
            self.resolve()
        except ConfigError as error:
            raise ValueError(str(error)) from None  # pydantic adds where in the file it stands
        return self

    def resolve(self) -> ResolvedModelConfig:
        """Return the configuration with repeats written out and every default filled in.

        Raises:
            ConfigError: a width is missing or breaks a rule; the layer is named as counted in `model.layers`.
        """
        layers = tuple(_written_out(self.layers))
        dim = self.dim or layers[0].stated_width
        if dim is None:
            raise ConfigError("dim: required, because layers.0 does not state its width either, got none")
        is_full = self.dim is not None or self.vocab_size is not None
        residual: Residual = self.residual or ("pre" if is_full else "none")
        head = self.head or (LanguageModelHeadConfig() if self.vocab_size is not None else None)
        return ResolvedModelConfig(
            vocab_size=self.vocab_size,
            dim=dim,
            residual=residual,
            norm=self.norm or ("none" if residual == "none" else "rmsnorm"),
            head=head,
            layers=tuple(_resolved_layers(layers, dim, residual)),
        )

    def num_parameters(self) -> int:
        """Return the number of trainable parameters of the model, without building it."""
        return sum(part.parameters for part in self.resolve().parts(context_length=1))

    def flops_per_token(self, context_length: int) -> int:
        """Return the floating-point operations of one forward pass, per token.

        2 for each weight of a matrix product (one multiplication, one addition), the head's included, and
        4 * context_length * embed_dim for each attention layer, as if every token saw `context_length`
        positions. Embedding look-up, normalization and other element-wise work do not count. Training costs 3
        times as much (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B).
        """
        return sum(part.flops_per_token for part in self.resolve().parts(context_length))


class ResolvedModelConfig(ModelConfig):
    """A `ModelConfig` without open questions, as `ModelConfig.resolve` returns it."""

    dim: PositiveInt
    residual: Residual
    norm: Norm
    layers: tuple[LayerConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_what_cannot_be_built(self) -> Self:
        if self.head is not None and self.vocab_size is None:
            raise ConfigError("head: needs vocab_size, got none")
        if self.head is not None and self.head.tied and self.width_out != self.dim:
            raise ConfigError(
                f"head.tied: needs a last layer as wide as the embedding ({self.dim}), got {self.width_out}"
            )
        for place in self.places():
            if self.head is not None and isinstance(place.layer, AttentionConfig) and not place.layer.causal:
                raise ConfigError(f"{place.name}.causal: must be true under a language-model head, got false")
        return self

    def resolve(self) -> ResolvedModelConfig:
        """Return this configuration."""
        return self

    @property
    def width_out(self) -> int:
        """Width of the last hidden state."""
        return self.layers[-1].width_out if self.residual == "none" else self.dim

    def places(self) -> Iterator[Place]:
        """Yield the layers in order, with the width of what flows past them."""
        width = self.dim
        for index, layer in enumerate(self.layers):
            yield Place(f"layers.{index}", width, layer)
            width = layer.width_out if self.residual == "none" else self.dim

    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield everything that has parameters or costs time, in the order of the forward pass."""
        if self.vocab_size is not None:
            yield Part("embedding", _settings(self, {"vocab_size", "dim"}), self.vocab_size * self.dim, 0)
        for index, place in enumerate(self.places()):
            parameters = connection_parameters(*place.widths, self.residual, self.norm)
            weights = bridge_weights(*place.widths, self.residual)
            if parameters:
                name = f"connections.{index}"
                yield Part(name, _settings(self, {"residual", "norm"}), parameters, 2 * weights)
            layer = place.layer
            parameters, flops = layer.num_parameters(), layer.flops_per_token(context_length)
            yield Part(place.name, _settings(layer), parameters, flops)
        if self.head is not None and self.vocab_size is not None:
            parameters = self.head.num_parameters(self.width_out, self.vocab_size, self.norm)
            yield Part("head", _settings(self.head), parameters, 2 * self.width_out * self.vocab_size)

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


def _settings(config: Config, keys: set[str] | None = None) -> str:
    stated = config.model_dump(include=keys, exclude_none=True)
    kind = [stated.pop("type")] if "type" in stated else []
    return " ".join(kind + [f"{key}={value}" for key, value in stated.items()])


def _written_out(items: Iterable[LayerConfig | RepeatConfig]) -> Iterator[LayerConfig]:
    for item in items:
        if isinstance(item, RepeatConfig):
            for _ in range(item.repeat):
                yield from _written_out(item.layers)
        else:
            yield item


def _resolved_layers(layers: Iterable[LayerConfig], dim: int, residual: Residual) -> Iterator[LayerConfig]:
    width = dim
    for index, layer in enumerate(layers):
        resolved = layer.resolved(width, residual != "none", f"layers.{index}")
        yield resolved
        width = resolved.width_out if residual == "none" else dim
