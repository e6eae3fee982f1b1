"""Which server a node speaks to, and how it knows that it is the right one."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agfl_client.transport.proxies import Proxy, proxy_for
from agfl_models.errors import IdentityError, TransportError


@dataclass(frozen=True)
class TrustedServer:
    """A server's address and the certificate authority of its federation.

    address: HOST:PORT. ca: the federation's ca.pem.

    Raises:
        TransportError: the address is malformed.
    """

    address: str
    ca: Path

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(f"//{self.address}")
            valid = bool(parts.hostname and parts.port) and parts.netloc == self.address and "@" not in self.address
        except ValueError:
            valid = False
        if not valid:
            raise TransportError("AGFL-TRANSPORT-003", f"--server: must be HOST:PORT, got {self.address!r}")

    @property
    def host(self) -> str:
        """Its name or address, without brackets."""
        return str(urlsplit(f"//{self.address}").hostname)

    def proxy(self) -> Proxy | None:
        """Return the proxy that the environment names for the way to it, if any; raises TransportError."""
        return proxy_for(self.host, int(urlsplit(f"//{self.address}").port or 0), os.environ)

    def tls(self) -> ssl.SSLContext:
        """Return the settings that let in this server only.

        Raises:
            IdentityError: the CA file is missing or not a certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(cafile=self.ca)
        except FileNotFoundError:
            raise IdentityError("AGFL-IDENTITY-040", f"--ca: {self.ca}: no such file") from None
        except OSError as error:  # ssl.SSLError is one
            raise IdentityError(
                "AGFL-IDENTITY-041", f"--ca: {self.ca}: must be a certificate in PEM, got: {error}"
            ) from None
        return context

    def raise_if_hopeless(self, error: BaseException) -> None:
        """Raise if no further exchange to connect can help.

        Raises:
            IdentityError: the certificate is not signed by the CA, or not valid for the address or now.
            TransportError: the other end does not speak TLS.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise self._not_trusted(cause.verify_message) from None
            if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
                raise TransportError(
                    "AGFL-TRANSPORT-004", f"--server: must speak TLS, but {self.address} does not"
                ) from None
            cause = cause.__cause__ or cause.__context__

    def _not_trusted(self, problem: str) -> IdentityError:
        if "issuer" in problem or "self-signed" in problem or "signature" in problem:
            return IdentityError(
                "AGFL-IDENTITY-042", f"--ca: the certificate of {self.address} is not signed by {self.ca} ({problem})"
            )
        return IdentityError(
            "AGFL-IDENTITY-043", f"--server: the certificate of {self.address} is not valid ({problem})"
        )
