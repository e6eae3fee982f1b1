"""Messages between a real server and real nodes, over TLS."""

from __future__ import annotations

import os
import ssl
import statistics
import time
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

if TYPE_CHECKING:
    from tests.server.conftest import Cluster

CLIENT_APP_RAISED_EXCEPTION, INVALID_FAB = 2, 7


# 8 MB is two of Flower's 5 MiB chunks.
@pytest.mark.parametrize("size", [250, 2_000_000])
def test_content_comes_back_bit_for_bit_from_each_node(size: int, cluster: Cluster) -> None:
    content = cluster.site.floats(size)
    expected = content.array_records["arrays"]
    replies = cluster.ask("train", content)
    assert sorted(replies) == ["alice", "bob", "carol"]
    for reply in replies.values():
        assert np.array_equal(reply.content.array_records["arrays"]["x"].numpy(), expected["x"].numpy())


def test_each_reply_comes_from_the_node_that_is_registered_under_its_name(cluster: Cluster) -> None:
    replies = cluster.ask("train", cluster.site.floats(1))
    pids = {name: reply.content["node"]["pid"] for name, reply in replies.items()}
    assert pids == {name: process.pid for name, process in cluster.processes.items()}


def test_a_node_keeps_its_context_from_message_to_message(cluster: Cluster) -> None:
    first, second = (cluster.ask("train", cluster.site.floats(1))["bob"] for _ in range(2))
    counts = [int(str(reply.content["node"]["count"])) for reply in (first, second)]
    assert counts[1] == counts[0] + 1


def test_replies_leave_nothing_behind_on_the_server(cluster: Cluster) -> None:
    cluster.ask("train", cluster.site.floats(1000))
    state = cluster.superlink._state
    assert len(state.object_store) == 0
    assert state.num_message_ins() == state.num_message_res() == 0
    assert not state._object_push_sessions


def test_a_round_without_work_takes_less_than_a_second(cluster: Cluster) -> None:
    seconds = []
    for i in range(7):
        start = time.monotonic()
        assert len(cluster.ask("train", cluster.site.floats(250, seed=i))) == 3
        seconds.append(time.monotonic() - start)
    assert statistics.median(seconds) < 1.0


@pytest.mark.parametrize(
    ("message_type", "reason"),
    [
        ("query.refuse", "field: must be small, got 9 [AGFL-CONFIG-000]"),
        ("query.leak", "DataError"),
        ("query.crash", "ValueError"),
        ("query.unknown", "ValueError"),
    ],
)
def test_an_error_reply_tells_nothing_of_the_data(message_type: str, reason: str, cluster: Cluster) -> None:
    for reply in cluster.ask(message_type, RecordDict()).values():
        assert (reply.error.code, reply.error.reason) == (CLIENT_APP_RAISED_EXCEPTION, reason)


def test_a_message_type_that_is_not_ours_is_refused(cluster: Cluster) -> None:
    for reply in cluster.ask("system", RecordDict({"c": ConfigRecord({"x": 1})})).values():
        assert reply.error.code == INVALID_FAB
        assert reply.error.reason == "message type: must be one of train, evaluate, query, got 'system'"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/control/list-runs", 403),
        ("/v1/control/start-run", 403),
        ("/v1/control/register-node", 403),
        ("/v1/runtime/acquire-task", 403),
        ("/v1/runtime/push-messages", 403),
        ("/v1/fleet/register-node", 403),
        ("/v1/fleet/unregister-node", 403),
        ("/v1/fleet/get-fab", 403),
        ("/v1/fleet/../control/list-runs", 403),
        ("/docs", 403),
        ("/openapi.json", 403),
        ("/", 403),
        ("/v1/fleet/activate-node", 401),
        ("/health", 200),
    ],
)
def test_from_outside_only_the_nodes_calls_are_there(path: str, status: int, cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=cluster.site.ca)
    method = "POST" if path.startswith("/v1") else "GET"
    url = httpx.URL(f"https://127.0.0.1:{cluster.superlink.port}", raw_path=path.encode())
    with httpx.Client(verify=context) as client:
        assert client.request(method, url).status_code == status


def test_an_old_tls_version_is_refused(cluster: Cluster) -> None:
    context = ssl.create_default_context(cafile=cluster.site.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context) as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://127.0.0.1:{cluster.superlink.port}/health")


def test_nodes_listen_on_no_port_and_start_no_process(cluster: Cluster) -> None:
    listening = _listening_inodes()
    for process in cluster.processes.values():
        assert not listening & _socket_inodes(process.pid)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            assert file.read() == ""


def test_nodes_leave_when_the_run_is_finished(cluster: Cluster) -> None:
    # The last test of this file: the nodes are gone after it.
    replies = cluster.ask("query.finish", RecordDict())
    assert all(reply.has_content() for reply in replies.values())
    assert [process.wait(5) for process in cluster.processes.values()] == [0, 0, 0]
    cluster.site.wait_until(lambda: list(cluster.superlink.grid.get_node_ids()) == [])


def _listening_inodes() -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            inodes |= {row.split()[9] for row in file if row.split()[3] == "0A"}
    return inodes


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes
