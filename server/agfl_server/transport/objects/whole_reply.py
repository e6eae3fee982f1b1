"""A reply that has arrived whole, read from the disk and put together: a node may have sent any bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from agfl_protocol.messages.array_bytes import joined
from agfl_server.aggregation.uploads import ReplyRefused, Upload
from agfl_server.transport.limits import SMALL_REPLY_BYTES
from agfl_server.transport.log_limits import one_line
from agfl_server.transport.objects.spool import Spool, size_of


@dataclass(frozen=True)
class WholeReply:
    """What came of `instruction`: an upload that is complete, or that has a fault."""

    instruction: Message
    upload: Upload
    spool: Spool

    def inflate(self) -> Message:
        """Return the reply; its metadata come from our instruction, since a node may write there anything."""
        upload = self.upload
        try:
            arrays = {} if upload.fault else self._arrays()
            if upload.fault or sum(self._array_bytes(content) for content in arrays.values()) > upload.max_bytes:
                fault = f"reply: must have at most {upload.max_bytes} bytes, got more in repeated parts"
                return self._error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, upload.fault or fault)
            found: dict[str, InflatableObject] = {
                object_id: joined(content, self._read) for object_id, content in arrays.items()
            }
            pieces = {piece for object_id in arrays for piece in upload.children[object_id]}
            others = self._small([object_id for object_id in upload.contents if object_id not in pieces])
            reply = inflate_object_from_contents(upload.root, others, objects=found)
            assert isinstance(reply, Message)
            if reply.has_error():
                return self._error(reply.error.code, reply.error.reason or "")
            return Message(reply.content, reply_to=self.instruction)
        except OSError as error:
            raise self.spool.failed(error) from None
        except ReplyRefused as error:
            return self._error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, str(error))
        except Exception as error:  # a node may send any bytes; they must not stop the round
            return self._error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, f"malformed reply: {type(error).__name__}")

    def _error(self, code: int, reason: str) -> Message:
        return Message(Error(code, one_line(reason)), reply_to=self.instruction)

    def _read(self, object_id: str) -> bytes:
        return self.spool.read(self.upload.contents[object_id])

    def _arrays(self) -> dict[str, bytes]:
        """Return the objects that say what their arrays are."""
        inner = self._small([object_id for object_id, parts in self.upload.children.items() if parts])
        return {name: one for name, one in inner.items() if get_object_type_from_object_content(one) == "Array"}

    def _small(self, object_ids: Sequence[str]) -> dict[str, bytes]:
        """Read what is no piece of an array; Flower unpacks it value by value, which takes seconds for many."""
        num_bytes = sum(size_of(self.upload.contents[object_id]) for object_id in object_ids)
        if num_bytes > SMALL_REPLY_BYTES:
            raise ReplyRefused(f"reply: must have at most {SMALL_REPLY_BYTES} bytes beside its arrays, got {num_bytes}")
        return {object_id: self._read(object_id) for object_id in object_ids}

    def _array_bytes(self, content: bytes) -> int:
        """Return the size of an array, which may repeat a part of 5 MiB as often as it likes."""
        parts = get_object_children_ids_from_object_content(content)
        repeated = json.loads(content.partition(b"\x00")[2])["arraychunk_ids"]
        return sum(size_of(self.upload.contents[parts[i]]) for i in repeated)
