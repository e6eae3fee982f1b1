"""An evil server with c colluding clients lies about who is left: it wants both secrets of one client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.secagg_world import Attempt, World, round_request

from agfl_client.secure.masking_states import Shared
from agfl_protocol.messages.secure_wire import context_of
from agfl_protocol.secagg import keys, shamir
from agfl_protocol.secagg.context import dealers_context
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, sign
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import Mask, apply_masks, pair_mask
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.messages import UnmaskReply
from agfl_protocol.secagg.parameters import Parameters

VICTIM = "owner-000"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Ten owners, c = 3, t = 4, q = 7."""
    return World.of(10, tmp_path)


def shared(world: World) -> Attempt:
    exchange = Attempt(world)
    exchange.share()
    return exchange


def masked(world: World) -> Attempt:
    exchange = shared(world)
    exchange.mask()
    return exchange


# --- trip 3


def test_attack_u2_without_the_victim(world: World) -> None:
    exchange = shared(world)
    request = exchange.mask_request(VICTIM)
    without = replace(request, dealers=request.dealers[1:], dealt=request.dealt[1:])
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*AGFL-SECURE-028"):
        world.owners[VICTIM].half.mask(without)


def test_attack_u2_with_a_stranger(world: World) -> None:
    exchange = Attempt(world)
    exchange.share(exchange.names[:8])
    request = exchange.mask_request(VICTIM)
    stranger = replace(request, dealers=(*request.dealers, "owner-009"), dealt=(*request.dealt, request.dealt[0]))
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*got 'owner-009'.*AGFL-SECURE-032"):
        world.owners[VICTIM].half.mask(stranger)


def test_attack_u2_with_a_dealer_twice(world: World) -> None:
    exchange = shared(world)
    twice = (*exchange.names[:8], "owner-007", "owner-008")
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*AGFL-SECURE-031"):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM, twice))


def test_attack_u2_below_the_owners_min_cohort(tmp_path: Path) -> None:
    world = World.of(10, tmp_path, min_cohort=9)
    exchange = shared(world)
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*got 8.*AGFL-SECURE-029"):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM, exchange.names[:8]))


def test_attack_u2_of_the_victim_and_colluders(world: World) -> None:
    exchange = shared(world)
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*got 4.*AGFL-SECURE-029"):
        world.owners[VICTIM].half.mask(exchange.mask_request(VICTIM, exchange.names[:4]))


# --- trip 4


def test_attack_u3_without_the_victim(world: World) -> None:
    exchange = masked(world)
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*AGFL-SECURE-028"):
        exchange.agree([VICTIM], exchange.names[1:])


def test_attack_u3_with_one_who_is_not_in_u2(world: World) -> None:
    exchange = shared(world)
    exchange.mask(dealers=exchange.names[:9])
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*got 'owner-009'.*AGFL-SECURE-032"):
        exchange.agree([VICTIM], exchange.names)


def test_attack_u3_with_a_survivor_twice(world: World) -> None:
    exchange = masked(world)
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*AGFL-SECURE-031"):
        exchange.agree([VICTIM], (*exchange.names, "owner-009"))


def test_attack_u3_below_the_owners_min_cohort(tmp_path: Path) -> None:
    world = World.of(10, tmp_path, min_cohort=9)
    exchange = masked(world)
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*got 8.*AGFL-SECURE-029"):
        exchange.agree([VICTIM], exchange.names[:8])


def test_attack_others_are_asked_for_a_sum_too_small_for_the_victim(tmp_path: Path) -> None:
    """Only the victim asks for nine. Its masked vector has left; nobody helps to open it in company of seven others."""
    world = World.of(10, tmp_path)
    world.owners[VICTIM].half.member._parameters = Parameters(3, 9)
    exchange = masked(world)
    for name in exchange.names[:8]:
        with pytest.raises(ProtocolViolation, match=r"^survivors: .*got 8.*AGFL-SECURE-029"):
            exchange.agree([name], exchange.names[:8])


def test_attack_u3_of_the_victim_and_colluders(world: World) -> None:
    exchange = masked(world)
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*got 4.*AGFL-SECURE-029"):
        exchange.agree([VICTIM], exchange.names[:4])


def test_attack_a_second_u3(world: World) -> None:
    exchange = masked(world)
    exchange.agree()
    line = r"^trip: .*AGFL-SECURE-036"
    with pytest.raises(ProtocolViolation, match=line):
        exchange.agree([VICTIM], exchange.names[:9])


