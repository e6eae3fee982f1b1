"""Trains with the trainer that a run names, and checks what comes back before it goes on."""

from __future__ import annotations

import logging
import traceback

import numpy as np

from agfl_client.training.trainer import BatchTrainer
from agfl_models.errors import AgflError, ConfigError
from agfl_protocol.local_trainer import LocalResult, LocalTrainer, LocalWork

log = logging.getLogger("agfl.client")


def train(work: LocalWork, shipped: LocalTrainer | None = None) -> LocalResult:
    """Train as the run says; `shipped` is what trains where it names no trainer.

    Raises:
        PolicyViolation: the deadline passes.
        ConfigError: a trainer that is not the shipped one failed, or its result is none of this model.
    """
    config = work.training.trainer
    if config is None:
        return (shipped or BatchTrainer()).train(work)
    try:
        result = config.build().train(work)
    except AgflError:
        raise
    except Exception:
        # The server gets the line, and what an error says may quote the owner's text, so that stays here.
        log.error("training.trainer: %s:\n%s", config.type, traceback.format_exc())
        line = f"training.trainer: {config.type} must not fail, and has; its owner's log says why"
        raise ConfigError("AGFL-CONFIG-231", line) from None
    work.check_deadline()
    _check(result, work, f"training.trainer: {config.type}")
    return result


def _check(result: object, work: LocalWork, source: str) -> None:
    """Refuse what no run of the trainer should return, whatever the text.

    That numbers ran away is no refusal, which would tell the server of this owner alone: `Divergence` counts it.
    """
    if not isinstance(result, LocalResult):
        got = type(result).__name__
        raise ConfigError("AGFL-CONFIG-232", f"{source} must return a LocalResult, got {got}")
    delta, wanted = result.delta, (work.layout.size,)
    if not isinstance(delta, np.ndarray) or delta.shape != wanted or delta.dtype != np.float32:
        got = f"{delta.dtype} {delta.shape}" if isinstance(delta, np.ndarray) else type(delta).__name__
        raise ConfigError("AGFL-CONFIG-233", f"{source} must return a delta of float32 {wanted}, got {got}")
    for name, least in (("num_steps", 1), ("num_predictions", 0)):
        count = getattr(result, name)
        if not isinstance(count, int) or count < least:
            raise ConfigError("AGFL-CONFIG-234", f"{source} must return {name} of {least} or more, got {count!r}")
