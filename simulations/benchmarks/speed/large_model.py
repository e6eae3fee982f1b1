"""Peak memory of a server and its nodes, in models, and seconds a round: real processes, TLS on loopback, one step.

Each process's peak (VmHWM, so shared libraries and all) is compared with that of the same federation and a model of a
few thousand parameters, which is what it takes before there is a model: the difference, over four bytes a parameter, is
in models. The server's optimizer is fedavg, which keeps nothing; the default, auto, keeps several. A stream of as
many bytes through one TLS connection between two processes says what the machine can do.

    python simulations/benchmarks/speed/large_model.py [--parameters 12.4e6] [--nodes 3] [--rounds 3] [--secure]
        [--optimizer adamw] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import socket
import ssl
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from round_overhead import Started, background, command, free_port, wait_for_all

from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import load_run_config

BYTES = 4  # of a parameter
SMALL = 4e3
CONFIG = """
num_rounds: {rounds}
task: {{type: language_modeling, sequence_length: 8}}
model: {{vocab_size: 259, dim: {dim}, layers: [{{repeat: {repeat}, layers: [{{type: ff, hidden_dim: {hidden}}}]}}]}}
training: {{batch_size: 1, local_steps: 1, optimizer: {{type: {optimizer}, lr: 0.01}}}}
aggregation: {aggregation}
evaluation: {{every: 1000000, max_examples: 1}}
"""
_SAMPLE_S = 0.02
_BLOCK = 2**20  # bytes that a stream is written in


@dataclass(frozen=True)
class Measured:
    """What one federation took. peaks: of each process by name, in bytes; seconds: of each round but the first."""

    parameters: int
    peaks: dict[str, int]
    seconds: list[float]


@dataclass
class Peaks:
    """Reads the peaks of processes as long as they live."""

    processes: dict[str, int]
    found: dict[str, int] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Read until `done` is set."""
        while not self.done.wait(_SAMPLE_S):
            for name, pid in self.processes.items():
                if (peak := peak_of(pid)) is not None:
                    self.found[name] = peak


def peak_of(pid: int) -> int | None:
    """Return the most memory that a process has had, in bytes; None once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def main() -> None:
    """Measure a small model and the large one, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=12.4e6)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secure", action="store_true", help="secure sums instead of plain ones")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--smoke", action="store_true", help="one node and the small model only: does it run?")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.parameters, arguments.nodes, arguments.rounds = SMALL, 1, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = measure(folder / "large", arguments, arguments.parameters)
        small = large if arguments.smoke else measure(folder / "small", arguments, SMALL)
        stream = stream_seconds(folder / "large" / "federation", BYTES * large.parameters)
    kind = "secure" if arguments.secure else "plain"
    size = BYTES * large.parameters
    print(
        f"{large.parameters:,} parameters ({size / 1e6:.0f} MB), {arguments.nodes} nodes, {kind}, "
        f"{arguments.optimizer}, {usable_cpus()} processors, load average {os.getloadavg()[0]:.1f}"
    )
    for process, peak in large.peaks.items():
        above = peak - small.peaks[process]
        models = f"{above / size:5.1f} models above its start"
        print(f"{process:<8} peak {peak / 1e6:7.0f} MB, {above / 1e6:7.0f} MB = {models}")
    print(f"a round  p50 {statistics.median(large.seconds):.2f} s, n = {len(large.seconds)}")
    print(f"one model through one TLS stream: {stream:.2f} s, {size / stream / 1e6:.0f} MB/s")


def config_text(arguments: argparse.Namespace, parameters: float) -> str:
    """Return a configuration of a model of about so many parameters: more of the same layer until there are enough."""
    rule = {"type": "secure", "max_colluders": 1} if arguments.secure else {"type": "plain"}
    dim = 512 if parameters > 1e6 else 8
    rest = {
        "rounds": arguments.rounds,
        "dim": dim,
        "hidden": 4 * dim,
        "optimizer": arguments.optimizer,
        "aggregation": json.dumps({**rule, "min_cohort": arguments.nodes, "server_optimizer": {"type": "fedavg"}}),
    }
    return CONFIG.format(repeat=max(1, round((parameters - 259 * dim) / (12 * dim * dim))), **rest)


def measure(folder: Path, arguments: argparse.Namespace, parameters: float) -> Measured:
    """Run a federation to its end."""
    folder.mkdir()
    config, federation, nodes = folder / "run.yaml", folder / "federation", arguments.nodes
    config.write_text(config_text(arguments, parameters))
    command("agfl-server", "init", federation, "--config", config)
    for i in range(nodes):
        keys = folder / f"keys{i}"
        command("agfl-client", "keygen", f"node{i}", "--keys", keys)
        command("agfl-server", "add-node", f"node{i}", keys / f"node{i}.pub", "--federation", federation)
    rules: tuple[object, ...] = ()
    if arguments.secure:
        command("agfl-server", "roster", folder / "roster.yaml", "--federation", federation)
        rules = ("--roster", folder / "roster.yaml")
    (folder / "text.txt").write_text("to be, or not to be\n\nthat is the question\n")
    (folder / "policy.yaml").write_text(f"allow_plain: true\nruns: all\nmax_parameters: {2 * int(parameters)}\n")
    with ExitStack() as processes:
        port = free_port()
        start = ("agfl-server", "start", "--federation", federation, "--port", port)
        running = {"server": background(processes, folder / "server.log", *start)}
        for i in range(nodes):
            address = ("--server", f"127.0.0.1:{port}", "--ca", federation / "ca.pem")
            own = ("--keys", folder / f"keys{i}", "--data", folder / "text.txt", "--policy", folder / "policy.yaml")
            log = folder / f"node{i}.log"
            running[f"node{i}"] = background(processes, log, "agfl-client", "start", *address, *own, *rules, "--once")
        peaks = watched(running)
    rows = [json.loads(line) for line in (federation / "run" / "metrics.jsonl").read_text().splitlines()]
    parameters_made = load_run_config(config).model.num_parameters()
    return Measured(parameters_made, peaks, [row["seconds"] for row in rows if row["round"] > 1])


def watched(running: dict[str, Started]) -> dict[str, int]:
    """Wait for all to end; return their peaks, in bytes."""
    peaks = Peaks({name: one.process.pid for name, one in running.items()})
    watcher = threading.Thread(target=peaks.watch)
    watcher.start()
    try:
        wait_for_all(list(running.values()), 3600)
    finally:
        peaks.done.set()
        watcher.join()
    return peaks.found


def stream_seconds(federation: Path, size: int) -> float:
    """Return how long `size` bytes take from one process to another, in one TLS connection with our certificate."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = multiprocessing.get_context("fork").Process(
            target=send, args=(listener.getsockname()[1], federation / "ca.pem", size)
        )
        sender.start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(federation / "server.pem", federation / "server.key")
        stream = context.wrap_socket(listener.accept()[0], server_side=True)
        buffer, left, started = bytearray(_BLOCK), size, time.monotonic()
        while left and (got := stream.recv_into(buffer)):
            left -= got
        seconds = time.monotonic() - started
        stream.sendall(b"1")
        stream.close()
        sender.join()
    if left:
        raise SystemExit(f"the stream ended {left} bytes early")
    return seconds


def send(port: int, ca: Path, size: int) -> None:
    """Write `size` bytes to whoever listens."""
    context = ssl.create_default_context(cafile=str(ca))
    block = bytes(_BLOCK)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1") as stream:
        for start in range(0, size, _BLOCK):
            stream.sendall(block[: size - start])
        stream.recv(1)  # who closes with something unread breaks the connection


if __name__ == "__main__":
    main()