# --- trip 5


def test_attack_fewer_signatures_than_a_quorum(world: World) -> None:
    exchange = masked(world)
    signatures = exchange.agree()
    few = dict(list(signatures.items())[:6])
    with pytest.raises(ProtocolViolation, match=r"^signers: .*got 6.*AGFL-SECURE-023"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(few))


def test_attack_no_signature_but_the_victims_own(world: World) -> None:
    exchange = masked(world)
    exchange.agree()
    with pytest.raises(ProtocolViolation, match=r"^signers: .*got 1.*AGFL-SECURE-023"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request({VICTIM: bytes(64)}))


def test_attack_a_quorum_of_u2_that_is_none_of_u1(world: World) -> None:
    """Shares lie with all of U1, so two quorums must meet there: floor((8 + 3) / 2) + 1 = 6 of |U2| = 8 is too few."""
    exchange = shared(world)
    exchange.mask(dealers=exchange.names[:8])
    signatures = exchange.agree(survivors=exchange.names[:8])
    assert world.parameters.quorum(8) == 6
    few = dict(list(signatures.items())[:6])
    with pytest.raises(ProtocolViolation, match=r"^signers: .*got 6.*AGFL-SECURE-023"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(few))


def test_attack_one_signature_counted_twice(world: World) -> None:
    exchange = masked(world)
    signatures = list(exchange.agree().items())[:6]
    request = exchange.unmask_request({})
    twice = [*signatures, signatures[-1]]
    request = replace(request, signers=tuple(n for n, _ in twice), signatures=tuple(s for _, s in twice))
    with pytest.raises(ProtocolViolation, match=r"^signers: .*AGFL-SECURE-031"):
        world.owners[VICTIM].half.unmask(request)


def test_attack_a_signer_that_is_no_survivor(world: World) -> None:
    exchange = masked(world)
    signatures = exchange.agree(survivors=exchange.names[:8])
    forged = {**signatures, "owner-009": signatures[VICTIM]}
    with pytest.raises(ProtocolViolation, match=r"^signers: .*got 'owner-009'.*AGFL-SECURE-032"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(forged))


@pytest.mark.parametrize("place", [0, 5, 6])
def test_attack_a_forged_signature_among_good_ones(world: World, place: int) -> None:
    exchange = masked(world)
    signatures = dict(list(exchange.agree().items())[:7])
    name = list(signatures)[place]
    signatures[name] = signatures[name][:-1] + bytes([signatures[name][-1] ^ 1])
    line = rf"^signature: must be that of '{name}' over this exchange \(sign/agreement\).*AGFL-SECURE-005"
    with pytest.raises(ProtocolViolation, match=line):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(signatures))


def test_attack_one_signers_signature_under_anothers_name(world: World) -> None:
    exchange = masked(world)
    signatures = dict(list(exchange.agree().items())[:7])
    signatures["owner-003"] = signatures["owner-004"]
    with pytest.raises(ProtocolViolation, match=r"^signature: .*AGFL-SECURE-005"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(signatures))


def signed_by_colluders(world: World, names: tuple[str, ...], ctx3: bytes) -> dict[str, bytes]:
    return {name: sign(world.owners[name].key, SIGN_AGREEMENT, ctx3, name) for name in names}


def test_attack_u3_is_split_between_two_halves(world: World) -> None:
    """One half is told that the victim lives, the other that it is lost: together they would give both its secrets."""
    exchange = masked(world)
    colluders, honest = exchange.names[7:], exchange.names[:7]
    one, two = honest[:4], honest[4:]
    says_lives = exchange.agree(one, exchange.names)
    says_lost = exchange.agree(two, tuple(n for n in exchange.names if n != VICTIM))
    ctx3 = world.owners[honest[1]].half.state.ctx3  # type: ignore[union-attr]
    other = world.owners[two[0]].half.state.ctx3  # type: ignore[union-attr]
    assert ctx3 != other
    lives = {**says_lives, **signed_by_colluders(world, colluders, ctx3)}
    lost = {**says_lost, **signed_by_colluders(world, colluders, other)}
    # With c colluders one half has a quorum, as in any honest exchange: 4 + 3 = 7. The other has not.
    world.owners[one[1]].half.unmask(exchange.unmask_request(lives))
    with pytest.raises(ProtocolViolation, match=r"^signers: .*got 6.*AGFL-SECURE-023"):
        world.owners[two[0]].half.unmask(exchange.unmask_request(lost))


