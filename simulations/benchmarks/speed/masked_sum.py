"""Peak memory and seconds of one masked sum of long vectors: a server and nodes that do not train, TLS on loopback.

Each node is a process that draws its vector from its number; the server, this process, does what it does in a round up
to the opened sum, journal and all, and then compares that with the sum of what was drawn, lane by lane. A vector has
four bytes a parameter. The rate counts each vector once, against as many bytes through one TLS connection.

    python simulations/benchmarks/speed/masked_sum.py [--parameters 25e6] [--nodes 3] [--smoke]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from large_model import BYTES, Peaks, peak_of, stream_seconds
from round_overhead import free_port

from agfl_client import keys
from agfl_client.ledger.ledger_state import Asked
from agfl_client.policy import Policy
from agfl_client.secure.secure_member import SecureMember, SumRules
from agfl_client.transport.supernode import run_node
from agfl_models.machine import return_freed_memory, usable_cpus
from agfl_protocol.flower_settings import prepare_flower
from agfl_protocol.identity.roster_file import roster_of
from agfl_protocol.messages import secure_wire, wire
from agfl_protocol.messages.array_bytes import new_vector
from agfl_protocol.plans.sum_kind import Kind
from agfl_protocol.secagg.identity import SigningRoster
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.quantization import QuantizationPlan
from agfl_server.aggregation.secure_sum import SecureSum
from agfl_server.federation import federation_folder
from agfl_server.rounds.journal import Journal
from agfl_server.rounds.observer import Observer
from agfl_server.transport.messaging import ask_nodes
from agfl_server.transport.superlink import EmbeddedSuperLink

_CHUNK = 2**20  # lanes
_PATIENCE_S = 3600.0
_COLLUDERS = 1


@dataclass(frozen=True)
class Vectors:
    """What a sum needs to know of its vectors."""

    num_lanes: int

    def check(self, lanes: Lanes) -> None:
        """Nobody sees one."""


def main() -> None:
    """Sum once, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=25e6)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="small vectors: does it run?")
    arguments = parser.parse_args()
    num_lanes = -(-int(4e3 if arguments.smoke else arguments.parameters) // 2)
    prepare_flower()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), arguments.nodes, num_lanes)


def measure(folder: Path, num_nodes: int, num_lanes: int) -> None:
    """Run the nodes, sum, and print."""
    names = [f"node{i}" for i in range(num_nodes)]
    federation_folder.init(folder / "federation", "", [])
    for name in names:
        federation_folder.add_node(folder / "federation", name, keys.generate(name, folder / name))
    federation, port = federation_folder.load(folder / "federation"), free_port()
    roster = roster_of(federation.nodes)
    fork = multiprocessing.get_context("fork")  # before there are threads
    nodes = [
        fork.Process(target=serve, args=(folder, i, roster, port, num_lanes), daemon=True) for i in range(num_nodes)
    ]
    for node in nodes:
        node.start()
    return_freed_memory()  # as agfl-server does
    processes = {name: int(node.pid or 0) for name, node in zip(names, nodes, strict=True)} | {"server": os.getpid()}
    before = {name: peak_of(pid) or 0 for name, pid in processes.items()}
    peaks = Peaks(processes)
    watcher = threading.Thread(target=peaks.watch)
    watcher.start()
    try:
        total, seconds = summed(folder, federation, roster, port, num_lanes, nodes)
    finally:
        peaks.done.set()
        watcher.join()
    check(total, num_nodes)
    size = 8 * num_lanes
    del total
    stream = stream_seconds(folder / "federation", size)
    print(
        f"{num_nodes} vectors of {size / 1e6:.0f} MB ({size // BYTES:,} parameters), masked, {usable_cpus()} "
        f"processors, load average {os.getloadavg()[0]:.1f}: the sum is that of what was drawn"
    )
    for name, peak in peaks.found.items():
        above = peak - before[name]
        vectors = f"{above / size:.1f} vectors above its start"
        print(f"{name:<8} peak {peak / 1e6:7.0f} MB, {above / 1e6:7.0f} MB = {vectors}")
    print(f"the sum: {seconds:.2f} s, {num_nodes * size / seconds / 1e6:.0f} MB/s of all trips and masks")
    print(f"one vector through one TLS stream: {stream:.2f} s, {size / stream / 1e6:.0f} MB/s")


