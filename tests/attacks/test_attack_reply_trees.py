"""A registered owner sends replies that no honest node sends: knots, chains, gigabytes, and what is not its own."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from tests.attacks.hostile_node import HostileNode, Tree, forged, hostile_node, objects_of
from tests.server.conftest import Site, make_site

from agfl_server.transport.limits import MIB, push
from agfl_server.transport.messaging import ask_nodes
from agfl_server.transport.superlink import EmbeddedSuperLink


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def server(site: Site) -> Iterator[EmbeddedSuperLink]:
    with site.superlink() as server:
        yield server


@pytest.fixture
def mallory(site: Site, server: EmbeddedSuperLink) -> Iterator[HostileNode]:
    with hostile_node(site, server, "alice") as node:
        yield node


@pytest.fixture
def bob(site: Site, server: EmbeddedSuperLink) -> Iterator[HostileNode]:
    with hostile_node(site, server, "bob") as node:
        yield node


def some_ids(count: int) -> list[str]:
    return [os.urandom(32).hex() for _ in range(count)]


def outcome(server: EmbeddedSuperLink, message: Message) -> list[Message]:
    """Return what the server now takes for the reply; it must not take long."""
    start = time.monotonic()
    replies = list(server.grid.pull_messages([message.metadata.message_id]))
    assert time.monotonic() - start < 1
    return replies


def reason_of(server: EmbeddedSuperLink, message: Message) -> str:
    (reply,) = outcome(server, message)
    return str(reply.error.reason)


def test_attack_a_tree_of_2_to_the_90_paths(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    ids = some_ids(91)
    tree = Tree(object_id=ids[0])
    for i in range(1, 90):
        tree = Tree(object_id=ids[i], children=[tree, Tree(object_id=ids[i - 1])])
    reply = Message(RecordDict(), reply_to=message)
    mallory.announce(reply, Tree(object_id=ids[90], children=[tree]), ids[90])
    assert reason_of(server, message).startswith("reply: ")


def test_attack_two_paths_within_the_depth(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    root, a, b = some_ids(3)
    twice = [Tree(object_id=a, children=[Tree(object_id=b)]), Tree(object_id=a)]
    mallory.announce(Message(RecordDict(), reply_to=message), Tree(object_id=root, children=twice), root)
    assert "one path" in reason_of(server, message)


def test_attack_a_chain_that_grows_with_each_request(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    message = mallory.receive(RecordDict())
    reply = Message(RecordDict(), reply_to=message)
    last = some_ids(1)[0]
    for _ in range(24):
        root, *ids = some_ids(4)
        tree = Tree(object_id=last)
        for object_id in ids:
            tree = Tree(object_id=object_id, children=[tree])
        mallory.announce(reply, Tree(object_id=root, children=[tree]), root)
        last = root
    upload = server._state.uploads.of(message.metadata.message_id)
    assert upload is not None
    assert len(upload.children) == 5
    assert len(server._state.object_store) == 2  # the message's own


def test_attack_very_many_objects(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    root, *ids = some_ids(2000)
    tree = Tree(object_id=root, children=[Tree(object_id=object_id) for object_id in ids])
    mallory.announce(Message(RecordDict(), reply_to=message), tree, root)
    assert reason_of(server, message) == "reply: must have at most 65 objects, got more"


@pytest.mark.parametrize("object_id", ["", "x" * 64, "A" * 64, "0" * 63, "0" * 65])
def test_attack_an_object_of_no_name(
    object_id: str, site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    message = mallory.receive(RecordDict())
    root = some_ids(1)[0]
    tree = Tree(object_id=root, children=[Tree(object_id=object_id)])
    mallory.announce(Message(RecordDict(), reply_to=message), tree, root)
    assert "SHA-256" in reason_of(server, message)


def test_attack_a_tree_of_another_message(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    reply = Message(RecordDict(), reply_to=message)
    mallory.announce(reply, Tree(object_id=some_ids(1)[0]))
    assert "begin with its message" in reason_of(server, message)


def test_attack_more_bytes_than_the_round_prescribes(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    message = mallory.receive(RecordDict(), max_reply_bytes=MIB)
    reply = Message(site.floats(5 * MIB // 4), reply_to=message)
    response = mallory.announce(reply)
    with pytest.raises(httpx.HTTPStatusError, match="410"):
        mallory.upload(message.metadata.run_id, response.session_id, objects_of(reply))
    assert reason_of(server, message) == f"reply: must have at most {MIB} bytes, got more"


def test_attack_more_bytes_in_small_objects(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict(), max_reply_bytes=100_000)
    content = RecordDict({f"r{i}": site.floats(2500, seed=i).array_records["arrays"] for i in range(15)})
    reply = Message(content, reply_to=message)
    taken = mallory.upload(message.metadata.run_id, mallory.announce(reply).session_id, objects_of(reply))
    assert True in taken
    assert taken[-1] is False
    assert "at most 100000 bytes" in reason_of(server, message)
    assert mallory.server._state.uploads._by_session == {}


def test_what_came_of_a_reply_is_dropped_when_nobody_waits_any_more(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    replies = ask_nodes(server.grid, [Message(RecordDict(), mallory.node_id, "train")], 0.5)
    waiting = iter(replies)
    thread = threading.Thread(target=lambda: list(waiting))
    thread.start()
    site.wait_until(lambda: len(server._state.uploads) == 1)
    message = mallory.poll()
    reply = Message(site.floats(100_000), reply_to=message)
    response = mallory.announce(reply)
    objects = objects_of(reply)
    biggest = max(objects, key=lambda object_id: len(objects[object_id]))
    assert mallory.upload(message.metadata.run_id, response.session_id, {biggest: objects.pop(biggest)}) == [True]
    thread.join()
    assert len(server._state.uploads) == len(server._state.uploads._by_session) == 0
    assert len(server._state.object_store) == server._state.num_message_res() == 0
    assert not any(mallory.upload(message.metadata.run_id, response.session_id, objects))


def test_attack_an_array_that_repeats_one_part_a_million_times(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    """Flower would put 100 kB together a million times."""
    message = mallory.receive(RecordDict())
    chunk_id, chunk = forged("ArrayChunk", [], bytes(100_000))
    body = {"dtype": "uint8", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 200_000}
    array_id, array = forged("Array", [chunk_id], json.dumps(body).encode())
    arrays_id, arrays = forged("ArrayRecord", [array_id], json.dumps({"lanes": array_id}).encode())
    record_id, record = forged("RecordDict", [arrays_id], json.dumps({"arrays": arrays_id}).encode())
    root, content = forged("Message", [record_id], b"")
    tree = Tree(object_id=chunk_id)
    for object_id in (array_id, arrays_id, record_id, root):
        tree = Tree(object_id=object_id, children=[tree])
    response = mallory.announce(Message(RecordDict(), reply_to=message), tree, root)
    objects = {chunk_id: chunk, array_id: array, arrays_id: arrays, record_id: record, root: content}
    assert all(mallory.upload(message.metadata.run_id, response.session_id, objects))
    assert "repeated parts" in reason_of(server, message)


@pytest.mark.parametrize("kind", ["other parts", "no parts", "length", "commas", "hash"])
def test_attack_an_object_that_is_not_what_was_announced(
    kind: str, site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    message = mallory.receive(RecordDict())
    leaf, other = some_ids(2)
    parts = {"other parts": [other], "no parts": [], "commas": ["," * 500_000]}.get(kind, [leaf])
    root, content = forged("Message", parts, b"abc")
    if kind == "length":
        root, content = forged("Message 1", [leaf], b"abc")
    tree = Tree(object_id=root, children=[Tree(object_id=leaf)])
    response = mallory.announce(Message(RecordDict(), reply_to=message), tree, root)
    content += b"d" if kind == "hash" else b""
    assert mallory.upload(message.metadata.run_id, response.session_id, {root: content}) == [False]
    assert reason_of(server, message).startswith("reply: its objects must")


@pytest.mark.parametrize(("envelopes", "trees"), [(0, 0), (0, 1), (1, 0), (2, 1), (1, 2), (2, 2)])
def test_attack_not_one_message_with_one_tree(
    envelopes: int, trees: int, site: Site, server: EmbeddedSuperLink, mallory: HostileNode
) -> None:
    message = mallory.receive(RecordDict())
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    envelope = message_to_proto(remove_content_from_message(reply))
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        mallory.announce_all([envelope] * envelopes, [get_object_tree(reply)] * trees)
    assert outcome(server, message) == []


def test_attack_a_second_reply(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    first, second = (Message(site.floats(9, seed=seed), reply_to=message) for seed in range(2))
    response = mallory.announce(first)
    assert not mallory.announce(second).objects_to_push
    assert all(mallory.upload(message.metadata.run_id, response.session_id, objects_of(first)))
    assert not mallory.announce(second).objects_to_push
    (reply,) = outcome(server, message)
    assert reply.content["arrays"] == first.content["arrays"]
    assert not mallory.announce(first).objects_to_push  # what has been read is no longer waited for
    assert server._state.num_message_res() == 0


def test_attack_replies_to_what_was_never_asked_leave_nothing(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    theirs = bob.receive(RecordDict())
    invented = mallory.receive(RecordDict())
    invented.metadata.__dict__["_message_id"] = some_ids(1)[0]
    before = dict(server._state._object_push_sessions)
    for message in (theirs, invented) * 20:
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = mallory.node_id
        assert not mallory.announce(reply).objects_to_push
    assert server._state._object_push_sessions == before
    assert server._state.num_message_res() == 0
    assert outcome(server, theirs) == []


def test_attack_a_reply_that_is_no_arrays(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    """As many small values as fit into a vector's bytes would keep the round for seconds, and take gigabytes."""
    message = mallory.receive(RecordDict(), max_reply_bytes=4 * MIB)
    values = RecordDict({f"r{i}": ConfigRecord({"x": bytes(600_000 + i)}) for i in range(2)})
    reply = Message(values, reply_to=message)
    response = mallory.announce(reply)
    assert all(mallory.upload(message.metadata.run_id, response.session_id, objects_of(reply)))
    assert reason_of(server, message).startswith("reply: must have at most 1048576 bytes beside its arrays, got 12")


