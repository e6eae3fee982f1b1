"""Replies on their way in: what each may hold is settled before it is taken, and what is not wanted is not kept.

Flower keeps all objects of all nodes in one store, by hash: one node can tie knots there into which another's reply
runs, and Flower walks them by recursion under its lock. Here a reply is a small tree of its own, and nothing is shared.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agfl_server.transport.objects.spool import Kept, Spool

MAX_DEPTH = 6  # Message > RecordDict > ArrayRecord > Array > ArrayChunk are 5
SPARE_NODES = 64  # of a tree, beside one for each MiB that the reply may have
_MIB = 2**20
_OBJECT_ID = re.compile(r"[0-9a-f]{64}")
_MAX_ENVELOPE_BYTES = 100  # of an object's head, without the names of its children
HEAD_END, HEAD_DIVIDER = b"\x00", b" "  # Flower's: "TYPE CHILD,CHILD LENGTH", then the body


class Tree(Protocol):
    """What is read of Flower's ObjectTree."""

    @property
    def object_id(self) -> str: ...
    @property
    def children(self) -> Sequence[Tree]: ...


class ReplyRefused(Exception):
    """A reply is not taken; the line says why, of whoever sent it."""


@dataclass
class Upload:
    """The reply to one message: expected, then announced with its tree, then taken object by object.

    children: of each object, those that its head must name; contents: those that are here. fault: why the reply is
    refused, or "".
    """

    node_id: int
    max_bytes: int
    session_id: str = ""
    root: str = ""
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    contents: dict[str, Kept] = field(default_factory=dict)
    taken_bytes: int = 0
    fault: str = ""

    @property
    def missing(self) -> list[str]:
        """The objects that are still to come."""
        return [object_id for object_id in self.children if object_id not in self.contents]

    @property
    def is_complete(self) -> bool:
        """Whether all objects are here."""
        return bool(self.root) and len(self.contents) == len(self.children)

    def refuse(self, fault: str) -> None:
        """Keep the reason and nothing else."""
        self.fault = fault
        self.children, self.contents, self.root, self.session_id = {}, {}, "", ""


