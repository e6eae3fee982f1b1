"""A Grid over workers: each owner stays with one, which keeps its data and model warm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from heapq import heapify, heapreplace

from flwr.app import Message

from agfl_sim.engines.grid import LocalGrid, deflated_together
from agfl_sim.engines.opened_owners import Populous
from agfl_sim.engines.workers.worker_handle import Letter, WorkerHandle
from agfl_sim.population import Population

_THREADS = 2  # a worker's: while one waits for a reply, the other makes the next message


class WorkerGrid(LocalGrid):
    """Takes each message to the worker of its node; `worker_of` holds every node."""

    def __init__(self, worker_of: Mapping[int, WorkerHandle], workers: Sequence[WorkerHandle]) -> None:
        super().__init__(worker_of.nodes if isinstance(worker_of, Dealt) else worker_of, waits_for_all=True)
        self._worker_of, self._workers = worker_of, workers
        self._bytes: Iterator[tuple[str, Mapping[str, bytes]]] = iter(())  # of the push under way
        self._pools = {worker: ThreadPoolExecutor(_THREADS, thread_name_prefix="worker") for worker in self._workers}

    def __enter__(self) -> WorkerGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what has not begun, and end all workers in whatever they do: what is on disk is whole at any moment."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As of any grid. An object that several nodes get among `messages` is made once, and sent once to a worker."""
        messages = list(messages)
        for worker in {self._worker_of[message.metadata.dst_node_id] for message in messages}:
            worker.begin_batch(messages[0].metadata.message_type)
        self._bytes = iter(deflated_together(messages))
        try:
            return super().push_messages(messages)
        finally:
            self._bytes = iter(())  # a model

    def _submit(self, message: Message, message_id: str) -> Future[Message]:
        worker = self._worker_of[message.metadata.dst_node_id]
        object_id, objects = next(self._bytes)
        letter = Letter(message.metadata.dst_node_id, message.metadata.message_type, object_id, objects)
        return self._pools[worker].submit(worker.answer, letter, message_id)


class WorkerPopulationGrid(Populous, WorkerGrid):
    """A grid of a population's nodes in workers."""

    def __init__(self, population: Population, worker_of: Dealt, workers: Sequence[WorkerHandle]) -> None:
        super().__init__(worker_of, workers)
        self.population = population


class Dealt(Mapping[int, WorkerHandle]):
    """Nodes of a range, dealt out to workers in turn."""

    def __init__(self, nodes: range, workers: Sequence[WorkerHandle]) -> None:
        self.nodes, self._workers = nodes, workers

    def __getitem__(self, node: int) -> WorkerHandle:
        return self._workers[self.nodes.index(node) % len(self._workers)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def shared_out(costs: Mapping[int, float], num_workers: int) -> Sequence[Sequence[int]]:
    """Return which nodes each worker has: the costliest first, each to the one that has least to do."""
    heap = [(0.0, number, list[int]()) for number in range(min(num_workers, len(costs)))]
    heapify(heap)
    for node in sorted(costs, key=lambda node: (-costs[node], node)):
        load, number, nodes = heap[0]
        nodes.append(node)
        heapreplace(heap, (load + costs[node], number, nodes))
    return [nodes for _, _, nodes in sorted(heap, key=lambda entry: entry[1])]
