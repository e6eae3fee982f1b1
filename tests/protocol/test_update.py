"""The flat vector and the model are the same numbers in the same order, whatever the model is made of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.model.model import AutoGenModel
from agfl_protocol.update import Layout

TIED: dict[str, Any] = {"vocab_size": 259, "dim": 8, "layers": [{"type": "attention", "num_heads": 2}, {"type": "ff"}]}
MODELS: dict[str, dict[str, Any]] = {
    "tied": TIED,
    "untied": {**TIED, "head": {"tied": False}},
    "recurrent": {"vocab_size": 259, "dim": 6, "layers": [{"type": "rnn", "cell": "mingru"}]},
    "chain": {"layers": [{"type": "ff", "input_dim": 3, "output_dim": 5}]},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> AutoGenModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bridges
        return AutoGenModel(MODELS[request.param], seed=1)


def random_vector(layout: Layout, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(layout.size, np.float32)


def test_layout_covers_every_parameter_once(model: AutoGenModel) -> None:
    layout = Layout.of(model)
    assert layout.size == sum(p.numel() for p in model.parameters()) == model.config.num_parameters()
    assert [name for name, _ in model.named_parameters()] == list(layout.names)
    covered = np.concatenate([np.arange(layout.size)[place] for place in layout.slices])
    assert covered.tolist() == list(range(layout.size))


def test_load_and_flatten_are_inverse(model: AutoGenModel) -> None:
    layout = Layout.of(model)
    vector = random_vector(layout)
    layout.load(model, vector)
    assert layout.flatten(model).tobytes() == vector.tobytes()
    for (_, parameter), place in zip(model.named_parameters(), layout.slices, strict=True):
        assert np.array_equal(parameter.detach().numpy().reshape(-1), vector[place])


def test_loading_makes_two_models_the_same_function(model: AutoGenModel) -> None:
    other = AutoGenModel(model.config, seed=2)
    Layout.of(other).load(other, Layout.of(model).flatten(model))
    tokens = model.config.vocab_size is not None
    x = torch.arange(12).reshape(2, 6) if tokens else torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), other(x))


def test_flattened_vector_and_model_share_no_memory(model: AutoGenModel) -> None:
    layout = Layout.of(model)
    vector = random_vector(layout)
    layout.load(model, vector)
    kept, flat = vector.copy(), layout.flatten(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert np.array_equal(vector, kept)
    assert np.array_equal(flat, kept)
    vector[:] = 0
    assert not np.array_equal(layout.flatten(model), vector)


def test_tied_embedding_counts_once() -> None:
    tied, untied = (Layout.of(AutoGenModel(MODELS[name], seed=0)) for name in ("tied", "untied"))
    assert untied.size - tied.size == 259 * 8
    assert sum("embedding" in name for name in tied.names) == 1


def test_state_dict_loads_into_a_fresh_model(model: AutoGenModel) -> None:
    layout = Layout.of(model)
    vector = random_vector(layout)
    fresh = AutoGenModel(model.config, seed=3)
    fresh.load_state_dict(layout.state_dict(vector))
    assert layout.flatten(fresh).tobytes() == vector.tobytes()


def test_vector_that_must_not_be_written_can_be_loaded(model: AutoGenModel) -> None:
    """As it comes over the wire: a view of received bytes."""
    layout = Layout.of(model)
    vector = np.frombuffer(random_vector(layout).tobytes(), np.float32)
    assert not vector.flags.writeable
    layout.load(model, vector)
    assert layout.flatten(model).tobytes() == vector.tobytes()


@given(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), max_size=5))
def test_split_is_the_vector_in_shapes(shapes: list[tuple[int, ...]]) -> None:
    layout = Layout(tuple(f"t{k}" for k in range(len(shapes))), tuple(shapes))
    vector = np.arange(layout.size, dtype=np.float32)
    parts = layout.split(vector)
    assert [tuple(part.shape) for part in parts] == shapes
    flat = [value for part in parts for value in part.reshape(-1).tolist()]
    assert flat == vector.tolist()
