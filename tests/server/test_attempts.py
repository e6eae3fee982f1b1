"""What is left of an attempt: nothing as large as the model, since the next one needs the room."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from agfl_models.errors import ImplausibleSum
from agfl_protocol.secagg.lanes import Lanes
from agfl_server.aggregation.aggregator import AttemptFailed, CohortSum
from agfl_server.rounds.attempts import _decoded


@pytest.mark.parametrize("at_once", [True, False])
def test_nothing_of_a_refuted_sum_is_held(at_once: bool) -> None:
    """Neither its lanes nor the levels that were read from them, without a collection of garbage."""
    arrays = list[weakref.ref[Lanes]]()

    def refute() -> None:
        raise ImplausibleSum("AGFL-ROUND-014", "too large")

    def decode(lanes: Lanes) -> Callable[[], None]:
        levels = lanes.copy()
        arrays.extend((weakref.ref(lanes), weakref.ref(levels)))
        if at_once:
            refute()

        def rest() -> None:
            assert levels.any()
            assert arrays[0]() is None, "the lanes are let go of first"
            refute()

        return rest

    def attempt() -> AttemptFailed:
        try:
            _decoded(CohortSum(1, np.ones(9, np.uint64), ("a", "b"), {}, 0, 0), decode, keeps_lanes=False)
        except AttemptFailed as error:
            return error
        raise AssertionError("it was refuted")

    gc.disable()
    try:
        failed = attempt().with_traceback(None)
        assert [array() for array in arrays] == [None, None]
        assert (failed.bad, failed.is_spent, failed.kind) == (("a", "b"), True, ImplausibleSum)
    finally:
        gc.enable()
