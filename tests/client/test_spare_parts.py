"""Nodes of one process take turns with a model, if it holds nothing of the owner who trained it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from agfl_client.training.part import Part, SpareParts
from agfl_client.training.workspace import Workspace
from agfl_models.examples import TextRow
from agfl_models.model.base_config import OwnModelConfig
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.client_plan import ClientPlan


@pytest.fixture
def plan(run_config: Callable[..., RunConfig]) -> ClientPlan:
    return run_config().client_plan


def test_a_part_that_was_given_back_is_taken_next_and_by_one_alone(plan: ClientPlan) -> None:
    spare = SpareParts()
    one = spare.take("plan", plan, None, 1, "cpu")
    for parameter in one.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert spare.put("plan", plan, one)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    assert spare.take("plan", plan, None, 1, "cpu") is one
    assert spare.take("plan", plan, None, 1, "cpu") is not one


def test_another_plan_another_model_and_a_run_that_is_over_get_a_new_one(
    plan: ClientPlan, run_config: Callable[..., RunConfig]
) -> None:
    spare = SpareParts()
    wider = run_config("model.dim=32").client_plan
    for text, other in (("another", plan), ("plan", wider)):
        one = spare.take("plan", plan, None, 1, "cpu")
        spare.put("plan", plan, one)
        assert spare.take(text, other, None, 1, "cpu") is not one
        spare.put("plan", plan, one)
        assert spare.take("plan", plan, None, 1, "cpu") is not one, "it came back when its run was over"
    spare.put("plan", plan, one := spare.take("plan", plan, None, 1, "cpu"))
    spare.clear()
    assert spare.take("plan", plan, None, 1, "cpu") is not one


def test_model_that_remembers_stays_with_its_owner(plan: ClientPlan) -> None:
    """Running statistics are no weights: the next round does not load them."""
    spare = SpareParts()
    made = spare.take("plan", plan, None, 1, "cpu")
    made.model.norm = nn.BatchNorm1d(2)
    assert not spare.put("plan", plan, made)
    assert isinstance(made, Part)
    assert spare.take("plan", plan, None, 1, "cpu") is not made


class Remembering(OwnModelConfig):
    """Its module may keep whatever it saw."""

    family: Literal["remembering"] = "remembering"
    copies: bool = True

    def build(self) -> nn.Module:
        module: Any = nn.Linear(2, 2)
        module.seen = [] if self.copies else (_ for _ in ())
        assert isinstance(module, nn.Module)
        return module


@pytest.mark.parametrize("copies", [True, False])
def test_owners_never_share_a_module_of_their_own_and_each_has_one_as_it_is_built(
    plan: ClientPlan, copies: bool
) -> None:
    spare, own = SpareParts(), plan.model_copy(update={"model": Remembering(copies=copies)})
    models: list[Any] = []
    built: Any = Part.of(own, None, 1, "cpu").model
    for _ in range(3):
        part = spare.take("plan", own, None, 1, "cpu")
        assert not spare.put("plan", own, part)
        models.append(part.model)
        assert torch.equal(models[-1].weight, built.weight)
        assert list(models[-1].seen) == []
        if copies:
            models[-1].seen.append("a text")
        with torch.no_grad():
            models[-1].weight.fill_(7)
    assert len({id(model) for model in models}) == len({id(model.seen) for model in models}) == 3


def test_owners_between_rounds_hold_no_model_and_in_a_round_one_each(plan: ClientPlan) -> None:
    rows = [TextRow(text="the sea saw a ship and no man knew when it came to shore")] * 4
    spaces = [Workspace.of("turns", plan, 1, lambda plan: rows, "cpu") for _ in range(3)]
    assert [space.kept_part for space in spaces] == [None] * 3
    first, second = spaces[0].begin(1), spaces[1].begin(1)
    assert first.part is not second.part
    assert first.end().kept_part is None
    assert spaces[2].begin(1).part is first.part
