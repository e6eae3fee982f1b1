"""The model's configuration: the plain list of layers of the design notes, or a full language model.

Both are one class. A model that states neither `dim` nor `vocab_size` is a plain chain of layers; one that
does is a residual stream `dim` wide with normalization, and with `vocab_size` also an embedding and a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from agfl_models.bounded import Size, VocabSize
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.layers import LayerConfig
from agfl_models.layers.connection import Norm, Residual, norm_parameters
from agfl_models.model.base_config import FAMILIES, ModelConfigBase
from agfl_models.model.heads import Family, HeadConfig, LanguageModelHeadConfig
from agfl_models.model.stack_config import (
    EncoderConfig,
    Part,
    StackConfig,
    StackItems,
    choices_of,
    settings_of,
    written_out,
)


@FAMILIES.register
class ModelConfig(ModelConfigBase):
    """Layers, and for a language model what surrounds them.

    Attributes:
        family: "decoder", where no position sees a later one; "encoder", where each sees all; "encoder_decoder",
            a decoder whose cross-attention looks at what an encoder read.
        vocab_size: number of tokens; None for a model from vectors to vectors.
        type_vocab_size: kinds of tokens that an encoder tells apart, as in BERT (Devlin et al. 2019); 1 for none.
        dim: width of the embedding and of the residual stream; by default the first layer's width.
        residual: placement of normalization (see `SublayerConnection`), or "none" for a plain chain; by
            default "pre" if `dim` or `vocab_size` is given, else "none".
        norm: by default "rmsnorm", in a plain chain "none".
        head: by default a tied language-model head if `vocab_size` is given; an encoder has none by default.
        encoder: the encoder of an encoder-decoder.
        layers: layers and `{repeat: n, layers: [...]}` groups, which may be nested; the decoder's, if there are two.
            For a search also `{type: choice, name: NAME, of: [[...], [...]]}`: alternatives, the first one the default.
    """

    family: Family = "decoder"
    vocab_size: VocabSize | None = None
    type_vocab_size: Size = 1
    dim: Size | None = None
    residual: Residual | None = None
    norm: Norm | None = None
    head: HeadConfig | None = None
    encoder: EncoderConfig | None = None
    layers: StackItems

    @property
    def kind(self) -> Family:
        """What tasks ask for."""
        return self.family

    @staticmethod
    def written(kind: Family) -> tuple[str, str]:
        """Return the key and the value by which a person chooses a kind."""
        return "family", kind

    @model_validator(mode="after")
    def _refuse_what_cannot_be_built(self) -> Self:
        try:
            self.resolve()
            _ = self.choices
        except ConfigError as error:
            raise BrokenRule.of(error) from None  # pydantic adds where in the file it stands
        return self

    @property
    def choices(self) -> dict[str, int]:
        """How many alternatives each choice has, by name.

        Raises:
            ConfigError: two of one name have unequal numbers.
        """
        found: dict[str, int] = {}
        stacks = (() if self.encoder is None else self.encoder.layers, self.layers)
        for choice in (choice for layers in stacks for choice in choices_of(layers)):
            count = found.setdefault(choice.name, len(choice.of))
            if count != len(choice.of):
                raise ConfigError(
                    "AGFL-CONFIG-096",
                    f"choice {choice.name}: must have {count} alternatives everywhere, got {len(choice.of)}",
                )
        return found

    def resolve(self) -> ResolvedModelConfig:
        """Return the configuration with repeats written out and every default filled in, of choices the first.

        Raises:
            ConfigError: a width is missing or breaks a rule; the layer is named as counted in `model.layers`.
        """
        dim = self.dim or next(written_out(self.layers)).stated_width
        if dim is None:
            raise ConfigError(
                "AGFL-CONFIG-097", "dim: required, because layers.0 does not state its width either, got none"
            )
        is_full = self.dim is not None or self.vocab_size is not None
        residual: Residual = self.residual or ("pre" if is_full else "none")
        norm: Norm = self.norm or ("none" if residual == "none" else "rmsnorm")
        is_encoder = self.family == "encoder"
        encoder = memory_dim = None
        if self.encoder is not None:
            encoder = StackConfig("encoder.", False, None, dim, residual, norm).with_layers(self.encoder.layers)
            memory_dim = encoder.width_out
        stack = StackConfig("", not is_encoder, memory_dim, dim, residual, norm).with_layers(self.layers)
        default_head = None if is_encoder or self.vocab_size is None else LanguageModelHeadConfig()
        return ResolvedModelConfig(
            family=self.family,
            vocab_size=self.vocab_size,
            type_vocab_size=self.type_vocab_size,
            dim=dim,
            residual=residual,
            norm=norm,
            head=self.head or default_head,
            encoder=None if encoder is None else ResolvedEncoderConfig(layers=encoder.layers),
            layers=stack.layers,
        )

    def narrowed(self, width: float) -> ResolvedModelConfig:
        """Return the model of each layer's first inner units, which a prefix of this model's weights is.

        Inner units are hidden units of a feed-forward layer, channels or heads of a recurrent state that is projected,
        and key-value heads with their queries. Of n units max(1, round(width * n)) are left, as in MatFormer (Devvrit
        et al. 2023, arXiv:2310.07707); the residual stream and the last layer's output stay as wide.

        Args:
            width: in (0, 1]; 1 is the whole model.

        Raises:
            ConfigError: the width is another one, or the first units are no layer of their type.
        """
        if not 0 < width <= 1:
            raise ConfigError("AGFL-CONFIG-098", f"width: must be in (0, 1], got {width}")
        resolved = self.resolve()
        if width == 1:
            return resolved
        encoder = None if resolved.encoder_stack is None else resolved.encoder_stack.narrowed(width)
        narrow = {
            "encoder": None if encoder is None else ResolvedEncoderConfig(layers=encoder.layers),
            "layers": resolved.stack.narrowed(width).layers,
        }
        return resolved.model_copy(update=narrow)

    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield everything that has parameters or costs time, in the order of the forward pass."""
        return self.resolve().parts(context_length)

    def num_parameters(self) -> int:
        """Return the number of trainable parameters of the model, without building it."""
        return sum(part.parameters for part in self.parts(context_length=1))

    def flops_per_token(self, context_length: int) -> int:
        """Return the floating-point operations of one forward pass, per token.

        2 for each weight of a matrix product (one multiplication, one addition), the head's included, and
        4 * context_length * num_heads * head_dim for each attention layer, as if every token saw `context_length`
        positions, or its window. An encoder reads a source as long as what the decoder writes. Embedding look-up,
        normalization and other element-wise work do not count. Training costs 3 times as much (Chowdhery et al.
        2022, PaLM, arXiv:2204.02311, appendix B).
        """
        return sum(part.flops_per_token for part in self.parts(context_length))


