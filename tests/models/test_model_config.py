"""The configuration: both forms, and what follows where nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from agfl_models import AttentionLayer, AutoGenModel, FFLayer, ModelConfig, RNNLayer
from agfl_models.validation import read_yaml, validate

# The design notes' example, word for word.
LITERAL: dict[str, Any] = {'layers': [{'type': 'ff', 'input_dim': 128, 'output_dim': 128}, {'type': 'rnn', 'input_dim': 128, 'hidden_dim': 128}, {'type': 'attention', 'embed_dim': 128, 'num_heads': 4}]}  # fmt: skip  # noqa: E501


def test_the_literal_form_is_a_plain_chain_of_layers() -> None:
    model = AutoGenModel(LITERAL)
    x_BTD = torch.randn(2, 16, 128)
    y_BTD = x_BTD
    for layer in model.layers:
        y_BTD = layer(y_BTD)
    assert torch.equal(model(x_BTD), y_BTD)
    assert y_BTD.shape == (2, 16, 128)
    assert [type(layer) for layer in model.layers] == [FFLayer, RNNLayer, AttentionLayer]
    own = sum(parameter.numel() for parameter in model.layers.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == own


def test_yaml_is_the_same_as_a_dict(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(LITERAL))
    assert read_yaml(path) == LITERAL
    assert validate(ModelConfig, read_yaml(path), "model.yaml") == ModelConfig.model_validate(LITERAL)


def test_a_recurrent_layer_is_hidden_dim_wide_unless_output_dim_is_given() -> None:
    rnn = {"type": "rnn", "input_dim": 6, "hidden_dim": 4}
    assert AutoGenModel({"layers": [rnn]})(torch.randn(1, 2, 6)).shape == (1, 2, 4)
    assert AutoGenModel({"layers": [{**rnn, "output_dim": 5}]})(torch.randn(1, 2, 6)).shape == (1, 2, 5)


def test_the_full_form_fills_in_its_defaults() -> None:
    config = ModelConfig.model_validate(
        {"vocab_size": 259, "dim": 96, "layers": [{"type": "attention"}, {"type": "ff"}, {"type": "rnn"}]}
    )
    assert config.resolve().model_dump() == {
        "family": "decoder",
        "vocab_size": 259,
        "type_vocab_size": 1,
        "dim": 96,
        "residual": "pre",
        "norm": "rmsnorm",
        "head": {"type": "language_model", "tied": True},
        "encoder": None,
        "layers": (
            {
                "type": "attention",
                "embed_dim": 96,
                "num_heads": 3,
                "num_kv_heads": 3,
                "rope": True,
                "head_dim": 32,
                "causal": True,
                "window": None,
            },
            {"type": "ff", "input_dim": 96, "hidden_dim": 256, "output_dim": 96, "activation": "swiglu"},
            {
                "type": "rnn",
                "input_dim": 96,
                "hidden_dim": 96,
                "output_dim": 96,
                "cell": "gru",
                "bidirectional": False,
            },
        ),
    }


def test_defaults_follow_from_the_stack() -> None:
    config = ModelConfig.model_validate(
        {
            "family": "encoder_decoder",
            "vocab_size": 259,
            "dim": 96,
            "encoder": {"layers": [{"type": "attention"}, {"type": "rnn"}]},
            "layers": [{"type": "attention"}, {"type": "rnn"}, {"type": "attention", "cross": True}],
        }
    )
    resolved = config.resolve()
    assert resolved.encoder is not None
    encoder = [layer.model_dump() for layer in resolved.encoder.layers]
    decoder = [layer.model_dump() for layer in resolved.layers]
    assert (encoder[0]["causal"], encoder[1]["bidirectional"]) == (False, True)
    assert (decoder[0]["causal"], decoder[1]["bidirectional"]) == (True, False)
    sizes = {"embed_dim": 96, "head_dim": 32, "num_heads": 3, "num_kv_heads": 3}
    assert decoder[2] == {"type": "attention", "cross": True, "memory_dim": 96, **sizes}
    alone = ModelConfig.model_validate({"family": "encoder", "dim": 96, "layers": [{"type": "rnn"}]}).resolve()
    assert alone.layers[0].model_dump()["bidirectional"]
    assert alone.head is None


def test_cross_false_is_self_attention() -> None:
    config = ModelConfig.model_validate({"dim": 8, "layers": [{"type": "attention", "cross": False}]})
    assert config.resolve() == ModelConfig.model_validate({"dim": 8, "layers": [{"type": "attention"}]}).resolve()


def test_the_heads_of_a_stated_width_are_as_many_as_the_layer_holds() -> None:
    found = {}
    for head_dim in (None, 8, 40, 100):
        layers = [{"type": "attention", "head_dim": head_dim}]
        (layer,) = ModelConfig.model_validate({"dim": 96, "layers": layers}).resolve().layers
        found[head_dim] = (layer.model_dump()["num_heads"], layer.model_dump()["head_dim"])
    assert found == {None: (3, 32), 8: (12, 8), 40: (2, 40), 100: (1, 100)}


def test_repeats_are_written_out_and_may_be_nested() -> None:
    inner = {"repeat": 2, "layers": [{"type": "rnn"}]}
    config = ModelConfig.model_validate(
        {"dim": 8, "layers": [{"repeat": 2, "layers": [{"type": "ff"}, inner]}, {"type": "attention"}]}
    )
    types = [layer.type for layer in config.resolve().layers]
    assert types == ["ff", "rnn", "rnn", "ff", "rnn", "rnn", "attention"]
    weights = AutoGenModel(config).state_dict()
    name = "cell.rnn.weight_ih_l0"
    assert not torch.equal(weights[f"layers.1.{name}"], weights[f"layers.2.{name}"])


def test_as_many_layers_as_are_allowed_are_written_out() -> None:
    ff = {"type": "ff", "hidden_dim": 1}
    layers = [{"repeat": 64, "layers": [{"repeat": 63, "layers": [ff]}]}, {"repeat": 63, "layers": [ff]}, ff]
    assert len(ModelConfig.model_validate({"dim": 1, "layers": layers}).resolve().layers) == 4096


def test_a_resolved_config_and_a_dumped_config_mean_the_same() -> None:
    group = {"repeat": 2, "layers": [{"type": "attention", "cross": True}, {"type": "rnn"}]}
    layers = {"encoder": {"layers": [{"type": "attention"}, {"type": "rnn"}]}, "layers": [group]}
    config = ModelConfig.model_validate({"family": "encoder_decoder", "vocab_size": 9, "dim": 8, **layers})
    resolved = config.resolve()
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    for dump in (resolved.model_dump(mode="json"), resolved.model_dump(mode="json", exclude_none=True)):
        assert ModelConfig.model_validate(dump).resolve() == resolved
