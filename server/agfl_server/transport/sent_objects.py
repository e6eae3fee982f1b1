"""What the server sends, in Flower's object store and on disk: a large object once for all nodes that it goes to."""

from __future__ import annotations

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from agfl_server.transport.spool import Kept, Spool


class SentObjects(InMemoryObjectStore):
    """Flower's object store, whose large objects are in a spool."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool = spool
        self._places: dict[str, Kept] = {}

    def put(self, object_id: str, object_content: bytes) -> None:
        super().put(object_id, object_content)
        with self.lock_store:
            if object_id not in self._places:
                self._places[object_id] = self._spool.keep(object_content)
                self.store[object_id].content = b""

    def get(self, object_id: str) -> bytes | None:
        with self.lock_store:
            kept = self._places.get(object_id)
            return super().get(object_id) if kept is None else self._spool.read(kept)

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)  # which deletes the parts by this method
            if object_id not in self.store and (kept := self._places.pop(object_id, None)) is not None:
                self._spool.drop(kept)
