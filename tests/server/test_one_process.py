"""Two machines with one owner's keys: the server names them, the older one says why it ends, the newer one serves."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

import pytest
from starlette.responses import PlainTextResponse

from agfl_protocol.process_mark import PROCESS_HEADER
from agfl_server.transport.gate import KEY_ID
from agfl_server.transport.one_process import OneProcess

if TYPE_CHECKING:
    from flwr.app import Message
    from tests.server.conftest import Site

    from agfl_server.transport.superlink import EmbeddedSuperLink

ACTIVATE, PULL, LEAVE = "activate-node", "pull-messages", "deactivate-node"


def connected(server: EmbeddedSuperLink) -> list[str | None]:
    return [server.registered_name(node) for node in server.grid.get_node_ids()]


def echo(site: Site, server: EmbeddedSuperLink) -> Message:
    from flwr.app import Message

    (node,) = server.grid.get_node_ids()
    (reply,) = server.grid.send_and_receive([Message(site.floats(1), node, "train")], timeout=20)
    return reply


def test_two_machines_with_one_owners_keys_are_named_on_both_sides(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(site.keys("alice"), site.keys("copy"))
    with site.superlink() as server, site.node_process("alice", server.port) as older:
        site.wait_until(lambda: connected(server) == ["alice"])
        with site.node_process("copy", server.port) as newer:
            assert older.wait(60) == 2
            assert older.stderr is not None
            said = older.stderr.read().splitlines()
            line = "keys: must serve one node at a time, but another one with the same keys came after this one, from"
            assert said[-1] == f"error: {line} 127.0.0.1 [AGFL-IDENTITY-044]"
            site.wait_until(lambda: connected(server) == ["alice"])
            reply = echo(site, server)
            assert reply.has_content()
            assert reply.content["node"]["pid"] == newer.pid
    named = [record.getMessage() for record in caplog.records if "two machines" in record.getMessage()]
    assert named == [
        "alice: two machines use one owner's keys; the one at 127.0.0.1 came last and stays, "
        "the one at 127.0.0.1 is refused"
    ]


def test_a_node_that_was_killed_is_back_at_once_and_nobody_is_named(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with site.superlink() as server:
        for _ in range(2):
            with site.node_process("alice", server.port) as process:
                site.wait_until(lambda: connected(server) == ["alice"])
                assert echo(site, server).content["node"]["pid"] == process.pid
    assert "two machines" not in caplog.text


class Calls:
    """A node's calls, by the mark of the process that makes them."""

    def __init__(self) -> None:
        self._layer = OneProcess(PlainTextResponse("passed"), {"key": "alice"})

    def __call__(self, mark: str, call: str, key: str | None = "key") -> int:
        scope = {
            "type": "http",
            "path": f"/v1/fleet/{call}",
            "headers": [(PROCESS_HEADER.encode(), mark.encode())],
            "client": (f"host-of-{mark}", 1),
            **({} if key is None else {KEY_ID: key}),
        }
        statuses = []

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        asyncio.run(self._layer(scope, None, send))  # type: ignore[arg-type]
        (status,) = statuses
        assert isinstance(status, int)
        return status


def test_the_process_that_came_before_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    call = Calls()
    assert [call("one", c) for c in (ACTIVATE, PULL, ACTIVATE, PULL)] == [200] * 4
    assert call("two", ACTIVATE) == 200
    assert [call("one", c) for c in (PULL, ACTIVATE, PULL, LEAVE)] == [409] * 4
    assert call("two", PULL) == 200
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "alice: two machines use one owner's keys; the one at host-of-two came last and stays, "
        "the one at host-of-one is refused"
    ]


def test_a_process_that_only_leaves_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    call = Calls()
    assert [call("one", ACTIVATE), call("two", ACTIVATE)] == [200, 200]
    assert call("one", LEAVE) == 409, "or it would send the other away"
    assert call("two", LEAVE) == 200
    assert caplog.records == []


def test_a_request_of_nobody_passes() -> None:
    assert Calls()("one", "health", key=None) == 200


def test_what_is_remembered_of_a_node_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    call = Calls()
    for number in range(500):
        assert call(f"{number}", ACTIVATE) == 200
    assert call("498", PULL) == 409
    (node,) = call._layer._nodes.values()
    assert len(node.superseded) == 64
