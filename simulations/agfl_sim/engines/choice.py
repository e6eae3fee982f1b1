"""What `auto` takes: the engine with which a run ends sooner, by what its configuration says, never by a clock."""

from __future__ import annotations

from agfl_client.training.device import choose_device
from agfl_models.errors import ConfigError
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_sim.engines.simulated_owners import size_of
from agfl_sim.engines.workers.own_classes import own_classes
from agfl_sim.partition import Owners
from agfl_sim.population import Population

# A worker loads PyTorch for about 3 s of a processor; the shipped run of 24 owners has 7.6e9 and takes 170 s of one.
_WORTH_IT = 3e9
_LEAST_PARAMETERS = 50_000  # a training step of a smaller model takes no less
_BYTES_PER_EXAMPLE = 128


def choose_engine(config: RunConfig, owners: Owners | Population, device: str) -> tuple[str, str | None]:
    """Return the engine for a run, and a line for a person where something of the run keeps it from the better one.

    That is `processes` where owners train on more than one processor, and rounds x clients of a round x examples that
    each trains on x parameters come to 3e9 or more (about a minute of one processor).
    """
    if usable_cpus() < 2 or choose_device(device) != "cpu" or _work(config, owners) < _WORTH_IT:
        return "inline", None
    try:
        own_classes(config, "processes")
    except ConfigError as error:
        return "inline", f"engine   inline, not processes: {error.sentence.removeprefix('--engine processes: ')}"
    return "processes", None


def _work(config: RunConfig, owners: Owners | Population) -> float:
    training, count = config.training, owners.count
    if training.local_steps is not None:
        examples = float(training.local_steps * training.batch_size)
    elif isinstance(owners, Population):
        return 0.0  # nobody knows how much text they have
    else:
        written = {path: len(content) for path, content in owners.content.items()}
        total = sum(written[path] if path in written else size_of(path) for path in owners.files)
        examples = (training.local_epochs or 1) * total / count / _BYTES_PER_EXAMPLE
    clients = min(config.aggregation.cohort_size or count, count)
    return config.num_rounds * clients * examples * max(config.model.num_parameters(), _LEAST_PARAMETERS)