def summed(
    folder: Path,
    federation: federation_folder.FederationFolder,
    roster: SigningRoster,
    port: int,
    num_lanes: int,
    nodes: Sequence[ForkProcess],
) -> tuple[Lanes, float]:
    """Be the server until the sum is opened; return it (num_lanes,), and the seconds that it took."""
    rule = Policy(max_colluders=_COLLUDERS, min_cohort=len(nodes)).parameters(len(nodes))
    request = wire.RoundRequest(
        run_id="benchmark",
        round=1,
        exchange=1,
        plan_hash="0" * 64,
        client_plan="{}",
        evaluate=False,
        train=True,
        model=np.zeros(1, np.float32),
        plan=QuantizationPlan(2, len(nodes)),
    )
    journal = Journal(folder)
    journal.begin(request.run_id)
    records = journal.open(replace(journal.current(0), is_open=True, request=request.broadcast_hash.hex()))
    aggregator = SecureSum(Observer(), roster, rule, _PATIENCE_S)
    certificate, key = federation.certificate, federation.key
    with EmbeddedSuperLink(federation.nodes, certificate=certificate, key=key, port=port, spool=folder) as link:
        while len(ids := list(link.grid.get_node_ids())) < len(nodes):
            if not all(node.is_alive() for node in nodes):
                raise SystemExit("a node has ended")
            time.sleep(0.1)
        cohort, started = {str(link.registered_name(node)): node for node in ids}, time.monotonic()
        found = aggregator.sum(link.grid, cohort, request, Vectors(num_lanes), _PATIENCE_S, records=records)
        seconds = time.monotonic() - started
        list(ask_nodes(link.grid, [Message(wire.acknowledgment(), node, wire.FINISH) for node in ids], 30))
        for node in nodes:
            node.join(30)
    return found.lanes, seconds


def serve(folder: Path, number: int, roster: SigningRoster, port: int, num_lanes: int) -> None:
    """Be a node until the sum is opened."""
    own, finished = keys.load(folder / f"node{number}"), threading.Event()
    policy = Policy(max_colluders=_COLLUDERS, min_cohort=len(roster))
    member = SecureMember(own.name, own.signing, roster, policy, folder / own.name)
    run_node(
        f"127.0.0.1:{port}",
        folder / "federation" / "ca.pem",
        own.transport,
        app_of(member, number, num_lanes, finished),
        stop=threading.Event(),
        finished=finished.is_set,
        max_wait_s=60,
    )


def app_of(member: SecureMember, number: int, num_lanes: int, finished: threading.Event) -> ClientApp:
    """Return an app that answers as a node's does, without training."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        request = wire.RoundRequest.from_record(message.content)
        asked = Asked(Kind.SAMPLED, train=True, evaluate=False, count=False, cohort=len(member.names))
        member.ledger.approve(request.run_id, request.plan_hash)
        lanes: Lanes = new_vector(np.uint64, num_lanes)
        for start, chunk in drawn(number, num_lanes):
            lanes[start : start + chunk.size] = chunk
        return Message(member.advertise(request, SumRules(asked, member.names, ()), lanes), reply_to=message)

    trips = {
        secure_wire.SHARE: member.share,
        secure_wire.MASK: member.mask,
        secure_wire.AGREE: member.agree,
        secure_wire.UNMASK: member.unmask,
    }

    def answer(take: Callable[[RecordDict], RecordDict]) -> Callable[[Message, Context], Message]:
        return lambda message, context: Message(take(message.content), reply_to=message)

    for kind, take in trips.items():
        app.query(kind.partition(".")[2])(answer(take))

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        finished.set()
        return Message(wire.acknowledgment(), reply_to=message)

    return app


def drawn(number: int, num_lanes: int) -> Iterator[tuple[int, Lanes]]:
    """Yield the vector of a node (num_lanes,), of which the first lane counts it, in chunks: (first, lanes)."""
    numbers = np.random.SFC64(number)
    for start in range(0, num_lanes, _CHUNK):
        chunk: Lanes = numbers.random_raw(min(_CHUNK, num_lanes - start))
        chunk[: int(start == 0)] = 1
        yield start, chunk


def check(total: Lanes, num_nodes: int) -> None:
    """End with an error where a sum is not that of what was drawn."""
    for parts in zip(*(drawn(number, total.size) for number in range(num_nodes)), strict=True):
        start, wanted = parts[0][0], np.sum([chunk for _, chunk in parts], axis=0, dtype=np.uint64)
        if not np.array_equal(total[start : start + wanted.size], wanted):
            raise SystemExit(f"the opened sum is wrong in lanes from {start} on")


if __name__ == "__main__":
    main()
