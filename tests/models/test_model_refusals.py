"""What a model configuration may not say, and the one line that says so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agfl_models import AutoGenModel
from agfl_models.errors import ConfigError

SOURCE_READER = {"layers": [{"type": "ff"}]}
CROSS = {"type": "attention", "cross": True}
CHOICE = {"type": "choice", "name": "mixer", "of": [[{"type": "ff"}], [{"type": "ff"}] * 3]}
REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"layers": [{"type": "atention"}]},
        "model: layers.0: unknown 'type' 'atention' (did you mean 'attention'?)",
    ),
    (
        {"layers": [{"type": "ff", "hidden_dims": 3}]},
        "model: layers.0: unknown key 'hidden_dims' (did you mean 'hidden_dim'?)",
    ),
    ({"layer": []}, "model: unknown key 'layer' (did you mean 'layers'?)"),
    (
        {"layers": [{"typ": "ff"}]},
        "model: layers.0: must have a `type`, or `repeat` and `layers`, got {'typ': 'ff'}",
    ),
    (
        {"layers": [{"repeat": 2, "layers": [{"type": "rnn", "cell": "GRU"}]}]},
        "model: layers.0.layers.0.cell: Input should be 'gru', 'lstm', 'mingru' or 'gated_delta', got 'GRU'",
    ),
    (
        {"layers": [{"repeat": 0, "layers": [{"type": "ff"}]}]},
        "model: layers.0.repeat: Input should be greater than 0, got 0",
    ),
    (
        {"dim": 8, "layers": [{"repeat": 10**9, "layers": [{"type": "ff"}]}]},
        "model: layers.0.repeat: Input should be less than or equal to 4096, got 1000000000",
    ),
    (
        {
            "dim": 8,
            "layers": [{"repeat": 65, "layers": [{"repeat": 63, "layers": [{"type": "ff"}]}]}, {"type": "ff"}] * 2,
        },
        "model: layers: must be at most 4096 with repeats written out, got 8192",
    ),
    (
        {"dim": 8, "layers": [{"repeat": 4096, "layers": [CHOICE]}]},
        "model: layers: must be at most 4096 with repeats written out, got 12288",
    ),
    (
        {
            "dim": 8,
            "family": "encoder_decoder",
            "encoder": {"layers": [{"repeat": 4000, "layers": [{"type": "ff"}] * 2}]},
            "layers": [CROSS],
        },
        "model: encoder.layers: must be at most 4096 with repeats written out, got 8000",
    ),
    (
        {"layers": [{"type": "ff", "input_dim": 0}]},
        "model: layers.0.input_dim: Input should be greater than 0, got 0",
    ),
    (
        {"layers": [{"type": "attention", "embed_dim": 128, "num_heads": 5}]},
        "model: layers.0.num_heads: must divide embed_dim (128), got 5",
    ),
    (
        {"layers": [{"type": "attention", "embed_dim": 12, "num_heads": 4}]},
        "model: layers.0.num_heads: embed_dim (12) / num_heads must be even with rope, got 4",
    ),
    (
        {"layers": [{"type": "attention", "embed_dim": 12, "head_dim": 5}]},
        "model: layers.0.head_dim: must be even with rope, got 5",
    ),
    (
        {"layers": [{"type": "attention", "embed_dim": 16, "num_heads": 4, "num_kv_heads": 3}]},
        "model: layers.0.num_kv_heads: must divide num_heads (4), got 3",
    ),
    (
        {"dim": 64, "layers": [{"type": "ff"}, {"type": "attention", "num_heads": 5}]},
        "model: layers.1: num_heads: must divide embed_dim (64), got 5",
    ),
    ({"layers": [{"type": "ff"}]}, "model: dim: required, because layers.0 does not state its width either, got none"),
    ({"dim": 8, "head": {}, "layers": [{"type": "ff"}]}, "model: head: needs vocab_size, got none"),
    (
        {"vocab_size": 9, "dim": 8, "residual": "none", "layers": [{"type": "ff", "output_dim": 6}]},
        "model: head.tied: needs a last layer as wide as the embedding (8), got 6",
    ),
    (
        {"vocab_size": 9, "dim": 8, "layers": [{"type": "attention", "causal": False}]},
        "model: layers.0: must be causal under a language-model head, where no position sees a later one, got "
        "attention embed_dim=8 rope=True head_dim=8 num_heads=1 num_kv_heads=1 causal=False",
    ),
    (
        {"vocab_size": 9, "dim": 8, "head": {"tie": True}, "layers": [{"type": "ff"}]},
        "model: head: unknown key 'tie' (did you mean 'tied'?)",
    ),
    (
        {"vocab_size": 9, "dim": 8, "layers": [{"type": "rnn", "bidirectional": True}]},
        "model: layers.0: must be causal under a language-model head, where no position sees a later one, got "
        "rnn input_dim=8 hidden_dim=8 output_dim=8 cell=gru bidirectional=True",
    ),
    (
        {"dim": 8, "family": "encoder", "layers": [{"type": "attention", "causal": True}]},
        "model: layers.0.causal: must be false in an encoder, got true",
    ),
    (
        {"dim": 8, "layers": [{"type": "attention", "window": 0}]},
        "model: layers.0.window: Input should be greater than 0, got 0",
    ),
    (
        {"dim": 8, "layers": [CROSS]},
        "model: layers.0.cross: needs the decoder of family encoder_decoder, got true",
    ),
    (
        {"dim": 8, "family": "encoder", "layers": [{"type": "ff"}, CROSS]},
        "model: layers.1.cross: needs the decoder of family encoder_decoder, got true",
    ),
    (
        {"dim": 8, "family": "encoder_decoder", "encoder": {"layers": [CROSS]}, "layers": [CROSS]},
        "model: encoder.layers.0.cross: needs the decoder of family encoder_decoder, got true",
    ),
    (
        {"dim": 8, "layers": [{**CROSS, "window": 4}]},
        "model: layers.0: unknown key 'window' "
        "(known: cross, embed_dim, head_dim, memory_dim, num_heads, num_kv_heads, rope, type)",
    ),
    (
        {"dim": 8, "layers": [{**CROSS, "rope": True}]},
        "model: layers.0.rope: Input should be False, got True",
    ),
    (
        {"dim": 12, "layers": [{**CROSS, "embed_dim": 12, "num_heads": 5}]},
        "model: layers.0.num_heads: must divide embed_dim (12), got 5",
    ),
    (
        {"dim": 8, "layers": [{"repeat": 2, "layer": []}]},
        "model: layers.0: unknown key 'layer' (did you mean 'layers'?)",
    ),
    (
        {"dim": 8, "vocab_size": 9, "type_vocab_size": 2, "layers": [{"type": "ff"}]},
        "model: type_vocab_size: must be 1 but for an encoder of tokens, got 2",
    ),
    (
        {"dim": 8, "family": "encoder", "type_vocab_size": 3, "layers": [{"type": "ff"}]},
        "model: type_vocab_size: must be 1 but for an encoder of tokens, got 3",
    ),
    (
        {"dim": 8, "family": "encoder_decoder", "layers": [CROSS]},
        "model: encoder: required with family encoder_decoder, got none",
    ),
    (
        {"dim": 8, "family": "encoder_decoder", "encoder": SOURCE_READER, "layers": [{"type": "ff"}]},
        "model: layers: need a layer with `type: attention, cross: true` to see the encoder, got none",
    ),
    (
        {"dim": 8, "encoder": SOURCE_READER, "layers": [{"type": "ff"}]},
        "model: encoder: needs family encoder_decoder, got decoder",
    ),
    (
        {"dim": 8, "family": "transducer", "layers": [{"type": "ff"}]},
        "model: family: Input should be 'decoder', 'encoder' or 'encoder_decoder', got 'transducer'",
    ),
    (
        {"vocab_size": 9, "dim": 8, "head": {"type": "span"}, "layers": [{"type": "ff"}]},
        "model: head: span needs family encoder, got decoder",
    ),
    (
        {"vocab_size": 9, "dim": 8, "family": "encoder", "head": {}, "layers": [{"type": "ff"}]},
        "model: head: language_model needs family decoder or encoder_decoder, got encoder",
    ),
    (
        {
            "vocab_size": 9,
            "dim": 8,
            "family": "encoder",
            "head": {"type": "classification"},
            "layers": [{"type": "ff"}],
        },
        "model: head.num_classes: required but missing",
    ),
    (
        {"vocab_size": 9, "dim": 8, "head": {"type": "spam"}, "layers": [{"type": "ff"}]},
        "model: head: unknown 'type' 'spam' (did you mean 'span'?)",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_field_rule_and_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}( \[AGFL-CONFIG-\d+\])?$"):
        AutoGenModel(config)
