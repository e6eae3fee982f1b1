"""Any field of any message, cut, stretched, flipped or replaced: both halves answer it or refuse it in one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from tests.secagg_world import TRIPS, Attempt, World, count_request, round_request

from agfl_client.secure import masking
from agfl_client.secure.masking_states import Shared
from agfl_models.errors import WireError
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages.counting import COUNT
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_server.aggregation.aggregator import AttemptFailed

VICTIM = "owner-000"
Scalar = int | str | bytes | float | bool | list[int]
JUNK = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=100),
    st.binary(max_size=1000),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(0, 3), max_size=3),
)


@st.composite
def spoiled(draw: st.DrawFn, value: Scalar) -> Scalar:
    """Something near `value`, or nothing like it."""
    if isinstance(value, bytes) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        block = draw(st.sampled_from([16, 32, 64, 113, 164]))
        choices: list[Scalar] = [
            value[:place] + bytes([value[place] ^ 1 << place % 8]) + value[place + 1 :],
            value[:place],
            value + value[:place],
            value[block:] + value[:block],  # whole blocks change places
            value[:block] * (len(value) // block) + value[len(value) // block * block :],
        ]
        return draw(st.sampled_from(choices))
    if isinstance(value, str) and "\n" in value and draw(st.booleans()):
        names = draw(st.lists(st.sampled_from([*value.split("\n"), "", "stranger", "a" * 65]), max_size=8))
        return "\n".join(names)
    if isinstance(value, int) and draw(st.booleans()):
        return value + draw(st.sampled_from([-1, 1, 2**31, -(2**31)]))
    junk: Scalar = draw(JUNK)
    return junk


def spoil(data: st.DataObject, content: RecordDict) -> RecordDict:
    """Replace one field of a message, or drop it."""
    fields = dict(content.config_records["config"])
    key = data.draw(st.sampled_from(sorted([*fields, *content.array_records])))
    if key not in fields:
        dtype, shape = data.draw(st.sampled_from([("f8", (7,)), ("u8", (6,)), ("u8", (7, 1)), ("i8", (7,))]))
        return RecordDict({**content, "arrays": ArrayRecord({"lanes": Array(np.zeros(shape, dtype))})})
    if data.draw(st.integers(0, 9)) == 0:
        del fields[key]
    else:
        fields[key] = data.draw(spoiled(fields[key]))  # type: ignore[arg-type]
    return RecordDict({**content, "config": ConfigRecord(fields)})


@dataclass
class Stages:
    """The victim's states in an exchange, and the requests that the real server sends in them."""

    requests: dict[str, RecordDict]
    answer: dict[str, Callable[[RecordDict], object]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    world = World.of(4, tmp_path_factory.mktemp("world"))
    half = world.owners[VICTIM].half
    exchange = Attempt(world)
    states: list[object] = [half.state]
    share = exchange.share_request()
    exchange.share()
    assert isinstance(half.state, Shared)
    states.append(replace(half.state, lanes=half.state.lanes.copy()))
    mask = exchange.mask_request(VICTIM)
    exchange.mask()
    states.append(half.state)
    agree = messages.AgreeRequest(exchange.id, exchange.names)
    signatures = exchange.agree()
    states.append(half.state)
    advertised, shared, masked, agreed = states

    def mask_copy(content: RecordDict) -> object:
        assert isinstance(shared, Shared)
        return masking.mask(replace(shared, lanes=shared.lanes.copy()), sw.read_mask_request(content))

    return Stages(
        {
            sw.SHARE: sw.write_share_request(share),
            sw.MASK: sw.write_mask_request(mask),
            sw.AGREE: sw.write_agree_request(agree),
            sw.UNMASK: sw.write_unmask_request(exchange.unmask_request(signatures)),
        },
        {
            sw.SHARE: lambda content: masking.share(advertised, sw.read_share_request(content)),  # type: ignore[arg-type]
            sw.MASK: mask_copy,
            sw.AGREE: lambda content: masking.agree(masked, sw.read_agree_request(content)),  # type: ignore[arg-type]
            sw.UNMASK: lambda content: masking.unmask(agreed, sw.read_unmask_request(content)),  # type: ignore[arg-type]
        },
    )


def same_but_for_the_exchange(one: RecordDict, two: RecordDict) -> bool:
    """The pure functions leave the exchange's number to `SecureMember`."""
    loose = ("run_id", "round", "exchange")
    a, b = ({k: v for k, v in r.config_records["config"].items() if k not in loose} for r in (one, two))
    return a == b


@pytest.mark.parametrize("trip", [sw.SHARE, sw.MASK, sw.UNMASK])
@given(data=st.data())
def test_attack_a_client_answers_nothing_but_what_the_real_server_would_send(
    stages: Stages, trip: str, data: st.DataObject
) -> None:
    content = spoil(data, stages.requests[trip])
    with suppress(WireError, ProtocolViolation):
        stages.answer[trip](content)
        names = content.config_records["config"]["names"]
        assert isinstance(names, str)
        enough = trip == sw.UNMASK and len(names.split("\n")) >= 3  # a quorum of good signatures is as good as all
        assert enough or same_but_for_the_exchange(content, stages.requests[trip])


@given(data=st.data())
def test_attack_a_client_signs_only_a_u3_that_it_checked(stages: Stages, data: st.DataObject) -> None:
    content = spoil(data, stages.requests[sw.AGREE])
    with suppress(WireError, ProtocolViolation):
        stages.answer[sw.AGREE](content)
        names = content.config_records["config"]["names"]
        assert isinstance(names, str)
        survivors = names.split("\n")
        assert survivors == sorted(set(survivors))
        assert VICTIM in survivors
        assert len(survivors) >= 3


@pytest.fixture(scope="module")
def fuzzed_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.of(4, tmp_path_factory.mktemp("world"))


NUMBERS = iter(range(1, 2**31))


@pytest.mark.parametrize("trip", [*TRIPS, COUNT])
@given(data=st.data())
def test_attack_whatever_one_client_answers_the_sum_is_exact_or_there_is_none(
    fuzzed_world: World, trip: str, data: st.DataObject
) -> None:
    def evil(kind: str, name: str, content: RecordDict) -> RecordDict:
        return spoil(data, content) if (kind, name) == (trip, "owner-001") else content

    request = count_request if trip == COUNT else round_request
    with suppress(AttemptFailed):
        number = next(NUMBERS)
        result = fuzzed_world.secure_sum(request(round_number=number, exchange=number), on_reply=evil)
        np.testing.assert_array_equal(result.lanes, fuzzed_world.plain_sum(result.survivors))
        assert len(result.refused) <= 1  # itself, or the one holder that it dealt a share that does not open
