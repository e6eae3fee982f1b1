"""No redesign changes a bit: whole runs of each shipped configuration and each method end as they always did."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.golden.runs import RUNS, VALUES, values_of

from agfl_models import machine

KEPT = json.loads(VALUES.read_text())
IS_SAME_KIND = machine.kind() == KEPT["machine"]


@pytest.mark.parametrize("name", RUNS)
def test_run_ends_as_it_always_did(name: str) -> None:
    """To the bit on the kind of machine where the values were written, and nearly so on any other."""
    golden, kept = RUNS[name], KEPT["runs"][name]
    if IS_SAME_KIND:
        found = values_of(golden)
        assert found.get("plain", found["secure"]) == found["secure"], "secure sums changed a bit"
        assert found == kept
        return
    # That secure sums change no bit is no matter of the machine, so one kind is enough where the values are others.
    found = values_of(replace(golden, sums=golden.sums[:1]))
    assert len(found["metrics"]) == len(kept["metrics"])
    for row, other in zip(found["metrics"], kept["metrics"], strict=True):
        assert row.keys() == other.keys()
        assert row["clients"] == other["clients"]
        for key in ("train/loss", "eval/loss"):
            expected = None if other[key] is None else pytest.approx(other[key], rel=0.02)
            assert row[key] == expected, (row["round"], key)


def test_each_run_is_kept_and_each_is_one_of_its_own() -> None:
    """Two runs with the same end would say that a method did not act."""
    assert KEPT["runs"].keys() == RUNS.keys()
    same = {"resumed auto": "auto"}
    ends = {name: run["secure"] for name, run in KEPT["runs"].items() if name not in same}
    assert len(set(ends.values())) == len(ends)
    assert all(KEPT["runs"][name]["secure"] == KEPT["runs"][other]["secure"] for name, other in same.items())
