"""Rings of an elastic model that few fill: no such sum is opened, and no refusal tells the server who fills what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from tests.secagg_world import TRIPS, Attempt, World

from agfl_client.secure import masking
from agfl_client.secure.masking_states import Agreed, HeldShares, Masked, Shared
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.aggregator import AttemptFailed

EVIL = "owner-009"
Numbers = Mapping[str, int]
Sent = dict[str, list[str]]


def filling(world: World, more: Iterable[int], number: int = 2, fewer: int = 1) -> World:
    """The owners in the places `more` fill `number` rings, all others `fewer`."""
    for owner in world.owners.values():
        owner.rings = fewer
    for place in more:
        world.owners[world.names[place]].rings = number
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Ten owners: c = 3, min_cohort = 5, t = 4, q = 7."""
    return World.of(10, tmp_path)


def line_of(number: int, count: int, whole: str, min_cohort: int = 5) -> str:
    return (
        f"rings: exactly {number} must be filled by nobody or at least min_cohort = {min_cohort} of {whole}, "
        f"got {count} [AGFL-SECURE-010]"
    )


def fails(world: World, lost: Mapping[str, str]) -> tuple[AttemptFailed, Sent]:
    """Run an exchange that must fail, in which owners are `lost` in a trip; return who answered in each trip."""
    sent: Sent = {trip: [] for trip in TRIPS}

    def note(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        if lost.get(name) == kind:
            return None
        sent[kind].append(name)
        return content

    with pytest.raises(AttemptFailed) as failed:
        world.secure_sum(on_reply=note)
    return failed.value, sent


# --- too few fill a ring


@pytest.mark.parametrize(
    ("more", "number", "fewer", "small", "count"),
    [([3], 2, 1, 2, 1), (range(4), 8, 1, 8, 4), (range(9), 2, 1, 1, 1), ([0], 2, 3, 2, 1)],
    ids=["one fills one more", "min_cohort - 1 fill all", "all but one fill one more", "one fills one less"],
)
def test_attack_too_few_fill_a_ring_and_all_refuse_alike_before_they_mask(
    world: World, more: Iterable[int], number: int, fewer: int, small: int, count: int
) -> None:
    """Those who fill it and those who do not; the server gets no masked vector."""
    failed, sent = fails(filling(world, more, number, fewer), {})
    line = line_of(small, count, "U1")
    assert [owner.log for owner in world.owners.values()] == [[line]] * 10
    assert failed.refused == dict.fromkeys(world.names, line)
    assert sent[sw.SHARE] == world.names
    assert sent[sw.MASK] == []
    assert all(owner.half.state is None for owner in world.owners.values())


@pytest.mark.parametrize("fewer", [1, 3])
def test_attack_min_cohort_of_each_number_is_enough(world: World, fewer: int) -> None:
    filling(world, range(5), 2, fewer)
    result = world.secure_sum()
    assert result.refused == {}
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names))


def test_attack_a_ring_of_too_few_for_one_owner_is_refused_by_all(world: World) -> None:
    world.owners["owner-009"].half.member._parameters = Parameters(3, 6)
    failed, _ = fails(filling(world, range(5)), {})
    assert failed.refused == dict.fromkeys(world.names, line_of(1, 5, "U1", min_cohort=6))


@pytest.mark.parametrize("trip", [sw.SHARE, sw.MASK])
def test_attack_a_filler_is_lost_so_that_too_few_are_left(world: World, trip: str) -> None:
    """All sign who is left, and all refuse to open: no share and no secret leaves."""
    lost = "owner-000"
    failed, sent = fails(filling(world, range(5)), {lost: trip})
    line, left = line_of(2, 4, "U3"), world.names[1:]
    assert [world.owners[name].log for name in left] == [[line]] * 9
    assert sent[sw.AGREE] == left
    assert sent[sw.UNMASK] == []
    assert str(failed).startswith("openings, clients that gave shares: must be at least 4, got 0; ")
    assert {name: failed.refused[name] for name in left} == dict.fromkeys(left, line)


def test_attack_one_who_fills_less_is_lost_and_enough_are_left(tmp_path: Path) -> None:
    world = filling(World.of(11, tmp_path), range(5))
    result = world.secure_sum(on_reply=lambda kind, name, c: None if (kind, name) == (sw.MASK, "owner-010") else c)
    np.testing.assert_array_equal(result.lanes, world.plain_sum(world.names[:10]))


# --- who lies about the number of its rings


def claims(monkeypatch: pytest.MonkeyPatch, says: Callable[[str], Numbers]) -> None:
    """Each dealer tells each holder the number in `says(dealer)`, or the truth where there is none."""
    genuine = masking._seal

    def evil(dealer: str, holder: str, ctx1: bytes, key: bytes, shares: HeldShares) -> messages.SealedShares:
        told = says(dealer).get(holder, shares.rings)
        return genuine(dealer, holder, ctx1, key, replace(shares, rings=told))

    monkeypatch.setattr(masking, "_seal", evil)


def test_attack_c_liars_beside_one_lone_filler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one too few to make it look like a cohort."""
    liars = world.names[7:]
    claims(monkeypatch, lambda dealer: dict.fromkeys(world.names, 2) if dealer in liars else {})
    _, sent = fails(filling(world, [0]), {})
    assert [world.owners[name].log for name in world.names[:7]] == [[line_of(2, 4, "U1")]] * 7
    assert not set(sent[sw.MASK]) & set(world.names[:7])


def test_attack_a_liar_tells_its_peers_different_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was told too little refuses; the others' sum holds two honest fillers of each number, and is exact."""
    world = filling(World.of(10, tmp_path, max_colluders=1), [0, 1, 9])
    doubtful = world.names[2:4]
    claims(monkeypatch, lambda dealer: dict.fromkeys(doubtful, 1) if dealer == EVIL else {})
    result = world.secure_sum()
    assert result.refused == dict.fromkeys(doubtful, line_of(2, 2, "U1", 3))
    np.testing.assert_array_equal(result.lanes, world.plain_sum(result.survivors))
    assert {"owner-000", "owner-001"} < set(result.survivors)


