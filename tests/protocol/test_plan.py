"""A plan says all that a run may ask: what is asked beside it is refused by its name, what parts owners is pinned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import ConfigError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.identity.fingerprint import to_words
from agfl_protocol.plans import plan as plans
from agfl_protocol.plans.client_plan import ClientPlan, client_plan_from_json, model_of
from agfl_protocol.plans.groups import draw_groups, draw_members, groups_after, groups_of, is_union
from agfl_protocol.plans.plan import Plan, differences, merges_of, plan_from_json
from agfl_protocol.plans.plan_fields import PlanViolation, canonical, changes
from agfl_protocol.plans.sum_kind import Kind, kind_of, num_examples
from agfl_server.search.slate import make_slate

MakeConfig = Callable[..., RunConfig]
NAMES = [f"owner-{i:02}" for i in range(12)]
SECURE = "aggregation.type=secure"
BPE = ("tokenizer={type: bpe, vocab_size: 262, merges_per_round: 2}", "model.vocab_size=262")


def plan_of(config: RunConfig, **changed: Any) -> Plan:
    return Plan.of(config.client_plan, **{"run_id": "run", "members": NAMES, "min_cohort": 4, **changed})


def as_received(config: RunConfig) -> ClientPlan:
    return client_plan_from_json(config.client_plan.to_json())


@given(st.sets(st.sampled_from([f"n{i}" for i in range(60)]), min_size=1), st.integers(1, 12))
def test_groups_cut_the_members_evenly_whatever_their_order(names: set[str], least: int) -> None:
    groups = groups_of(sorted(names, reverse=True), least)
    assert groups == groups_of(names, least)
    assert sorted(name for group in groups for name in group) == sorted(names)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert len(groups) == max(len(names) // least, 1)
    assert min(sizes) >= min(least, len(names))
    digests = [[hashlib.sha256(name.encode()).digest() for name in group] for group in groups]
    assert all(max(a) < min(b) for a, b in pairwise(digests)), "runs in the order of digests"


@given(st.sets(st.sampled_from(NAMES)), st.integers(1, 12))
def test_only_whole_groups_are_unions(names: set[str], least: int) -> None:
    groups = groups_of(NAMES, least)
    expected = bool(names) and all(names >= set(group) or not names & set(group) for group in groups)
    assert is_union(names, groups) is expected
    assert not is_union({*names, "stranger"}, groups)


@given(st.integers(1, 14), st.integers(0, 2**31), st.integers(1, 2**31 - 1))
def test_the_draw_is_public_and_of_all_members(size: int, seed: int, exchange: int) -> None:
    drawn = draw_members(NAMES, size, seed, exchange)
    assert drawn == draw_members(NAMES[::-1], size, seed, exchange)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == min(size, len(NAMES))
    groups = groups_of(NAMES, 3)
    whole = draw_groups(groups, size, seed, exchange)
    assert is_union(whole, groups)
    assert len(whole) <= max(size, 3)
    assert len(whole) > size - 3, "no further group would fit"
    assert draw_groups(groups, None, seed, exchange) == draw_members(NAMES, None, seed, exchange) == tuple(NAMES)


def test_every_member_is_drawn_as_often() -> None:
    draws = [draw_members(NAMES, 3, 7, exchange) for exchange in range(1, 2001)]
    counts = [sum(name in drawn for drawn in draws) for name in NAMES]
    assert all(abs(count - 500) < 5 * 20 for count in counts)
    assert len(set(draws)) > 200


def test_a_plan_is_its_canonical_text(run_config: MakeConfig) -> None:
    plan = plan_of(run_config(SECURE))
    text = plan.to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert plan.hash == hashlib.sha256(text.encode()).hexdigest()
    assert plan_from_json(text) == plan
    assert plan_from_json(text).hash == plan.hash
    assert plan.client_plan == as_received(run_config(SECURE))
    assert plan_of(run_config(SECURE), members=reversed(NAMES)).hash == plan.hash
    assert len(plan.groups) == 3
    assert plan_of(run_config()).groups == ()


def test_a_plan_shows_the_owner_the_search(run_config: MakeConfig) -> None:
    config = run_config("search={slate: [attention, mingru], rungs: [1, 1]}")
    candidates = [one.config.model for one in make_slate(config).candidates]
    assert len(plan_of(config, candidates=candidates).candidates) == len(candidates) == 2
    assert "search" not in plan_of(config).config


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c | {"members": ["b", "a"]}, r"^plan: members: must be sorted, each name once"),
        (lambda c: c | {"members": ["a", "a"]}, r"^plan: members: must be sorted, each name once"),
        (lambda c: c | {"members": []}, r"^plan: members: .*got 0.*AGFL-CONFIG-161"),
        (lambda c: c | {"members": ["../a"]}, r"^plan: members: must each match .* got '\.\./a'.*AGFL-CONFIG-163"),
        (lambda c: c | {"run_id": "a b"}, r"^plan: run_id: must match .* got 'a b'.*AGFL-CONFIG-159"),
        (lambda c: c | {"run_id": ".a"}, r"^plan: run_id: .*got '\.a'.*AGFL-CONFIG-160"),
        (lambda c: c | {"extra": 1}, r"^plan: unknown key 'extra'"),
        (lambda c: {k: v for k, v in c.items() if k != "groups"}, r"^plan: must be canonical JSON"),
        (lambda c: c | {"config": {}}, r"^plan: config: "),
        (
            lambda c: c | {"config": c["config"] | {"num_rounds": 0}},
            r"^plan: config: num_rounds: .* got 0 .AGFL-CONFIG-011",
        ),
        (lambda c: c | {"config": c["config"] | {"num_rounds": 3.0}}, r"^plan: config: must have every field"),
        (lambda c: c | {"config": c["config"] | {"baselines": True}}, r"^plan: config: unknown key 'baselines'"),
        (lambda c: c | {"candidates": [c["config"]["model"]] * 17}, r"^plan: candidates: must be at most 16, got 17"),
        (lambda c: c | {"candidates": [{"dim": -1}]}, r"^plan: config: model"),
    ],
)
def test_a_bad_plan_is_one_line(change: Callable[[Any], Any], line: str, run_config: MakeConfig) -> None:
    content = json.loads(plan_of(run_config()).to_json())
    with pytest.raises(ConfigError, match=line) as caught:
        plan_from_json(canonical(change(content)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"run_id": NaN}', "[" * 100_000, "\ud800"])
def test_what_is_no_plan_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^plan: ") as caught:
        plan_from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_plan_that_is_too_long_is_not_read() -> None:
    with pytest.raises(ConfigError, match=r"^plan: .*got 4194305.*AGFL-CONFIG-166"):
        plan_from_json(" " * (2**22 + 1))


def test_a_plan_that_is_not_canonical_has_no_hash(run_config: MakeConfig) -> None:
    text = plan_of(run_config()).to_json()
    for other in (text.replace(",", ", ", 1), text.replace('"run"', '"r\\u0075n"'), text[:-1] + ',"run_id":"run"}'):
        with pytest.raises(ConfigError, match=r"^plan: must be canonical JSON"):
            plan_from_json(other)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, None),
        ({"members": NAMES[1:], "groups": [NAMES[1:]]}, r"^plan\.members: .*got 11 others.*AGFL-PLAN-011"),
        (
            {"members": [*NAMES, "z"], "groups": [[*NAMES, "z"]]},
            r"^plan\.members: .*got z.*AGFL-PLAN-013",
        ),
        ({"groups": []}, r"^plan\.groups: .*AGFL-PLAN-015"),
        ({"groups": [NAMES, ["z"]]}, r"^plan\.groups: .*got z.*AGFL-PLAN-016"),
        ({"groups": [NAMES[:7], NAMES[6:]]}, r"^plan\.groups: must be disjoint"),
        (
            {"groups": [NAMES[:3], NAMES[3:]]},
            r"^plan\.groups: must each have this owner's min_cohort or more, got .* 3.*AGFL-PLAN-018",
        ),
        (
            {"groups": [NAMES, []]},
            r"^plan\.groups: must each have this owner's min_cohort or more, got one of 0.*AGFL-PLAN-018",
        ),
        ({"groups": [NAMES[::-1]]}, r"^plan\.groups: .*AGFL-PLAN-017"),
    ],
)
def test_an_owner_checks_who_is_in_its_sums(changed: Any, line: str | None, run_config: MakeConfig) -> None:
    plan = Plan.model_validate(json.loads(plan_of(run_config(SECURE)).to_json()) | changed)
    if line is None:
        plan.check_groups([*NAMES, "absent"], 4, "owner-00")
        return
    with pytest.raises(PlanViolation, match=line):
        plan.check_groups(NAMES, 4, "owner-00")


def test_plain_sums_have_no_groups(run_config: MakeConfig) -> None:
    plan_of(run_config()).check_groups([], 4, "owner-00")
    grouped = plan_of(run_config()).model_copy(update={"groups": (tuple(NAMES),)})
    with pytest.raises(PlanViolation, match=r"^plan\.groups: .*got 1.*AGFL-PLAN-012"):
        grouped.check_groups([], 4, "owner-00")


def test_a_changed_copy_has_a_text_and_a_hash_of_its_own(run_config: MakeConfig) -> None:
    plan = plan_of(run_config())
    before = plan.to_json(), plan.hash
    changed = plan.model_copy(update={"run_id": "another"})
    assert plan_from_json(changed.to_json()) == changed != plan
    assert changed.hash == plan_from_json(changed.to_json()).hash != plan.hash
    assert (plan.to_json(), plan.hash) == before


# Section by section: one other value of every field that a request's configuration has.
PINNED = {
    "seed": "8",
    "task.type": None,
    "task.sequence_length": "17",
    "task.validation_fraction": "0.2",
    "tokenizer.type": None,
    "model.dim": "32",
    "model.layers.0.num_heads": "1",
    "training.optimizer.lr": "0.25",
    "training.optimizer.momentum": "0.5",
    "training.optimizer.weight_decay": "0.1",
    "training.proximal_mu": "0.1",
    "training.batch_size": "5",
    "training.local_steps": "3",
    "training.max_grad_norm": "2.0",
    "training.precision": "bfloat16",
    "aggregation.type": "secure",
    "aggregation.cohort_size": "5",
    "aggregation.min_cohort": "3",
    "aggregation.max_colluders": "2",
    "aggregation.clip_l2": "50.0",
    "aggregation.weighting": "uniform",
    "aggregation.max_weight": "10.0",
    "aggregation.averaging": "normalized",
    "evaluation.max_examples": "9",
    "elastic": "{widths: [0.5, 1.0]}",
}


@pytest.mark.parametrize(("field", "value"), [item for item in PINNED.items() if item[1]])
def test_every_pinned_field_is_refused_by_its_name(field: str, value: str, run_config: MakeConfig) -> None:
    plan = plan_of(run_config())
    plan.covers(as_received(run_config()))
    with pytest.raises(PlanViolation, match=rf"^{field}: must be .* as in the approved plan, got ") as caught:
        plan.covers(as_received(run_config(f"{field}={value}")))
    assert "\n" not in str(caught.value)


def test_no_field_is_forgotten(run_config: MakeConfig) -> None:
    """Whatever else is changed in a configuration, at any depth, is refused: what is not listed as open is pinned."""
    run = run_config("model.layers=[{type: attention, num_heads: 2}, {type: ff, hidden_dim: 24}]")
    config, plan = as_received(run), plan_of(run)
    open_fields = {"num_rounds", "aggregation.max_attempts", "evaluation.every"}
    seen = set()
    for field, change in _single_changes(json.loads(config.to_json())):
        try:
            changed = client_plan_from_json(canonical(change))
        except ConfigError:
            continue
        if changed == config:
            continue
        seen.add(field)
        if field in open_fields:
            plan.covers(changed)
        else:
            with pytest.raises(PlanViolation):
                plan.covers(changed)
    assert open_fields < seen
    assert len(seen) > 25


def _single_changes(content: Any, path: str = "") -> Any:
    """Yield (field, content with one leaf changed: less, more, or another value)."""
    if isinstance(content, dict):
        for key, value in content.items():
            for field, changed in _single_changes(value, f"{path}.{key}" if path else key):
                yield field, content | {key: changed}
    elif isinstance(content, list) and content:
        for i, value in enumerate(content):
            for field, changed in _single_changes(value, f"{path}.{i}"):
                yield field, [*content[:i], changed, *content[i + 1 :]]
    elif isinstance(content, bool):
        yield path, not content
    elif isinstance(content, int | float):
        less_often = (content + 1,) if path == "evaluation.every" else (content - 1, content / 2)
        yield from ((path, value) for value in less_often if value > 0)
    else:
        yield from ((path, value) for value in ("uniform", "secure", "bfloat16", "gelu", "normalized", "layer", 1, 0.5))


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("num_rounds", (3, 2, 1), (4, 100)),
        ("aggregation.max_attempts", (3, 1), (4,)),
        ("evaluation.every", (2, 3, 50), (1,)),
    ],
)
def test_ceilings_hold_in_one_direction(
    field: str, allowed: tuple[int, ...], refused: tuple[int, ...], run_config: MakeConfig
) -> None:
    plan = plan_of(run_config())
    for value in allowed:
        plan.covers(as_received(run_config(f"{field}={value}")))
    for value in refused:
        rule = "at least 2" if field == "evaluation.every" else "at most 3"
        with pytest.raises(
            PlanViolation, match=rf"^{field}: must be {rule} as in the approved plan, got {value}.*AGFL-PLAN-021"
        ):
            plan.covers(as_received(run_config(f"{field}={value}")))


@pytest.mark.parametrize(
    "change",
    [
        "aggregation.server_optimizer={type: nesterov, lr: 0.1, momentum: 0.5}",
        "aggregation.round_timeout_s=1",
        "data.num_owners=7",
        "baselines=true",
    ],
)
def test_what_concerns_no_owner_is_free(change: str, run_config: MakeConfig) -> None:
    plan_of(run_config()).covers(as_received(run_config(change)))


def test_growth_and_shrinkage_are_free_and_widths_are_not(run_config: MakeConfig) -> None:
    elastic = "elastic={{widths: {}, shrinkage: {}, growth: {}}}".format
    plan = plan_of(run_config(elastic([0.5, 1.0], 0.5, "null")))
    plan.covers(as_received(run_config(elastic([0.5, 1.0], 0.1, "{patience: 5}"))))
    with pytest.raises(PlanViolation, match=r"^elastic\.widths\.0: must be 0\.5"):
        plan.covers(as_received(run_config(elastic([0.25, 1.0], 0.5, "null"))))
    with pytest.raises(PlanViolation, match=r"^elastic: .*got None.*AGFL-PLAN-021"):
        plan.covers(as_received(run_config()))


@pytest.mark.parametrize(
    ("before", "now", "field"),
    [
        ("{type: fedavg}", "{type: scaffold}", ""),
        ("{type: feddyn, alpha: 0.1}", "{type: feddyn, alpha: 0.2}", ".0.alpha"),
        ("{type: auto}", "{type: auto, max_examples: 65}", ".0.max_examples"),
        ("{type: auto}", "{type: auto, arms: [{type: fedavg}, {type: fedavg, lr: 2}]}", ".0.num_models"),
    ],
)
def test_what_a_server_step_asks_of_owners_is_pinned(before: str, now: str, field: str, run_config: MakeConfig) -> None:
    def of(optimizer: str) -> RunConfig:
        return run_config("aggregation.weighting=uniform", f"aggregation.server_optimizer={optimizer}")

    with pytest.raises(PlanViolation, match=rf"^methods{field}: must be "):
        plan_of(of(before)).covers(as_received(of(now)))
    free = now.replace("scaffold", "fedadam") if not field else before
    plan_of(of(before)).covers(as_received(of(free)))


def test_only_the_plans_models_are_trained(run_config: MakeConfig) -> None:
    config, other, third = (run_config(f"model.dim={dim}") for dim in (16, 32, 64))
    plan = plan_of(config, candidates=[other.model])
    plan.covers(as_received(config))
    plan.covers(as_received(other))
    with pytest.raises(PlanViolation, match=r"^model: .*AGFL-PLAN-020"):
        plan.covers(as_received(third))
    with pytest.raises(PlanViolation, match=r"^model\.dim: .*got 64 .AGFL-PLAN-021"):
        plan_of(config).covers(as_received(third))
    assert plan_from_json(plan.to_json()) == plan


def test_a_plan_has_no_more_names_of_models_than_models(run_config: MakeConfig) -> None:
    """What a server may change freely must not begin the count of a round's vectors anew."""
    config, other = run_config(), run_config("model.dim=32")
    free = (
        "aggregation.server_optimizer.lr=0.1",
        "aggregation.round_timeout_s=1",
        "num_rounds=1",
        "evaluation.every=9",
    )
    for change in free:
        changed = as_received(run_config(change))
        plan_of(config).covers(changed)
        assert model_of(changed) == model_of(config)
    learned = run_config(*BPE).with_merges([(1, 2)])
    assert model_of(learned) == model_of(run_config(*BPE))
    assert len({model_of(config), model_of(other), model_of(learned)}) == 3


