"""An evil server wants a second vector of one exchange, or two sums that subtract: it asks again, or over other sets.

The honest owners' plan has three groups of four; a group's sum is all that exact sums may tell, in whatever order,
under whatever excuse they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from tests.secagg_world import Attempt, Half, World, round_request, rules_of

from agfl_client.ledger.ledger_file import LEDGER_FILE, read_entries
from agfl_client.policy import Policy
from agfl_client.secure.masking_states import Shared
from agfl_client.secure.secure_member import SecureMember
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages.wire import RoundRequest
from agfl_protocol.plans.groups import is_union
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.messages import AgreeRequest, UnmaskRequest
from agfl_server.aggregation.aggregator import AttemptFailed

VICTIM, OTHER = "owner-000", "owner-001"
STAGE = rules_of(round_request(), ()).asked.stage
NAMES = tuple(f"owner-{i:03}" for i in range(12))
ONE, TWO, THREE = GROUPS = (NAMES[:4], NAMES[4:8], NAMES[8:])
SPENT = r"^exchange: must come after round 1 exchange 0, got run run round 1 exchange 0 \[AGFL-SECURE-013\]$"
NOT_WHOLE = r".*AGFL-SECURE-030"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five owners, c = 1, q = 4, whose plan has any of them sum."""
    return World.of(5, tmp_path)


@pytest.fixture
def grouped(tmp_path: Path) -> World:
    """Twelve owners, c = 1, q = 7, whose plan sums whole groups."""
    return World.of(12, tmp_path, max_colluders=1, min_cohort=4, groups=GROUPS)


def restarted(world: World, folder: Path, name: str = VICTIM) -> Half:
    """Start a node anew, with the ledger that lies in its folder."""
    owner, parameters = world.owners[name], world.parameters
    policy = Policy(max_colluders=parameters.max_colluders, min_cohort=parameters.min_cohort)
    owner.half = Half(SecureMember(name, owner.key, world.roster, policy, folder / name), groups=owner.half.groups)
    return owner.half


def open_sum(exchange: Attempt, world: World, survivors: Iterable[str] | None = None) -> None:
    """Lead an exchange from trip 4 to its end."""
    request = exchange.unmask_request(exchange.agree(survivors=survivors))
    for name in request.signers:
        world.owners[name].half.unmask(request)


# --- a second vector of one exchange

OTHERS: dict[str, Callable[[RoundRequest], RoundRequest]] = {
    "another model": lambda r: replace(r, model=r.model + np.float32(1)),
    "the same request": lambda r: r,
    "an evaluation beside it": lambda r: replace(r, evaluate=True),
    "an evaluation alone": lambda r: replace(r, train=False, evaluate=True),
    "another round": lambda r: replace(r, round=2),
    "another stage": lambda r: replace(r, client_plan='{"model": 1}'),
}
STAGES = ("after trip 3", "after trip 3, alone", "after trip 4", "after a refused trip 4", "after trip 5")


def lead(exchange: Attempt, world: World, stage: str) -> None:
    """Lead an exchange to a stage in which the victim's vector has left."""
    exchange.share()
    exchange.mask([VICTIM] if stage == "after trip 3, alone" else None, exchange.names)
    if stage == "after trip 4":
        exchange.agree()
    elif stage == "after a refused trip 4":
        lie_in_trip_4(exchange, world)
    elif stage == "after trip 5":
        open_sum(exchange, world)


def lie_in_trip_4(exchange: Attempt, world: World) -> None:
    with pytest.raises(ProtocolViolation, match=r"^survivors: .*AGFL-SECURE-028"):
        world.owners[VICTIM].half.agree(AgreeRequest(exchange.id, exchange.names[1:]))


