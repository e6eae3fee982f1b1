"""An ASGI app on one TLS port, in a thread of this process."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType

from starlette.types import ASGIApp

from agfl_models.asgi_server import AsgiServer
from agfl_models.errors import IdentityError


class HttpsServer:
    """Serves `app` from `__enter__` to `__exit__`, as `AsgiServer` does, with a certificate.

    Raises (on entry):
        TransportError: the address cannot be listened on.
        IdentityError: the certificate or its key cannot be read or do not fit.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, certificate: Path, key: Path) -> None:
        self._app, self._host, self._requested_port = app, host, port
        self._certificate, self._key = certificate, key

    @property
    def port(self) -> int:
        """The port listened on, also where port 0 asked for any free one; valid inside the block."""
        return self._server.port

    def __enter__(self) -> HttpsServer:
        """Listen; return once the first request would be answered."""
        tls = _server_tls(self._certificate, self._key)
        self._server = AsgiServer(self._app, self._host, self._requested_port, tls)
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections, at most a second after the last request, and free the port."""
        self._server.__exit__(kind, error, trace)


def _server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for path in (certificate, key):
        if not path.is_file():
            raise IdentityError(f"{path}: no such file")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise IdentityError(f"{certificate}: must be a PEM certificate that fits {key}, got: {error}") from None
    return context