def test_a_tokenizer_is_learned_once(run_config: MakeConfig) -> None:
    config = run_config(*BPE)
    plan = plan_of(config)
    learned, other = config.with_merges([(1, 2), (3, 4)]), config.with_merges([(1, 2)])
    assert merges_of(config) is None
    plan.covers(as_received(config))
    plan.covers(as_received(learned))
    first = merges_of(learned)
    assert first is not None
    plan.covers(as_received(learned), first)
    rule = r"^tokenizer\.merges: must stay as this run first had them, got "
    for changed in (other, config):
        with pytest.raises(PlanViolation, match=rule):
            plan.covers(as_received(changed), first)
    plan.covers(plan.client_plan)
    with pytest.raises(PlanViolation, match=rule):
        plan.covers(plan.client_plan, first)  # the very plan that was approved, after others were learned
    pinned = plan_of(learned)
    pinned.covers(as_received(learned))
    for changed in (other, config):
        with pytest.raises(PlanViolation, match=r"^tokenizer\.merges: must be 2 items"):
            pinned.covers(as_received(changed))
    with pytest.raises(PlanViolation, match=r"^tokenizer\.merges_per_round: must be 2"):
        plan.covers(as_received(run_config(BPE[0].replace("2}", "3}"), BPE[1])))


@pytest.mark.parametrize(
    ("changes", "asked", "kind"),
    [
        ((), {}, Kind.SAMPLED),
        ((), {"evaluate": True}, Kind.SAMPLED),
        ((), {"full": True, "train": False, "evaluate": True}, Kind.EXACT),
        ((), {"train": False, "evaluate": True}, Kind.SAMPLED),
        (("evaluation.max_examples=513",), {"train": False, "evaluate": True}, Kind.EXACT),
        ((), {"counts": True}, Kind.EXACT),
        (("training.local_steps=3",), {"max_sampled_examples": 12}, Kind.SAMPLED),
        (("training.local_steps=4",), {"max_sampled_examples": 12}, Kind.EXACT),
        (("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=1"), {}, Kind.EXACT),
        (("evaluation.max_examples=512",), {"evaluate": True}, Kind.SAMPLED),
        (("evaluation.max_examples=513",), {"evaluate": True}, Kind.EXACT),
        (("evaluation.max_examples=513",), {}, Kind.SAMPLED),
        (("aggregation.server_optimizer={type: auto, max_examples: 513}",), {}, Kind.EXACT),
        (("aggregation.server_optimizer={type: auto, max_examples: 512}",), {}, Kind.SAMPLED),
    ],
)
def test_only_small_fresh_draws_are_sampled(
    changes: tuple[str, ...], asked: dict[str, Any], kind: Kind, run_config: MakeConfig
) -> None:
    default = {"train": True, "evaluate": False, "full": False, "counts": False, "max_sampled_examples": 512}
    assert kind_of(run_config(*changes).client_plan, **{**default, **asked}) is kind


