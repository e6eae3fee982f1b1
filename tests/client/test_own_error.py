"""What repeats give away is said before an owner approves: the figures are those that were measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agfl_client.approval.plan_text import describe
from agfl_client.policy import Policy
from agfl_client.training.own_error import measure_sigma, own_error
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.plans.plan import Plan

MakeConfig = Callable[..., RunConfig]
NAMES = [f"owner-{i:02}" for i in range(12)]


@pytest.mark.parametrize(
    ("pairs", "owners", "measured"),
    [(1, 5, 1.0), (16, 5, 0.87), (64, 5, 0.64), (16, 12, 0.94), (64, 12, 0.79), (16, 24, 0.97), (64, 24, 0.90)],
)
def test_the_estimate_flatters_nobody_and_is_near_what_was_measured(pairs: int, owners: int, measured: float) -> None:
    """The best linear attack on repeated sums at one model, 24 x 4 windows a sum, sigma 0.86; nobody conspires."""
    assert measured - 0.14 < own_error(pairs, 0.86, owners - 1) <= measured


def test_own_error_falls_with_pairs_and_rises_with_noise_and_others() -> None:
    errors = [own_error(pairs, 0.5, 3) for pairs in (0, 1, 16, 64, 200)]
    assert errors[0] == 1
    assert errors == sorted(errors, reverse=True)
    assert own_error(16, 0.2, 3) < own_error(16, 0.5, 3) < own_error(16, 0.9, 3)
    assert own_error(16, 0.5, 3) < own_error(16, 0.5, 10)
    assert (own_error(5, 0.0, 3), own_error(0, 0.0, 3), own_error(5, 1.0, 3)) == (0, 1, 1)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.6, 0.9])
def test_sigma_is_found_from_two_updates(sigma: float) -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=200_000)
    own *= np.sqrt(1 - sigma**2) / np.linalg.norm(own)
    drawn = [(own + sigma * rng.normal(size=own.size) / np.sqrt(own.size)).astype(np.float32) for _ in range(2)]
    assert measure_sigma(*drawn) == pytest.approx(sigma, rel=0.03)


def test_sigma_of_updates_that_are_alike_or_nothing_is_zero() -> None:
    one = np.ones(8, np.float32)
    assert measure_sigma(one, one) == 0
    assert measure_sigma(one * 0, one * 0) == 0
    assert measure_sigma(one * np.nan, one) == 0
    assert measure_sigma(one, -one) == 1


def test_a_plan_is_told_in_words(run_config: MakeConfig) -> None:
    plan = Plan.of(run_config("aggregation.type=secure").client_plan, "run", NAMES, 6)
    text = describe(plan, None, 0.86, operator="9f" * 32)
    assert f"run run, plan {plan.hash}" in text
    assert f"operator: CA certificate {'9f' * 32}" in text
    assert "task: language_modeling" in text
    assert f"model: {plan.client_plan.model.num_parameters():,} parameters" in text
    assert "members: 12: owner-00, owner-01" in text
    assert text.count("\ngroup ") == 2
    assert "training: sampled sums, 8 examples drawn afresh each time" in text
    assert "full evaluations: exact sums over whole groups, each of 6 owners or more, of whom 4 may conspire" in text
    errors = [f"{own_error(pairs, 0.86, 7):.2f}" for pairs in (1, 16, 64, 200)]
    assert "  own error  " + "".join(f"{error:>7}" for error in errors) in text
    assert "with 7 honest others in each sum" in text
    assert "no run was approved on this text before" in text
    assert "WARNING" not in text


def test_fewer_in_a_sum_or_more_who_conspire_show(run_config: MakeConfig) -> None:
    plan = Plan.of(run_config("aggregation.type=secure", "aggregation.cohort_size=8").client_plan, "run", NAMES, 6)
    assert "with 3 honest others" in describe(plan, None, 0.5)
    assert "with 5 honest others" in describe(plan, None, 0.5, policy=Policy(max_colluders=2))
    assert "not known before your node has measured" in describe(plan, None, None)


def test_draws_that_hardly_differ_are_warned_of(run_config: MakeConfig) -> None:
    plan = Plan.of(run_config("aggregation.type=secure").client_plan, "run", NAMES, 6)
    assert "WARNING: they vary by less than 0.1" in describe(plan, None, 0.09)


def test_exact_and_plain_sums_are_told_as_such(run_config: MakeConfig) -> None:
    epochs = ("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=100")
    exact = describe(Plan.of(run_config("aggregation.type=secure", *epochs).client_plan, "run", NAMES, 6), None, 0.5)
    assert "training: exact sums over whole groups, each of 6 owners or more" in exact
    assert "own error" not in exact
    small = describe(
        Plan.of(run_config("aggregation.type=secure").client_plan, "run", NAMES, 6),
        None,
        0.5,
        policy=Policy(max_sampled_examples=7),
    )
    assert "training: exact sums" in small
    plain = describe(Plan.of(run_config().client_plan, "run", NAMES, 6), None, 0.5)
    assert "PLAIN: the server sees your update itself" in plain
    bpe = ("tokenizer={type: bpe, vocab_size: 300}", "model.vocab_size=300")
    counted = describe(Plan.of(run_config("aggregation.type=secure", *bpe).client_plan, "run", NAMES, 6), None, 0.5)
    assert "counts for the tokenizer: exact, over whole groups" in counted


def test_an_earlier_run_on_the_text_is_named_with_what_differs(run_config: MakeConfig) -> None:
    old = Plan.of(run_config("aggregation.type=secure").client_plan, "old", NAMES, 6)
    new = Plan.of(run_config("aggregation.type=secure", "training.batch_size=3").client_plan, "new", NAMES[:-1], 6)
    text = describe(new, old, 0.5)
    assert "you approved run old on this text; sums of both together tell more than each alone" in text
    assert "  training.batch_size: 4 before, 3 now" in text
    assert "  members: owner-11 left" in text
    assert "you approved an earlier plan of this run" in describe(new.model_copy(update={"run_id": "old"}), old, 0.5)
    assert describe(new.model_copy(update={"members": old.members}), new, 0.5).count("  members: owner-11 joined") == 1
