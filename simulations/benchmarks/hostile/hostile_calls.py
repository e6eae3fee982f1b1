"""How hostile_requests.py speaks to the server: as strangers, and as a registered owner who signs."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from flwr.proto import fleet_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from agfl_client import keys
from agfl_protocol.identity.request_signature import SIGNATURE_HEADER, sign_request

FLEET = "/v1/fleet/"
_HELD = 400  # slow connections that are held open at a time


class Peer:
    """The port that is attacked."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._address, self._tls = ("127.0.0.1", port), tls

    def tcp(self, timeout_s: float = 10.0) -> socket.socket:
        """Connect."""
        return socket.create_connection(self._address, timeout=timeout_s)

    def connect(self, timeout_s: float = 10.0) -> ssl.SSLSocket:
        """Connect and shake hands."""
        plain = self.tcp(timeout_s)
        try:
            return self._tls.wrap_socket(plain, server_hostname="127.0.0.1")
        except OSError:
            plain.close()
            raise

    def ask(self, request: bytes, timeout_s: float = 10.0) -> bytes:
        """Send a request on a connection of its own; return the beginning of the answer."""
        with self.connect(timeout_s) as connection:
            with suppress(OSError):
                connection.sendall(request)
            return connection.recv(4096)


class Caller:
    """Strangers, and an owner who signs."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self.peer = peer
        self._key = keys.load(folder).transport
        self.public_key = public_key_to_bytes(self._key.public_key())
        self.node_id = 0
        self.answers: Counter[str] = Counter()
        self.recorded: list[bytes] = []
        self._held: list[socket.socket] = []
        self._lock = threading.Lock()
        reply = fleet_pb2.ActivateNodeResponse()
        answer = self.send_signed("activate-node", self.activation(30))
        reply.ParseFromString(answer.partition(b"\r\n\r\n")[2])
        self.node_id = reply.node_id

    @property
    def node(self) -> Node:
        """This owner's node."""
        return Node(node_id=self.node_id)

    def activation(self, interval_s: float) -> bytes:
        """Return the request that brings this owner online."""
        request = fleet_pb2.ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=interval_s)
        return bytes(request.SerializeToString())

    def signed(self, call: str, body: bytes, length: int | None = None, content_type: str = "") -> bytes:
        """Return a signed request, in our way and in Flower's."""
        path, now = FLEET + call, datetime.now(UTC).isoformat()
        flower = self._key.sign(now.encode(), ECDSA(SHA256()))
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: x",
            f"Content-Type: {content_type or 'application/protobuf'}",
            f"Content-Length: {len(body) if length is None else length}",
            f"{SIGNATURE_HEADER}: {sign_request(self._key, 'POST', path, body, time.time_ns(), os.urandom(16))}",
            f"flwr-public-key: {base64.b64encode(self.public_key).decode()}",
            f"flwr-timestamp: {now}",
            f"flwr-signature: {base64.b64encode(flower).decode()}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def send_signed(self, call: str, body: bytes) -> bytes:
        """Make a signed request; return the answer."""
        request = self.signed(call, body)
        with self._lock:
            self.recorded = [*self.recorded[-50:], request[:20_000]]
        return self.send(request)

    def send(self, request: bytes) -> bytes:
        """Send bytes, count the answer."""
        try:
            answer = self.peer.ask(request)
        except OSError as error:
            self.count(type(error).__name__)
            return b""
        self.count(answer[9:12].decode("latin-1") or "closed")
        return answer

    def count(self, answer: str) -> None:
        """Count an answer by its status."""
        with self._lock:
            self.answers[answer] += 1

    def hold(self, connection: socket.socket) -> None:
        """Keep a connection open for a while."""
        self.count("held")
        with self._lock:
            self._held.append(connection)
            old = self._held.pop(0) if len(self._held) > _HELD else None
        if old is not None:
            old.close()

    def close(self) -> None:
        """Close what is held open."""
        for connection in self._held:
            connection.close()
