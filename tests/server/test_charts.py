"""A chart ends with its data, and over any place of it one reads the values of all curves there."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agfl_server.report.charts import (
    LEFT,
    MAX_BANDS,
    RIGHT,
    WIDTH,
    Chart,
    Curve,
    Point,
    inner_ticks,
    line_chart,
    number_text,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"
FINITE = st.floats(min_value=-1e9, max_value=1e9)
ROUNDS = st.lists(st.integers(0, 5000), min_size=1, max_size=40, unique=True).map(sorted)


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(chart))


def bands_of(svg: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Return from where to where each band goes, and what one reads over it."""
    (group,) = (group for group in svg.iter(f"{SVG}g") if group.get("class") == "bands")
    found = []
    for band in group:
        path, text = band.find(f"{SVG}path"), band.find(f"{SVG}text")
        assert path is not None
        assert text is not None
        match = re.match(r"M([\d.]+) 0H([\d.]+)V", path.attrib["d"])
        assert match is not None
        found.append((float(match[1]), float(match[2]), text.text or ""))
    return found


@settings(deadline=None)
@given(low=FINITE, size=st.floats(min_value=0.0, max_value=1e9), smallest_step=st.sampled_from([0.0, 1.0]))
def test_ticks_cover_the_range(low: float, size: float, smallest_step: float) -> None:
    marks = ticks(low, low + size, smallest_step)
    slack = 1e-9 * (abs(low) + size + 1)
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))
    assert marks[0] <= low + slack
    assert marks[-1] >= low + size - slack
    assert marks[1] - marks[0] >= smallest_step


@given(low=st.integers(0, 10**6), size=st.integers(0, 10**6))
def test_ticks_of_rounds_are_whole_and_among_the_rounds(low: int, size: int) -> None:
    marks = inner_ticks(low, low + size)
    assert min(2, size + 1) <= len(marks) <= 8
    assert all(mark.is_integer() and low <= mark <= low + size for mark in marks)


@settings(deadline=None)
@given(values=st.lists(FINITE, min_size=1, max_size=20), limit=st.none() | FINITE)
def test_points_lie_inside_the_plot(values: list[float], limit: float | None) -> None:
    points = [Point(i, value) for i, value in enumerate(values)]
    for circle in drawn(Chart("Loss", "nats", [Curve("x", points)], limit=limit)).iter(f"{SVG}circle"):
        assert LEFT <= float(circle.attrib["cx"]) <= RIGHT
        assert 78 <= float(circle.attrib["cy"]) <= 256


@given(ROUNDS)
def test_a_line_goes_from_edge_to_edge(rounds: list[int]) -> None:
    line = drawn(Chart("Loss", "", [Curve("x", [Point(i, 1.0) for i in rounds])])).find(f".//{SVG}polyline")
    assert line is not None
    places = [float(place.split(",")[0]) for place in line.attrib["points"].split()]
    expected = (LEFT, RIGHT) if len(rounds) > 1 else ((LEFT + RIGHT) / 2,) * 2
    assert (places[0], places[-1]) == pytest.approx(expected, abs=0.1)


@given(ROUNDS, ROUNDS)
def test_bands_cover_the_picture_and_name_every_value_of_their_round(first: list[int], second: list[int]) -> None:
    curves = [Curve("one", [Point(i, i + 0.5) for i in first]), Curve("two", [Point(i, -float(i)) for i in second])]
    found = bands_of(drawn(Chart("Loss", "nats", curves)))
    assert (found[0][0], found[-1][1]) == (0, WIDTH)
    assert [left for left, _, _ in found[1:]] == [right for _, right, _ in found[:-1]]
    rounds = sorted({*first, *second})
    told = [
        [f"one {number_text(i + 0.5)}"] * (i in first) + [f"two {number_text(-float(i))}"] * (i in second)
        for i in rounds
    ]
    assert [text for _, _, text in found] == [
        f"round {i:,}: {', '.join(values)} nats" for i, values in zip(rounds, told, strict=True)
    ]


def test_bands_of_a_long_run_stand_for_several_rounds_and_say_the_range() -> None:
    found = bands_of(drawn(Chart("Loss", "", [Curve("one", [Point(i, float(i)) for i in range(1000)])])))
    assert len(found) <= MAX_BANDS
    assert found[0][2] == "round 0\N{EN DASH}6: one 0\N{EN DASH}6"
    assert found[-1][2] == "round 994\N{EN DASH}999: one 994\N{EN DASH}999"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (40.0, "40"), (1204000.0, "1,204,000"), (2.41, "2.410"), (3.1e-5, "3.100e-05")],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert number_text(value) == text


def test_the_legend_names_only_what_is_drawn() -> None:
    curves = [Curve("all owners", [Point(1, 2.0), Point(2, 1.0)]), Curve("worst tenth", [])]
    named = [text.text for text in drawn(Chart("Evaluation", "nats", curves)).iter(f"{SVG}text")]
    assert "all owners" in named
    assert "worst tenth" not in named
