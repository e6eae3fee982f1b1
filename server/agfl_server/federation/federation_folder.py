"""The operator's federation folder: what the run is, who the server is, and which nodes are admitted.

config.yaml               the run
ca.pem                    the certificate of the federation's authority, which every owner gets
server.pem, server.key    the server's certificate, signed by the authority
nodes/NAME.pub            one public file for each admitted node
run/                      what the run leaves behind

Beside it `init` makes FOLDER-ca with the authority's key, which no running server needs: see authority.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agfl_models.bounded import shown
from agfl_models.errors import IdentityError
from agfl_models.files.durable_files import write_atomically
from agfl_models.files.folder_kinds import folder_hint
from agfl_models.validation import nearest
from agfl_protocol.identity.identity import PublicIdentity, check_name
from agfl_protocol.identity.private_files import check_private, new_folder, read_private, write_private
from agfl_server.federation.authority import CERTIFICATE_FILE, KEY_FILE, Authority, names_of, to_pem


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
    def exposed_authority_key(self) -> Path | None:
        """The authority's key, where it lies with that of the server, as older versions put it."""
        path = self.folder / KEY_FILE
        return path if path.exists() else None

    @property
    def run_folder(self) -> Path:
        """Where the run leaves its results."""
        return self.folder / "run"


def authority_folder(folder: Path) -> Path:
    """Return where `init` puts the authority of a federation."""
    return folder.parent / f"{folder.name}-ca"


def init(folder: Path, config_text: str, hosts: Sequence[str]) -> None:
    """Make a federation folder whose server answers to localhost and `hosts` (names or addresses), and its authority.

    Raises:
        IdentityError: a host is neither, or one of the two folders is not empty: nothing is overwritten.
    """
    for place in (folder, authority_folder(folder)):
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise IdentityError("AGFL-IDENTITY-052", f"{place}: must be a new or empty folder; nothing is overwritten")
    authority, server_key = Authority.new(), generate_private_key(SECP384R1())
    server = authority.server_certificate(server_key.public_key(), hosts)
    with new_folder(authority_folder(folder)) as apart, new_folder(folder) as new:
        authority.write(apart)
        (new / "config.yaml").write_text(config_text, encoding="utf-8")
        (new / CERTIFICATE_FILE).write_bytes(authority.pem)
        (new / "server.pem").write_bytes(server)
        write_private(new / "server.key", to_pem(server_key))
        (new / "nodes").mkdir()


def add_node(folder: Path, name: str, public_file: Path) -> None:
    """Admit the node `name` with the keys in its public file, from the server's next start on.

    Raises:
        IdentityError: the name is taken, a key is another node's, or the file is malformed or another's.
    """
    check_name(name)
    identity = PublicIdentity.read(public_file)
    if identity.name != name:
        raise IdentityError(
            "AGFL-IDENTITY-053", f"{public_file}: name: must be {name!r} as on the command line, got {identity.name!r}"
        )
    for other in load(folder).nodes:
        # File systems may not tell upper from lower case, and neither do people.
        if other.name.casefold() == name.casefold():
            raise IdentityError(
                "AGFL-IDENTITY-054", f"name: must not be taken, but {folder} has {other.name!r} already, got {name!r}"
            )
        for field in ("transport_key", "signing_key"):
            if getattr(other, field) == getattr(identity, field):
                raise IdentityError(
                    "AGFL-IDENTITY-055", f"{public_file}: {field}: must not be shared, got the key of {other.name!r}"
                )
    write_atomically(folder / "nodes" / f"{name}.pub", identity.format().encode())


def remove_node(folder: Path, name: str) -> None:
    """Admit a node no longer, from the server's next start on.

    Raises:
        IdentityError: no such node is admitted.
    """
    names = [node.name for node in load(folder).nodes]
    if name not in names:
        got = f"{shown(name)}{nearest(name, names)}"
        raise IdentityError(
            "AGFL-IDENTITY-056", f"name: must be a node of {folder}: {', '.join(names) or 'there is none'}; got {got}"
        )
    (folder / "nodes" / f"{name}.pub").unlink()


def renew(folder: Path, hosts: Sequence[str], authority: Path) -> Sequence[str]:
    """Give the server another certificate, by the same authority and for the same key; return the names that it has.

    hosts: beside localhost; those of the certificate of now, if there are none. authority: the folder of its key.

    Raises:
        IdentityError: it is another authority, or a host is neither a name nor an address.
    """
    found = load(folder)
    by = Authority.read(authority)
    try:
        is_ours = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes()) == by.certificate
        key = load_pem_private_key(read_private(found.key), password=None)
        names = hosts or names_of(x509.load_pem_x509_certificate(found.certificate.read_bytes()))
    except (OSError, ValueError, TypeError):
        raise IdentityError(
            "AGFL-IDENTITY-057", f"{folder}: must hold ca.pem, server.pem and server.key as init made them"
        ) from None
    if not is_ours or not isinstance(key, EllipticCurvePrivateKey):
        raise IdentityError(
            "AGFL-IDENTITY-058",
            f"--ca: {authority}: must be the authority of {folder}/{CERTIFICATE_FILE}; it is another",
        )
    pem = by.server_certificate(key.public_key(), names)
    write_atomically(found.certificate, pem)
    return names_of(x509.load_pem_x509_certificate(pem))


def load(folder: Path) -> FederationFolder:
    """Read a federation folder.

    Raises:
        IdentityError: it is incomplete, a private key is open to others, or a public file does not hold.
    """
    hint = folder_hint(folder)
    if not (folder / "nodes").is_dir() or (hint and not (folder / "server.key").exists()):
        raise IdentityError(
            "AGFL-IDENTITY-059", f"{folder}: must be a federation folder made by `agfl-server init`, got none{hint}"
        )
    check_private(folder / "server.key")
    nodes = []
    for path in sorted((folder / "nodes").glob("[!.]*.pub")):
        identity = PublicIdentity.read(path)
        if identity.name != path.stem:
            raise IdentityError(
                "AGFL-IDENTITY-060", f"{path}: name: must be {path.stem!r} like the file, got {identity.name!r}"
            )
        nodes.append(identity)
    return FederationFolder(folder, tuple(nodes))