def test_attack_an_object_that_was_not_announced(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    """It is on the disk before anybody knows that it is not wanted, and nothing would count it."""
    message = mallory.receive(RecordDict())
    reply = Message(site.floats(9), reply_to=message)
    response = mallory.announce(reply)
    objects = objects_of(reply)
    first = dict([objects.popitem()])
    for _ in range(2):  # one that comes twice is of a node that got no answer
        mallory.upload(message.metadata.run_id, response.session_id, first)
    assert outcome(server, message) == []
    assert mallory.upload(message.metadata.run_id, response.session_id, {some_ids(1)[0]: b"x"}) == [False]
    assert reason_of(server, message) == "reply: must consist of the objects that were announced, got another"


def test_attack_an_object_for_anothers_reply(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    message = bob.receive(RecordDict())
    reply = Message(site.floats(9), reply_to=message)
    response = bob.announce(reply)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        mallory.upload(message.metadata.run_id, response.session_id, {some_ids(1)[0]: b"x"})
    assert all(bob.upload(message.metadata.run_id, response.session_id, objects_of(reply)))
    (got,) = outcome(server, message)
    assert got.content["arrays"] == reply.content["arrays"]


def test_attack_another_is_robbed_of_its_reply_by_its_objects_names(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    """Who knows what bob will send may announce it first, with parts that never come."""
    theirs, message = bob.receive(RecordDict()), mallory.receive(RecordDict())
    reply = Message(site.floats(9), reply_to=theirs)
    names = list(objects_of(reply))
    knot = [Tree(object_id=name, children=[Tree(object_id=some_ids(1)[0])]) for name in names[:-1]]
    root = some_ids(1)[0]
    mallory.announce(Message(RecordDict(), reply_to=message), Tree(object_id=root, children=knot), root)
    response = bob.announce(reply)
    assert all(bob.upload(theirs.metadata.run_id, response.session_id, objects_of(reply)))
    (got,) = outcome(server, theirs)
    assert got.content["arrays"] == reply.content["arrays"]


def test_attack_what_was_sent_to_another_is_neither_read_nor_dropped(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    message = bob.receive(site.floats(9))
    run_id, message_id = message.metadata.run_id, message.metadata.message_id
    names = list(server._state._sent_objects[message_id])
    assert not any(mallory.pull(run_id, name) for name in names)
    assert all(bob.pull(run_id, name) for name in names)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        mallory.confirm(run_id, message_id)
    assert message_id in server._state.object_store
    bob.confirm(run_id, message_id)
    assert len(server._state.object_store) == 0


def test_attack_calls_in_anothers_name(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    mallory.node_id = bob.node_id
    for call in (lambda: mallory.beat(30), mallory.poll, lambda: mallory.pull(1, "")):
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            call()
    with hostile_node(site, server, "carol") as carol, pytest.raises(httpx.HTTPStatusError, match="401"):
        carol.activate_as(bob)


def test_attack_a_promise_of_half_an_hour(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    """A node that has died must not be waited for so long."""
    mallory.beat(1800)
    assert server._state.nodes[mallory.node_id].online_until < time.time() + 61


def test_attack_a_reason_that_fills_the_log(site: Site, server: EmbeddedSuperLink, mallory: HostileNode) -> None:
    message = mallory.receive(RecordDict())
    reply = Message(Error(1, "\x1b[2J\r\n" + "x" * 100_000), reply_to=message)
    response = mallory.announce(reply)
    assert all(mallory.upload(message.metadata.run_id, response.session_id, objects_of(reply)))
    assert reason_of(server, message) == "?[2J??" + "x" * 294 + "..."


def test_a_slow_disk_holds_up_nobody_while_the_server_sends(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, go_on, pwrite = threading.Event(), threading.Event(), os.pwrite

    def slowly(file: int, content: bytes, at: int) -> int:
        writes.set()
        assert go_on.wait(10)
        return pwrite(file, content, at)

    monkeypatch.setattr(os, "pwrite", slowly)
    sending = threading.Thread(
        target=push, args=(server.grid, [Message(site.floats(MIB), mallory.node_id, "train")], 9)
    )
    sending.start()
    try:
        assert writes.wait(10)
        assert not mallory.pull(server._run_id, some_ids(1)[0]), "answered, though the object is not on the disk yet"
        assert not go_on.is_set()
    finally:
        go_on.set()
        sending.join(10)


def test_the_honest_reply_beside_all_this_is_whole(
    site: Site, server: EmbeddedSuperLink, mallory: HostileNode, bob: HostileNode
) -> None:
    zeros = RecordDict({"arrays": site.floats(4 * MIB).array_records["arrays"]})  # 16 MiB, in four parts
    (message_id,) = push(server.grid, [Message(RecordDict(), bob.node_id, "train")], 20 * MIB)
    reply = Message(zeros, reply_to=bob.poll())
    response = bob.announce(reply)
    objects = objects_of(reply)
    assert all(bob.upload(reply.metadata.run_id, response.session_id, objects))
    (got,) = server.grid.pull_messages([message_id])
    assert got.content["arrays"] == zeros["arrays"]