def test_attack_signatures_over_two_different_u3_are_mixed(world: World) -> None:
    exchange = masked(world)
    one = exchange.agree(exchange.names[:4], exchange.names)
    two = exchange.agree(exchange.names[4:9], exchange.names[:9])
    with pytest.raises(ProtocolViolation, match=r"^signature: .*AGFL-SECURE-005"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request({**one, **two}))


def test_attack_two_clients_are_told_different_u2(world: World) -> None:
    """Their masks differ, and so does what they sign: there is no agreement between them."""
    exchange = shared(world)
    exchange.mask([VICTIM], exchange.names)
    exchange.mask(exchange.names[1:9], exchange.names[:9])
    signatures = exchange.agree(exchange.names[:9], exchange.names[:9])
    with pytest.raises(ProtocolViolation, match=r"^signature: .*AGFL-SECURE-005"):
        world.owners[VICTIM].half.unmask(exchange.unmask_request(signatures))


# --- the break of the document's first version


def two_views_of_u2(world: World) -> tuple[Lanes, Lanes]:
    """Tell the victim a U2 that meets the honest signers nowhere; return (its vector, what the server computes).

    The victim's U2 is itself, two honest clients and the colluders. All others see everybody, and U3 without those
    two: so a quorum gives the victim's self-mask secret, since it is in U3, and the mask keys of the two, since they
    are lost. Nothing else masks the victim's vector.
    """
    exchange = shared(world)
    honest, colluders = exchange.names[:7], exchange.names[7:]
    (_, *isolated), signers = honest[:3], honest[3:]
    mask_keys = {n: state_of(world, n).mask_secret for n in colluders}
    ctx0 = context_of(round_request(), world.roster)
    members = Members.of(ctx0, exchange.records.values())
    view = tuple(sorted((VICTIM, *isolated, *colluders)))

    vector = exchange.mask([VICTIM], view)[VICTIM].copy()
    exchange.mask(signers, exchange.names)
    survivors = tuple(n for n in exchange.names if n not in isolated)
    signatures = exchange.agree(signers, survivors)
    ctx3 = world.owners[signers[0]].half.state.ctx3  # type: ignore[union-attr]
    signatures |= signed_by_colluders(world, colluders, ctx3)
    openings = {n: world.owners[n].half.unmask(exchange.unmask_request(signatures)) for n in signers}

    secret = rebuilt(members, openings, VICTIM, exchange.names)
    for name in isolated:
        mask_keys[name] = rebuilt(members, openings, name, exchange.names)
    ctx2 = dealers_context(members.ctx1, view)
    masks = [Mask(keys.self_seed(secret, ctx2, VICTIM), subtract=True)]
    for name, key in mask_keys.items():
        private = X25519PrivateKey.from_private_bytes(key)
        shared_secret = keys.agree(private, members.records[VICTIM].mask_key, VICTIM)
        masks.append(pair_mask(keys.pair_seed(shared_secret, ctx2, VICTIM, name), VICTIM, name).inverse())
    apply_masks(vector, masks)
    return world.owners[VICTIM].vector, vector


def state_of(world: World, name: str) -> Shared:
    state = world.owners[name].half.state
    assert isinstance(state, Shared)
    return state


def rebuilt(members: Members, openings: Mapping[str, UnmaskReply], dealer: str, dealers: tuple[str, ...]) -> bytes:
    holders = list(openings)
    places = [[d for d in dealers if d != holder].index(dealer) for holder in holders]
    shares = [openings[holder].shares[place] for holder, place in zip(holders, places, strict=True)]
    return shamir.combine(shares, shamir.weights([members.points[holder] for holder in holders]))


def test_attack_two_views_of_u2_are_refused_because_each_must_hold_a_quorum(world: World) -> None:
    with pytest.raises(ProtocolViolation, match=r"^dealers: .*got 6.*AGFL-SECURE-029"):
        two_views_of_u2(world)


def test_attack_two_views_of_u2_would_open_the_victims_vector_were_min_cohort_enough(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document's first version asked |U2| >= min_cohort only. This is why that is not enough."""
    monkeypatch.setattr(Parameters, "least_survivors", lambda self, members: self.min_cohort)
    vector, computed = two_views_of_u2(world)
    np.testing.assert_array_equal(computed, vector)
