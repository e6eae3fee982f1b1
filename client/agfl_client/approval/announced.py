"""The most that a message may weigh, said before its arrays are fetched: from its run and the owner's policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from agfl_client.policy import Policy
from agfl_protocol.messages.arrays import most_bytes
from agfl_protocol.messages.wire import EVALUATE, MODEL, TRAIN, read_scalar
from agfl_protocol.plans.client_plan import client_plan_from_json

_OTHER_BYTES = 1 << 20  # scales of the tensors, merges, and all arrays of the messages that carry no model
_FLOAT_BYTES = 4


@dataclass
class Announced:
    """Bounds the requests of a run; what it found of the last run is kept.

    pretrained: the owner's copy of a pretrained model, for runs that start from one. keeps_model: whether the trained
    model is taken in the end.
    """

    policy: Policy
    pretrained: Path | None = None
    keeps_model: bool = False
    _last: tuple[str, int] = ("", 0)

    def most_bytes(self, kind: str, header: RecordDict) -> int:
        """Return the most bytes of arrays of a message of this kind; `header` is its content without arrays.

        Raises:
            PolicyViolation: the owner's policy does not permit the run.
            AgflError: its configuration breaks a rule, or there is no copy of the model that it starts from.
        """
        if kind == MODEL and self.keeps_model:
            plan = client_plan_from_json(read_scalar(header, "client_plan", str))
            plan = plan.with_pretrained(self.pretrained, "--pretrained")
            self.policy.tier(plan)
            return _FLOAT_BYTES * plan.model.num_parameters() + _OTHER_BYTES
        if kind not in (TRAIN, EVALUATE):
            return _OTHER_BYTES
        text = read_scalar(header, "client_plan", str)
        if text != self._last[0]:
            plan = client_plan_from_json(text).with_pretrained(self.pretrained, "--pretrained")
            self.policy.tier(plan)
            size = plan.model.num_parameters()
            self._last = text, _FLOAT_BYTES * plan.max_models * size + most_bytes(plan, size, train=True)
        return self._last[1] + _OTHER_BYTES
