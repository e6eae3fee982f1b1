"""The configuration: both forms, what they count, and what they refuse and how."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agfl_models import AttentionLayer, AutoGenModel, FFLayer, ModelConfig, RNNLayer
from agfl_models.errors import ConfigError
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


def test_a_resolved_config_and_a_dumped_config_mean_the_same() -> None:
    config = ModelConfig.model_validate({"dim": 8, "layers": [{"repeat": 2, "layers": [{"type": "ff"}]}]})
    resolved = config.resolve()
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    for dump in (resolved.model_dump(mode="json"), resolved.model_dump(mode="json", exclude_none=True)):
        assert ModelConfig.model_validate(dump).resolve() == resolved


widths = st.sampled_from([4, 8, 12])
ff_configs = st.fixed_dictionaries(
    {"type": st.just("ff"), "activation": st.sampled_from(["gelu", "swiglu"])},
    optional={"input_dim": widths, "hidden_dim": widths, "output_dim": widths},
)
rnn_configs = st.fixed_dictionaries(
    {"type": st.just("rnn"), "cell": st.sampled_from(["gru", "lstm", "mingru", "gated_delta"])},
    optional={"input_dim": widths, "hidden_dim": widths, "output_dim": widths},
)
attention_configs = st.fixed_dictionaries(
    {"type": st.just("attention"), "num_heads": st.just(2), "num_kv_heads": st.sampled_from([1, 2])},
    optional={"embed_dim": st.sampled_from([4, 8])},
)
model_configs = st.fixed_dictionaries(
    {
        "dim": st.sampled_from([4, 8]),
        "residual": st.sampled_from(["pre", "post", "none"]),
        "norm": st.sampled_from(["rmsnorm", "layernorm", "none"]),
        "layers": st.lists(st.one_of(ff_configs, rnn_configs, attention_configs), min_size=1, max_size=3),
    },
    optional={"vocab_size": st.just(11), "head": st.just({"tied": False})},
)


@settings(max_examples=60, deadline=None)
@given(config=model_configs)
def test_the_config_predicts_the_number_of_parameters(config: dict[str, Any]) -> None:
    config["layers"].append({"type": "attention", "embed_dim": config["dim"], "num_heads": 2})
    if "vocab_size" not in config:
        config.pop("head", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoGenModel(config)
    number = sum(parameter.numel() for parameter in model.parameters())
    assert ModelConfig.model_validate(config).num_parameters() == number


def test_flops_are_what_torch_counts() -> None:
    config = ModelConfig.model_validate(
        {
            "vocab_size": 50,
            "dim": 16,
            "layers": [
                {"type": "attention", "num_heads": 2, "num_kv_heads": 1},
                {"type": "ff"},
                {"type": "ff", "activation": "gelu"},
                {"type": "rnn", "cell": "mingru"},
            ],
        }
    )
    model = AutoGenModel(config)
    # Other kernels than "math" are invisible to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 12, dtype=torch.long))
    assert counter.get_total_flops() == 12 * config.flops_per_token(context_length=12)


@pytest.mark.parametrize(
    ("config", "sentences"),
    [
        (
            {"layers": [{"type": "ff", "input_dim": 8}, {"type": "attention", "embed_dim": 4}]},
            ["layers.0 (ff), 8 wide, and layers.1 (attention), 4 wide, are joined by a linear bridge"],
        ),
        (
            {"dim": 8, "layers": [{"type": "rnn", "input_dim": 6, "output_dim": 4}]},
            [
                "the residual stream, 8 wide, and layers.0 (rnn), 6 wide, are joined by a linear bridge",
                "layers.0 (rnn), 4 wide, and the residual stream, 8 wide, are joined by a linear bridge",
            ],
        ),
        (
            {"dim": 8, "residual": "none", "layers": [{"type": "ff", "input_dim": 6}]},
            ["the input, 8 wide, and layers.0 (ff), 6 wide, are joined by a linear bridge"],
        ),
    ],
)
def test_unequal_widths_are_bridged_with_a_warning(config: dict[str, Any], sentences: list[str]) -> None:
    with pytest.warns(UserWarning, match="are joined by a linear bridge") as caught:
        model = AutoGenModel(config)
    assert [str(warning.message) for warning in caught] == sentences
    assert {warning.filename for warning in caught} == {__file__}
    width = model.config.dim
    assert model(torch.randn(1, 3, width)).shape == (1, 3, model.config.width_out)


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
        "model: layers.0.causal: must be true under a language-model head, got false",
    ),
    (
        {"vocab_size": 9, "dim": 8, "head": {"tie": True}, "layers": [{"type": "ff"}]},
        "model: head: unknown key 'tie' (did you mean 'tied'?)",
    ),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refusals_name_field_rule_and_value(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        AutoGenModel(config)
