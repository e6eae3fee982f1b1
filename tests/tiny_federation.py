"""A tiny run, owners with real files, and a federation of real nodes in this process."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # typer 0.20 on click 8.5: "'click.utils.get_binary_stream' is deprecated"; it comes up on the first import only.
    warnings.filterwarnings("ignore", r"'click\..*' is deprecated", DeprecationWarning)
    import typer  # noqa: F401
from flwr.app import RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import settings
from tests import kept_corpora, kept_yaml, no_power_cuts, short_samples  # noqa: F401

from agfl_client.app import create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy
from agfl_models.examples import TextRow, write_rows
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.randomness import OwnerRandomness
from agfl_sim.engines.grid import InProcessGrid

# pytest tests/attacks --hypothesis-profile long: ten tests, 25,000 examples
settings.register_profile("agfl", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=2500)
settings.load_profile("agfl")
torch.set_num_threads(1)

TINY = """
seed: 7
num_rounds: 3
task: {type: language_modeling, sequence_length: 16}
model: {vocab_size: 259, dim: 16, layers: [{type: attention, num_heads: 2}, {type: ff, hidden_dim: 24}]}
training: {optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_steps: 2}
aggregation: {type: plain, min_cohort: 2, round_timeout_s: 60, server_optimizer: {type: nesterov}}
evaluation: {every: 2, max_examples: 8}
data: {num_owners: 3}
"""
WORDS = ["the", "sea", "saw", "a", "ship", "and", "no", "man", "knew", "when", "it", "came", "to", "shore"]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The tiny run as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def run_config(config_file: Path) -> Callable[..., RunConfig]:
    """Return the tiny run with overrides `a.b.c=VALUE`."""
    return lambda *overrides: load_run_config(config_file, overrides)


@pytest.fixture
def make_owners(tmp_path: Path) -> Callable[..., Path]:
    """Return a folder with one NAME.jsonl file for each of `count` owners: twelve short documents each."""

    def make(count: int) -> Path:
        (tmp_path / "owners" / str(count)).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            words = random.Random(i)
            rows = [TextRow(text=" ".join(words.choices(WORDS, k=12))) for _ in range(12)]
            write_rows(tmp_path / "owners" / str(count) / f"owner-{i:02}.jsonl", rows)
        return tmp_path / "owners" / str(count)

    return make


def plain_node(path: Path) -> Node:
    """Return the node of an owner's file; what it draws follows from the seed, as in a simulation."""
    policy, drawn = Policy(allow_plain=True, runs="all"), OwnerRandomness.of_seed(7, path.stem)
    return Node(path.stem, path, "cpu", policy=policy, randomness=drawn)


@pytest.fixture
def open_grid() -> Iterator[Callable[..., InProcessGrid]]:
    """Return a Grid of one real node an owner file; `wrap` replaces the ClientApp of an owner by NAME."""
    with ExitStack() as grids:

        def open_(
            owners: Path,
            wrap: Mapping[str, Callable[[ClientApp], ClientApp]] | None = None,
            num_workers: int = 1,
            first_id: int = 1000,
            step: int = 1,
        ) -> InProcessGrid:
            apps = {}
            for i, path in enumerate(sorted(owners.glob("*.jsonl"))):
                app = create_client_app(plain_node(path))
                if wrap is not None and path.stem in wrap:
                    app = wrap[path.stem](app)
                apps[first_id + step * i] = app
            return grids.enter_context(InProcessGrid(apps, num_workers))

        yield open_


@pytest.fixture
def through_bytes() -> Callable[[RecordDict], RecordDict]:
    """Return content as the other side reads it from its bytes."""

    def travel(record: RecordDict) -> RecordDict:
        contents = {key: value.deflate() for key, value in get_all_nested_objects(record).items()}
        arrived = inflate_object_from_contents(record.object_id, contents)
        assert isinstance(arrived, RecordDict)
        return arrived

    return travel
