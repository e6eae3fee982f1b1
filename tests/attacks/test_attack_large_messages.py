"""A server that sends too much: what an owner's node fetches of a message is bounded before it is fetched."""

from __future__ import annotations

import gzip
import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from tests.client.test_node import request_of
from tests.server.conftest import Site, make_site

from agfl_client import keys
from agfl_client.app import create_client_app
from agfl_client.approval.announced import Announced
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_client.transport import supernode
from agfl_client.transport.bounded_http import bounded_client
from agfl_client.transport.pulling import pull_message, take_little
from agfl_models.errors import AgflError, WireError
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.version import PROTOCOL_VERSION
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
PIECE = 5 << 20  # Flower's


@dataclass
class Store:
    """A server's objects, and what was fetched of them."""

    objects: dict[str, bytes]
    root: str
    fetched: int = 0
    asked: list[str] = field(default_factory=list)

    @staticmethod
    def of(content: RecordDict, kind: str = wire.TRAIN) -> Store:
        InProcessGrid({}, 1)  # makes this process one that may make messages
        message = Message(content, 7, kind)
        objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        return Store(objects, message.object_id)

    def fetch(self, ids: Sequence[str], arrived: Callable[[str, int], None]) -> dict[str, bytes]:
        found = {}
        for object_id in ids:
            found[object_id] = self.objects[object_id]
            self.fetched += len(found[object_id])
            self.asked.append(object_id)
            arrived(object_id, len(found[object_id]))
        return found

    def of_type(self, name: str) -> list[str]:
        return [key for key, content in self.objects.items() if content.startswith(name.encode() + b" ")]

    def rewrite(self, name: str, change: Callable[[list[str], bytes], tuple[list[str], bytes]]) -> None:
        """Change children and body of the first object of a type; nobody checks that its id is its hash."""
        object_id = self.of_type(name)[0]
        head, _, body = self.objects[object_id].partition(b"\x00")
        children, changed = change([id_ for id_ in head.decode().split(" ")[1].split(",") if id_], body)
        self.objects[object_id] = f"{name} {','.join(children)} {len(changed)}\x00".encode() + changed


def pull(store: Store, allowance: Callable[[str, RecordDict], int] = take_little) -> dict[str, bytes]:
    return pull_message(store.root, wire.TRAIN, store.fetch, allowance)


def floats(*sizes: int) -> RecordDict:
    """Random numbers, of which no two pieces are alike."""
    rng = np.random.default_rng(0)
    arrays = {f"x{i}": Array(rng.standard_normal(size, dtype=np.float32)) for i, size in enumerate(sizes)}
    return RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"version": 1})})


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (3_000_000, 5)])
def test_an_honest_message_arrives_whole_and_each_object_once(sizes: tuple[int, ...]) -> None:
    content = floats(*sizes)
    store = Store.of(content)
    told: list[RecordDict] = []

    def allow(kind: str, records: RecordDict) -> int:
        told.append(records)
        return 4 * sum(sizes)

    contents = pull(store, allow)
    assert contents == store.objects
    assert sorted(store.asked) == sorted(store.objects)
    arrived = inflate_object_from_contents(store.root, contents)
    assert isinstance(arrived, Message)
    assert arrived.content == content
    assert told == [RecordDict({"config": ConfigRecord({"version": 1})})]


def test_attack_more_bytes_than_allowed_are_not_fetched() -> None:
    store = Store.of(floats(20_000_000))  # 80 MB
    with pytest.raises(WireError, match=r"^message: .*got more.*AGFL-WIRE-009"):
        pull(store, lambda kind, told: 1_000_000)
    assert store.fetched < PIECE + 100_000  # the piece that is too much, and what came before the arrays


def test_attack_nothing_of_the_arrays_is_fetched_where_the_run_is_refused() -> None:
    store = Store.of(floats(20_000_000))

    def refuse(kind: str, told: RecordDict) -> int:
        raise PolicyViolation("AGFL-POLICY-000", "tasks: no")

    with pytest.raises(PolicyViolation):
        pull(store, refuse)
    assert store.fetched < 10_000


