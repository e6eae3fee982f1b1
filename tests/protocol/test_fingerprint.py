"""What people compare: 24 words for all 256 bits, and the same command on both sides that compares them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic
from typer.testing import CliRunner

import agfl_client.cli
import agfl_server.cli
from agfl_client import keys
from agfl_models.errors import IdentityError
from agfl_protocol.identity.fingerprint import difference, to_words, words_of_file, words_of_roster
from agfl_protocol.identity.identity import PublicIdentity
from agfl_protocol.identity.roster_file import read_roster
from agfl_protocol.secagg.identity import SigningRoster
from agfl_server.federation import federation_folder

# Found in 756 s on one core: two rosters whose hashes agree in 64 bits; one holds the attacker's keys but for alice's.
FORGED = """version: 1
owners:
  "alice": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIfTyDwCg6BIzDx71GhjRZ1IgIdvNqIY16Ok8do03oLp"
  "bob": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPxQI3+twW1GOn8ZnZ0NCXLAjcTUEF3w1oc23TL5OZdh"
  "carol": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9tlor0svD0P8EIVaN385Vx87c+kaZA4lEvJTwmoMEp"
  "dave": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKxEW2I86RvA61+aRE9xb/faB/LDEnLTZpyjx5jXaD+y"
  "erin": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFtATtaMRPW2EhISEhISEhISEhISEhISEhISEhISEhIS"
"""
GENUINE = """version: 1
owners:
  "alice": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIfTyDwCg6BIzDx71GhjRZ1IgIdvNqIY16Ok8do03oLp"
  "bob": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJIbSo0goURqa1yq5HAVA69MxwuMb2nTbunxZ80aGCdj"
  "carol": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOGFYYGXGaS4/3dE5uvWTaSvRrUIZnDMwSwKHGn9sX4i"
  "dave": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMUADr9L1I7B3KNc1+pjGfCCqa8k3DftnKhqNqrI205a"
  "erin": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJzfgx6tVeOnERERERERERERERERERERERERERERERER"
"""
BOTH_SIDES = [agfl_client.cli.app, agfl_server.cli.app]
OWN, OTHER = to_words(bytes(32)), to_words(bytes(31) + b"\x01")


def call(app: typer.Typer, *arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fingerprint", *map(str, arguments)])
    return result.exit_code, result.stdout


# https://github.com/trezor/python-mnemonic/blob/master/vectors.json
@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ("00" * 32, "abandon " * 23 + "art"),
        ("ff" * 32, "zoo " * 23 + "vote"),
        (
            "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c",
            "hamster diagram private dutch cause delay private meat slide toddler razor book happy fancy gospel tennis "
            "maple dilemma loan word shrug inflict delay length",
        ),
    ],
)
def test_the_words_are_those_of_bip_39(fingerprint: str, words: str) -> None:
    assert to_words(bytes.fromhex(fingerprint)) == words


@pytest.mark.parametrize("app", BOTH_SIDES)
def test_attack_two_rosters_whose_first_64_bits_agree(app: typer.Typer, tmp_path: Path) -> None:
    genuine, forged = tmp_path / "genuine.yaml", tmp_path / "forged.yaml"
    genuine.write_text(GENUINE)
    forged.write_text(FORGED)
    assert read_roster(genuine).hash[:8] == read_roster(forged).hash[:8]
    status, words = call(app, genuine)
    assert (status, len(words.split()), words.count("\n")) == (0, 24, 1)
    assert call(app, genuine, "--expect", words) == (0, "same\n")
    status, said = call(app, forged, "--expect", words)
    assert status == 1
    assert said == "DIFFERENT: word 7 is 'brain' here and 'school' there; 18 of 24 words differ\n"


@pytest.mark.parametrize("bit", range(256))
def test_no_bit_of_a_roster_is_left_out(bit: int) -> None:
    roster = SigningRoster({"alice": Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()})
    assert bytes(Mnemonic("english").to_entropy(words_of_roster(roster))) == roster.hash
    flipped = (int.from_bytes(roster.hash, "big") ^ 1 << bit).to_bytes(32, "big")
    assert difference(words_of_roster(roster), to_words(flipped)) is not None


@given(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([str.upper, str.title, str.lower]),
    st.text(" \t\n", min_size=1),
)
def test_case_and_spaces_do_not_matter(fingerprint: bytes, change: Callable[[str], str], space: str) -> None:
    words = to_words(fingerprint)
    assert difference(words, space + space.join(change(word) for word in words.split()) + space) is None


@pytest.mark.parametrize(
    ("expected", "rule"),
    [
        ("", "got 0 [AGFL-IDENTITY-003]"),
        (OWN.rsplit(" ", 1)[0], "got 23 [AGFL-IDENTITY-003]"),
        (f"{OWN} art", "got 25 [AGFL-IDENTITY-003]"),
        (OWN.replace("art", "arts"), "got 'arts' [AGFL-IDENTITY-004]"),
        (OWN.replace("art", "zoo"), "[AGFL-IDENTITY-005]"),
        (" ".join(OTHER.split()[::-1]), "[AGFL-IDENTITY-005]"),
    ],
)
def test_words_of_nothing_are_no_fingerprint(expected: str, rule: str) -> None:
    with pytest.raises(IdentityError, match=f"^--expect: .*{re.escape(rule)}$"):
        difference(OWN, expected)


def test_public_files_and_the_certificate_have_words_too(tmp_path: Path) -> None:
    alice, again = keys.generate("alice", tmp_path / "one"), keys.generate("alice", tmp_path / "two")
    federation_folder.init(tmp_path / "federation", "", [])
    federation_folder.init(tmp_path / "other", "", [])
    files = [alice, again, tmp_path / "federation" / "ca.pem", tmp_path / "other" / "ca.pem"]
    assert len({words_of_file(file) for file in files}) == 4
    one, two = PublicIdentity.read(alice), PublicIdentity.read(again)
    for changed in (
        PublicIdentity("alicf", one.transport_key, one.signing_key),
        PublicIdentity("alice", two.transport_key, one.signing_key),
        PublicIdentity("alice", one.transport_key, two.signing_key),
    ):
        (tmp_path / "changed.pub").write_text(changed.format())
        assert words_of_file(tmp_path / "changed.pub") != words_of_file(alice)


@pytest.mark.parametrize("content", ["", "hello", "-----BEGIN CERTIFICATE-----\n", None])
def test_a_file_that_is_none_of_the_three_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    with pytest.raises(IdentityError, match=str(tmp_path / "file")):
        words_of_file(tmp_path / "file")
