"""Tiny pretrained models with random weights, as folders that `save_pretrained` writes; nothing is downloaded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from agfl_models.huggingface.config import Architecture
from agfl_models.huggingface.folder import transformers_library

TEXTS = ["the sea saw a ship and no man knew when it came to shore", "Ein Schiff kam über das Meer 🙂", "a man, a sea."]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
BERT_SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
CAUSAL, SEQ2SEQ, ENCODERS = ("llama", "mistral", "gpt2"), ("t5", "bart"), ("bert", "roberta")
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(CAUSAL, "causal"),
    **dict.fromkeys(SEQ2SEQ, "seq2seq"),
    **dict.fromkeys(ENCODERS, "encoder"),
}
TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "down_proj"),
    "gpt2": ("c_attn",),
    "t5": ("q", "v", "wo"),
    "bart": ("q_proj", "fc1"),
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
}


def write_pretrained(folder: Path, kind: str, seed: int = 0, **settings: Any) -> Path:
    """Write a model of two layers, 32 wide, with its tokenizer; `settings` change its configuration."""
    with quiet():
        library = transformers_library()
        tokenizer = _word_pieces() if kind == "bert" else _byte_level()
        special = BERT_SPECIAL if kind == "bert" else SPECIAL
        if kind == "roberta":
            special = {**SPECIAL, "cls_token": "<s>", "sep_token": "</s>"}
        fast = library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8, **special)
        config = _config(library, kind, fast, settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(library, _CLASSES[kind])(config)
            for parameter in model.parameters():  # so that no bias or norm is left out of a comparison
                parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers says about tiny models to itself."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "mamba": "MambaForCausalLM",
    "bert": "BertModel",
    "roberta": "RobertaModel",
}


def _config(library: Any, kind: str, tokenizer: Any, settings: dict[str, Any]) -> Any:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    common = {"vocab_size": len(tokenizer) + 3, "hidden_size": 32, "intermediate_size": 48, **ids}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    stack = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "forced_eos_token_id": None}
    positions = {"max_position_embeddings": 64}
    start = {"decoder_start_token_id": ids["pad_token_id"]}
    match kind:
        case "llama":
            return library.LlamaConfig(**{**common, **layers, **positions, "num_key_value_heads": 2, **settings})
        case "mistral":
            window = {"num_key_value_heads": 2, "sliding_window": 4}
            return library.MistralConfig(**{**common, **layers, **positions, **window, **settings})
        case "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": common["vocab_size"]}
            return library.GPT2Config(**{**sizes, **ids, **settings})
        case "t5":
            sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
            return library.T5Config(**{**sizes, **ids, **start, "vocab_size": common["vocab_size"], **settings})
        case "bart":
            return library.BartConfig(
                **{**stack, **heads, **positions, **ids, **start, "vocab_size": common["vocab_size"], **settings}
            )
        case "mamba":
            return library.MambaConfig(
                vocab_size=common["vocab_size"], hidden_size=32, num_hidden_layers=2, state_size=4
            )
        case "bert":
            return library.BertConfig(**{**common, **layers, **positions, **settings})
        case _:
            return library.RobertaConfig(**{**common, **layers, **positions, **settings})


def _byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer


def _word_pieces() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=list(BERT_SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer
