"""What a configuration says of its size before it is built: parameters, operations, and bridges."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from agfl_models import AutoGenModel, ModelConfig

widths = st.sampled_from([4, 8, 12])
ff_configs = st.fixed_dictionaries(
    {"type": st.just("ff"), "activation": st.sampled_from(["gelu", "swiglu"])},
    optional={"input_dim": widths, "hidden_dim": widths, "output_dim": widths},
)
rnn_configs = st.fixed_dictionaries(
    {"type": st.just("rnn"), "cell": st.sampled_from(["gru", "lstm", "mingru", "gated_delta"])},
    optional={"input_dim": widths, "hidden_dim": widths, "output_dim": widths},
)
conv_configs = st.fixed_dictionaries(
    {"type": st.just("causal_conv"), "kernel_size": st.sampled_from([2, 5])},
    optional={"input_dim": widths, "hidden_dim": widths, "output_dim": widths},
)
attention_configs = st.fixed_dictionaries(
    {"type": st.just("attention"), "num_heads": st.just(2), "num_kv_heads": st.sampled_from([1, 2])},
    optional={"embed_dim": st.sampled_from([4, 8]), "head_dim": st.sampled_from([2, 6])},
)
cross_configs = st.fixed_dictionaries(
    {"type": st.just("attention"), "cross": st.just(True), "num_heads": st.just(2)},
    optional={
        "embed_dim": st.sampled_from([4, 8]),
        "num_kv_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([3, 6]),
    },
)
layer_lists = st.lists(st.one_of(ff_configs, rnn_configs, conv_configs, attention_configs), min_size=1, max_size=3)
model_configs = st.fixed_dictionaries(
    {
        "dim": st.sampled_from([4, 8]),
        "residual": st.sampled_from(["pre", "post", "none"]),
        "norm": st.sampled_from(["rmsnorm", "layernorm", "none"]),
        "layers": layer_lists,
    },
)
heads = st.one_of(
    st.fixed_dictionaries({"type": st.just("language_model"), "tied": st.booleans()}),
    st.just({"type": "span"}),
    st.fixed_dictionaries({"type": st.just("classification"), "num_classes": st.integers(2, 5)}),
    st.none(),
)


@settings(max_examples=100, deadline=None)
@given(
    config=model_configs, family=st.sampled_from(["decoder", "encoder", "encoder_decoder"]), head=heads, data=st.data()
)
def test_the_config_predicts_the_number_of_parameters(
    config: dict[str, Any], family: str, head: dict[str, Any] | None, data: st.DataObject
) -> None:
    config = {**config, "family": family}
    config["layers"] = [*config["layers"], {"type": "attention", "embed_dim": config["dim"], "num_heads": 2}]
    if family == "encoder_decoder":
        config |= {
            "encoder": {"layers": data.draw(layer_lists)},
            "layers": [data.draw(cross_configs), *config["layers"]],
        }
    reads = (head or {}).get("type")
    if (reads in ("span", "classification")) == (family == "encoder") or head is None:
        config |= {"vocab_size": 11, "head": head}
    if family == "encoder" and "vocab_size" in config:
        config["type_vocab_size"] = data.draw(st.integers(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bridges
        model = AutoGenModel(config)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert ModelConfig.model_validate(config).num_parameters() == sum(parameters.values())
    for part in model.config.parts(context_length=7):
        assert part.parameters == sum(n for name, n in parameters.items() if name.startswith(f"{part.name}."))


def count_flops(run: Callable[[], object]) -> int:
    # Other kernels than "math" are invisible to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


MIXED_LAYERS = [
    {"type": "attention", "num_heads": 2, "num_kv_heads": 1},
    {"type": "attention", "num_heads": 3, "head_dim": 10},
    {"type": "ff"},
    {"type": "ff", "activation": "gelu"},
    {"type": "rnn", "cell": "mingru"},
]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"family": "encoder", "head": {"type": "span"}},
        {"family": "encoder", "head": {"type": "classification", "num_classes": 6}},
    ],
    ids=["decoder", "span", "classification"],
)
def test_flops_are_what_torch_counts(config: dict[str, Any]) -> None:
    model = AutoGenModel({"vocab_size": 50, "dim": 16, "layers": MIXED_LAYERS, **config})
    ids_BT = torch.zeros(1, 12, dtype=torch.long)
    assert count_flops(lambda: model(ids_BT)) == 12 * model.config.flops_per_token(context_length=12)


def test_flops_of_an_encoder_decoder_are_of_a_source_as_long_as_the_target() -> None:
    cross = {"type": "attention", "cross": True, "num_heads": 6, "num_kv_heads": 2, "head_dim": 3}
    model = AutoGenModel(
        {
            "family": "encoder_decoder",
            "vocab_size": 50,
            "dim": 16,
            "encoder": {"layers": MIXED_LAYERS},
            "layers": [*MIXED_LAYERS, cross],
        }
    )
    ids_BT = torch.zeros(1, 12, dtype=torch.long)
    assert count_flops(lambda: model(ids_BT, source=ids_BT)) == 12 * model.config.flops_per_token(context_length=12)


@pytest.mark.parametrize("window", [None, 1, 5])
def test_a_step_costs_what_a_token_costs_with_all_before_it_in_sight(window: int | None) -> None:
    layers = [{"type": "attention", "num_heads": 2, "window": window}, *MIXED_LAYERS[1:]]
    model = AutoGenModel({"vocab_size": 50, "dim": 16, "layers": layers})
    state, ids_B = model.initial_state(1), torch.zeros(1, dtype=torch.long)
    for seen in range(1, 9):
        counted = count_flops(partial(model.step, ids_B, state))
        assert counted == model.config.flops_per_token(context_length=seen)
        _, state = model.step(ids_B, state)


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
        (
            {"dim": 8, "family": "encoder", "layers": [{"type": "rnn", "output_dim": 4}]},
            ["layers.0 (rnn), 4 wide, and the residual stream, 8 wide, are joined by a linear bridge"],
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


def test_bridges_of_an_encoder_are_named_too() -> None:
    encoder = {"layers": [{"type": "ff", "input_dim": 6}]}
    config = {
        "family": "encoder_decoder",
        "dim": 8,
        "encoder": encoder,
        "layers": [{"type": "attention", "cross": True}],
    }
    with pytest.warns(UserWarning, match="linear bridge") as caught:
        AutoGenModel(config)
    assert [str(warning.message) for warning in caught] == [
        "the residual stream, 8 wide, and encoder.layers.0 (ff), 6 wide, are joined by a linear bridge"
    ]
