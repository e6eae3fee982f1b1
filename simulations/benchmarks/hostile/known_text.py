"""Whose text it is: how well pairs of sums tell windows of one owner's text from those of other members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agfl_models.examples import read_rows
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.update import Layout, Vector

WINDOWS = 192  # of the absent owner, and as many of all others together


def membership(
    config: RunConfig, files: Mapping[str, Path], victim: str, model: Vector, pairs: Sequence[Vector]
) -> dict[int, float]:
    """Return by number of pairs the AUC of telling the victim's text; pairs: sums with it less those without (d,).

    The score of a window is how much the difference lowers the model's loss on it, to first order. Of fewer pairs than
    there are it is the mean over all that are disjoint.
    """
    rng = np.random.default_rng(0)
    others = sorted(set(files) - {victim})
    own = _gradients(config, files[victim], model, WINDOWS, rng)
    share = -(-WINDOWS // len(others))
    theirs = np.concatenate([_gradients(config, files[name], model, share, rng) for name in others])
    found = {}
    for count in (1, 4, 16, 48, 100):
        runs = [np.mean(pairs[i : i + count], 0) for i in range(0, len(pairs) - count + 1, count)]
        if runs:
            found[count] = float(np.mean([_auc(-own @ run, -theirs @ run) for run in runs]))
    return found


def _gradients(
    config: RunConfig, path: Path, model: Vector, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the gradients (count, d) of the loss on windows of an owner's training text, each of norm 1."""
    task = config.build_task()
    dataset = task.prepare(read_rows(path, config.task.row))
    network = build_model(config.model, config.seed)
    layout = Layout.of(network)
    layout.load(network, model)
    rows = []
    for _ in range(count):
        network.zero_grad()
        loss, _ = task.loss(network, dataset.sample(1, rng))
        torch.autograd.backward(loss)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        gradient = torch.cat([part.reshape(-1) for part in parts]).numpy()
        rows.append(gradient / np.linalg.norm(gradient))
    return np.array(rows, np.float32)


def _auc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Return the chance that one of the first is above one of the second."""
    above = positive[:, None] > negative[None, :]
    equal = positive[:, None] == negative[None, :]
    return float(np.mean(above + equal / 2))
