"""Laws of nested widths: a model's first inner units are a model, and what lies outside it can be silent.

B batch, T time, S length of the source, V vocabulary, d elements of the flat vector.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from agfl_models import AutoGenModel, ModelConfig
from agfl_models.errors import ConfigError
from agfl_models.model.rings import Rings
from agfl_models.model.sequence_model import trained_parameters

WIDTHS = (0.3, 0.7, 1.0)
DIM, VOCABULARY = 16, 11
ATTENTION = {"type": "attention", "num_heads": 8, "num_kv_heads": 4, "head_dim": 6}
CROSS = {**ATTENTION, "cross": True, "head_dim": 3}
GATED_DELTA = {"type": "rnn", "cell": "gated_delta", "hidden_dim": 128}
MIXED = [ATTENTION, {"type": "rnn"}, {"type": "ff"}, GATED_DELTA]
BOTH_WAYS = [ATTENTION, {"type": "rnn"}, {"type": "rnn", "cell": "lstm", "hidden_dim": 10}, GATED_DELTA]
MODELS: dict[str, dict[str, Any]] = {
    "gelu": {"layers": [{"type": "ff", "activation": "gelu"}]},
    "swiglu": {"layers": [{"type": "ff", "hidden_dim": 13}]},
    "gru": {"layers": [{"type": "rnn", "hidden_dim": 10}]},
    "lstm": {"layers": [{"type": "rnn", "cell": "lstm"}]},
    "mingru": {"layers": [{"type": "rnn", "cell": "mingru"}]},
    "gated delta": {"layers": [GATED_DELTA]},
    "causal conv": {"layers": [{"type": "causal_conv", "hidden_dim": 10}]},
    "attention": {"layers": [ATTENTION]},
    "attention in a window": {"layers": [{**ATTENTION, "window": 3}]},
    "attention of heads that divide the width": {"layers": [{"type": "attention", "num_heads": 4}]},
    "mixed": {"layers": MIXED},
    "post, layernorm, untied": {"residual": "post", "norm": "layernorm", "head": {"tied": False}, "layers": MIXED},
    "chain": {"vocab_size": None, "residual": "none", "layers": [ATTENTION, {"type": "rnn"}, {"type": "ff"}]},
    "encoder": {"family": "encoder", "head": {"type": "span"}, "type_vocab_size": 2, "layers": BOTH_WAYS},
    "encoder of minGRU": {"family": "encoder", "layers": [{"type": "rnn", "cell": "mingru"}]},
    "encoder-decoder": {
        "family": "encoder_decoder",
        "encoder": {"layers": [{"type": "rnn"}, ATTENTION]},
        "layers": [{"type": "rnn", "cell": "lstm"}, CROSS, {"type": "ff"}],
    },
}
each_model = pytest.mark.parametrize("name", MODELS)


def config_of(name: str) -> ModelConfig:
    return ModelConfig.model_validate({"dim": DIM, "vocab_size": VOCABULARY, **MODELS[name]})


@cache
def rings_of(name: str) -> Rings:
    return Rings.of(config_of(name), WIDTHS)


def make_model(name: str) -> AutoGenModel:
    model = AutoGenModel(config_of(name), seed=0).double()
    flat_d = flat(model)
    noise_d = torch.randn(len(flat_d), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return fill(model, flat_d + 0.1 * noise_d)  # no bias stays 0, where it would hide an error


def narrow_model(name: str, width: float, flat_d: Tensor) -> AutoGenModel:
    return fill(AutoGenModel(config_of(name).narrowed(width), seed=0).double(), flat_d)


def flat(model: AutoGenModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(model).values()])


def flat_gradient(model: AutoGenModel) -> Tensor:
    outputs(model).square().mean().backward()  # type: ignore[no-untyped-call]
    gradients = []
    for name, parameter in trained_parameters(model).items():
        assert parameter.grad is not None, name
        gradients.append(parameter.grad.flatten())
    return torch.cat(gradients)


def fill(model: AutoGenModel, flat_d: Tensor) -> AutoGenModel:
    parameters = trained_parameters(model)
    parts = torch.split(flat_d, [parameter.numel() for parameter in parameters.values()])
    with torch.no_grad():
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.copy_(part.view(parameter.shape))
    return model


def silenced(flat_d: Tensor, which_d: NDArray[np.bool_]) -> Tensor:
    return flat_d.masked_fill(torch.from_numpy(which_d), 0)


def inputs(model: AutoGenModel, rows: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if model.config.vocab_size is None:
        return torch.randn(rows, length, DIM, dtype=torch.float64, generator=generator)
    return torch.randint(VOCABULARY, (rows, length), generator=generator)


def outputs(model: AutoGenModel) -> Tensor:
    """What a model computes, with padding, and if it decodes then also step by step, as one flat tensor."""
    x, source = inputs(model, 3, 7, seed=2), inputs(model, 3, 5, seed=3)
    mask_BT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool()
    if model.config.family == "encoder":
        return torch.cat([model(x).flatten(), model(x, mask_BT).flatten()])
    has_encoder = model.config.family == "encoder_decoder"
    given = {"source": source, "source_mask": mask_BT[:, :5]} if has_encoder else {}
    memory = model.encode(source) if has_encoder else None
    computed, state = [model(x, mask_BT, **given).flatten()], model.initial_state(3, memory)
    for step in x.unbind(dim=1):
        y, state = model.step(step, state)
        computed.append(y.flatten())
    return torch.cat(computed)


def assert_same(one: AutoGenModel, other: AutoGenModel) -> None:
    with torch.no_grad():
        torch.testing.assert_close(outputs(one), outputs(other), atol=1e-12, rtol=1e-12)


@each_model
def test_a_width_holds_as_many_parameters_as_its_model_has(name: str) -> None:
    config, rings = config_of(name), rings_of(name)
    whole = AutoGenModel(config, seed=0)
    assert rings.widths == WIDTHS
    assert len(rings.ring) == len(rings.reads) == len(flat(whole))
    for num_rings, width in enumerate(WIDTHS, start=1):
        narrow = AutoGenModel(config.narrowed(width), seed=0)
        assert list(trained_parameters(narrow)) == list(trained_parameters(whole))
        assert rings.held(num_rings).sum() == len(flat(narrow))
        assert config.narrowed(width).num_parameters() == len(flat(narrow))
    assert rings.held(len(WIDTHS)).all()
    assert 0 < rings.held(1).sum() < rings.held(2).sum() < len(rings.ring)


@each_model
def test_a_model_that_is_0_outside_a_width_computes_what_the_model_of_that_width_does(name: str) -> None:
    model, rings = make_model(name), rings_of(name)
    flat_d, before = flat(model), outputs(model).detach()
    for num_rings, width in enumerate(WIDTHS, start=1):
        held_d = rings.held(num_rings)
        assert_same(fill(model, silenced(flat_d, ~held_d)), narrow_model(name, width, flat_d[held_d]))
        assert held_d.all() or not torch.allclose(outputs(model), before), "an inner unit makes a difference"


@each_model
def test_a_ring_that_nothing_reads_changes_nothing(name: str) -> None:
    model, rings = make_model(name), rings_of(name)
    flat_d = flat(model)
    assert_same(fill(model, silenced(flat_d, rings.reads)), narrow_model(name, WIDTHS[0], flat_d[rings.held(1)]))
    for num_rings, (inner, outer) in enumerate(pairwise(WIDTHS), start=1):
        added_d = rings.reads & (rings.ring == num_rings)
        unread_d = silenced(flat_d, added_d)[rings.held(num_rings + 1)]
        assert_same(narrow_model(name, outer, unread_d), narrow_model(name, inner, flat_d[rings.held(num_rings)]))


@each_model
def test_a_ring_that_nothing_reads_learns_by_being_read(name: str) -> None:
    model, rings = make_model(name), rings_of(name)
    gradient_d = flat_gradient(fill(model, silenced(flat(model), rings.reads)))
    for ring in np.unique(rings.ring)[1:]:
        reading_d = torch.from_numpy(rings.reads & (rings.ring == ring))
        assert gradient_d[reading_d].any()
    assert (rings.ring[rings.reads] > 0).all()
    assert not gradient_d[torch.from_numpy((rings.ring > 0) & ~rings.reads)].any(), "not before it is read"


@each_model
def test_what_lies_outside_a_width_and_is_0_stays_so_and_the_rest_learns_as_the_narrow_model(name: str) -> None:
    rings, flat_d = rings_of(name), flat(make_model(name))
    for num_rings, width in enumerate(WIDTHS[:-1], start=1):
        held_d = rings.held(num_rings)
        gradient_d = flat_gradient(fill(make_model(name), silenced(flat_d, ~held_d)))
        assert not gradient_d[~held_d].any(), "exactly 0"
        want_d = flat_gradient(narrow_model(name, width, flat_d[held_d]))
        torch.testing.assert_close(gradient_d[held_d], want_d, atol=1e-12, rtol=1e-9)


def test_the_units_that_are_left_are_a_share_of_each_layers() -> None:
    layers = [{"type": "ff", "hidden_dim": 13}, *MIXED]
    narrow = ModelConfig.model_validate({"dim": DIM, "layers": layers}).narrowed(0.5)
    units = [(layer.model_dump().get("hidden_dim"), layer.model_dump().get("num_heads")) for layer in narrow.layers]
    assert units == [(6, None), (None, 4), (8, None), (24, None), (64, None)]
    assert [layer.width_out for layer in narrow.layers] == [DIM] * 5


def test_rings_are_of_the_first_units_and_read_by_columns() -> None:
    layers = [{"type": "ff", "hidden_dim": 3}, {**ATTENTION, "num_heads": 4, "num_kv_heads": 2}, {"type": "rnn"}]
    config = ModelConfig.model_validate({"dim": 4, "layers": layers})
    found = by_name(config, Rings.of(config, (0.4, 0.7, 1.0)))
    ff, qkv, rnn = "layers.0", "layers.1", "layers.2"  # 1, 2, 3 units; 1, 1, 2 key-value heads; 2, 3, 4 channels
    assert found[f"{ff}.expand.weight"] == ([[0] * 4, [1] * 4, [2] * 4], [[False] * 4] * 3)
    assert found[f"{ff}.output.weight"] == ([[0, 1, 2]] * 4, [[False, True, True]] * 4)
    of_heads = [0] * 12 + [2] * 12 + 2 * ([0] * 6 + [2] * 6)  # queries; keys and values
    assert found[f"{qkv}.qkv.weight"] == ([[ring] * 4 for ring in of_heads], [[False] * 4] * 48)
    assert found[f"{qkv}.output.weight"] == ([of_heads[:24]] * 4, [[ring > 0 for ring in of_heads[:24]]] * 4)
    of_gate = [[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 1, 2], [2, 2, 2, 2]]
    reads = [[False, False, True, True]] * 2 + [[False, False, False, True], [False] * 4]
    assert found[f"{rnn}.cell.rnn.weight_hh_l0"] == (3 * of_gate, 3 * reads)
    assert found[f"{rnn}.cell.rnn.bias_hh_l0"] == (3 * [0, 0, 1, 2], [False] * 12)
    assert found["connections.0.norm.weight"] == ([0] * 4, [False] * 4)


def by_name(config: ModelConfig, rings: Rings) -> dict[str, tuple[Any, Any]]:
    """Return for each parameter the rings of its elements, and which of them read."""
    found, start = {}, 0
    for name, parameter in trained_parameters(AutoGenModel(config, seed=0)).items():
        end = start + parameter.numel()
        ring, reads = (part[start:end].reshape(parameter.shape).tolist() for part in (rings.ring, rings.reads))
        found[name], start = (ring, reads), end
    assert start == len(rings.ring)
    return found


def test_what_cannot_be_narrowed_stays_whole() -> None:
    layers = [{"type": "rnn", "cell": cell} for cell in ("gru", "lstm", "mingru", "gated_delta")]
    config = ModelConfig.model_validate({"dim": DIM, "residual": "none", "layers": layers})
    assert config.narrowed(0.1) == config.resolve()
    assert not Rings.of(config, (0.1, 1.0)).ring.any()


@each_model
def test_a_narrow_configuration_is_one_that_a_person_may_write(name: str) -> None:
    config = config_of(name)
    for width in WIDTHS:
        narrow = config.narrowed(width)
        assert ModelConfig.model_validate(narrow.model_dump(mode="json", exclude_none=True)).resolve() == narrow
    assert config.narrowed(1.0) == config.resolve()
    assert config.narrowed(1e-9).num_parameters() < config.num_parameters()


def test_the_rings_are_found_without_drawing_weights() -> None:
    before = torch.get_rng_state()
    Rings.of(config_of("mixed"), WIDTHS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "widths", [(), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5), (0.5, 1.0, 1.0), tuple(np.linspace(0.1, 1, 257))]
)
def test_widths_that_do_not_ascend_to_1_are_refused(widths: tuple[float, ...]) -> None:
    line = f"widths: must ascend to 1, at most 256 of them, got {list(widths)}"
    with pytest.raises(ConfigError, match=f"^{re.escape(line[:1000])}"):  # a long line is cut
        Rings.of(config_of("gelu"), widths)


@pytest.mark.parametrize("width", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_width_outside_0_to_1_is_refused(width: float) -> None:
    with pytest.raises(ConfigError, match=rf"^width: .*got {width}.*AGFL-CONFIG-098"):
        config_of("gelu").narrowed(width)


def test_heads_that_would_be_others_alone_are_refused() -> None:
    config = ModelConfig.model_validate({"dim": 8, "layers": [{"type": "ff"}, {**GATED_DELTA, "hidden_dim": 153}]})
    line = "layers.1.hidden_dim: narrowed to 102, must be 2 heads of 51, got 3 heads"
    with pytest.raises(ConfigError, match=f"^{line} .AGFL-CONFIG-091"):
        config.narrowed(0.67)
    assert config.narrowed(0.34).layers[1].model_dump()["hidden_dim"] == 51