def test_attack_a_liar_tells_one_signer_alone_that_it_fills_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """U2 is not all of U1, so that one refuses in the last trip; the others open its mask, and the sum is exact."""
    claims(monkeypatch, lambda dealer: {"owner-004": 5} if dealer == EVIL else {})
    lost = (sw.SHARE, "owner-008")
    result = world.secure_sum(on_reply=lambda kind, name, content: None if (kind, name) == lost else content)
    assert result.refused["owner-004"] == line_of(5, 1, "U3")
    assert "owner-004" in result.survivors
    np.testing.assert_array_equal(result.lanes, world.plain_sum(result.survivors))


@pytest.mark.parametrize("number", [0, 9, 255])
def test_attack_a_number_of_rings_that_there_is_not(world: World, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    claims(monkeypatch, lambda dealer: dict.fromkeys(world.names, number) if dealer == EVIL else {})
    _, sent = fails(world, {})
    line = "rings of 'owner-009': must be in [1, 8]; they are not [AGFL-SECURE-035]"
    assert [world.owners[name].log for name in world.names[:9]] == [[line]] * 9
    assert sent[sw.MASK] == [EVIL]


# --- refusals as an oracle


@pytest.fixture
def eleven(tmp_path: Path) -> World:
    """Five fill two rings, six fill one: a set without one owner breaks the rule just where that owner fills two."""
    return filling(World.of(11, tmp_path), [0, 2, 5, 6, 9])


def fill_two(world: World) -> set[str]:
    return {name for name in world.names if world.owners[name].rings == 2}


def probe(exchange: Attempt, ask: Callable[[str, tuple[str, ...]], object]) -> set[str]:
    """Ask each owner of all but the next one, as a server may that shows each another set; return who was missing."""
    refused = set()
    for place, name in enumerate(exchange.names):
        missing = exchange.names[(place + 1) % len(exchange.names)]
        try:
            ask(name, tuple(n for n in exchange.names if n != missing))
        except ProtocolViolation:
            refused.add(missing)
    return refused


def probe_dealers(world: World) -> set[str]:
    exchange = Attempt(world)
    exchange.share()
    return probe(exchange, lambda name, u2: exchange.mask([name], u2))


def probe_survivors(world: World) -> set[str]:
    exchange = Attempt(world)
    exchange.share()
    exchange.mask()
    return probe(exchange, lambda name, u3: exchange.agree([name], u3))


def test_attack_each_client_is_shown_another_u2(eleven: World) -> None:
    """None refuses, so the server learns nothing; nor do such views open."""
    assert probe_dealers(eleven) == set()


def test_attack_each_client_is_shown_another_u3(eleven: World) -> None:
    assert probe_survivors(eleven) == set()


def test_attack_each_client_is_shown_another_u2_would_tell_who_fills_what_were_each_u2_checked(
    eleven: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is why trip 3 checks no U2 but the whole of U1."""
    genuine = masking.mask

    def hasty(state: Shared, request: messages.MaskRequest) -> tuple[Masked, messages.MaskReply]:
        masked, reply = genuine(state, request)
        masking._check_fillers(request.dealers, masked.held, masked.terms, masked.members, "U2")
        return masked, reply

    monkeypatch.setattr(masking, "mask", hasty)
    assert probe_dealers(eleven) == fill_two(eleven)


def test_attack_each_client_is_shown_another_u3_would_tell_who_fills_what_were_it_checked_before_it_is_agreed_on(
    eleven: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is why trip 4 signs, and trip 5 checks."""
    genuine = masking.agree

    def hasty(state: Masked, request: messages.AgreeRequest) -> tuple[Agreed, messages.AgreeReply]:
        masking._check_fillers(request.survivors, state.held, state.terms, state.members, "U3")
        return genuine(state, request)

    monkeypatch.setattr(masking, "agree", hasty)
    assert probe_survivors(eleven) == fill_two(eleven)


def test_attack_a_u3_that_nobody_else_signed_is_refused_for_that_alone(eleven: World) -> None:
    """In the last trip, too, the line says nothing of rings until a quorum signed this U3."""
    exchange = Attempt(eleven)
    exchange.share()
    exchange.mask()
    signatures = {name: exchange.agree([name], exchange.names[1:])[name] for name in exchange.names[1:2]}
    signatures |= exchange.agree(exchange.names[2:], exchange.names)
    line = r"^signature: .*AGFL-SECURE-005"
    with pytest.raises(ProtocolViolation, match=line):
        eleven.owners["owner-001"].half.unmask(exchange.unmask_request(signatures))


def test_attack_the_size_of_what_a_client_sends_tells_nothing(world: World) -> None:
    filling(world, range(5), number=8, fewer=1)
    sizes: dict[str, set[tuple[tuple[str, int], ...]]] = {trip: set() for trip in TRIPS}

    def note(kind: str, name: str, content: RecordDict) -> RecordDict:
        fields = {k: len(v) for k, v in content.config_records["config"].items() if isinstance(v, bytes)}
        arrays = {k: len(a.data) for record in content.array_records.values() for k, a in record.items()}
        sizes[kind].add(tuple({**fields, **arrays}.items()))
        return content

    world.secure_sum(on_reply=note)
    assert all(len(seen) == 1 for seen in sizes.values())