class Uploads:
    """All replies that somebody waits for, their objects in `spool`. Not thread-safe: the caller holds its lock."""

    def __init__(self, spool: Spool | None = None) -> None:
        self._spool = spool or Spool()
        self._uploads: dict[str, Upload] = {}
        self._by_session: dict[str, Upload] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    def expect(self, message_id: str, node_id: int, max_bytes: int) -> None:
        """A reply of at most `max_bytes` may come from the node to this message."""
        self._uploads[message_id] = Upload(node_id, max_bytes)

    def of(self, message_id: str) -> Upload | None:
        """Return the reply to a message, however much of it is here, or None where none is expected."""
        return self._uploads.get(message_id)

    def announce(self, message_id: str, session_id: str, root: str, tree: Tree) -> list[str]:
        """Settle what the reply consists of; return the objects that the node must send in this session.

        Raises:
            ReplyRefused: no reply is expected (any more), or the tree is none of ours.
        """
        upload = self._uploads.get(message_id)
        if upload is None or upload.fault:
            raise ReplyRefused("reply: must answer a message that waits for one")
        try:
            children = children_by_object(root, tree, SPARE_NODES + upload.max_bytes // _MIB)
            if upload.root not in ("", root) or (upload.children and upload.children != children):
                raise ReplyRefused("reply: must be one, got a second")
        except ReplyRefused as error:
            if not upload.is_complete:
                self._refuse(upload, str(error))
            raise
        self._by_session.pop(upload.session_id, None)
        upload.root, upload.children, upload.session_id = root, children, session_id
        if not upload.is_complete:
            self._by_session[session_id] = upload
        return upload.missing

    def owner(self, session_id: str) -> int | None:
        """Return the node whose session it is."""
        upload = self._by_session.get(session_id)
        return None if upload is None else upload.node_id

    def admits(self, node_id: int, num_bytes: int) -> bool:
        """Return whether a node may still send so much; a reply that was announced and is longer is refused."""
        own = [upload for upload in list(self._by_session.values()) if upload.node_id == node_id]
        if num_bytes <= sum(upload.max_bytes - upload.taken_bytes for upload in own):
            return True
        for upload in own:
            self._refuse(upload, _too_long(upload))
        return False

    def wants(self, session_id: str, object_id: str) -> bool:
        """Return whether an object of a reply is missing; one that was not announced ends the reply."""
        upload = self._by_session.get(session_id)
        if upload is None:
            return False
        if object_id not in upload.children:
            self._refuse(upload, "reply: must consist of the objects that were announced, got another")
            return False
        return object_id not in upload.contents  # an honest node sends one again that it got no answer for

    def take(self, session_id: str, object_id: str, content: bytes, kept: Kept) -> bool:
        """Take an object of a reply, which is kept already; return whether it was wanted. A false one ends the reply.

        One that was not wanted is the caller's to drop.
        """
        if not self.wants(session_id, object_id):
            return False
        upload = self._by_session[session_id]
        try:
            _check_object(object_id, content, upload.children[object_id])
            if upload.taken_bytes + len(content) > upload.max_bytes:
                raise ReplyRefused(_too_long(upload))
        except ReplyRefused as error:
            self._refuse(upload, str(error))
            return False
        upload.contents[object_id] = kept
        upload.taken_bytes += len(content)
        if upload.is_complete:
            del self._by_session[session_id]
        return True

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop replies, whole or in part; no more is taken of them."""
        for message_id in message_ids:
            upload = self._uploads.pop(message_id, None)
            if upload is not None:
                self._by_session.pop(upload.session_id, None)
                self._drop(upload.contents)

    def _refuse(self, upload: Upload, fault: str) -> None:
        self._by_session.pop(upload.session_id, None)
        self._drop(upload.contents)
        upload.refuse(fault)

    def _drop(self, contents: Mapping[str, Kept]) -> None:
        for kept in contents.values():
            self._spool.drop(kept)


def children_by_object(root: str, tree: Tree, max_nodes: int) -> dict[str, tuple[str, ...]]:
    """Return {object: its children} of a reply's tree. An object named twice must be a leaf: it has no more to walk.

    Raises:
        ReplyRefused: another root, a malformed name, too deep, too many, or an object with children under two parents.
    """
    if tree.object_id != root:
        raise ReplyRefused("reply: its tree must begin with its message")
    children: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[Tree, int]] = [(tree, 1)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen + len(waiting) > max_nodes or len(node.children) > max_nodes:
            raise ReplyRefused(f"reply: must have at most {max_nodes} objects, got more")
        if depth > MAX_DEPTH:
            raise ReplyRefused(f"reply: must be at most {MAX_DEPTH} objects deep, got more")
        names = tuple(child.object_id for child in node.children)
        if _OBJECT_ID.fullmatch(node.object_id) is None:
            raise ReplyRefused("reply: its objects must be named by SHA-256 in hexadecimal")
        if node.object_id in children and (names or children[node.object_id]):
            raise ReplyRefused("reply: an object with parts must be reached by one path, got two")
        children[node.object_id] = names
        waiting += [(child, depth + 1) for child in node.children]
    return children


def _too_long(upload: Upload) -> str:
    return f"reply: must have at most {upload.max_bytes} bytes, got more"


def _check_object(object_id: str, content: bytes, children: tuple[str, ...]) -> None:
    """Raise ReplyRefused unless an object is the one announced. No more of it is cut up than an honest head is long."""
    if hashlib.sha256(content).hexdigest() != object_id:
        raise ReplyRefused("reply: its objects must have the announced SHA-256")
    head, end, _ = content[: _MAX_ENVELOPE_BYTES + 65 * len(children)].partition(HEAD_END)
    parts = head.split(HEAD_DIVIDER)
    if not end or len(parts) != 3 or parts[1] != ",".join(children).encode("ascii"):
        raise ReplyRefused("reply: its objects must name the parts that were announced")
    if parts[2] != str(len(content) - len(head) - 1).encode("ascii"):
        raise ReplyRefused("reply: its objects must have their declared length")


def new_session_id() -> str:
    """Return a name for a session that no other node can guess."""
    return secrets.token_hex(16)
