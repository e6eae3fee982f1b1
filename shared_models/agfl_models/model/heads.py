"""The heads: from the last hidden states to what a task asks for.

B batch, T time, D width of the last hidden state, V vocabulary, C classes, O outputs (V, 2 or C).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from agfl_models.layers.connection import Norm, build_norm, norm_parameters
from agfl_models.layers.layer import at_least_float32
from agfl_models.validation import Config

Family = Literal["decoder", "encoder", "encoder_decoder"]

UNTIED_LOGIT_STD = 0.1
PADDING_LOGIT = -1e4  # exp of it is 0, and the sum of a start and an end is finite


class HeadConfigBase(Config, ABC):
    """Base of the head configurations. `families` are those whose output the head can read."""

    families: ClassVar[tuple[Family, ...]]
    type: str

    @abstractmethod
    def num_parameters(self, width: int, vocab_size: int, norm: Norm) -> int:
        """Return the number of parameters that are the head's own."""

    @abstractmethod
    def flops_per_token(self, width: int, vocab_size: int, context_length: int) -> int:
        """Return the floating-point operations of the matrix product, per token."""

    @abstractmethod
    def build(self, width: int, vocab_size: int, norm: Norm) -> Head:
        """Return the module."""


class Head(nn.Module, ABC):
    """Final normalization and a projection."""

    projection: nn.Linear | None

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.norm = build_norm(norm, width)

    @abstractmethod
    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None, embedding_VD: Tensor) -> Tensor:
        """Return logits; `mask_BT` is True at real positions, and a tied head projects on `embedding_VD`."""

    def reset_parameters(self) -> None:
        """Draw the projection so small that the untrained model is close to uniform."""
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=UNTIED_LOGIT_STD * self.projection.in_features**-0.5)
            if self.projection.bias is not None:
                nn.init.zeros_(self.projection.bias)


class LanguageModelHeadConfig(HeadConfigBase):
    """`tied`: the projection is the embedding's own matrix (Press and Wolf 2017, arXiv:1608.05859)."""

    families = ("decoder", "encoder_decoder")
    type: Literal["language_model"] = "language_model"
    tied: bool = True

    def num_parameters(self, width: int, vocab_size: int, norm: Norm) -> int:
        return norm_parameters(norm, width) + (0 if self.tied else width * vocab_size)

    def flops_per_token(self, width: int, vocab_size: int, context_length: int) -> int:
        return 2 * width * vocab_size

    def build(self, width: int, vocab_size: int, norm: Norm) -> Head:
        return LanguageModelHead(self, width, vocab_size, norm)


class LanguageModelHead(Head):
    """One logit for each token: logits_BTV, without bias; any leading dimensions will do."""

    def __init__(self, config: LanguageModelHeadConfig, width: int, vocab_size: int, norm: Norm) -> None:
        super().__init__(width, norm)
        self.projection = None if config.tied else nn.Linear(width, vocab_size, bias=False)
        self.reset_parameters()

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None, embedding_VD: Tensor) -> Tensor:
        weight_VD = embedding_VD if self.projection is None else self.projection.weight
        return F.linear(self.norm(x_BTD), weight_VD)


class SpanHeadConfig(HeadConfigBase):
    """A span of the text answers, or nothing does: position 0 scores that (Devlin et al. 2018, arXiv:1810.04805)."""

    families = ("encoder",)
    type: Literal["span"] = "span"

    def num_parameters(self, width: int, vocab_size: int, norm: Norm) -> int:
        return norm_parameters(norm, width) + 2 * width

    def flops_per_token(self, width: int, vocab_size: int, context_length: int) -> int:
        return 2 * 2 * width

    def build(self, width: int, vocab_size: int, norm: Norm) -> Head:
        return SpanHead(width, norm)


class SpanHead(Head):
    """Two logits for each position, that the span starts or ends there: logits_BT2, hopeless at padding."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__(width, norm)
        # A bias would move all positions alike, which a softmax over them does not see.
        self.projection = nn.Linear(width, 2, bias=False)
        self.reset_parameters()

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None, embedding_VD: Tensor) -> Tensor:
        assert self.projection is not None
        logits_BT2: Tensor = self.projection(self.norm(x_BTD))
        return logits_BT2 if mask_BT is None else logits_BT2.masked_fill(~mask_BT.unsqueeze(-1), PADDING_LOGIT)


class ClassificationHeadConfig(HeadConfigBase):
    """One of `num_classes` classes for the whole sequence."""

    families = ("encoder",)
    type: Literal["classification"] = "classification"
    num_classes: int = Field(ge=2, le=1 << 16)

    def num_parameters(self, width: int, vocab_size: int, norm: Norm) -> int:
        return norm_parameters(norm, width) + (width + 1) * self.num_classes

    def flops_per_token(self, width: int, vocab_size: int, context_length: int) -> int:
        """Once a sequence of `context_length` tokens, so each token's share of it, rounded up."""
        return -(-2 * width * self.num_classes // context_length)

    def build(self, width: int, vocab_size: int, norm: Norm) -> Head:
        return ClassificationHead(self.num_classes, width, norm)


class ClassificationHead(Head):
    """A projection of the mean over the real positions: logits_BC."""

    def __init__(self, num_classes: int, width: int, norm: Norm) -> None:
        super().__init__(width, norm)
        self.projection = nn.Linear(width, num_classes)
        self.reset_parameters()

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None, embedding_VD: Tensor) -> Tensor:
        assert self.projection is not None
        x_BTD = self.norm(x_BTD)
        wide_BTD = at_least_float32(x_BTD)
        if mask_BT is None:
            mean_BD = wide_BTD.mean(dim=1)
        else:
            count_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
            mean_BD = wide_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0).sum(dim=1) / count_B1
        logits_BC: Tensor = self.projection(mean_BD.type_as(x_BTD))
        return logits_BC


def _default_type(head: Any) -> Any:
    return {"type": "language_model", **head} if isinstance(head, dict) else head


HeadConfig = Annotated[
    Annotated[LanguageModelHeadConfig | SpanHeadConfig | ClassificationHeadConfig, Field(discriminator="type")],
    BeforeValidator(_default_type),
]
