"""Partitions that make owners unlike deal out every row once, leave no owner empty, and are as unlike as one asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agfl_protocol.config.run_config import DataConfig
from agfl_sim.partition import partition

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)
Owners = Mapping[str, Sequence[tuple[str, int]]]
TEN_LABELS = {f"label-{i}": [(f"label-{i}", j) for j in range(100)] for i in range(10)}


def config(kind: str, num_owners: int, **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"partition": kind, "num_owners": num_owners, **settings})


def sources_of(sizes: Sequence[int]) -> dict[str, list[tuple[str, int]]]:
    return {f"label-{i:02}": [(f"label-{i:02}", j) for j in range(size)] for i, size in enumerate(sizes)}


def unlikeness(owners: Owners) -> float:
    """Return the mean distance between an owner's shares of the labels and everybody's: 0 alike, at most 1."""
    counts = [Counter(label for label, _ in rows) for rows in owners.values()]
    labels = sorted(set().union(*counts))
    shares = np.array([[count[label] / count.total() for label in labels] for count in counts])
    weights = np.array([count.total() for count in counts])
    return float(abs(shares - np.average(shares, axis=0, weights=weights)).sum(1).mean() / 2)


@given(SIZES, st.integers(0, 2**32), st.floats(1e-6, 1e6), st.data())
def test_dirichlet_owners_hold_as_many_rows_each(
    sizes: list[int], seed: int, alpha: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, sum(sizes)))
    owners = partition(config("dirichlet", count, dirichlet_alpha=alpha), sources_of(sizes), seed)
    assert sorted(row for rows in owners.values() for row in rows) == sorted(
        row for rows in sources_of(sizes).values() for row in rows
    )
    held = [len(rows) for rows in owners.values()]
    assert (len(held), max(held) - min(held) <= 1, min(held) >= 1) == (count, True, True)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_alpha_makes_owners_more_unlike(seed: int) -> None:
    found = [
        unlikeness(partition(config("dirichlet", 20, dirichlet_alpha=alpha), TEN_LABELS, seed))
        for alpha in (1000, 10, 0.1)
    ]
    assert found[0] < 0.3 < found[1] < 0.6 < found[2], found


@given(SIZES, st.integers(0, 2**32), st.integers(1, 4), st.data())
def test_owners_of_shards_hold_as_many_rows_of_few_labels(
    sizes: list[int], seed: int, per_owner: int, data: st.DataObject
) -> None:
    total = sum(sizes)
    per_owner = min(per_owner, total)
    count = data.draw(st.integers(1, total // per_owner))
    owners = partition(config("shards", count, shards_per_owner=per_owner), sources_of(sizes), seed)
    assert sorted(row for rows in owners.values() for row in rows) == sorted(
        row for rows in sources_of(sizes).values() for row in rows
    )
    held = [len(rows) for rows in owners.values()]
    assert len(held) == count
    assert min(held) >= 1
    assert max(held) - min(held) <= per_owner, "a shard has a row more than another, at most"


@pytest.mark.parametrize(("per_owner", "most"), [(1, 1), (2, 2), (5, 5)])
def test_an_owner_has_no_more_labels_than_shards(per_owner: int, most: int) -> None:
    owners = partition(config("shards", 20, shards_per_owner=per_owner), TEN_LABELS, 3)
    assert max(len({label for label, _ in rows}) for rows in owners.values()) <= most


@given(SIZES, st.integers(0, 2**32), st.floats(0, 10), st.data())
def test_lognormal_owners_hold_all_rows_and_none_is_empty(
    sizes: list[int], seed: int, sigma: float, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, sum(sizes)))
    owners = partition(config("lognormal", count, size_sigma=sigma), sources_of(sizes), seed)
    assert sorted(row for rows in owners.values() for row in rows) == sorted(
        row for rows in sources_of(sizes).values() for row in rows
    )
    assert len(owners) == count
    assert min(len(rows) for rows in owners.values()) >= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_larger_sigma_makes_sizes_more_unlike(seed: int) -> None:
    spreads = []
    for sigma in (0.0, 0.5, 2.0):
        owners = partition(config("lognormal", 20, size_sigma=sigma), TEN_LABELS, seed)
        spreads.append(np.std([len(rows) for rows in owners.values()]))
    assert spreads[0] <= 0.5 < spreads[1] < spreads[2], spreads