def test_the_ledger_can_say_how_many_examples_were_drawn(run_config: MakeConfig) -> None:
    config = run_config()
    assert [num_examples(config.client_plan, train=True, evaluate=evaluate) for evaluate in (False, True)] == [8, 16]
    assert num_examples(config.client_plan, train=False, evaluate=True) == 8
    epochs = run_config("training.local_steps=null", "training.local_epochs=1", "aggregation.max_weight=1")
    assert num_examples(epochs.client_plan, train=True, evaluate=True) is None


def test_a_plan_draws_and_evaluates_as_its_run_does(run_config: MakeConfig) -> None:
    plan = plan_of(run_config(SECURE, "aggregation.cohort_size=5", "evaluation.every=3"))
    for exchange in range(1, 20):
        assert plan.draw(exchange) == draw_members(NAMES, 5, 7, exchange)
        assert plan.draw_groups(exchange) == draw_groups(plan.groups, 5, 7, exchange)
        assert is_union(plan.draw_groups(exchange), plan.groups)
    assert [number for number in range(1, 11) if plan.evaluates_in(number)] == [1, 4, 7, 10]


def test_differences_say_what_was_and_what_is(run_config: MakeConfig) -> None:
    old = plan_of(run_config(SECURE))
    assert differences(old, old) == []
    new = plan_of(
        run_config(SECURE, "training.batch_size=32", "elastic={widths: [0.5, 1]}"), members=[*NAMES[1:], "zoe"]
    )
    assert differences(old, new) == [
        "elastic: None before, 1 fields now",
        "training.batch_size: 4 before, 32 now",
        "members: zoe joined",
        "members: owner-00 left",
        "groups: 3 of 4 before, 3 of 4 now",
    ]
    assert changes({"\x1b[2J": 1}, {"\x1b[2J": 2}) == ["\\x1b[2J: 1 before, 2 now"], "no terminal is steered"
    assert len(changes(list(range(500)), list(range(1, 501)))) == 101
    many = plan_of(run_config(SECURE), candidates=[run_config("model.dim=32").model])
    assert differences(old, many) == ["candidates: 0 items before, 1 items now"]


