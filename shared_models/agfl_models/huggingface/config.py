"""The configuration of a pretrained model: which folder, how much of it, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from agfl_models.bounded import Size
from agfl_models.errors import BrokenRule, ConfigError
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.huggingface.loading import max_length, outline
from agfl_models.huggingface.lora import LoRAConfig, is_adapter, is_linear
from agfl_models.model.base_config import FAMILIES, ModelConfigBase
from agfl_models.model.heads import Family, HeadConfig, LanguageModelHeadConfig
from agfl_models.model.sequence_model import trained_parameters
from agfl_models.model.stack_config import Part, settings_of

Architecture = Literal["causal", "seq2seq", "encoder"]
_KINDS: dict[Architecture, Family] = {"causal": "decoder", "seq2seq": "encoder_decoder", "encoder": "encoder"}


@FAMILIES.register
class HuggingFaceConfig(ModelConfigBase):
    """A pretrained model from a local folder, of which everybody who takes part has a copy.

    Attributes:
        architecture: "causal" continues a text, "seq2seq" reads one and writes another, "encoder" reads.
        folder: the server's own copy, or the simulation's; it is never sent, and each owner names its own.
        fingerprint: SHA-256 of what is read of the folder; null is filled in when the run begins.
        num_layers: keep the first layers only; of a seq2seq model those of encoder and decoder.
        lora: train an adapter, which is then all that travels beside a new head; null trains everything.
        head: of an encoder, span or classification, which is trained whole; the others come with their own.
    """

    vocab_size: ClassVar[None] = None  # what the folder says, for its tokenizer too

    family: Literal["huggingface"]
    architecture: Architecture
    folder: Path | None = None
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    num_layers: Size | None = None
    lora: LoRAConfig | None = None
    head: HeadConfig | None = None

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        head = self.head
        if head is None and self.architecture == "encoder":
            raise BrokenRule(
                "AGFL-CONFIG-023", "head: required with architecture encoder (span or classification), got none"
            )
        if head is not None and self.kind not in head.families:
            raise BrokenRule(
                "AGFL-CONFIG-024", f"head: {head.type} needs another architecture, got {self.architecture}"
            )
        if isinstance(head, LanguageModelHeadConfig) and not head.tied:
            raise BrokenRule(
                "AGFL-CONFIG-025", "head.tied: follows from the pretrained model and must not be chosen, got false"
            )
        return self

    @property
    def kind(self) -> Family:
        """What tasks ask for: the family of modular models that does the same work."""
        return _KINDS[self.architecture]

    @staticmethod
    def written(kind: Family) -> tuple[str, str]:
        """Return the key and the value by which a person chooses a kind."""
        return "architecture", next(architecture for architecture, its in _KINDS.items() if its == kind)

    def resolve(self) -> HuggingFaceConfig:
        """Return the configuration with its defaults filled in."""
        return self.model_copy(update={"head": self.head or LanguageModelHeadConfig()})

    def pinned(self, folder: Path | None, name: str) -> HuggingFaceConfig:
        """Return the configuration with this machine's folder, in place of any other, and its fingerprint.

        Args:
            folder: the copy to use.
            name: what its owner calls it, for error messages.

        Raises:
            ConfigError: none is named, or its fingerprint is not the stated one.
            PretrainedError: it cannot be read.
        """
        if folder is None:
            raise ConfigError("AGFL-CONFIG-026", f"{name}: required with model.family huggingface, got none")
        found = PretrainedFolder(folder).fingerprint
        if self.fingerprint not in (None, found):
            rule = f"must be a copy of the run's pretrained model, with fingerprint {self.fingerprint}"
            raise ConfigError(
                "AGFL-CONFIG-027", f"{name}: {rule}, got {found}"
            )  # without the path, since the other side reads this
        return self.model_copy(update={"folder": folder.resolve(), "fingerprint": found})

    @property
    def max_length(self) -> float:
        """For how many positions the model in the folder was made; infinity where it has no last one."""
        return max_length(outline(self))

    def num_parameters(self) -> int:
        """Return the number of parameters that are trained and travel, without reading the weights."""
        return sum(parameter.numel() for parameter in trained_parameters(outline(self)).values())

    def flops_per_token(self, context_length: int) -> int:
        """Return the floating-point operations of one forward pass, as `ModelConfig.flops_per_token` counts them."""
        return sum(part.flops_per_token for part in self.parts(context_length))

    def parts(self, context_length: int) -> Iterator[Part]:
        """Yield the pretrained model, and the adapter that is trained in its place."""
        model = outline(self)
        layers, width = model.config.num_hidden_layers, model.config.hidden_size
        attentions = 3 * layers if self.architecture == "seq2seq" else layers  # each decoder layer has two
        matrices = sum(2 * module.weight.numel() for module in model.modules() if is_linear(module))
        sizes = {name: parameter.numel() for name, parameter in trained_parameters(model).items()}
        adapter = sum(size for name, size in sizes.items() if is_adapter(name))
        frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
        settings = f"{type(model).__name__} num_layers={layers} frozen={frozen:,}"
        flops = matrices + 4 * context_length * width * attentions
        yield Part("pretrained", settings, sum(sizes.values()) - adapter, flops)
        if self.lora is not None:
            yield Part("lora", settings_of(self.lora), adapter, 0)
