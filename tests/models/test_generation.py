"""Generation draws what the model says: the best token, one of the k best, the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from agfl_models import AutoGenModel
from agfl_models.generation import generate

PROMPT = [1, 5, 3]
CONFIG: dict[str, Any] = {
    "vocab_size": 20,
    "dim": 16,
    "head": {"tied": False},
    "layers": [{"type": "attention"}, {"type": "rnn", "cell": "mingru"}, {"type": "rnn"}, {"type": "ff"}],
}


@pytest.fixture(scope="module")
def model() -> AutoGenModel:
    model = AutoGenModel(CONFIG, seed=0)
    assert model.head is not None
    assert model.head.projection is not None
    # Untrained logits are all but equal; these are not.
    nn.init.normal_(model.head.projection.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def draw(model: AutoGenModel, seed: int = 0, **settings: Any) -> list[int]:
    defaults: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "top_k": None}
    return list(generate(model, PROMPT, generator=torch.Generator().manual_seed(seed), **defaults | settings))


def test_temperature_0_takes_the_argmax_of_forward(model: AutoGenModel) -> None:
    ids = list(PROMPT)
    for token_id in draw(model, temperature=0):
        assert token_id == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token_id)
    assert len(ids) == len(PROMPT) + 12
    assert len(set(ids)) > 2


def test_a_seed_fixes_the_text_and_the_global_generator_is_left_alone(model: AutoGenModel) -> None:
    before = torch.get_rng_state()
    assert draw(model, seed=1) == draw(model, seed=1)
    assert draw(model, seed=1) != draw(model, seed=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_top_k_draws_among_the_k_best(model: AutoGenModel) -> None:
    best = set(model(torch.tensor([PROMPT]))[0, -1].topk(3).indices.tolist())
    drawn = {draw(model, seed, max_new_tokens=1, top_k=3, temperature=2.0)[0] for seed in range(60)}
    assert drawn == best
    assert draw(model, top_k=1) == draw(model, temperature=0)
    assert draw(model, top_k=99) == draw(model, top_k=None)


def test_draws_follow_the_probabilities(model: AutoGenModel) -> None:
    probabilities = (model(torch.tensor([PROMPT]))[0, -1] / 1.5).softmax(-1).detach()
    drawn = [draw(model, seed, max_new_tokens=1, temperature=1.5)[0] for seed in range(400)]
    frequencies = torch.bincount(torch.tensor(drawn), minlength=20) / 400
    assert float((frequencies - probabilities).abs().max()) < 0.08


def test_generation_stops_before_the_end_token(model: AutoGenModel) -> None:
    full = draw(model, temperature=0)
    end = full[4]
    assert draw(model, temperature=0, eos_id=end) == full[: full.index(end)]
    assert draw(model, max_new_tokens=0) == []