def test_a_plan_of_many_members_stays_below_its_bound(run_config: MakeConfig) -> None:
    names = [f"{i:064}".replace("0", "x") for i in range(1024)]
    merges = [(i % 256, i // 256) for i in range(60_000)]
    config = run_config("tokenizer={type: bpe, vocab_size: 65536}", "model.vocab_size=65536").with_merges(merges)
    assert len(plan_of(config, members=set(names)).to_json()) < plans.MAX_PLAN_CHARACTERS


def test_groups_are_never_cut_anew_while_one_is_whole() -> None:
    """Of two cuts some unions differ by few owners, and exact sums over them subtract to the last bit."""
    first = groups_of(NAMES, 4)
    assert len(first) == 3
    left, *rest = first[0]
    staying = set(NAMES) - {left}
    after = groups_after(first, (), staying, 4)
    assert after == (first[1:], tuple(rest))
    assert groups_after(*after, {*staying, "x", "y", "z"}, 4) == after, "three wait for a fourth"
    whole, out = groups_after(*after, {*staying, "w", "x", "y", "z"}, 4)
    assert (whole, out) == ((*first[1:], ("w", "x", "y", "z")), tuple(rest))
    assert groups_after(whole, out, {*staying, "w", "x", "y", "z"}, 4) == (whole, out)
    none_whole = [*(group[0] for group in first), *"wxyz"]
    assert groups_after(first, (), none_whole, 4) == (groups_of(none_whole, 4), ())


def test_a_plan_that_goes_on_keeps_its_groups(run_config: MakeConfig) -> None:
    """An owner of a group that lost somebody is still a member, for sums of what is drawn afresh."""
    config = run_config(SECURE)
    plan = Plan.of(config.client_plan, "run", NAMES, 4)
    members = [name for name in NAMES if name != plan.groups[0][0]]
    after = Plan.of(config.client_plan, "run", members, 4, before=plan)
    assert (after.groups, after.members) == (plan.groups[1:], tuple(members))
    rest = plan.groups[0][1]
    after.check_groups(NAMES, 4, rest)
    assert rest in after.draw(1)
    assert rest not in after.draw_groups(1)


def test_a_group_that_is_too_small_by_now_is_cut_anew(run_config: MakeConfig) -> None:
    """A fourth owner joins three: four are the fewest that each of four owners wants in a sum."""
    first = Plan.of(run_config(SECURE).client_plan, "run", NAMES[:3], 3)
    after = Plan.of(run_config(SECURE).client_plan, "run", NAMES[:4], 4, before=first)
    assert (after.groups, after.retired) == ((tuple(NAMES[:4]),), ())
    after.check_groups(NAMES[:4], 4, NAMES[3])


ROSTER, OLDER = b"\x01" * 32, b"\x02" * 32


def test_an_owner_that_holds_another_roster_says_which_and_who_is_in_the_other(run_config: MakeConfig) -> None:
    plan = plan_of(run_config(SECURE), roster=ROSTER)
    plan.check_roster(ROSTER, NAMES)
    held, asked = to_words(OLDER).split()[:4], to_words(ROSTER).split()[:4]
    expected = (
        f"plan.roster: must be this owner's, one of 11 owners ({' '.join(held)} ...); got one of 12 owners "
        f"({' '.join(asked)} ...), owner-11 among them [AGFL-PLAN-010]"
    )
    with pytest.raises(PlanViolation) as caught:
        plan.check_roster(OLDER, NAMES[:11])
    assert str(caught.value) == expected
    with pytest.raises(PlanViolation, match=r"got one of 12 owners \([^)]*\) .AGFL-PLAN-010"):
        plan.check_roster(OLDER, NAMES)  # the same names with other keys
    with pytest.raises(PlanViolation, match=r"got none .AGFL-PLAN-010"):
        plan_of(run_config(SECURE)).check_roster(ROSTER, NAMES)
    plan_of(run_config(), roster=ROSTER).check_roster(OLDER, NAMES)  # plain sums have no roster


def test_a_plan_with_another_roster_is_another_plan(run_config: MakeConfig) -> None:
    one, other = (plan_of(run_config(SECURE), roster=roster) for roster in (ROSTER, OLDER))
    assert one.hash != other.hash
    (line,) = differences(one, other)
    assert line.startswith("roster: one of 12 owners (")
    with pytest.raises(ConfigError, match="roster"):
        plan_from_json(one.to_json().replace(ROSTER.hex(), "x" * 64))


@pytest.mark.parametrize("name", ["\x1b[2J", "\ud800", "../a", "a b", ""])
@pytest.mark.parametrize("field", ["groups", "retired"])
def test_attack_no_name_in_a_plan_steers_a_terminal_or_ends_a_node(
    run_config: MakeConfig, field: str, name: str
) -> None:
    content = json.loads(plan_of(run_config()).to_json())
    content[field] = [[name]] if field == "groups" else [name]
    with pytest.raises(ConfigError, match=rf"^plan: {field}: must hold names that match ") as caught:
        plan_from_json(canonical(content))
    assert str(caught.value).isprintable()
    assert str(caught.value).encode()


def test_whatever_an_error_quotes_is_printable_and_can_be_sent() -> None:
    line = str(PlanViolation("AGFL-PLAN-016", "got \x1b[2J, \ud800,\x07 \u202e and naïve"))
    assert line == "got \\x1b[2J, \\ud800,\\x07 \\u202e and naïve [AGFL-PLAN-016]"
    assert line.encode()


@pytest.mark.parametrize(
    "bound",
    [("feddyn", "scaffold"), ("candidates", "scaffold"), ("candidates", "square_norm"), ("feddyn", "square_norm")],
)
def test_attack_a_plan_holds_one_method_of_a_server_optimizer_at_most(
    run_config: MakeConfig, bound: tuple[str, str]
) -> None:
    """No run of ours makes such a plan, and an owner must not find out while it trains."""
    settings: dict[str, dict[str, Any]] = {"feddyn": {"alpha": 0.1}, "candidates": {"num_models": 2, "max_examples": 8}}
    content = json.loads(run_config("aggregation.weighting=uniform").client_plan.to_json())
    content["methods"] = [{"type": name, **settings.get(name, {})} for name in bound]
    rule = f"methods: must hold one at most that comes with a server optimizer, got {', '.join(bound)}"
    with pytest.raises(ConfigError, match=rule):
        client_plan_from_json(canonical(content))
