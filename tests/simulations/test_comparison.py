"""The answer to "should I join?": who gains is counted right, and the report shows the numbers that were compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.tasks.task import MainMetric
from agfl_server.report.charts import number_text
from agfl_sim.baselines.comparison import CENTRALIZED, GLOBAL, LOCAL, MODELS, TUNED, Budget, Comparison, Score
from agfl_sim.report.join_section import join_section

SVG = "{http://www.w3.org/2000/svg}"
BUDGET = Budget("batches", 30, 8, 120, 8)
HIGHER = MainMetric("eval/f1", "F1", 0.0, 100.0, higher_is_better=True)
LOWER = replace(HIGHER, higher_is_better=False)
VALUE = st.integers(0, 20).map(float)  # coarse, so that ties occur
OWNERS = st.dictionaries(
    st.text("abcd<&\"'é ", min_size=1, max_size=30),
    st.fixed_dictionaries({model: VALUE for model in MODELS}),
    min_size=1,
    max_size=30,
)


def comparison(metric: MainMetric, owners: Mapping[str, Mapping[str, float]]) -> Comparison:
    pooled = {model: sum(values[model] for values in owners.values()) / len(owners) for model in MODELS}
    scores = [Score(model, None, None, {metric.name: value}, {}) for model, value in pooled.items()]
    scores += [
        Score(model, name, 1, {metric.name: values[model], "eval/loss": 1.0}, {})
        for name, values in owners.items()
        for model in MODELS
    ]
    return Comparison.of(metric, scores, BUDGET)


@given(OWNERS)
def test_owners_gain_lose_or_neither_and_the_direction_mirrors_them(owners: dict[str, dict[str, float]]) -> None:
    up, down = comparison(HIGHER, owners), comparison(LOWER, owners)
    assert up.num_gaining == sum(values[GLOBAL] > values[LOCAL] for values in owners.values())
    assert down.num_gaining == sum(values[GLOBAL] < values[LOCAL] for values in owners.values())
    assert up.num_even == down.num_even == len(owners) - up.num_gaining - down.num_gaining
    assert {name: -gain for name, gain in up.gains.items()} == down.gains
    for found in (up, down):
        assert sorted(found.gains.values(), reverse=True) == list(found.gains.values())
        assert found.owners == owners


def test_nothing_is_said_where_all_models_score_the_same() -> None:
    found = comparison(HIGHER, {name: dict.fromkeys(MODELS, 0.0) for name in "abc"})
    assert found.answer.startswith("Nothing can be said, since every model has the same F1 for everybody: for 0 of 3")
    some = comparison(HIGHER, {name: dict.fromkeys(MODELS, 0.0) | {GLOBAL: float(name == "a")} for name in "abc"})
    assert not some.answer.startswith("Nothing")


@given(OWNERS, st.sampled_from([HIGHER, LOWER]))
def test_answer_is_yes_only_where_most_owners_and_the_median_one_gain(
    owners: dict[str, dict[str, float]], metric: MainMetric
) -> None:
    found = comparison(metric, owners)
    most, typical = found.num_gaining > len(owners) / 2, found.gain(found.median) > 0
    verdict = found.answer.split(":")[0]
    if len({value for values in owners.values() for value in values.values()}) == 1:
        assert verdict.startswith("Nothing can be said")
        return
    if most and typical:
        assert verdict == "Yes"
    elif found.num_gaining_tuned > len(owners) / 2:
        assert verdict == "Yes, if you train it further at home"
    else:
        assert verdict == ("Not clearly" if most or typical else "No, not as trained here")
    assert f"for {found.num_gaining} of {len(owners)} owners" in found.answer


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([(3, 0, 2)] * 2 + [(1, 0, 2)], "Yes"),
        ([(1, 3, 2)] * 2 + [(1, 0, 2)], "Yes, if you train it further at home"),
        ([(3, 3, 2), (1, 3, 2)], "Yes, if you train it further at home"),
        ([(9, 0, 2), (1, 0, 2)], "Not clearly"),  # half of the owners, and the median one
        ([(1, 3, 2)] + [(1, 0, 2)] * 2, "No, not as trained here"),
        ([(2, 2, 2)] * 3, "Nothing can be said, since every model has the same F1 for everybody"),
    ],
)
def test_each_verdict(scores: list[tuple[int, int, int]], verdict: str) -> None:
    """Scores: of the global, the further trained and the own model."""
    rows = [dict(zip((GLOBAL, TUNED, LOCAL), map(float, one), strict=True)) for one in scores]
    found = comparison(HIGHER, {str(i): {**row, CENTRALIZED: row[LOCAL]} for i, row in enumerate(rows)})
    assert found.answer.startswith(f"{verdict}: for {found.num_gaining} of {len(scores)} owners (")


@pytest.mark.parametrize(("count", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_worst_tenth_is_rounded_up_and_each_models_own(count: int, worst: int) -> None:
    owners = {str(i): {GLOBAL: float(i), TUNED: 3.0, LOCAL: float(-i), CENTRALIZED: 7.0} for i in range(count)}
    low, high = sum(range(worst)) / worst, sum(range(count - worst, count)) / worst
    assert comparison(HIGHER, owners).worst_tenth == pytest.approx(
        {GLOBAL: low, TUNED: 3.0, LOCAL: -high, CENTRALIZED: 7.0}
    )
    assert comparison(LOWER, owners).worst_tenth == pytest.approx(
        {GLOBAL: high, TUNED: 3.0, LOCAL: -low, CENTRALIZED: 7.0}
    )


def test_owner_without_validation_text_is_not_counted() -> None:
    found = comparison(HIGHER, {"a": {GLOBAL: 2.0, TUNED: 2.5, LOCAL: 1.0, CENTRALIZED: 3.0}})
    scores = [Score(model, "b", 1, {}, {}) for model in MODELS]
    scores += [Score(model, None, None, {HIGHER.name: value}, {}) for model, value in found.pooled.items()]
    nobody = Comparison.of(HIGHER, scores, BUDGET)
    assert (nobody.owners, nobody.answer) == ({}, "Nothing can be said: no owner holds text out.")
    assert "<table" not in join_section(nobody)
    assert Comparison.of(HIGHER, [], BUDGET).side_by_side == "F1: no owner holds text out"


@given(OWNERS, st.sampled_from([HIGHER, LOWER]))
def test_report_shows_the_numbers_that_were_compared(owners: dict[str, dict[str, float]], metric: MainMetric) -> None:
    found = comparison(metric, owners)
    page = join_section(found)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    summary, by_owner = rows[1:5], rows[6:]
    for row, values in zip(summary, (found.pooled, found.median, found.worst_tenth), strict=False):
        assert row[1:5] == [number_text(values[model]) for model in MODELS]
        gain = found.gain(values)
        assert row[5] == (f"{number_text(abs(gain))} {'better' if gain > 0 else 'worse'}" if gain else "nothing")
    assert summary[3][1].startswith(f"{found.num_gaining} of {len(owners)} ")
    tuned = sum(found.gain({**values, GLOBAL: values[TUNED]}) > 0 for values in owners.values())
    assert summary[3][2].startswith(f"{tuned} of {len(owners)} ")
    assert f"better than the own one for {tuned} of {len(owners)}." in found.answer
    assert summary[3][3].startswith(f"{len(owners) - found.num_gaining - found.num_even} of {len(owners)} ")
    shown = {unescape(name): cells for name, *cells in by_owner}
    assert list(shown) == list(found.gains)
    for name, values in owners.items():
        assert shown[name][:4] == [number_text(values[model]) for model in MODELS]
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert [group.attrib["data-row"] for group in svg.iter(f"{SVG}g")] == list(found.gains)
    for mark in (*svg.iter(f"{SVG}circle"), *svg.iter(f"{SVG}line")):
        assert 0 <= float(mark.get("cx") or mark.get("x1") or -1) <= 506
