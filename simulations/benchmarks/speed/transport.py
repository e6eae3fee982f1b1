"""What a vector takes to a node and back, beside as many bytes in one TLS stream between two processes: loopback.

The server is this process, the node another, and nothing is trained: "down" ends when the node's app has the vector as
an array, "up" when the server has the one that the node answers with. Both copy, hash and check as in a round. Down to
several nodes, the vector is the same; the rate counts it once for each.

    python simulations/benchmarks/speed/transport.py [--megabytes 64] [--nodes 1] [--repetitions 3] [--smoke]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from large_model import stream_seconds
from round_overhead import free_port

from agfl_client import keys
from agfl_client.transport.supernode import run_node
from agfl_models.machine import return_freed_memory, usable_cpus
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.messages import wire
from agfl_protocol.messages.array_bytes import new_vector
from agfl_server.federation import federation_folder
from agfl_server.transport.messaging import ask_nodes
from agfl_server.transport.superlink import EmbeddedSuperLink

_PATIENCE_S = 3600.0
_SLACK_BYTES = 1 << 16  # of a reply, beside its vector


@dataclass(frozen=True)
class Trip:
    """Seconds that the slowest node's vector took, and processor seconds of the server and of one node."""

    down: float
    up: float
    server_cpu: float
    node_cpu: float


def main() -> None:
    """Send a vector there and back, and print both rates beside that of a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a small vector, once: does it run?")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.megabytes, arguments.repetitions = 0.1, 1
    prepare_flower()
    size = 4 * int(arguments.megabytes * 1e6 / 4)
    with tempfile.TemporaryDirectory() as name:
        trips, streams = measure(Path(name), arguments.nodes, size, arguments.repetitions)
    print(
        f"{size / 1e6:.1f} MB to {arguments.nodes} nodes and back, {usable_cpus()} processors, "
        f"load average {os.getloadavg()[0]:.1f}, the fastest of {arguments.repetitions}"
    )
    stream = size / min(streams)
    print(f"one TLS stream  {min(streams):6.2f} s  {stream / 1e6:6.0f} MB/s")
    for label, seconds in (("down", [trip.down for trip in trips]), ("up", [trip.up for trip in trips])):
        rate = arguments.nodes * size / min(seconds)
        print(f"{label:<14}  {min(seconds):6.2f} s  {rate / 1e6:6.0f} MB/s  {rate / stream:.2f} of the stream")
    cpu = statistics.median(trip.server_cpu for trip in trips), statistics.median(trip.node_cpu for trip in trips)
    print(f"processor seconds there and back: server {cpu[0]:.2f}, a node {cpu[1]:.2f}")


def measure(folder: Path, num_nodes: int, size: int, repetitions: int) -> tuple[list[Trip], list[float]]:
    """Return the trips of a vector of `size` bytes, and the seconds of a stream of as many before each."""
    names = [f"node{i}" for i in range(num_nodes)]
    federation_folder.init(folder / "federation", "", [])
    for name in names:
        federation_folder.add_node(folder / "federation", name, keys.generate(name, folder / name))
    federation, port = federation_folder.load(folder / "federation"), free_port()
    fork = multiprocessing.get_context("fork")  # before there are threads
    nodes = [fork.Process(target=serve, args=(folder, name, port, size), daemon=True) for name in names]
    for node in nodes:
        node.start()
    return_freed_memory()  # as agfl-server does
    trips, streams = list[Trip](), list[float]()
    with EmbeddedSuperLink(
        federation.nodes, certificate=federation.certificate, key=federation.key, port=port, spool=folder
    ) as link:
        while len(ids := list(link.grid.get_node_ids())) < num_nodes:
            if not all(node.is_alive() for node in nodes):
                raise SystemExit("a node has ended")
            time.sleep(0.05)
        for number in range(repetitions):
            streams.append(stream_seconds(folder / "federation", size))
            trips.append(trip(link, ids, size, number))
        finish(link, ids, nodes)
    return trips, streams


def trip(link: EmbeddedSuperLink, ids: Sequence[int], size: int, number: int) -> Trip:
    """Send each node the same new vector, and wait for theirs."""
    vector = new_vector(np.float32, size // 4)
    vector[:] = np.random.default_rng(number).standard_normal(vector.size, np.float32)
    wanted, cpu, started = float(vector[-1]), time.process_time(), time.monotonic()
    content = wire.new_record({}, {"vector": vector})
    del vector
    requests = [Message(content, node, "train") for node in ids]
    taken_at, left_at, node_cpu = list[float](), list[float](), 0.0
    for _, reply in ask_nodes(link.grid, requests, _PATIENCE_S, size + _SLACK_BYTES):
        if reply.has_error():
            raise SystemExit(f"a node: {reply.error.reason}")
        if wire.read_vector(reply.content, "vector", np.float32)[-1] != -wanted:
            raise SystemExit("the vector that came back is not the one that left")
        taken_at.append(wire.read_scalar(reply.content, "taken_at_ns", int) / 1e9)
        left_at.append(wire.read_scalar(reply.content, "left_at_ns", int) / 1e9)
        node_cpu = wire.read_scalar(reply.content, "cpu_ns", int) / 1e9
    up = time.monotonic() - min(left_at)
    return Trip(max(taken_at) - started, up, time.process_time() - cpu, node_cpu)


def finish(link: EmbeddedSuperLink, ids: Sequence[int], nodes: Sequence[ForkProcess]) -> None:
    """Let the nodes end."""
    list(ask_nodes(link.grid, [Message(wire.acknowledgment(), node, wire.FINISH) for node in ids], 30))
    for node in nodes:
        node.join(30)


def serve(folder: Path, name: str, port: int, size: int) -> None:
    """Be a node that answers with the vector that it got, its sign changed."""
    own, finished, app = keys.load(folder / name), threading.Event(), ClientApp()
    cpu = [time.process_time_ns()]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        vector = wire.read_vector(message.content, "vector", np.float32)
        taken_at = time.monotonic_ns()
        answer = new_vector(np.float32, vector.size)
        np.negative(vector, out=answer)
        cpu.append(time.process_time_ns())
        facts = {"taken_at_ns": taken_at, "left_at_ns": time.monotonic_ns(), "cpu_ns": cpu[-1] - cpu.pop(0)}
        return Message(wire.new_record({**facts}, {"vector": answer}), reply_to=message)

    @app.query("finish")
    def leave(message: Message, context: Context) -> Message:
        finished.set()
        return Message(wire.acknowledgment(), reply_to=message)

    run_node(
        f"127.0.0.1:{port}",
        folder / "federation" / "ca.pem",
        own.transport,
        app,
        stop=threading.Event(),
        finished=finished.is_set,
        max_wait_s=60,
        allowance=lambda kind, header: size + _SLACK_BYTES,
    )


if __name__ == "__main__":
    main()
