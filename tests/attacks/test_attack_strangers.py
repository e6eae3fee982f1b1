"""Strangers, who have no key, do what they like to the port. Owners beside them notice nothing."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.attacks.hostile_node import hostile_node
from tests.attacks.strangers import Strangers, answer, is_open
from tests.server.conftest import Site, make_site

from agfl_client import keys
from agfl_protocol.identity.request_signature import SIGNATURE_HEADER, sign_request
from agfl_server.transport.connections import Connection, Connections
from agfl_server.transport.limits import Limits
from agfl_server.transport.log_limits import LineLimit, limit_logs
from agfl_server.transport.superlink import EmbeddedSuperLink

LIMITS = Limits(unproven=12, unproven_per_address=8, per_node=3, headers_s=0.6, silence_s=0.6)
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
ACTIVATE = b"POST /v1/fleet/activate-node HTTP/1.1\r\nHost: x\r\nContent-Type: application/protobuf\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[EmbeddedSuperLink]:
    with site.superlink(limits=LIMITS) as server:
        yield server


@pytest.fixture
def strangers(site: Site, server: EmbeddedSuperLink) -> Iterator[Strangers]:
    with Strangers(server.port, site.ca) as strangers:
        yield strangers


def signed(site: Site, path: str, body: bytes) -> bytes:
    """Return the header line of alice's signature."""
    key = keys.load(site.keys("alice")).transport
    nonce = time.time_ns().to_bytes(16, "big")
    return f"{SIGNATURE_HEADER}: {sign_request(key, 'POST', path, body, time.time_ns(), nonce)}\r\n".encode()


def send_until_cut(connection: socket.socket, start: bytes, part: bytes, most: int) -> int:
    """Return how often `part` could be sent before the server closed the connection."""
    sent = 0
    with suppress(OSError):
        connection.sendall(start)
        while sent < most:
            connection.sendall(part)
            sent += 1
    return sent


def status(reply: bytes) -> int:
    return int(reply.split(b" ")[1])


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_attack_idle_connections(kind: str, site: Site, server: EmbeddedSuperLink, strangers: Strangers) -> None:
    """They take neither the owners' places nor stay."""
    idle = [strangers.tcp() if kind == "tcp" else strangers.tls() for _ in range(30)]
    site.wait_until(lambda: sum(map(is_open, idle)) <= LIMITS.unproven_per_address)
    with hostile_node(site, server, "alice") as alice:  # an owner gets in, and stays in
        assert status(strangers.ask(HEALTH)) == 200
        site.wait_until(lambda: not any(map(is_open, idle)), timeout_s=3 * LIMITS.headers_s)
        idle += [strangers.tcp() for _ in range(30)]
        alice.beat(30)


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nX: ", ACTIVATE])
def test_attack_headers_that_never_end(start: bytes, strangers: Strangers) -> None:
    connection = strangers.tls()
    connection.sendall(start or b"G")
    begin = time.monotonic()
    while is_open(connection):
        assert time.monotonic() - begin < 3 * LIMITS.headers_s
        try:
            connection.sendall(b"a")
        except OSError:
            break
        time.sleep(0.05)


def test_attack_a_header_of_many_megabytes(strangers: Strangers) -> None:
    connection = strangers.tls()
    sent = send_until_cut(connection, b"GET /health HTTP/1.1\r\nX: ", b"a" * 2**20, 64)
    assert sent < 16  # what the sockets hold


def test_attack_headers_of_32_kb_in_one_piece(strangers: Strangers) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(40))
    assert status(strangers.ask(HEALTH[:-2] + lines + b"\r\n")) in (400, 431)


def test_attack_an_unsigned_body_is_answered_before_it_comes(strangers: Strangers) -> None:
    for length in (b"60", b"16384", b"62914560"):
        request = ACTIVATE + b"Content-Length: " + length + b"\r\n\r\n"
        assert status(strangers.ask(request)) in (401, 413)


@pytest.mark.parametrize("path", [b"/v1/fleet/push-object", b"/v1/fleet/register-node", b"/", b"/docs"])
def test_attack_each_path_refuses_a_stranger_and_closes(path: bytes, strangers: Strangers) -> None:
    reply = strangers.ask(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
    assert status(reply) in (401, 403)
    assert b"connection: close" in reply.lower()


@pytest.mark.parametrize("extra", [b"Content-Length: 4\r\n", b""])
def test_attack_a_body_of_chunks_beside_a_length(
    extra: bytes, site: Site, server: EmbeddedSuperLink, strangers: Strangers
) -> None:
    """One parser believes the length, another the chunks; a signature does not help."""
    signature = signed(site, "/v1/fleet/activate-node", b"1234")
    request = ACTIVATE + signature + extra + b"Transfer-Encoding: chunked\r\n\r\n" + b"4000000\r\n" + b"a" * 2**16
    assert status(strangers.ask(request)) in (400, 411)


def test_attack_requests_in_a_row_without_waiting(site: Site, strangers: Strangers) -> None:
    replies = strangers.ask(HEALTH * 1000)
    assert replies.count(b"HTTP/1.1 200") <= 1


def test_attack_a_request_that_was_recorded(site: Site, strangers: Strangers) -> None:
    body = b""
    request = ACTIVATE + signed(site, "/v1/fleet/activate-node", body) + b"Content-Length: 0\r\n\r\n"
    first = strangers.tls()
    first.sendall(request)
    assert status(first.recv(2**16)) == 401  # an empty request names nobody
    assert b"used twice" in strangers.ask(request)


def test_attack_a_signed_body_that_stops(site: Site, strangers: Strangers) -> None:
    body = b"x" * 100
    head = ACTIVATE + signed(site, "/v1/fleet/activate-node", body) + b"Content-Length: 100\r\n\r\n"
    connection = strangers.tls()
    begin = time.monotonic()
    assert answer(connection, head + body[:50]) == b""
    assert time.monotonic() - begin < 3 * LIMITS.silence_s


def test_attack_a_signed_body_that_never_ends(site: Site) -> None:
    """A byte now and then is no silence; but each body has its time."""
    limits = replace(LIMITS, keep_alive_s=1.0)
    with site.superlink(limits=limits) as server, Strangers(server.port, site.ca) as strangers:
        connection = strangers.tls()
        begin = time.monotonic()
        connection.sendall(ACTIVATE + signed(site, "/v1/fleet/activate-node", b"") + b"Content-Length: 9999\r\n\r\n")
        while is_open(connection):
            assert time.monotonic() - begin < 3 * limits.keep_alive_s
            with suppress(OSError):
                connection.sendall(b"a")
            time.sleep(0.1)
    assert time.monotonic() - begin > limits.silence_s


def test_attack_an_owner_holds_few_connections(site: Site, strangers: Strangers) -> None:
    own = []
    for _ in range(8):
        own.append(strangers.tls())
        own[-1].sendall(ACTIVATE + signed(site, "/v1/fleet/activate-node", b"") + b"Content-Length: 0\r\n\r\n")
        assert status(own[-1].recv(2**16)) == 401
        time.sleep(0.02)
    site.wait_until(lambda: sum(map(is_open, own)) == LIMITS.per_node)
    assert is_open(own[-1])


def test_attack_content_types_that_fill_the_log(
    site: Site, strangers: Strangers, caplog: pytest.LogCaptureFixture
) -> None:
    long_type = b"Content-Type: " + b"x" * 30_000 + b"\r\nContent-Length: 0\r\n"
    head = b"POST /v1/fleet/activate-node HTTP/1.1\r\nHost: x\r\n" + long_type
    for _ in range(30):
        strangers.ask(head + b"\r\n")
        strangers.ask(head + signed(site, "/v1/fleet/activate-node", b"") + b"Connection: close\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= 25
    assert max(map(len, lines), default=0) < 400


def test_lines_of_others_are_cut_and_counted() -> None:
    now = 0.0
    limit = LineLimit(lambda: now)

    def line(text: str) -> str | None:
        record = logging.LogRecord("flwr", logging.ERROR, "", 0, "%s", (text,), None)
        return record.getMessage() if limit.filter(record) else None

    assert line("a\r\n\x1b[2Jb" + "c" * 10_000) == "a??" + "?[2Jb" + "c" * 292 + "..."
    assert sum(line("x") is not None for _ in range(1000)) == 19
    now = 6.0
    assert line("x") == "x (981 lines before this one were left out)"


def test_the_limit_on_logs_is_set_once() -> None:
    limit_logs()
    limit_logs()
    filters = logging.getLogger("flwr").filters
    assert sum(isinstance(found, LineLimit) for found in filters) == 1


def test_places_go_from_the_most_crowded_address() -> None:
    connections = Connections(Limits(unproven=4, unproven_per_address=3, per_node=2), files=1000)
    cut: list[str] = []

    def admit(address: str) -> Connection:
        connection = connections.admit(address)
        connection.abort = lambda: cut.append(address)
        return connection

    first = admit("a")
    first.prove("alice")
    for address in "bbbc":
        admit(address)
    admit("b")  # the fourth from there
    admit("d")  # the fifth of all
    assert cut == ["b", "b"]
    second, third = admit("a"), admit("a")
    second.prove("alice")
    first.is_busy = True
    cut.clear()
    third.prove("alice")  # the third of hers: the one that waits for nothing goes
    assert second.is_cut
    assert not first.is_cut


def test_files_are_kept_for_checkpoints_whatever_strangers_do(site: Site, tmp_path: Path) -> None:
    """At a hard limit of 90 files, 300 connections leave a server that answers and writes files."""
    script = tmp_path / "server.py"
    script.write_text(SMALL_SERVER)
    command = [sys.executable, str(script), str(site.federation.certificate), str(site.federation.key)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with Strangers(port, site.ca) as strangers:
            idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(300)]
            process.stdin.write("write\n")
            process.stdin.flush()
            assert process.stdout.readline() == "20 files written\n"
            assert status(strangers.ask(HEALTH)) == 200
            for connection in idle:
                connection.close()
        process.stdin.close()
        assert process.wait(10) == 0


SMALL_SERVER = """
import resource, sys, tempfile
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 90))
from pathlib import Path
from agfl_server.transport.gate import Gate
from agfl_server.transport.https import HttpsServer
from agfl_server.transport.limits import Limits

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

limits = Limits(reserved_files=50, headers_s=60)
gate = Gate(app, {}, lambda name, length: False, limits)
with HttpsServer(gate, "127.0.0.1", 0, Path(sys.argv[1]), Path(sys.argv[2]), limits) as server:
    print(server.port, flush=True)
    sys.stdin.readline()
    files = [tempfile.TemporaryFile() for _ in range(20)]
    print(len(files), "files written", flush=True)
    sys.stdin.read()
"""


def test_an_owner_works_beside_a_crowd(site: Site, server: EmbeddedSuperLink, strangers: Strangers) -> None:
    with hostile_node(site, server, "carol") as carol:
        for _ in range(10):
            for _ in range(6):
                strangers.tcp()
            start = time.monotonic()
            carol.beat(30)
            assert time.monotonic() - start < 1
    with httpx.Client(verify=False) as client:
        assert client.get(f"https://127.0.0.1:{server.port}/health").status_code == 200
