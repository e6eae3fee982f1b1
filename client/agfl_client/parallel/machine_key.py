"""The key of an owner's machines: one file that each has, by which they know each other over TLS, and nobody else."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agfl_models.errors import ConfigError
from agfl_protocol.identity.private_files import check_private, write_private

MACHINES_FILE = "machines.key"
_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agfl machines of one owner")])


def make_machine_key(path: Path) -> None:
    """Make the file, mode 0600, where there is none: a private key with its certificate, which never ends."""
    if path.exists():
        return
    key = Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder(_NAME, _NAME, key.public_key(), x509.random_serial_number())
    # Whoever is to be shut out gets no new file; the machines' clocks do not matter.
    builder = builder.not_valid_before(datetime(2000, 1, 1, tzinfo=UTC)).not_valid_after(
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    )
    certificate = builder.sign(key, None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem + certificate.public_bytes(Encoding.PEM))


def machines_tls(path: Path, *, is_node: bool) -> ssl.SSLContext:
    """Return the settings by which both ends show that they have the file, before either reads a byte.

    Raises:
        IdentityError: the file is missing, or open to group or others.
        ConfigError: it is no such file.
    """
    check_private(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_node else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # not an address but the key says who it is
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(path)
        context.load_verify_locations(cafile=path)
    except OSError:  # ssl.SSLError is one; its text says nothing of use
        line = f"{path}: must be the {MACHINES_FILE} that the node made in its folder of keys"
        raise ConfigError("AGFL-CONFIG-291", line) from None
    return context
