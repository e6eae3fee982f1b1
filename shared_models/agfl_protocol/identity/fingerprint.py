"""Fingerprints that people compare: all 256 bits of a SHA-256 as the 24 words of BIP-39, English list.

The words are told apart by their first four letters and are easy to say; the last one holds a checksum of 8 bits, so
that a word that was misheard is told from another roster.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from mnemonic import Mnemonic

from agfl_models.errors import IdentityError
from agfl_protocol.identity.identity import PublicIdentity
from agfl_protocol.identity.roster_file import read_roster
from agfl_protocol.secagg.context import digest
from agfl_protocol.secagg.identity import SigningRoster

_BYTES, _WORDS = 32, 24
_PEM_START = b"-----BEGIN CERTIFICATE-----"


def words_of_roster(roster: SigningRoster) -> str:
    """Return the 24 words of a roster: every name and every key."""
    return to_words(roster.hash)


def words_of_identity(identity: PublicIdentity) -> str:
    """Return the 24 words of a public file: the name and both keys."""
    return to_words(digest("identity", identity.name, identity.transport_key, identity.signing_key))


def words_of_file(path: Path) -> str:
    """Return the 24 words of a roster, of a public file NAME.pub or of a federation's ca.pem.

    Raises:
        IdentityError: the file is none of the three.
    """
    if path.suffix == ".pub":
        return words_of_identity(PublicIdentity.read(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError("AGFL-IDENTITY-001", f"{path}: cannot be read: {error.strerror}") from None
    return words_of_certificate(content, str(path)) if _PEM_START in content else words_of_roster(read_roster(path))


def words_of_certificate(pem: bytes, source: str) -> str:
    """Return the 24 words of a certificate; raises IdentityError, whose line starts with `source`, if it is none."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise IdentityError("AGFL-IDENTITY-002", f"{source}: must hold exactly one certificate in PEM") from None
    return to_words(digest("certificate", certificate.public_bytes(Encoding.DER)))


def to_words(fingerprint: bytes) -> str:
    """Return the words of 32 bytes, on one line."""
    assert len(fingerprint) == _BYTES
    return _list().to_mnemonic(fingerprint)


def difference(own: str, expected: str) -> str | None:
    """Return in which words two fingerprints differ, None if in none. Case and spaces of `expected` do not matter.

    Raises:
        IdentityError: `expected` is the fingerprint of nothing, so somebody misread or mistyped it.
    """
    here, there = own.split(), expected.lower().split()
    if len(there) != _WORDS:
        raise IdentityError("AGFL-IDENTITY-003", f"--expect: must be {_WORDS} words, got {len(there)}")
    for place, word in enumerate(there, start=1):
        if word not in _list().wordlist:
            raise IdentityError(
                "AGFL-IDENTITY-004", f"--expect: word {place}: must be a word of the BIP-39 list, got {word!r}"
            )
    places = [place for place, pair in enumerate(zip(here, there, strict=True), start=1) if pair[0] != pair[1]]
    if not places:
        return None
    if not _list().check(" ".join(there)):
        raise IdentityError(
            "AGFL-IDENTITY-005", "--expect: must be words that fit together; one was misread, so read them all again"
        )
    first = places[0] - 1
    return (
        f"word {places[0]} is {here[first]!r} here and {there[first]!r} there; {len(places)} of {_WORDS} words differ"
    )


def show_fingerprint(file: Path, expected: str | None) -> None:
    """What `agfl-server fingerprint` and `agfl-client fingerprint` do; exits with 1 if the words differ."""
    own = words_of_file(file)
    if expected is None:
        typer.echo(own)
        return
    differs = difference(own, expected)
    if differs is None:
        typer.echo("same")
        return
    typer.secho(f"DIFFERENT: {differs}", fg="red", bold=True)
    raise typer.Exit(1)


@cache
def _list() -> Mnemonic:
    return Mnemonic("english")
