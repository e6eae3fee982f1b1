"""What the server sends, in Flower's object store and on disk: a large object once for all nodes that it goes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from agfl_server.transport.objects.spool import Kept, Place, Spool


class SentObjects(InMemoryObjectStore):
    """Flower's object store, whose large objects are in a spool."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool
        self._places: dict[str, Kept] = {}
        self._readers: Counter[Place] = Counter()
        self._left: set[Place] = set()

    def put(self, object_id: str, object_content: bytes) -> None:
        super().put(object_id, object_content)
        with self.lock_store:
            if object_id not in self._places:
                self._places[object_id] = self.spool.keep(object_content)
                self.store[object_id].content = b""

    def get(self, object_id: str) -> bytes | None:
        with self.lock_store:
            kept = self._places.get(object_id)
            return super().get(object_id) if kept is None else self.spool.read(kept)

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)  # which deletes the parts by this method
            if object_id not in self.store and (kept := self._places.pop(object_id, None)) is not None:
                if isinstance(kept, Place) and self._readers[kept]:
                    self._left.add(kept)  # its room may be another owner's next
                else:
                    self.spool.drop(kept)

    @contextmanager
    def reading(self, object_id: str) -> Iterator[Place | None]:
        """Hold a large object where it is, also if it is deleted; None where it is small, or not there."""
        with self.lock_store:
            place = self._places.get(object_id)
            if isinstance(place, Place):
                self._readers[place] += 1
        if not isinstance(place, Place):
            yield None
            return
        try:
            yield place
        finally:
            with self.lock_store:
                self._readers[place] -= 1
                if not self._readers[place]:
                    del self._readers[place]
                    if place in self._left:
                        self._left.remove(place)
                        self.spool.drop(place)
