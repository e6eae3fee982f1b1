"""A pretrained Hugging Face model behind the interface of every other model.

B batch, T time, S length of the source, D width of the encoder's output, V vocabulary.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from agfl_models.errors import ConfigError
from agfl_models.files.durable_files import not_written, refuse_content
from agfl_models.huggingface.config import HuggingFaceConfig
from agfl_models.huggingface.folder import PretrainedFolder
from agfl_models.huggingface.loading import load, max_length
from agfl_models.huggingface.lora import merge_lora
from agfl_models.layers.layer import Memory, State
from agfl_models.model.heads import PADDING_LOGIT, SpanHeadConfig
from agfl_models.model.sequence_model import SequenceModel


class HuggingFaceModel(SequenceModel):
    """What transformers makes of a folder, as `inner`. Padding stands at the end of a sequence, as tasks have it.

    While decoding, the state has one tuple of keys and values for each layer, those of cross-attention after its own;
    before them, for a seq2seq model, stands what the encoder read.

    Args:
        config: a configuration whose folder is known.
        seed: draws the weights of a new head.

    Raises:
        ConfigError: the configuration does not fit the folder, or the extra `huggingface` is not installed.
        PretrainedError: the folder cannot be used.
    """

    def __init__(self, config: HuggingFaceConfig, seed: int | None = None) -> None:
        super().__init__()
        self.config = config.resolve()
        self.inner = load(self.config, seed).eval()
        self._max_length = max_length(self.inner)
        arguments = inspect.signature(self.inner.forward).parameters
        self._type_vocab_size = getattr(self.inner.config, "type_vocab_size", 1)  # of BERT and its like
        # transformers 5.24 calls `cache` what was `past_key_values`.
        self._cache_argument = next((name for name in ("cache", "past_key_values") if name in arguments), None)

    @property
    def max_length(self) -> float:
        return self._max_length

    def train(self, mode: bool = True) -> Self:
        """Leave `inner` in evaluation mode: without dropout a forward pass draws no random numbers."""
        super().train(mode)
        self.inner.eval()
        return self

    def forward(
        self,
        x: Tensor,
        mask_BT: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        self._check_source(source is not None)
        self._check_length(x.shape[1])
        if source is not None:
            memory = self.encode(source, source_mask)
            return self._logits(memory, decoder_input_ids=x, decoder_attention_mask=_integers(mask_BT), use_cache=False)
        if self.config.architecture == "causal":
            return self._logits(input_ids=x, attention_mask=_integers(mask_BT), use_cache=False)
        types = {}
        if types_BT is not None and self._type_vocab_size > 1:
            types["token_type_ids"] = types_BT.clamp(max=self._type_vocab_size - 1)
        output = self.inner(input_ids=x, attention_mask=_integers(mask_BT), **types)
        if not isinstance(self.config.head, SpanHeadConfig):
            logits_BC: Tensor = output.logits
            return logits_BC
        logits_BT2 = torch.stack([output.start_logits, output.end_logits], dim=-1)
        return logits_BT2 if mask_BT is None else logits_BT2.masked_fill(~mask_BT.unsqueeze(-1), PADDING_LOGIT)

    def encode(self, source: Tensor, source_mask_BS: Tensor | None = None) -> Memory:
        self._check_source(True)
        self._check_length(source.shape[1])
        output = self.inner.get_encoder()(input_ids=source, attention_mask=_integers(source_mask_BS))
        return Memory(output.last_hidden_state, source_mask_BS)

    def initial_state(self, batch_size: int, memory: Memory | None = None) -> tuple[State, ...]:
        if self.config.architecture == "encoder":
            raise ConfigError(
                "AGFL-CONFIG-034", "model.architecture: must be causal or seq2seq to decode step by step, got encoder"
            )
        if self._cache_argument is None or self.inner._is_stateful:
            kind = type(self.inner).__name__
            raise ConfigError(
                "AGFL-CONFIG-035", f"model.folder: must hold a model that decodes with keys and values, got {kind}"
            )
        self._check_source(memory is not None)
        if memory is None:
            return ()
        states_BSD, mask_BS = memory
        all_real = torch.ones(states_BSD.shape[:2], dtype=torch.bool, device=states_BSD.device)
        return ((states_BSD, all_real if mask_BS is None else mask_BS),)

    def step(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        from transformers import DynamicCache, EncoderDecoderCache

        read, layers = (state[:1], state[1:]) if self._has_encoder else ((), state)
        self._check_length(1 + (layers[0][0].shape[2] if layers else 0))
        cache = DynamicCache([layer[:2] for layer in layers] or None)  # growing makes new tensors
        assert self._cache_argument is not None
        if not read:
            logits_BTV = self._logits(input_ids=x[:, None], **{self._cache_argument: cache})
            return logits_BTV[:, -1], tuple((own.keys, own.values) for own in cache.layers)
        both = EncoderDecoderCache(cache, DynamicCache([layer[2:] for layer in layers] or None))
        logits_BTV = self._logits(Memory(*read[0]), decoder_input_ids=x[:, None], **{self._cache_argument: both})
        pairs = zip(cache.layers, both.cross_attention_cache.layers, strict=True)
        return logits_BTV[:, -1], (*read, *((own.keys, own.values, cross.keys, cross.values) for own, cross in pairs))

    def save_merged(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder, tokenizer included; an adapter becomes part of the weights.

        Raises:
            CheckpointError: the folder is not empty, or cannot be written.
        """
        refuse_content(folder)
        assert self.config.folder is not None
        merge_lora(self.inner)
        try:
            self.inner.save_pretrained(folder)
            for file in PretrainedFolder(self.config.folder).companions:
                shutil.copyfile(file, folder / file.name)
        except OSError as error:
            raise not_written(folder, error) from None

    @property
    def _has_encoder(self) -> bool:
        return self.config.architecture == "seq2seq"

    def _logits(self, memory: Memory | None = None, **inputs: Any) -> Tensor:
        """Return logits_BTV of a language model."""
        if memory is not None:
            from transformers.modeling_outputs import BaseModelOutput

            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=memory.states_BSD)
            inputs["attention_mask"] = _integers(memory.mask_BS)
        logits_BTV: Tensor = self.inner(**inputs).logits
        return logits_BTV

    def _check_source(self, is_given: bool) -> None:
        if is_given != self._has_encoder:
            rule, got = ("required", "none") if self._has_encoder else ("must not be given", "one")
            raise ConfigError(
                "AGFL-CONFIG-036", f"source: {rule} with architecture {self.config.architecture}, got {got}"
            )

    def _check_length(self, length: int) -> None:
        if length > self._max_length:
            rule = f"must be at most {self._max_length} tokens long for this pretrained model"
            raise ConfigError("AGFL-CONFIG-037", f"sequence: {rule}, got {length}")


def _integers(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.long()
