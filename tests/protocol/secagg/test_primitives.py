"""The primitives against the vectors of their RFCs, and the laws on which the protocol rests."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.secagg import reference as ref

from agfl_models.errors import ConfigError, IdentityError
from agfl_protocol.secagg import identity, keys, shamir
from agfl_protocol.secagg.context import Broadcast, ExchangeId, digest, frame
from agfl_protocol.secagg.errors import ProtocolViolation
from agfl_protocol.secagg.identity import SIGN_AGREEMENT, SIGN_KEYS, SigningRoster, sign
from agfl_protocol.secagg.masks import CHUNK_LANES, SEED_BYTES, Mask, apply_masks, pair_mask
from agfl_protocol.secagg.parameters import Parameters

SECRETS = st.integers(0, shamir.PRIME - 1).map(lambda n: n.to_bytes(32, "big"))
PARTS = st.lists(st.binary(max_size=20) | st.text(max_size=9) | st.integers(0, 2**64 - 1), max_size=5)
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
SALT = bytes(range(32))


# --- vectors of the RFCs


def test_x25519_of_rfc_7748_section_6_1() -> None:
    alice, bob = (X25519PrivateKey.from_private_bytes(bytes.fromhex(k)) for k in (ALICE, BOB))
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.public_key(bytes.fromhex(ALICE)).hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert keys.agree(alice, keys.public_key(bytes.fromhex(BOB)), "bob").hex() == shared
    assert keys.agree(bob, keys.public_key(bytes.fromhex(ALICE)), "alice").hex() == shared
    assert ref.x25519(bytes.fromhex(ALICE), keys.public_key(bytes.fromhex(BOB))).hex() == shared


def test_hkdf_of_rfc_5869_case_1() -> None:
    okm = ref.hkdf(bytes([11] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


@given(secret=SECRETS)
def test_every_key_is_hkdf_of_its_own_label(secret: bytes) -> None:
    assert keys.channel_key(secret, SALT, "b", "a") == ref.hkdf(secret, SALT, frame("key/channel", "b", "a"), 32)
    assert keys.pair_seed(secret, SALT, "b", "a") == ref.hkdf(secret, SALT, frame("mask/pair", "a", "b"), 48)
    assert keys.self_seed(secret, SALT, "a") == ref.hkdf(secret, SALT, frame("mask/self", "a"), 48)


def test_ed25519_of_rfc_8032_test_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "frame", lambda label, *parts: b"")  # the vector signs the empty message
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    signature = sign(key, SIGN_KEYS)
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0"
        "595bbe24655141438e7a100b"
    )
    SigningRoster({"alice": key.public_key()}).verify("alice", signature, SIGN_KEYS)


def test_aes_256_ctr_of_rfc_3686_case_8() -> None:
    key = bytes.fromhex("f6d66d6bd52d59bb0796365879eff886c66dd51a5b6a99744b50590c87a23884")
    counter = bytes.fromhex("00faac24c1585ef15a43d87500000001")
    ciphertext = bytes.fromhex("f05e231b3894612c49ee000b804eb2a9b8306b508f839d6a5530831d9344af1c")
    lanes = np.zeros(4, np.uint64)
    apply_masks(lanes, [Mask(key + counter, subtract=False)])
    assert bytes(a ^ b for a, b in zip(lanes.astype("<u8").tobytes(), range(32), strict=True)) == ciphertext


# --- encoding


@given(a=PARTS, b=PARTS)
def test_different_lists_have_different_frames(a: list[bytes | str | int], b: list[bytes | str | int]) -> None:
    def as_bytes(parts: list[bytes | str | int]) -> list[bytes]:
        return [p.to_bytes(8, "big") if isinstance(p, int) else p.encode() if isinstance(p, str) else p for p in parts]

    assert (frame("x", *a) == frame("x", *b)) == (as_bytes(a) == as_bytes(b))
    assert frame("x", *a) != frame("y", *a)
    assert frame("x", *a) == ref.frame("x", *a)


@pytest.mark.parametrize("run_id", ["", "a" * 65, "a\n", "a/b", "é"])
def test_a_run_id_that_breaks_its_rule_is_refused(run_id: str) -> None:
    with pytest.raises(ProtocolViolation, match=r"^run_id: .*AGFL-SECURE-001"):
        ExchangeId(run_id, 1, 0)


@pytest.mark.parametrize(
    ("round_number", "exchange", "line"),
    [
        (0, 0, r"^round: .*got 0.*AGFL-SECURE-002"),
        (2**31, 0, r"^round: .*AGFL-SECURE-002"),
        (1, -1, r"^exchange: .*got -1.*AGFL-SECURE-003"),
        (1, 2**31, r"^exchange: .*AGFL-SECURE-003"),
    ],
)
def test_an_attempt_out_of_range_is_refused(round_number: int, exchange: int, line: str) -> None:
    with pytest.raises(ProtocolViolation, match=line):
        ExchangeId("run", round_number, exchange)


NONE = np.zeros(0, np.int64)


@pytest.mark.parametrize(
    "change",
    [
        {"client_plan": "{} "},
        {"train": False},
        {"evaluate": True},
        {"fields_per_lane": 3},
        {"max_cohort": 11},
        {"model": np.array([1.0, -0.0], np.float32)},
        {"arrays": {}},
        {"arrays": {"a/x": np.array([1.0], np.float32), "a/y": np.zeros(0, np.int64)}},
        {"arrays": {"a/x": np.zeros(0, np.float32), "a/y": np.zeros(1, np.int64)}},
        {"arrays": {"a/x": np.zeros(0, np.int64), "a/y": np.zeros(0, np.int64)}},
        {"arrays": {"a/x": np.zeros(0, np.float32), "a/z": np.zeros(0, np.int64)}},
        {"plan_hash": "a" * 64},
        {"full": True},
        # the same numbers elsewhere
        {"model": np.zeros(0, np.float32), "arrays": {"a/x": np.array([1.0, 0.0], np.float32), "a/y": NONE}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_that_is_broadcast_is_in_the_context(change: dict[str, object]) -> None:
    content: dict[str, object] = {
        "plan_hash": "b" * 64,
        "client_plan": "{}",
        "train": True,
        "evaluate": False,
        "full": False,
        "fields_per_lane": 2,
        "max_cohort": 10,
        "model": np.array([1.0, 0.0], np.float32),
        "arrays": {"a/x": np.zeros(0, np.float32), "a/y": NONE},
    }
    assert Broadcast(**content).hash != Broadcast(**{**content, **change}).hash  # type: ignore[arg-type]


# --- signatures


def test_a_signature_is_good_for_its_label_its_name_and_its_words_only() -> None:
    alice, bob = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    roster = SigningRoster({"alice": alice.public_key(), "bob": bob.public_key()})
    signature = sign(alice, SIGN_KEYS, b"x", "y")
    roster.verify("alice", signature, SIGN_KEYS, b"x", "y")
    for name, label, parts in (
        ("bob", SIGN_KEYS, (b"x", "y")),
        ("alice", SIGN_AGREEMENT, (b"x", "y")),
        ("alice", SIGN_KEYS, (b"xy", "")),
        ("alice", SIGN_KEYS, (b"x",)),
    ):
        with pytest.raises(ProtocolViolation, match=r"^signature: .*AGFL-SECURE-005"):
            roster.verify(name, signature, label, *parts)
    with pytest.raises(ProtocolViolation, match=r"^roster: .*got 'carol'.*AGFL-SECURE-004"):
        roster.verify("carol", signature, SIGN_KEYS, b"x", "y")


def test_attack_a_signature_that_was_good_once_vouches_for_no_other() -> None:
    """A process remembers which signatures it has checked; of the same owner over the same parts another one is not."""
    alice, bob = (Ed25519PrivateKey.generate() for _ in range(2))
    roster = SigningRoster({"alice": alice.public_key(), "bob": bob.public_key()})
    good = sign(alice, SIGN_KEYS, b"x")
    for _ in range(2):
        roster.verify("alice", good, SIGN_KEYS, b"x")
        for name, signature, part in (
            ("alice", good[:-1] + bytes([good[-1] ^ 1]), b"x"),
            ("alice", bytes(64), b"x"),
            ("alice", good, b"y"),
            ("bob", good, b"x"),
        ):
            with pytest.raises(ProtocolViolation, match="AGFL-SECURE-005"):
                roster.verify(name, signature, SIGN_KEYS, part)


def test_the_rosters_hash_binds_names_and_keys_whatever_their_order() -> None:
    a, b, c = (Ed25519PrivateKey.generate().public_key() for _ in range(3))
    roster = SigningRoster({"alice": a, "bob": b})
    assert roster.hash == SigningRoster({"bob": b, "alice": a}).hash
    others = [{"alice": b, "bob": a}, {"alice": a}, {"alice": a, "bob": c}, {"alice": a, "rob": b}]
    assert len({roster.hash, *(SigningRoster(other).hash for other in others)}) == 5


def test_a_roster_with_one_key_for_two_names_is_refused() -> None:
    key = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(IdentityError, match=r"^roster: .*AGFL-IDENTITY-027"):
        SigningRoster({"bob": key, "alice": key})


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 65, "-x"])
def test_a_roster_with_a_name_that_breaks_its_rule_is_refused(name: str) -> None:
    with pytest.raises(IdentityError, match=r"^name: .*AGFL-IDENTITY-006"):
        SigningRoster({name: Ed25519PrivateKey.generate().public_key()})


# --- keys


def test_what_is_sealed_opens_for_its_key_context_sender_and_receiver_only() -> None:
    key, other = bytes(32), bytes(31) + b"\1"
    sealed = keys.seal(key, b"secret", SALT, "a", "b")
    assert keys.open_sealed(key, sealed, SALT, "a", "b") == b"secret"
    for wrong in (
        (other, sealed, SALT, "a", "b"),
        (key, sealed, bytes(32), "a", "b"),
        (key, sealed, SALT, "b", "a"),
        (key, sealed, SALT, "a", "c"),
        (key, sealed[:-1] + bytes([sealed[-1] ^ 1]), SALT, "a", "b"),
    ):
        with pytest.raises(ProtocolViolation, match=r"^sealed shares of '.': .*AGFL-SECURE-007"):
            keys.open_sealed(*wrong)


def test_keys_of_different_uses_contexts_and_names_differ() -> None:
    secret, other = bytes(range(32)), bytes(32)
    derived = [
        keys.channel_key(secret, SALT, "a", "b"),
        keys.channel_key(secret, SALT, "b", "a"),
        keys.channel_key(secret, other, "a", "b"),
        keys.pair_seed(secret, SALT, "a", "b")[:32],
        keys.pair_seed(secret, SALT, "a", "c")[:32],
        keys.self_seed(secret, SALT, "a")[:32],
        keys.self_seed(secret, SALT, "b")[:32],
        keys.self_seed(secret, other, "a")[:32],
    ]
    assert len(set(derived)) == len(derived)
    assert keys.pair_seed(secret, SALT, "a", "b") == keys.pair_seed(secret, SALT, "b", "a")


@pytest.mark.parametrize("point", [0, 1, 2**255 - 19 - 1, 2**255 - 19, 2**255 - 19 + 1])
def test_a_point_of_low_order_is_refused(point: int) -> None:
    with pytest.raises(ProtocolViolation, match=r"AGFL-SECURE-006"):
        keys.agree(X25519PrivateKey.generate(), point.to_bytes(32, "little"), "eve")


# --- Shamir


@given(secret=SECRETS, threshold=st.integers(1, 9), extra=st.integers(0, 6), seed=st.integers(0, 99))
def test_any_threshold_of_shares_rebuilds_the_secret(secret: bytes, threshold: int, extra: int, seed: int) -> None:
    points = random.Random(seed).sample(range(1, 1025), threshold + extra)
    shares = shamir.split(secret, threshold, points)
    chosen = random.Random(seed).sample(range(len(points)), threshold)
    factors = shamir.weights([points[i] for i in chosen])
    assert shamir.combine([shares[i] for i in chosen], factors) == secret


def test_every_subset_of_the_threshold_and_none_smaller() -> None:
    secret, points = shamir.random_secret(), [1, 2, 3, 5, 8]
    shares = dict(zip(points, shamir.split(secret, 3, points), strict=True))
    for size in (1, 2, 3, 4, 5):
        for chosen in combinations(points, size):
            rebuilt = shamir.combine([shares[p] for p in chosen], shamir.weights(chosen))
            assert (rebuilt == secret) == (size >= 3)


def test_one_share_below_the_threshold_fits_every_secret() -> None:
    points = [1, 2, 3]
    known = shamir.split(shamir.random_secret(), 3, points)[:2]
    factors = shamir.weights(points)
    reached = {shamir.combine([*known, n.to_bytes(32, "big")], factors) for n in range(100)}
    assert len(reached) == 100  # the third share moves the secret over the whole field


@pytest.mark.parametrize("points", [[0, 1], [1, 1], [-1, 2], [2**16, 1]])
def test_points_that_would_give_the_secret_away_are_refused(points: list[int]) -> None:
    with pytest.raises(ProtocolViolation, match=r"^points: .*AGFL-SECURE-011"):
        shamir.split(bytes(32), 2, points)
    with pytest.raises(ProtocolViolation, match=r"^points: .*AGFL-SECURE-011"):
        shamir.weights(points)


@pytest.mark.parametrize("element", [b"", bytes(31), bytes(33), shamir.PRIME.to_bytes(32, "big"), b"\xff" * 32])
def test_an_element_outside_the_field_is_refused_and_not_quoted(element: bytes) -> None:
    with pytest.raises(ProtocolViolation, match=r"^share: .*AGFL-SECURE-012"):
        shamir.combine([element], [1])
    with pytest.raises(ProtocolViolation, match=r"^share: must be 32 bytes"):
        shamir.split(element, 2, [1, 2])


# --- masks


@given(size=st.integers(0, 40), first=st.binary(min_size=16, max_size=16))
def test_a_mask_is_the_key_stream_of_its_seed(size: int, first: bytes) -> None:
    seed = bytes(range(32)) + first
    lanes = np.zeros(size, np.uint64)
    apply_masks(lanes, [Mask(seed, subtract=False)])
    assert lanes.tolist() == ref.stream(seed, size)


def test_the_counter_wraps_around() -> None:
    seed = bytes(32) + b"\xff" * 16
    lanes = np.zeros(6, np.uint64)
    apply_masks(lanes, [Mask(seed, subtract=False)])
    assert lanes.tolist() == ref.stream(seed, 6)


@pytest.mark.parametrize("size", [1, CHUNK_LANES - 1, CHUNK_LANES, CHUNK_LANES + 1, 3 * CHUNK_LANES + 5])
def test_chunks_and_threads_change_nothing(size: int) -> None:
    rng = np.random.default_rng(0)
    masks = [Mask(rng.bytes(SEED_BYTES), subtract=bool(i % 2)) for i in range(3)]
    lanes = rng.integers(0, 2**64, size, np.uint64)
    one, many = lanes.copy(), lanes.copy()
    apply_masks(one, masks)
    apply_masks(many, masks, num_threads=3)
    np.testing.assert_array_equal(one, many)
    apply_masks(many, [mask.inverse() for mask in masks], num_threads=2)
    np.testing.assert_array_equal(many, lanes)
    last = lanes[-1:].copy()
    for mask in masks:
        word = mask.stream((size - 1) // 2 * 2).update(bytes(16))[8 * ((size - 1) % 2) :][:8]
        last += np.uint64((-1 if mask.subtract else 1) * int.from_bytes(word, "little") % 2**64)
    assert one[-1] == last[0]


def test_pair_masks_cancel() -> None:
    seed = bytes(range(48))
    lanes = np.zeros(9, np.uint64)
    apply_masks(lanes, [pair_mask(seed, "alice", "bob"), pair_mask(seed, "bob", "alice")])
    assert not lanes.any()


def test_masked_bytes_are_uniform() -> None:
    lanes = np.zeros(2**17, np.uint64)
    apply_masks(lanes, [Mask(np.random.default_rng(1).bytes(SEED_BYTES), subtract=False)])
    counts = np.bincount(lanes.view(np.uint8), minlength=256)
    expected = lanes.nbytes / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)  # five sigma


def test_no_secret_in_what_is_printed() -> None:
    assert "seed" not in repr(Mask(bytes(48), subtract=True))


# --- parameters


@pytest.mark.parametrize(
    ("size", "c", "least", "t", "q"),
    [(3, 1, 3, 2, 3), (4, 1, 4, 2, 3), (5, 1, 4, 2, 4), (10, 3, 6, 4, 7), (100, 33, 36, 34, 67)],
)
def test_parameters_of_the_document(size: int, c: int, least: int, t: int, q: int) -> None:
    parameters = Parameters.of(size)
    assert parameters == Parameters(c, least)
    assert (parameters.threshold, parameters.quorum(size)) == (t, q)


@given(size=st.integers(3, 300), data=st.data())
def test_the_parameters_keep_what_they_promise(size: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(1, size - 2))
    least = data.draw(st.integers(c + 2, size))
    members = data.draw(st.integers(least, size))
    parameters = Parameters.of(size, c, least)
    q, survivors = parameters.quorum(members), parameters.least_survivors(members)
    assert parameters.threshold > c  # colluders cannot rebuild a secret
    assert 2 * q - members > c  # two quorums share an honest client
    assert (q - c) + (survivors - c) > members - c  # each view of U2 meets the honest signers
    assert q <= members  # all can agree
    assert members - 1 >= parameters.threshold  # the others can rebuild a secret
    assert survivors - c >= 2  # no honest client is alone in the sum


@pytest.mark.parametrize(
    ("size", "c", "least", "line"),
    [
        (2, None, None, "roster: must hold at least 3 owners for a secure sum, got 2"),
        (5, 0, None, r"max_colluders: must be in \[1, 3\] with 5 owners, got 0"),
        (5, 4, None, r"max_colluders: must be in \[1, 3\] with 5 owners, got 4"),
        (5, 2, 3, r"min_cohort: must be in .* = \[4, 5\], got 3"),
        (5, 2, 6, r"min_cohort: must be in .* = \[4, 5\], got 6"),
    ],
)
def test_parameters_that_protect_nobody_are_refused(size: int, c: int, least: int, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{line} \[AGFL-CONFIG-04[345]\]$"):
        Parameters.of(size, c, least)


def test_digests_have_labels() -> None:
    assert digest("commitment", b"x") != digest("ctx2", b"x")
