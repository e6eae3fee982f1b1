"""What an owner reads on its own screen when its node takes no part, and why; the server gets no more than it must."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from agfl_models.errors import AgflError, DataError, PretrainedError

log = logging.getLogger("agfl.client")
_AGAIN_S = 600.0
_ADVICE = {
    "data": "mend it and your node joins by itself, or start it anew with other --data",
    "pretrained": "start it anew with the run's own model as --pretrained",
    "plugins": "install the run's own, look with agfl-client policy, and start anew with it in your policy's plugins",
    "plan.roster": "compare its 24 words with the other owners; who holds the older one starts anew with the newer",
}
# A refusal of the plan lasts until its owner does something; any other may pass.
_WHAT = {"query.propose": "the run", "query.count": "the counting of the tokenizer", "query.model": "the last step"}


class OwnScreen:
    """Says a reason once, and then again each ten minutes: the server asks every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, float]] = {}

    def refused(self, kind: str, error: AgflError) -> None:
        """Say that this node does not answer a message of a kind, and why."""
        field = error.sentence.partition(":")[0]
        if isinstance(error, DataError | PretrainedError):
            field = "data" if isinstance(error, DataError) else "pretrained"
        # A rule of a plan's part stands behind the names of what it is a part of.
        known = [one for one in (field, *error.sentence.split(": ")) if one in _ADVICE]
        advice = f"; {_ADVICE[known[0]]}" if known else ""
        line = f"your node takes no part in {_WHAT.get(kind, 'this round')}: {error.sentence}{advice} [{error.code}]"
        last, at = self._said.get(kind, ("", 0.0))
        if line != last or self._clock() - at >= _AGAIN_S:
            self._said[kind] = line, self._clock()
            log.error("%s", line)

    def answered(self, kind: str) -> None:
        """Say that it takes part again where it did not."""
        if self._said.pop(kind, None) is not None:
            log.info("your node takes part in %s again", _WHAT.get(kind, "the rounds"))


def size_shown(num_bytes: int) -> str:
    """Return a size as people read it."""
    size, unit = float(num_bytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def round_shown(number: int, num_rounds: int, rows: int, seconds: float, *, loss: float | None, evaluated: bool) -> str:
    """Return the line of a round. loss: of training, a prediction; None where the round only evaluates."""
    head = f"round {number} of {num_rounds}" if number <= num_rounds else "last evaluation"
    if loss is None:
        return f"{head}: evaluated the model on your validation text, {seconds:.1f} s"
    also = ", and evaluated the model before" if evaluated else ""
    return f"{head}: trained on your {rows:,} rows, loss {loss:.4g}{also}, {seconds:.1f} s"
