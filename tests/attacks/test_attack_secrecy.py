"""What a client sends in an exchange, all of it, and what a server that keeps everything can read of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from tests.secagg_world import TRIPS, Attempt, World, count_request, round_request

from agfl_client.secure.masking_states import Shared
from agfl_protocol.messages import secure_wire as sw
from agfl_protocol.messages import wire
from agfl_protocol.messages.secure_wire import context_of
from agfl_protocol.messages.wire import SumRequest
from agfl_protocol.secagg import keys
from agfl_protocol.secagg.context import dealers_context
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.secagg.masks import apply_masks, pair_mask
from agfl_protocol.secagg.members import Members

VICTIM = "owner-000"
HEAD = {"version", "run_id", "round", "exchange"}
# Every field of every reply, and its bytes; besides the head, which repeats the request.
SENT = {
    wire.TRAIN: {"name": 9, "record": 168},
    sw.SHARE: {"dealt": 4 * 113},
    sw.MASK: {"lanes": 7 * 8},
    sw.AGREE: {"signature": 64},
    sw.UNMASK: {"self_secret": 32, "shares": 4 * 32},
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.of(5, tmp_path)


def listen(world: World, request: SumRequest) -> dict[str, RecordDict]:
    """Run an exchange; return what the victim sent in each trip."""
    heard: dict[str, RecordDict] = {}

    def note(kind: str, name: str, content: RecordDict) -> RecordDict:
        if name == VICTIM:
            heard[kind] = content
        return content

    world.secure_sum(request, on_reply=note)
    return heard


def blocks(content: RecordDict) -> Iterator[tuple[str, bytes]]:
    for key, value in content.config_records["config"].items():
        if key not in HEAD:
            yield key, value.encode() if isinstance(value, str) else value  # type: ignore[misc]
    for arrays in content.array_records.values():
        for key, array in arrays.items():
            yield key, array.numpy().tobytes()


@pytest.mark.parametrize("request_", [round_request(), count_request()], ids=["update", "counts"])
def test_attack_the_server_reads_every_byte_that_a_client_sends(world: World, request_: SumRequest) -> None:
    """Its NAME, fresh public keys, ciphertexts, hashes and signatures, one masked vector, and shares: no part of it."""
    heard = listen(world, request_)
    sent = {kind: {key: len(block) for key, block in blocks(content)} for kind, content in heard.items()}
    assert sent == {request_.kind: SENT[wire.TRAIN], **{trip: SENT[trip] for trip in TRIPS[1:]}}
    vector = world.owners[VICTIM].vector
    everything = b"".join(block for content in heard.values() for _, block in blocks(content))
    for lane in vector[1:]:
        assert lane.tobytes() not in everything


def test_attack_the_same_vector_is_sent_twice(world: World) -> None:
    """No two exchanges look alike, so nothing can be told from comparing them."""
    sent = []
    for exchange in range(2):
        led = Attempt(world, exchange)
        led.share()
        sent.append(led.mask()[VICTIM].copy())
    assert not np.equal(*sent).any()


def strip(world: World, exchange: Attempt, vector: Lanes, peers: list[str]) -> Lanes:
    """Take away the masks that the victim shares with `peers`, who tell the server their mask keys."""
    ctx0 = context_of(round_request(), world.roster)
    members = Members.of(ctx0, exchange.records.values())
    ctx2 = dealers_context(members.ctx1, exchange.names)
    masks = []
    for peer in peers:
        state = world.owners[peer].half.state
        assert isinstance(state, Shared)
        private = X25519PrivateKey.from_private_bytes(state.mask_secret)
        secret = keys.agree(private, members.records[VICTIM].mask_key, VICTIM)
        masks.append(pair_mask(keys.pair_seed(secret, ctx2, VICTIM, peer), VICTIM, peer).inverse())
    stripped = vector.copy()
    apply_masks(stripped, masks)
    return stripped


def test_attack_c_colluders_tell_the_server_all_their_keys(tmp_path: Path) -> None:
    """What is left still hides the vector: its words are uniform, bit by bit."""
    world = World.of(10, tmp_path, num_lanes=20_000)
    world.owners[VICTIM].vector[:] = 1  # as regular as a vector can be
    exchange = Attempt(world)
    exchange.share()
    vector = exchange.mask([VICTIM], exchange.names)[VICTIM]
    left = strip(world, exchange, vector, world.names[7:])
    assert not np.array_equal(left, vector)
    ones = np.unpackbits(left.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(64 * left.size)
    counts = np.bincount(left.view(np.uint8), minlength=256)
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_attack_all_peers_tell_the_server_all_their_keys(world: World) -> None:
    """Even then the self mask is left: as long as U3 is not agreed on, nothing opens one client's vector."""
    exchange = Attempt(world)
    exchange.share()
    vector = exchange.mask([VICTIM], exchange.names)[VICTIM]
    left = strip(world, exchange, vector, world.names[1:])
    assert not np.equal(left, world.owners[VICTIM].vector).any()


def test_attack_no_secret_is_in_any_line_that_a_client_or_the_server_logs(world: World) -> None:
    """A client is misled in each trip in turn; its log names what was wrong and quotes no secret."""
    for number, trip in enumerate(TRIPS[1:], start=1):

        def mislead(kind: str, name: str, content: RecordDict, trip: str = trip) -> RecordDict:
            if (kind, name) != (trip, VICTIM):
                return content
            config = dict(content.config_records["config"])
            for key in ("names", "dealt", "signatures"):
                if key in config:
                    config[key] = config[key][:-1]  # type: ignore[index]
            return RecordDict({"config": ConfigRecord(config)})

        world.secure_sum(round_request(round_number=number, exchange=number), on_request=mislead)
    lines = world.owners[VICTIM].log
    assert len(lines) == len(TRIPS) - 1
    assert all(len(line) < 200 and "\n" not in line and "b'" not in line for line in lines)
