"""Which public keys are no honest key: all points of small order in every encoding, and no key that anybody made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from agfl_models.errors import IdentityError
from agfl_protocol.identity.identity import PublicIdentity, format_key
from agfl_protocol.identity.roster_file import format_roster, read_roster
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.points import ed25519_problem, x25519_problem

P = 2**255 - 19
HIGH = 2**255
# The eight points of small order, y by order 1, 2, 4, 4, 8, 8, 8, 8: Chalkias et al. 2020 (eprint 2020/1244), table 1.
ORDER_8 = (
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
)
SMALL = [1, P - 1, 0, HIGH, *ORDER_8, *(y + HIGH for y in ORDER_8)]
# The same points in other forms (ibidem): y not reduced, or x = 0 with its sign set.
SECOND_FORMS = [P, P + HIGH, P + 1, P + 1 + HIGH, 1 + HIGH, P - 1 + HIGH]
X25519_SMALL = [  # https://cr.yp.to/ecdh.html#validate
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def key_bytes(value: int) -> bytes:
    return value.to_bytes(32, "little")


def forgeries(key: Ed25519PublicKey, tries: int = 64) -> int:
    """Count messages under which S = 0 and one R of small order are a signature: nobody has a secret for that."""
    count = 0
    for number in range(tries):
        for r in SMALL:
            try:
                key.verify(key_bytes(r) + bytes(32), number.to_bytes(8, "big"))
            except InvalidSignature:
                continue
            count += 1
            break
    return count


@pytest.mark.parametrize("value", SMALL + SECOND_FORMS)
def test_attack_a_signing_key_of_small_order_which_anybody_signs_for(value: int, tmp_path: Path) -> None:
    key = Ed25519PublicKey.from_public_bytes(key_bytes(value))
    if value in SMALL:
        assert forgeries(key) > 0
        assert ed25519_problem(key_bytes(value)) == "must not be a point of small order, under which anybody can sign"
    entries: list[Callable[[], object]] = [
        lambda: SigningRoster({"mallory": key}),
        lambda: PublicIdentity.of("mallory", generate_private_key(SECP384R1()).public_key(), key),
        lambda: read_roster(tmp_path / "roster.yaml"),
    ]
    (tmp_path / "roster.yaml").write_text(f'version: 1\nowners:\n  "mallory": "{format_key(key)}"\n')
    for enter in entries:
        with pytest.raises(IdentityError, match="Ed25519 public key: "):
            enter()


def test_the_neutral_element_signs_everything() -> None:
    assert forgeries(Ed25519PublicKey.from_public_bytes(key_bytes(1))) == 64


@pytest.mark.parametrize("y", range(P, HIGH))
@pytest.mark.parametrize("sign", [0, HIGH])
def test_a_signing_key_that_is_not_reduced_is_refused(y: int, sign: int) -> None:
    assert str(ed25519_problem(key_bytes(y + sign))).startswith("y must be below 2^255 - 19, got 0x7f")


@pytest.mark.parametrize("value", [2, 7, 8, 11, 1 + HIGH, P - 1 + HIGH])
def test_a_signing_key_that_is_no_point_is_refused(value: int) -> None:
    assert ed25519_problem(key_bytes(value)) == "must be a point of the curve"


# RFC 8032, 7.1, test 1, plus a point of order 8 and plus that of order 2: nobody signs under them without a secret.
@pytest.mark.parametrize(
    "key",
    [
        "9158312a9a8d6e3b34c891d6d61444f8b8211c5117ebad15bdb0bd68b07e0245",
        "16a567fe7d4ef5482ab4012c369bf8c5f11e8d0c2559dcda50fde59708f8aee5",
    ],
)
def test_a_signing_key_of_mixed_order_is_harmless_and_taken(key: str) -> None:
    assert forgeries(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))) == 0
    assert ed25519_problem(bytes.fromhex(key)) is None


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_somebody_made_is_taken(seed: bytes) -> None:
    assert ed25519_problem(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()) is None
    assert x25519_problem(X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()) is None


@pytest.mark.parametrize("value", X25519_SMALL)
def test_an_agreement_key_of_small_order_is_refused_in_every_form(value: int) -> None:
    for form in (value, value + HIGH):
        with pytest.raises(ValueError, match="shared key"):  # OpenSSL: the secret would be zero
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key_bytes(form)))
        assert x25519_problem(key_bytes(form)) is not None


@given(st.integers(min_value=P, max_value=2**256 - 1))
def test_an_agreement_key_has_one_form(value: int) -> None:
    assert x25519_problem(key_bytes(value)) == "u must be below 2^255 - 19"


def test_a_roster_is_read_with_honest_keys(tmp_path: Path) -> None:
    transport = generate_private_key(SECP384R1()).public_key()
    nodes = [PublicIdentity.of(n, transport, Ed25519PrivateKey.generate().public_key()) for n in ("alice", "bob")]
    (tmp_path / "roster.yaml").write_text(format_roster(nodes))
    assert len(read_roster(tmp_path / "roster.yaml")) == 2
