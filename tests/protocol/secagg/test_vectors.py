"""tests/vectors/secagg.json: the product and a second implementation, written from SPEC.md, agree on every byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.protocol.secagg import reference as ref

from agfl_client.secure import masking
from agfl_client.secure.masking_states import Terms
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages.counting import CountRequest
from agfl_protocol.plans.client_plan import hash_of
from agfl_protocol.secagg import messages
from agfl_protocol.secagg.context import Broadcast, ExchangeId, dealers_context, exchange_context, survivors_context
from agfl_protocol.secagg.draws import Draws
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.masks import apply_masks
from agfl_protocol.secagg.members import Members
from agfl_protocol.secagg.parameters import Parameters
from agfl_server.aggregation.unmasking import Recovery

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "secagg.json").read_text())
EXCHANGE = ExchangeId(ref.RUN_ID, ref.ROUND, ref.EXCHANGE)
SIGNING = {n: Ed25519PrivateKey.from_private_bytes(ref.fixed_bytes("signing", n)) for n in ref.NAMES}
ROSTER = SigningRoster({n: key.public_key() for n, key in SIGNING.items()})
PARAMETERS = Parameters(ref.C, ref.C + 2)
BROADCAST = Broadcast(
    plan_hash=ref.PLAN_HASH,
    client_plan=ref.CLIENT_PLAN,
    train=True,
    evaluate=False,
    full=False,
    fields_per_lane=ref.FIELDS,
    max_cohort=ref.MAX_COHORT,
    model=np.array(ref.MODEL, np.float32),
    arrays={name: np.array(numbers, dtype) for name, (dtype, _, numbers) in ref.ARRAYS.items()},
)
CTX0 = exchange_context(ref.VERSION, EXCHANGE, ROSTER.hash, hash_of(ref.CLIENT_PLAN), BROADCAST.hash)


def test_the_second_implementation_reproduces_the_vectors() -> None:
    assert json.loads(json.dumps(ref.transcript())) == VECTORS


def test_context_of_the_broadcast() -> None:
    assert ROSTER.hash.hex() == VECTORS["roster"]
    assert BROADCAST.hash.hex() == VECTORS["broadcast"]
    assert CTX0.hex() == VECTORS["ctx0"]


def test_context_of_a_request_to_count() -> None:
    merges = tuple(zip(ref.MERGES[::2], ref.MERGES[1::2], strict=True))
    request = CountRequest(
        run_id=ref.RUN_ID,
        round=ref.ROUND,
        exchange=ref.EXCHANGE,
        plan_hash=ref.PLAN_HASH,
        client_plan=ref.CLIENT_PLAN,
        merges=merges,
        num_new=ref.NUM_NEW,
        max_cohort=ref.MAX_COHORT,
    )
    assert request.broadcast_hash.hex() == VECTORS["counts"]["broadcast"]
    assert sw.context_of(request, ROSTER).hex() == VECTORS["counts"]["ctx0"]


class Fixed(Draws):
    """Draws what the reference draws."""

    def __init__(self, name: str) -> None:
        coefficients = [ref.fixed("self-coefficient", name), ref.fixed("mask-coefficient", name)]
        self.drawn: Iterator[int] = iter([ref.fixed("mask", name), ref.fixed("self", name), *coefficients])
        self.name = name

    def below(self, bound: int) -> int:
        assert bound == ref.FIELD
        return next(self.drawn)

    def channel_key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(ref.fixed_bytes("channel", self.name))


def lanes_of(name: str) -> np.ndarray:
    return np.array([1, *(ref.fixed(f"lane-{i}", name, ref.WORD) for i in range(1, ref.NUM_LANES))], np.uint64)


def test_the_product_reproduces_a_whole_exchange() -> None:
    advertised, replies = {}, {}
    fixed = {n: Fixed(n) for n in ref.NAMES}
    for n in ref.NAMES:
        terms = Terms(
            n,
            SIGNING[n],
            ROSTER,
            PARAMETERS,
            EXCHANGE,
            ref.MAX_COHORT,
            CTX0,
            drawn=frozenset(ref.NAMES),
            rings=ref.RINGS,
            draws=fixed[n],
        )
        advertised[n], replies[n] = masking.advertise(terms, lanes_of(n))
        record = sw.write_advertise_reply(replies[n]).config_records["config"]["record"]
        assert record == bytes.fromhex(VECTORS["records"][n])
    records = [reply.record for reply in replies.values()]
    members = Members.of(CTX0, records)
    assert members.ctx1.hex() == VECTORS["ctx1"]

    shared, dealt = {}, {}
    for n in ref.NAMES:
        shared[n], reply = masking.share(advertised[n], messages.ShareRequest(EXCHANGE, tuple(records)))
        dealt[n] = dict(zip(members.others(n), reply.dealt, strict=True))
        for peer, shares in dealt[n].items():
            assert (shares.sealed + shares.self_hash + shares.mask_hash).hex() == VECTORS["dealt"][n][peer]

    ctx2 = dealers_context(members.ctx1, ref.U2)
    assert ctx2.hex() == VECTORS["ctx2"]
    masked, total = {}, np.zeros(ref.NUM_LANES, np.uint64)
    for n in ref.U3:
        request = messages.MaskRequest(EXCHANGE, tuple(ref.U2), tuple(dealt[d][n] for d in ref.U2 if d != n))
        masked[n], vector = masking.mask(shared[n], request)
        assert vector.lanes.tolist() == VECTORS["masked"][n]
        total += vector.lanes

    assert survivors_context(ctx2, ref.U3).hex() == VECTORS["ctx3"]
    agreed, signatures = {}, []
    for n in ref.U3:
        agreed[n], agreement = masking.agree(masked[n], messages.AgreeRequest(EXCHANGE, tuple(ref.U3)))
        assert agreement.signature.hex() == VECTORS["agreements"][n]
        signatures.append(agreement.signature)

    openings = {}
    for n in ref.U3:
        _, openings[n] = masking.unmask(agreed[n], messages.UnmaskRequest(EXCHANGE, tuple(ref.U3), tuple(signatures)))
        assert (openings[n].self_secret + b"".join(openings[n].shares)).hex() == VECTORS["openings"][n]

    apply_masks(total, Recovery(CTX0, members, PARAMETERS, dealt, tuple(ref.U3), openings).masks())
    assert total.tolist() == VECTORS["sum"]
