"""The language-model head: from the last hidden state to one logit for each token.

B batch, T time, D width of the last hidden state, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from agfl_models.layers.connection import Norm, build_norm, norm_parameters
from agfl_models.validation import Config

UNTIED_LOGIT_STD = 0.1


class LanguageModelHeadConfig(Config):
    """`tied`: the projection is the embedding's own matrix (Press and Wolf 2017, arXiv:1608.05859)."""

    type: Literal["language_model"] = "language_model"
    tied: bool = True

    def num_parameters(self, width: int, vocab_size: int, norm: Norm) -> int:
        """Return the number of parameters that are the head's own."""
        return norm_parameters(norm, width) + (0 if self.tied else width * vocab_size)


class LanguageModelHead(nn.Module):
    """Final normalization and projection, without bias."""

    def __init__(self, config: LanguageModelHeadConfig, width: int, vocab_size: int, norm: Norm) -> None:
        super().__init__()
        self.norm = build_norm(norm, width)
        self.projection = None if config.tied else nn.Linear(width, vocab_size, bias=False)
        self.reset_parameters()

    def forward(self, x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return logits_BTV; any leading dimensions will do. A tied head projects on `embedding_VD`."""
        weight_VD = embedding_VD if self.projection is None else self.projection.weight
        return F.linear(self.norm(x_BTD), weight_VD)

    def reset_parameters(self) -> None:
        """Draw an untied projection so small that the untrained model is close to uniform over the tokens."""
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=UNTIED_LOGIT_STD * self.projection.in_features**-0.5)