def test_attack_one_piece_stands_in_an_array_many_times() -> None:
    """5 MB on the way are gigabytes on arrival, since every place has its copy."""
    store = Store.of(floats(PIECE // 4))

    def repeat(children: list[str], body: bytes) -> tuple[list[str], bytes]:
        return children, json.dumps({**json.loads(body), "arraychunk_ids": [0] * 100}).encode()

    store.rewrite("Array", repeat)
    with pytest.raises(WireError, match=r"^message: must have at most \d+ bytes of arrays, got more.*AGFL-WIRE-009"):
        pull(store)
    with pytest.raises(WireError, match=r"in at most 21 pieces, got 100.*AGFL-WIRE-008"):
        pull(store, lambda kind, told: 5 << 16)


FORMS: dict[str, tuple[str, Callable[[list[str], bytes], tuple[list[str], bytes]], str]] = {
    "no content": ("Message", lambda c, b: ([*c, "0" * 64], b), "must have at most 1 of RecordDict, got 2"),
    "many records": ("RecordDict", lambda c, b: ([str(i) for i in range(5)], b), "must have at most 4 of ConfigRecord"),
    "many arrays": ("ArrayRecord", lambda c, b: ([str(i) for i in range(17)], b), "must have at most 16 of Array, got"),
    "deep": ("ConfigRecord", lambda c, b: (["0" * 64], b), "a ConfigRecord must have no children"),
    "deep arrays": ("ArrayChunk", lambda c, b: (["0" * 64], b), "must have ArrayChunk here"),
    "places": ("Array", lambda c, b: (c, b'{"arraychunk_ids": [1]}'), "arraychunk_ids: must be a list of places among"),
    "no places": ("Array", lambda c, b: (c, b"{}"), "arraychunk_ids: must be a list of places among the children"),
    "deep JSON": ("Array", lambda c, b: (c, b"[" * 10**6), "must be in JSON: must nest at most 64 deep"),
    "no mapping": ("RecordDict", lambda c, b: (c, b"[]"), "must have mappings in JSON"),
    "no record": ("ConfigRecord", lambda c, b: (c, b"\xff" * 9), "must have records of Flower's form"),
}


@pytest.mark.parametrize("kind", FORMS)
def test_attack_a_message_of_another_form_is_refused(kind: str) -> None:
    name, change, line = FORMS[kind]
    store = Store.of(floats(5))
    store.rewrite(name, change)
    with pytest.raises(WireError, match=rf"^message: {line}") as refusal:
        pull(store)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("content", [b"", b"Message", b"Message  0 0 0\x00", b"Array  2\x00{}", b"x" * 10**6])
def test_attack_the_root_is_no_message(content: bytes) -> None:
    with pytest.raises(WireError, match=r"^message: must have "):
        pull_message("m", wire.TRAIN, lambda ids, arrived: dict.fromkeys(ids, content), take_little)


def test_a_message_that_is_its_own_child_ends() -> None:
    store = Store.of(floats(5))
    store.rewrite("RecordDict", lambda children, body: ([store.root], body))
    with pytest.raises(WireError, match=r"^message: .*AGFL-WIRE-006"):
        pull(store)


STEP = 8  # of the grid of clips, which is broadcast


def test_what_a_run_may_weigh_follows_from_its_configuration_and_the_policy(run_config: MakeConfig) -> None:
    def allowed(config: RunConfig, kind: str = wire.TRAIN, **policy: int) -> int:
        told = RecordDict(
            {"config": ConfigRecord({"version": PROTOCOL_VERSION, "client_plan": config.client_plan.to_json()})}
        )
        return Announced(Policy(allow_plain=True, **policy)).most_bytes(kind, told)

    config = run_config()
    size = config.model.num_parameters()
    assert allowed(config) == allowed(config, wire.EVALUATE) == 4 * size + STEP + (1 << 20)
    several = run_config("aggregation.server_optimizer={type: auto}")
    assert allowed(several) == 4 * 4 * size + STEP + (1 << 20)
    control = run_config("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
    assert allowed(control) > 4 * 2 * size + STEP + (1 << 20)
    assert allowed(config, "query.finish") == 1 << 20
    with pytest.raises(PolicyViolation, match=r"^max_parameters: .*AGFL-POLICY-003"):
        allowed(config, max_parameters=size - 1)
    with pytest.raises(PolicyViolation, match=r"^max_memory: .*AGFL-POLICY-004"):
        allowed(config, max_memory=1)
    with pytest.raises(AgflError):
        Announced(Policy()).most_bytes(wire.TRAIN, RecordDict())


# --- over the network


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("large"))


def test_attack_a_model_above_the_limit_is_refused_before_it_is_here(
    federation: Site,
    run_config: MakeConfig,
    make_owners: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pulled: list[int] = []
    pull_one = FleetHttpClient.PullObject

    def counted(self: FleetHttpClient, request: PullObjectRequest) -> PullObjectResponse:
        response = pull_one(self, request)
        pulled.append(len(response.object_content))
        return response

    monkeypatch.setattr(FleetHttpClient, "PullObject", counted)
    small = run_config()
    policy = Policy(allow_plain=True, runs="all", max_parameters=small.model.num_parameters())
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=policy)
    honest = request_of(small)
    large = run_config("model.dim=1024")
    rng = np.random.default_rng(0)
    lie = replace(honest, model=rng.standard_normal(15_000_000, dtype=np.float32))  # 60 MB under a small configuration
    open_ = replace(lie, client_plan=large.client_plan.to_json())
    with federation.superlink() as server, node_thread(federation, server.port, node):
        federation.wait_until(lambda: len(list(server.grid.get_node_ids())) == 1)
        (node_id,) = server.grid.get_node_ids()

        def ask(request: wire.RoundRequest) -> Message:
            """Send a request, and forget what was fetched before."""
            pulled.clear()
            (reply,) = server.grid.send_and_receive([Message(request.to_record(), node_id, wire.TRAIN)], timeout=30)
            return reply

        with caplog.at_level(logging.ERROR, "agfl.client"):
            first = str(ask(open_).error.reason)
            assert sum(pulled) < 100_000
            assert first.startswith("max_parameters: must be at least ")
            second = str(ask(lie).error.reason)
            assert sum(pulled) < 2 * PIECE + 100_000  # two pieces come at a time
            assert second.startswith("message: must have at most ")
            # Another test may have left the logger telling more, as that it is connected.
            errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
            lines = [record.getMessage() for record in errors if record.name == "agfl.client"]
            assert lines == [f"train not answered: {first}", f"train not answered: {second}"]
        assert ask(honest).has_content(), "and the node goes on"


@contextmanager
def node_thread(site: Site, port: int, node: Node) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        transport = keys.load(site.keys("alice")).transport
        supernode.run_node(
            f"127.0.0.1:{port}",
            site.ca,
            transport,
            create_client_app(node),
            stop=stop,
            finished=lambda: False,
            max_wait_s=30,
            allowance=node.announced.most_bytes,
        )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


class _Evil(BaseHTTPRequestHandler):
    """/endless never ends, /zip is small until it is unpacked, /moved leads elsewhere."""

    sent = 0

    def do_POST(self) -> None:
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "/small")
        if self.path == "/zip":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            if self.path == "/zip":
                self.wfile.write(gzip.compress(bytes(50_000_000)))
            while self.path == "/endless":
                self.wfile.write(bytes(100_000))
                _Evil.sent += 100_000
        except OSError:
            pass  # the client has left

    def log_message(self, *_: object) -> None:
        pass


def test_attack_an_answer_without_end_or_in_disguise_is_not_read() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with bounded_client(ssl.create_default_context(), 10, 1_000_000) as client:
            assert client.post(f"{address}/small").content == b""
            with pytest.raises(WireError, match=r"^--server: .*got more.*AGFL-WIRE-004"):
                client.post(f"{address}/endless")
            with pytest.raises(WireError, match=r"^--server: must answer without compression"):
                client.post(f"{address}/zip")
            with pytest.raises(httpx.HTTPStatusError):
                client.post(f"{address}/moved").raise_for_status()
    finally:
        server.shutdown()
        server.server_close()
    assert _Evil.sent < 30_000_000  # what the system buffers
