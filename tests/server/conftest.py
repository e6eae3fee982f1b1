"""A federation with real certificates and keys, real servers, and nodes in processes of their own."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supernode.fleet_http_client import FleetHttpClient
from tests.commands import Started

from agfl_client import keys
from agfl_client.transport.request_signer import RequestSigner
from agfl_client.transport.supernode import run_node
from agfl_server.federation import federation_folder
from agfl_server.transport.limits import Limits
from agfl_server.transport.messaging import ask_nodes
from agfl_server.transport.superlink import EmbeddedSuperLink

NAMES = ("alice", "bob", "carol")
ECHO_NODE = Path(__file__).parent / "echo_node.py"


@dataclass(frozen=True)
class Site:
    """A federation folder and its owners' keys."""

    root: Path

    @property
    def federation(self) -> federation_folder.FederationFolder:
        return federation_folder.load(self.root / "federation")

    @property
    def ca(self) -> Path:
        return self.root / "federation" / "ca.pem"

    @staticmethod
    def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
        """Return once `condition` holds; fail after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.02)

    @staticmethod
    def floats(size: int, seed: int = 0) -> RecordDict:
        """Return `size` random float32 as message content."""
        values = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
        return RecordDict({"arrays": ArrayRecord({"x": Array(values)})})

    def keys(self, name: str) -> Path:
        return self.root / name

    def superlink(self, port: int = 0, limits: Limits | None = None) -> EmbeddedSuperLink:
        found = self.federation
        return EmbeddedSuperLink(found.nodes, certificate=found.certificate, key=found.key, port=port, limits=limits)

    def fleet_client(self, port: int, key: EllipticCurvePrivateKey) -> FleetHttpClient:
        """Return Flower's own client, which signs with `key` and does what the test tells it."""
        return FleetHttpClient(
            f"https://127.0.0.1:{port}",
            interceptors=[RequestSigner(key)],
            verify=ssl.create_default_context(cafile=self.ca),
        )

    @contextmanager
    def node_process(self, name: str, port: int) -> Iterator[Started]:
        """Run a node as a process; kill it when the block ends."""
        with Started(ECHO_NODE, f"127.0.0.1:{port}", self.ca, self.keys(name)) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def node_thread(self, name: str, port: int, app: ClientApp) -> Iterator[threading.Event]:
        """Run a node in a thread; stop it when the block ends. Yields its stop event."""
        stop = threading.Event()

        def run() -> None:
            transport = keys.load(self.keys(name)).transport
            server = f"127.0.0.1:{port}"
            run_node(server, self.ca, transport, app, stop=stop, finished=lambda: False, max_wait_s=30)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join(5)
            assert not thread.is_alive()


@dataclass(frozen=True)
class Cluster:
    """A running server with three connected nodes."""

    site: Site
    superlink: EmbeddedSuperLink
    processes: dict[str, Started]

    def ask(self, message_type: str, content: RecordDict, timeout_s: float = 60) -> dict[str, Message]:
        """Send `content` to all nodes; return {NAME: reply}."""
        grid = self.superlink.grid
        requests = [Message(content, node_id, message_type) for node_id in grid.get_node_ids()]
        replies = ask_nodes(grid, requests, timeout_s, max_reply_bytes=2**24)
        return {str(self.superlink.registered_name(node)): reply for node, reply in replies}


def make_site(root: Path) -> Site:
    federation_folder.init(root / "federation", "", [])
    for name in NAMES:
        federation_folder.add_node(root / "federation", name, keys.generate(name, root / name))
    return Site(root)


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A federation of alice, bob and carol."""
    return make_site(tmp_path)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server and three node processes, shared by the tests that leave them as they were."""
    site = make_site(tmp_path_factory.mktemp("cluster"))
    with site.superlink() as superlink, ExitStack() as stack:
        processes = {name: stack.enter_context(site.node_process(name, superlink.port)) for name in NAMES}
        site.wait_until(lambda: len(list(superlink.grid.get_node_ids())) == len(NAMES))
        yield Cluster(site, superlink, processes)