@pytest.mark.parametrize("is_restarted", [False, True], ids=["", "after a restart"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("asked", OTHERS)
def test_attack_a_second_vector_of_an_exchange_is_asked_for(
    world: World, tmp_path: Path, asked: str, stage: str, is_restarted: bool
) -> None:
    """Two vectors under one exchange are of the same batches, rounded alike: each other set of owners subtracts."""
    exchange = Attempt(world)
    lead(exchange, world, stage)
    half = restarted(world, tmp_path) if is_restarted else world.owners[VICTIM].half
    rule = r"^exchange: .*got run run round \d exchange 0.*AGFL-SECURE-013"
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match=rule):
            half.begin(OTHERS[asked](round_request()), world.owners[VICTIM].vector.copy())


@pytest.mark.parametrize("later", [1, 7, 2**31 - 1])
def test_attack_a_lower_exchange_is_asked_for_in_which_no_vector_left(world: World, tmp_path: Path, later: int) -> None:
    """What is passed over stays so, whatever was answered of it and however the round is called."""
    half = world.owners[VICTIM].half
    half.begin(round_request(exchange=0), world.owners[VICTIM].vector.copy())
    half.begin(round_request(exchange=later), world.owners[VICTIM].vector.copy())
    for node in (half, restarted(world, tmp_path)):
        for number, exchange in ((1, 0), (1, later - 1), (9, later - 1), (2, later)):
            with pytest.raises(
                ProtocolViolation, match=rf"^exchange: must come after round 1 exchange {later}, got.*AGFL-SECURE-013"
            ):
                node.begin(round_request("run", number, exchange), world.owners[VICTIM].vector.copy())


def test_what_left_was_signed_and_opened_stands_in_the_ledger(world: World, tmp_path: Path) -> None:
    """An owner learns of each that it was asked for: also that its shares went out, which open the sum."""
    exchange = Attempt(world)
    lead(exchange, world, "after trip 5")
    events = [entry["event"] for entry in read_entries(tmp_path / VICTIM / LEDGER_FILE) if "exchange" in entry]
    assert events == ["announced", "left", "signed", "opened"]


def test_attack_the_crash_falls_between_the_ledger_and_the_reply(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may have left has left: the node is killed right after it noted the vector, before anybody got it."""
    exchange, owner = Attempt(world), world.owners[VICTIM]
    exchange.share()
    monkeypatch.setattr(sw, "write_mask_reply", None)
    with pytest.raises(TypeError):
        owner.half.mask(exchange.mask_request(VICTIM))
    monkeypatch.undo()
    with pytest.raises(ProtocolViolation, match=SPENT):
        restarted(world, tmp_path).begin(round_request(), owner.vector.copy())


def test_attack_a_vector_leaves_of_which_nothing_can_be_noted(world: World, tmp_path: Path) -> None:
    """A full disk is a refusal: no vector leaves that a restarted node would not know of."""
    exchange, owner = Attempt(world), world.owners[VICTIM]
    exchange.share()
    request, member = exchange.mask_request(VICTIM), owner.half.member

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agfl_client.ledger.ledger_file._write_at", full)
        with pytest.raises(Exception, match=r"^ledger\.jsonl: .*AGFL-CONFIG-062"):
            owner.half.mask(request)
    assert member._state is None
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Shared .*, follows nothing.*AGFL-SECURE-036"):
        owner.half.mask(request)


# --- whole groups


def dealt_by(world: World, names: Iterable[str], exchange: int = 0) -> Attempt:
    led = Attempt(world, exchange)
    led.share(tuple(names))
    return led


NO_UNIONS = {
    "all but one": NAMES[1:],
    "two groups and one more": (*ONE, *TWO, THREE[0]),
    "a group and others": (*ONE, *TWO[1:], *THREE[1:]),
    "none is whole": (*ONE[1:], *TWO[1:], *THREE[1:]),
}


@pytest.mark.parametrize("kind", NO_UNIONS)
def test_attack_u2_is_no_union_of_groups(grouped: World, kind: str) -> None:
    """Each refuses before its lanes are touched."""
    exchange = dealt_by(grouped, NAMES)
    for name in NO_UNIONS[kind]:
        half = grouped.owners[name].half
        state = half.state
        assert isinstance(state, Shared)
        with pytest.raises(ProtocolViolation, match=rf"^dealers: {NOT_WHOLE}"):
            exchange.mask([name], NO_UNIONS[kind])
        np.testing.assert_array_equal(state.lanes, grouped.owners[name].vector)
        assert state.lanes.flags.writeable
        assert not half.member.ledger.has_left("run", 0)


@pytest.mark.parametrize("kind", NO_UNIONS)
def test_attack_u3_is_no_union_of_groups_though_u2_is(grouped: World, kind: str) -> None:
    exchange = dealt_by(grouped, NAMES)
    exchange.mask()
    for name in NO_UNIONS[kind]:
        with pytest.raises(ProtocolViolation, match=rf"^survivors: {NOT_WHOLE}"):
            exchange.agree([name], NO_UNIONS[kind])
        assert grouped.owners[name].half.member.ledger.signed("run") == {}


def test_attack_all_but_one_and_then_all(grouped: World) -> None:
    """The first of the two sums is refused, so the second tells nothing of who was missing."""
    exchange = dealt_by(grouped, NAMES[1:])
    for name in exchange.dealt:
        with pytest.raises(ProtocolViolation, match=rf"^dealers: {NOT_WHOLE}"):
            exchange.mask([name])
    exchange = dealt_by(grouped, NAMES, exchange=1)
    exchange.mask()
    open_sum(exchange, grouped)
    signed = [grouped.owners[name].half.member.ledger.signed("run") for name in NAMES]
    assert signed == [{1: frozenset(NAMES)}] * len(NAMES)


def test_unions_are_all_that_is_ever_signed(grouped: World) -> None:
    """The laws let sums come about: of all groups, of two where one was lost in trip 3, of two from the first."""
    for number, (u2, u3) in enumerate((((*ONE, *TWO, *THREE),) * 2, (NAMES, (*ONE, *TWO)), ((*TWO, *THREE),) * 2)):
        requests = dict.fromkeys(NAMES, round_request(round_number=number + 1, exchange=number))
        exchange = Attempt(grouped, number, requests)
        exchange.share()
        exchange.mask(dealers=u2)
        open_sum(exchange, grouped, u3)
    signed = {e: u3 for name in NAMES for e, u3 in grouped.owners[name].half.member.ledger.signed("run").items()}
    assert signed == {0: frozenset(NAMES), 1: frozenset((*ONE, *TWO)), 2: frozenset((*TWO, *THREE))}
    assert all(is_union(u3, GROUPS) for u3 in signed.values())


def test_the_servers_own_half_keeps_to_whole_groups(grouped: World) -> None:
    """Of whatever is lost in trip 3, the sum is exact over the groups that are whole, and nobody refuses."""

    def lose(kind: str, name: str, content: RecordDict) -> RecordDict | None:
        return None if (kind, name) == (sw.MASK, THREE[2]) else content

    result = grouped.secure_sum(on_request=lose, groups=GROUPS)
    assert tuple(result.survivors) == (*ONE, *TWO)
    np.testing.assert_array_equal(result.lanes, grouped.plain_sum((*ONE, *TWO)))
    assert not any(owner.log for owner in grouped.owners.values())


# --- who was drawn


def test_attack_u1_has_an_owner_whom_the_plan_did_not_draw(world: World) -> None:
    """A server that picks its cohort from the whole roster picks its colluders, and whom it sets against them."""
    for name in NAMES[:4]:
        world.owners[name].half.drawn = frozenset(NAMES[:4])
    exchange = Attempt(world)
    for name in NAMES[:4]:
        with pytest.raises(ProtocolViolation, match=r"^members: .*got 'owner-004'.*AGFL-SECURE-032"):
            world.owners[name].half.share(exchange.share_request())
    exchange = Attempt(world, 1)
    exchange.share(NAMES[:4])  # the draw, less whoever is missing, is answered


# --- honest owners with empty ledgers


def with_rules(world: World, names: Iterable[str], groups: tuple[tuple[str, ...], ...]) -> None:
    for name in names:
        world.owners[name].half.groups = groups


def test_attack_owners_with_empty_ledgers_sign_with_colluders_and_one_owner_does_not(
    grouped: World, tmp_path: Path
) -> None:
    """All have lost their ledgers, and all but the victim go by no groups: whole groups need no memory.

    What leaves of the others in the second exchange is masked, to a sum that never comes without the victim.
    """
    exchange = dealt_by(grouped, NAMES)
    exchange.mask()
    open_sum(exchange, grouped)
    for name in NAMES:
        (tmp_path / name / LEDGER_FILE).unlink()
        restarted(grouped, tmp_path, name)
    with_rules(grouped, NAMES[1:], ())
    exchange = dealt_by(grouped, NAMES, exchange=1)
    without = tuple(name for name in NAMES if name != TWO[0])
    exchange.mask(without[1:], without)
    with pytest.raises(ProtocolViolation, match=rf"^dealers: {NOT_WHOLE}"):
        exchange.mask([VICTIM], without)
    assert exchange_vectors(grouped, 1) == set(without[1:])


def exchange_vectors(world: World, exchange: int) -> set[str]:
    return {name for name, owner in world.owners.items() if owner.half.member.ledger.has_left("run", exchange)}


def test_attack_one_honest_signer_is_enough_to_refuse(tmp_path: Path) -> None:
    """Of any quorum one honest owner at least signs whole groups only, so no other U3 opens, whoever else signs it.

    c = 4 and q = 9 of 12: eight go by no groups, whose ledgers are empty or who collude.
    """
    world = World.of(12, tmp_path, max_colluders=4, groups=(NAMES[:6], NAMES[6:]))
    assert world.parameters.quorum(12) == 9
    strict, without = NAMES[:4], NAMES[:11]
    with_rules(world, NAMES[4:], ())
    exchange = dealt_by(world, NAMES)
    exchange.mask()
    signatures = exchange.agree([name for name in without if name not in strict], without)
    for name in strict:
        with pytest.raises(ProtocolViolation, match=rf"^survivors: {NOT_WHOLE}"):
            exchange.agree([name], without)
    with pytest.raises(ProtocolViolation, match=r"^signers: must be at least 9, got 7.*AGFL-SECURE-023"):
        world.owners[NAMES[4]].half.unmask(exchange.unmask_request(signatures))


# --- the canary, and a machine that is lost in between


def run_exchange(world: World, exchange: int, vectors: Mapping[str, Lanes], *, lost: str | None = None) -> Lanes:
    """Ask as the server's own half does; return what the masked vectors and the openings give. Raises AttemptFailed."""
    for name, vector in vectors.items():
        world.owners[name].vector = vector
    cohort = [name for name in world.names if name != lost]
    return world.secure_sum(round_request(exchange=exchange), cohort=cohort).lanes


def test_attack_the_canary_fails_and_a_machine_is_lost_before_the_server_asks_again(world: World) -> None:
    """One colluding owner spoils lane 0 of a sum that opens; over one owner less the same exchange would subtract."""
    liar, lost = "owner-004", OTHER
    spoiled = world.owners[liar].vector.copy()
    spoiled[0] = 2
    with pytest.raises(AttemptFailed, match=r"^count: .*got 6.*AGFL-ROUND-014") as failed:
        run_exchange(world, 0, {liar: spoiled})
    assert failed.value.is_spent, "the server's own half does not ask again"
    assert exchange_vectors(world, 0) == set(world.names)

    honest = [name for name in world.names if name not in (liar, lost)]
    with pytest.raises(AttemptFailed, match=r"^U1, clients that announced keys: must be at least 3, got 0"):
        run_exchange(world, 0, {}, lost=lost)
    for name in honest:
        assert world.owners[name].log == [SPENT.strip("^$").replace("\\", "")]
        assert world.owners[name].half.member.ledger.uploads("run", 1, STAGE) == 1

    spoiled[0] = 1
    result = run_exchange(world, 1, {liar: spoiled}, lost=lost)
    np.testing.assert_array_equal(result, world.plain_sum([name for name in world.names if name != lost]))


def test_attack_a_sum_that_was_opened_is_opened_to_other_signers(world: World) -> None:
    """After trip 5 nothing is left but the very bytes that were given."""
    exchange = dealt_by(world, world.names)
    exchange.mask()
    signatures = exchange.agree()
    request = exchange.unmask_request(signatures)
    half = world.owners[VICTIM].half
    given = half.unmask(request)
    assert half.unmask(request) == given
    fewer = UnmaskRequest(exchange.id, request.signers[:4], request.signatures[:4])
    with pytest.raises(ProtocolViolation, match=r"^trip: must follow Agreed .*, follows nothing.*AGFL-SECURE-036"):
        half.unmask(fewer)
    with pytest.raises(ProtocolViolation, match=SPENT):
        half.begin(round_request(model=np.zeros(3, np.float32)), world.owners[VICTIM].vector.copy())
