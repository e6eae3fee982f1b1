"""The operator's federation folder: what the run is, who the server is, and which nodes are admitted.

config.yaml               the run
ca.pem, ca.key            the federation's certificate authority; every owner gets ca.pem, nobody gets ca.key
server.pem, server.key    the server's certificate, signed by it
nodes/NAME.pub            one public file for each admitted node
run/                      what the run leaves behind
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agfl_models.durable_files import write_atomically
from agfl_models.errors import IdentityError
from agfl_protocol.identity import PublicIdentity, check_name
from agfl_protocol.private_files import check_private, new_folder, write_private

_VALIDITY = timedelta(days=5 * 365)
_CLOCK_SKEW = timedelta(days=1)  # an owner's clock may be behind the operator's
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST_RULE = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True)
class FederationFolder:
    """A federation folder that was found complete; `nodes` are sorted by name."""

    folder: Path
    nodes: tuple[PublicIdentity, ...]

    @property
    def config(self) -> Path:
        """The run configuration."""
        return self.folder / "config.yaml"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    @property
    def run_folder(self) -> Path:
        """Where the run leaves its results."""
        return self.folder / "run"


def init(folder: Path, config_text: str, hosts: Sequence[str]) -> None:
    """Make a federation folder whose server answers to localhost and to `hosts` (names or addresses).

    Raises:
        IdentityError: a host is neither, or the folder is not empty: nothing is overwritten.
    """
    alternative_names = [_alternative_name(host) for host in dict.fromkeys((*_LOCAL_NAMES, *hosts))]
    ca_key, server_key = generate_private_key(SECP384R1()), generate_private_key(SECP384R1())
    ca = _certificate_authority(ca_key)
    server = _server_certificate(ca, ca_key, server_key, alternative_names)
    with new_folder(folder) as new:
        (new / "config.yaml").write_text(config_text, encoding="utf-8")
        (new / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
        (new / "server.pem").write_bytes(server.public_bytes(Encoding.PEM))
        write_private(new / "ca.key", _to_pem(ca_key))
        write_private(new / "server.key", _to_pem(server_key))
        (new / "nodes").mkdir()


def add_node(folder: Path, name: str, public_file: Path) -> None:
    """Admit the node `name` with the keys in its public file, from the server's next start on.

    Raises:
        IdentityError: the name is taken, a key is another node's, or the file is malformed or another's.
    """
    check_name(name)
    identity = PublicIdentity.read(public_file)
    if identity.name != name:
        raise IdentityError(f"{public_file}: name: must be {name!r} as on the command line, got {identity.name!r}")
    for other in load(folder).nodes:
        # File systems may not tell upper from lower case, and neither do people.
        if other.name.casefold() == name.casefold():
            raise IdentityError(f"name: must not be taken, but {folder} has {other.name!r} already, got {name!r}")
        for field in ("transport_key", "signing_key"):
            if getattr(other, field) == getattr(identity, field):
                raise IdentityError(f"{public_file}: {field}: must not be shared, got the key of {other.name!r}")
    write_atomically(folder / "nodes" / f"{name}.pub", identity.format().encode())


def load(folder: Path) -> FederationFolder:
    """Read a federation folder.

    Raises:
        IdentityError: it is incomplete, a private key is open to others, or a public file does not hold.
    """
    if not (folder / "nodes").is_dir():
        raise IdentityError(f"{folder}: must be a federation folder made by `agfl-server init`, got none")
    check_private(folder / "server.key")
    nodes = []
    for path in sorted((folder / "nodes").glob("[!.]*.pub")):
        identity = PublicIdentity.read(path)
        if identity.name != path.stem:
            raise IdentityError(f"{path}: name: must be {path.stem!r} like the file, got {identity.name!r}")
        nodes.append(identity)
    return FederationFolder(folder, tuple(nodes))


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if _HOST_RULE.fullmatch(host) is None or len(host) > 253:
            raise IdentityError(f"--host: must be a host name or an IP address, got {host!r}") from None
        return x509.DNSName(host)


def _certificate_authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    name = _common_name("agfl federation CA")
    return (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, SHA384())
    )


def _server_certificate(
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    key: EllipticCurvePrivateKey,
    alternative_names: Sequence[x509.GeneralName],
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(_common_name("agfl federation server"), ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, SHA384())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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


def _to_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
