"""What the server sends, in Flower's object store and on disk: a large object once for all nodes that it goes to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from agfl_server.transport.objects.spool import Place, Spool


class SentObjects(InMemoryObjectStore):
    """Flower's object store, whose large objects are in a spool.

    The event loop asks it where objects are, so its own lock is never held while the disk is waited for.
    """

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool
        self._places: dict[str, Place] = {}
        self._readers: Counter[Place] = Counter()
        self._left: set[Place] = set()
        self._lock = threading.Lock()  # of these three; the store's may be held when it is taken, never the other way

    def put(self, object_id: str, object_content: bytes) -> None:
        super().put(object_id, object_content)
        if object_id in self._places:
            return
        kept = self.spool.keep(object_content)
        if not isinstance(kept, Place):
            return
        with self.lock_store, self._lock:
            is_first = object_id in self.store and object_id not in self._places
            if is_first:
                self._places[object_id] = kept
                self.store[object_id].content = b""
        if not is_first:
            self.spool.drop(kept)

    def get(self, object_id: str) -> bytes | None:
        with self.reading(object_id) as place:
            if place is not None:
                return self.spool.read(place)
        content = super().get(object_id)
        return content if content or object_id not in self._places else self.get(object_id)  # it has just gone to disk

    def delete(self, object_id: str) -> None:
        with self.lock_store:
            super().delete(object_id)  # which deletes the parts by this method
            if object_id in self.store:
                return
            with self._lock:
                place = self._places.pop(object_id, None)
                if place is not None and self._readers[place]:
                    self._left.add(place)  # its room may be another owner's next
                    place = None
        if place is not None:
            self.spool.drop(place)

    @contextmanager
    def reading(self, object_id: str) -> Iterator[Place | None]:
        """Hold a large object where it is, also if it is deleted; None where it is small, or not there."""
        with self._lock:
            place = self._places.get(object_id)
            if place is not None:
                self._readers[place] += 1
        if place is None:
            yield None
            return
        try:
            yield place
        finally:
            with self._lock:
                self._readers[place] -= 1
                is_left = not self._readers[place] and place in self._left
                if not self._readers[place]:
                    del self._readers[place]
                    self._left.discard(place)
            if is_left:
                self.spool.drop(place)
