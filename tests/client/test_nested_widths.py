"""Training in several widths moves what a width has, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from agfl_client.training.part import Part, whole_layout
from agfl_client.training.trainer import BatchTrainer
from agfl_models.examples import TextRow
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.local_trainer import LocalWork
from agfl_protocol.randomness import generator
from agfl_protocol.update import Layout

ELASTIC = (
    "elastic={widths: [0.25, 0.5, 1.0]}",
    "model.layers=[{type: attention, num_heads: 4}, {type: ff, hidden_dim: 24}, {type: rnn, cell: gru}]",
)
IDS = torch.arange(20).reshape(2, 10)


@pytest.fixture
def config(run_config: Callable[..., RunConfig]) -> RunConfig:
    return run_config(*ELASTIC)


def part_of(config: RunConfig, num_rings: int) -> Part:
    """Return the part with random weights in place of the quiet ones of a new run."""
    rings = config.build_rings()
    assert rings is not None
    part = Part.of(config, rings, num_rings, "cpu")
    part.load(np.random.default_rng(3).standard_normal(rings.ring.size, dtype=np.float32) / np.float32(4))
    return part


def test_a_wide_model_at_a_narrow_width_is_the_narrow_model(config: RunConfig) -> None:
    whole = part_of(config, 3)
    assert whole.widths is not None
    weights = whole.layout.flatten(whole.model)
    for num_rings in (1, 2, 3):
        with whole.widths.at(num_rings):
            found = whole.model(IDS)
        torch.testing.assert_close(found, part_of(config, num_rings).model(IDS), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(whole.layout.flatten(whole.model), weights)


def test_weights_come_back_when_something_goes_wrong(config: RunConfig) -> None:
    whole = part_of(config, 3)
    assert whole.widths is not None
    weights = whole.layout.flatten(whole.model)
    with pytest.raises(KeyError), whole.widths.at(1):
        raise KeyError
    np.testing.assert_array_equal(whole.layout.flatten(whole.model), weights)


def test_a_narrow_step_moves_no_outer_ring(config: RunConfig) -> None:
    whole = part_of(config, 3)
    assert whole.widths is not None
    with whole.widths.at(2):
        whole.model(IDS).square().sum().backward()
    rings = config.build_rings()
    assert rings is not None
    gradient = torch.cat([p.grad.flatten() for p in whole.model.parameters() if p.grad is not None]).numpy()
    assert not gradient[rings.ring == 2].any()
    for inner in (0, 1):
        assert gradient[rings.ring == inner].any()


def test_every_other_step_is_narrower(config: RunConfig) -> None:
    """In 200 steps each narrower width comes about 50 times, the whole one 100 times."""
    whole = part_of(config, 3)
    assert whole.widths is not None
    counts, rng = dict.fromkeys((1, 2, 3), 0), np.random.default_rng(0)
    norms = {}
    for num_rings in (1, 2, 3):
        with whole.widths.at(num_rings):
            norms[round(float(np.abs(whole.layout.flatten(whole.model)).sum()), 3)] = num_rings
    for number in range(200):
        with whole.widths.of_step(number, rng):
            width = norms[round(float(np.abs(whole.layout.flatten(whole.model)).sum()), 3)]
        assert number % 2 or width == 3
        counts[width] += 1
    assert counts[3] == 100
    assert 35 < counts[1] < 65


def test_an_update_of_a_part_is_zero_outside_it(config: RunConfig) -> None:
    part, rings = part_of(config, 2), config.build_rings()
    assert rings is not None
    task = config.build_task()
    dataset = task.prepare([TextRow(text="to be or not to be"), TextRow(text="that is the question")])
    rng = generator(0, "node", 1, "batches")
    work = LocalWork(part.model, part.layout, task, dataset, rng, config.training, widths=part.widths)
    delta = part.spread(BatchTrainer().train(work).delta)
    assert not delta[rings.ring == 2].any()
    assert delta[rings.ring == 1].any()


def test_layout_of_the_whole_takes_no_weights(config: RunConfig) -> None:
    assert whole_layout(config) == Layout.of(build_model(config.model, seed=0))
