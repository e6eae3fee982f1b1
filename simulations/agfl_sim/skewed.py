"""Partitions of the literature that make owners unlike: by their labels, or by how much they hold.

Text has no labels as pictures do. What stands for a row's label is its source: the speaker, the integration, the
package from which the corpus has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

RowT = TypeVar("RowT")
Labeled = Sequence[Sequence[RowT]]  # the rows of each label


def dirichlet(labeled: Labeled[RowT], num_owners: int, alpha: float, rng: np.random.Generator) -> list[list[RowT]]:
    """Deal out all rows so that owners hold as many each, but of labels in shares drawn from Dir(alpha p).

    p: the labels' shares of all rows. A small alpha leaves an owner few labels, a large one the same mixture as all.
    A label that is used up is drawn no more, so those who are dealt last have what is left (Hsu et al. 2019,
    arXiv:1909.06335, section 3).
    """
    shuffled = [[rows[i] for i in rng.permutation(len(rows)).tolist()] for rows in labeled]
    left = np.array([len(rows) for rows in shuffled])
    total = int(left.sum())
    prior = left / total
    owners: list[list[RowT]] = []
    for i in range(num_owners):
        missing = total // num_owners + (i < total % num_owners)
        wanted, held = rng.dirichlet(alpha * prior), list[RowT]()
        while missing:
            shares = np.where(left > 0, wanted, 0.0)
            if not shares.sum() > 0:
                shares = left.astype(np.float64)  # all that it wanted is used up
            taken = np.minimum(rng.multinomial(missing, shares / shares.sum()), left)
            for label in np.flatnonzero(taken).tolist():
                end = int(left[label])
                held += shuffled[label][end - int(taken[label]) : end]
            left -= taken
            missing -= int(taken.sum())
        owners.append(held)
    return owners


def shards(labeled: Labeled[RowT], num_owners: int, per_owner: int, rng: np.random.Generator) -> list[list[RowT]]:
    """Sort all rows by label, cut them into shards of one size, and give each owner `per_owner` of them.

    Source: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    rows = [row for one in labeled for row in one]
    cuts = np.linspace(0, len(rows), num_owners * per_owner + 1).astype(int).tolist()
    order = rng.permutation(num_owners * per_owner).tolist()
    return [
        [row for j in order[i * per_owner : (i + 1) * per_owner] for row in rows[cuts[j] : cuts[j + 1]]]
        for i in range(num_owners)
    ]


def lognormal(labeled: Labeled[RowT], num_owners: int, sigma: float, rng: np.random.Generator) -> list[list[RowT]]:
    """Shuffle all rows, and deal out to each owner one, and of the others a share as of a log-normal draw.

    sigma: of the logarithm of the shares; 0 gives as many rows to each (Li et al. 2020, arXiv:1812.06127, section 5.1,
    draws owners' sizes so).
    """
    rows = [row for one in labeled for row in one]
    logs = sigma * rng.standard_normal(num_owners)
    weights = np.exp(logs - logs.max())
    ends = np.rint(np.cumsum(weights) / weights.sum() * (len(rows) - num_owners)).astype(int)
    cuts = [0, *(ends + np.arange(1, num_owners + 1)).tolist()]
    order = rng.permutation(len(rows)).tolist()
    return [[rows[j] for j in order[begin:end]] for begin, end in itertools.pairwise(cuts)]