class ResolvedEncoderConfig(EncoderConfig):
    """An `EncoderConfig` without open questions."""

    layers: tuple[LayerConfig, ...] = Field(min_length=1)


class ResolvedModelConfig(ModelConfig):
    """A `ModelConfig` without open questions, as `ModelConfig.resolve` returns it."""

    dim: Size
    residual: Residual
    norm: Norm
    encoder: ResolvedEncoderConfig | None = None
    layers: tuple[LayerConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _refuse_what_cannot_be_built(self) -> Self:
        self._refuse_misfit_of_family()
        self.stack.refuse_misplaced_layers()
        if self.type_vocab_size > 1 and (self.family != "encoder" or self.vocab_size is None):
            raise ConfigError(
                "AGFL-CONFIG-099",
                f"type_vocab_size: must be 1 but for an encoder of tokens, got {self.type_vocab_size}",
            )
        if self.head is None:
            return self
        if self.vocab_size is None:
            raise ConfigError("AGFL-CONFIG-100", "head: needs vocab_size, got none")
        if self.family not in self.head.families:
            wanted = " or ".join(self.head.families)
            raise ConfigError("AGFL-CONFIG-101", f"head: {self.head.type} needs family {wanted}, got {self.family}")
        if isinstance(self.head, LanguageModelHeadConfig):
            self.stack.refuse_looking_ahead()
            if self.head.tied and self.width_out != self.dim:
                rule = f"needs a last layer as wide as the embedding ({self.dim})"
                raise ConfigError("AGFL-CONFIG-102", f"head.tied: {rule}, got {self.width_out}")
        return self

    def _refuse_misfit_of_family(self) -> None:
        encoder = self.encoder_stack
        if self.family != "encoder_decoder":
            if encoder is not None:
                raise ConfigError("AGFL-CONFIG-103", f"encoder: needs family encoder_decoder, got {self.family}")
            return
        if encoder is None:
            raise ConfigError("AGFL-CONFIG-104", "encoder: required with family encoder_decoder, got none")
        encoder.refuse_misplaced_layers()
        if not self.stack.looks_at_memory:
            raise ConfigError(
                "AGFL-CONFIG-105",
                "layers: need a layer with `type: attention, cross: true` to see the encoder, got none",
            )

    def resolve(self) -> ResolvedModelConfig:
        """Return this configuration."""
        return self

    @property
    def stack(self) -> StackConfig:
        """The decoder, or the encoder if it is alone."""
        causal = self.family != "encoder"
        memory_dim = None if self.encoder_stack is None else self.encoder_stack.width_out
        return StackConfig("", causal, memory_dim, self.dim, self.residual, self.norm, self.layers)

    @property
    def encoder_stack(self) -> StackConfig | None:
        """The encoder of an encoder-decoder."""
        if self.encoder is None:
            return None
        return StackConfig("encoder.", False, None, self.dim, self.residual, self.norm, self.encoder.layers)

    @property
    def width_out(self) -> int:
        """Width of the last hidden state."""
        return self.stack.width_out

    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield everything that has parameters or costs time, in the order of the forward pass."""
        if self.vocab_size is not None:
            yield Part("embedding", settings_of(self, {"vocab_size", "dim"}), self.vocab_size * self.dim, 0)
        if self.type_vocab_size > 1:
            yield Part("type_embedding", settings_of(self, {"type_vocab_size"}), self.type_vocab_size * self.dim, 0)
        encoder = self.encoder_stack
        if encoder is not None:
            yield from encoder.parts(context_length)
            if parameters := norm_parameters(self.norm, encoder.width_out):
                yield Part("encoder.norm", settings_of(self, {"norm"}), parameters, 0)
        yield from self.stack.parts(context_length)
        if self.head is not None and self.vocab_size is not None:
            parameters = self.head.num_parameters(self.width_out, self.vocab_size, self.norm)
            flops = self.head.flops_per_token(self.width_out, self.vocab_size, context_length)
            yield Part("head", settings_of(self.head), parameters, flops)

    def bridges(self) -> Iterator[str]:
        """Yield a sentence on each place where a linear bridge joins unequal widths."""
        if self.encoder_stack is not None:
            yield from self.encoder_stack.bridges()
        yield from self.stack.bridges()
