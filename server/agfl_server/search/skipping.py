"""What skipping each block of the chosen model costs, as the loss on the owners' validation text.

Where a block adds to the residual stream, x + f(norm(x)), it is skipped exactly if the weights that write its output
are zero. So the model without it is a model like any other, and an evaluation like any other says its loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agfl_models.errors import CheckpointError
from agfl_models.files.durable_files import write_atomically
from agfl_models.model.config import ModelConfig, ResolvedModelConfig
from agfl_models.model.stack_config import settings_of
from agfl_protocol.update import Layout, Vector
from agfl_server.rounds.cohort_sums import Federation
from agfl_server.rounds.loop import evaluate_round
from agfl_server.rounds.observer import Observer
from agfl_server.rounds.state import ServerState
from agfl_server.run.run_folder import RunFolder

BLOCKS_FILE = "blocks.json"


def write_skip_costs(federation: Federation, state: ServerState, folder: RunFolder) -> None:
    """Write OUTPUT/search/blocks.json: the loss of the trained model, and without each of its blocks.

    Nothing is written of a model without residual sums, nor anew for a model of which it is there.

    Raises:
        RoundError, CheckpointError: an evaluation failed, or the file cannot be written.
    """
    config = federation.context.config.model
    path = folder.search / BLOCKS_FILE
    if not isinstance(config, ModelConfig) or config.resolve().residual != "pre" or _round_of(path) == state.round:
        return
    quiet = replace(federation.context, observer=Observer())
    federation = replace(federation, context=quiet)
    evaluated = state  # the trained model was, in the last round
    blocks: list[dict[str, object]] = []
    content: dict[str, object] = {"round": state.round, "loss": state.row["eval/loss"], "blocks": blocks}
    for name, layer, model in models_without_a_block(config.resolve(), federation.layout, state.model):
        # Each is a round of its own, so that an owner's bound on vectors of one round is met.
        asked = replace(evaluated, round=evaluated.round + 1, model=model)
        evaluated = evaluate_round(federation, asked)
        blocks.append({"name": name, "layer": layer, "loss": evaluated.row.get("eval/loss")})
    try:
        write_atomically(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        raise CheckpointError("AGFL-CHECKPOINT-038", f"search: {path}: cannot be written: {error.strerror}") from None


def models_without_a_block(
    config: ResolvedModelConfig, layout: Layout, model: Vector
) -> Iterator[tuple[str, str, Vector]]:
    """Yield for each block its name, its layer in words, and the model (d,) that skips it."""
    places = dict(zip(layout.names, layout.slices, strict=True))
    stacks = [config.encoder_stack, config.stack]
    for place in (place for stack in stacks if stack is not None for place in stack.places()):
        without = model.copy()
        without[places[f"{place.name}.output.weight"]] = 0.0
        yield place.name, settings_of(place.layer), without


def _round_of(path: Path) -> int | None:
    """Return the round of the model whose blocks are in the file, if there is one."""
    try:
        found: int = json.loads(path.read_text("utf-8"))["round"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found
