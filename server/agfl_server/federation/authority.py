"""The federation's certificate authority: every owner trusts its certificate, and its key signs that of the server.

Its key is needed at `init` and for another server certificate, never by a server that runs. So it lies in a folder of
its own, which the operator moves off the server: who takes over the server cannot make certificates for other hosts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agfl_models.errors import IdentityError
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.web.asgi_server import without_brackets
from agfl_protocol.identity.private_files import read_private, write_private

CERTIFICATE_FILE, KEY_FILE = "ca.pem", "ca.key"
_VALIDITY = timedelta(days=5 * 365)
_CLOCK_SKEW = timedelta(days=1)  # an owner's clock may be behind the operator's
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST_RULE = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True)
class Authority:
    """A certificate and the key that signs in its name."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> Authority:
        """Make an authority."""
        key = generate_private_key(SECP384R1())
        return cls(_certificate_authority(key), key)

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """Read what `write` wrote.

        Raises:
            IdentityError: a file is missing, malformed or open to others, or the two do not fit.
        """
        if not (folder / KEY_FILE).exists() and (hint := folder_hint(folder)):
            raise IdentityError(
                "AGFL-IDENTITY-048", f"--ca: {folder}: must be the folder of the federation's authority{hint}"
            )
        pem = read_private(folder / KEY_FILE)
        try:
            key = load_pem_private_key(pem, password=None)
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
        except (ValueError, TypeError, OSError):
            # The library's own text is left out: it may quote what it could not read.
            raise IdentityError(
                "AGFL-IDENTITY-049", f"{folder}: must hold {CERTIFICATE_FILE} and an unencrypted {KEY_FILE} in PEM"
            ) from None
        if not isinstance(key, EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise IdentityError(
                "AGFL-IDENTITY-050", f"{folder}: {KEY_FILE}: must be the key of {CERTIFICATE_FILE}; it is not"
            )
        return cls(certificate, key)

    def write(self, folder: Path) -> None:
        """Write certificate and key into a folder that holds neither."""
        (folder / CERTIFICATE_FILE).write_bytes(self.pem)
        write_private(folder / KEY_FILE, to_pem(self.key))

    @property
    def pem(self) -> bytes:
        """The certificate in PEM, which every owner gets."""
        return self.certificate.public_bytes(Encoding.PEM)

    def server_certificate(self, key: EllipticCurvePublicKey, hosts: Sequence[str]) -> bytes:
        """Return the certificate, in PEM, of a server that answers to localhost and to `hosts` (names or addresses).

        Raises:
            IdentityError: a host is neither.
        """
        names = [_alternative_name(host) for host in dict.fromkeys((*_LOCAL_NAMES, *hosts))]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            _builder(_common_name("agfl federation server"), self.certificate.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, SHA384())
            .public_bytes(Encoding.PEM)
        )


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a server's certificate has."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def to_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(without_brackets(host)))
    except ValueError:
        if _HOST_RULE.fullmatch(host) is None or len(host) > 253:
            raise IdentityError(
                "AGFL-IDENTITY-051", f"--host: must be a host name or an IP address, got {host!r}"
            ) from None
        return x509.DNSName(host)


def _certificate_authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    name = _common_name("agfl federation CA")
    return (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, SHA384())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
