"""20,000 hostile requests at a server while three owners train: do rounds go on, and what does it cost the server?

    python simulations/benchmarks/hostile/hostile_requests.py [--smoke] [--requests 20000]

Half of them come from strangers, half are signed with the key of a fourth owner, who is registered and trains nothing.
All are drawn from a seed: slow, large, deep, many, malformed. Prints the figures; exits with 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

from hostile_calls import Caller, Peer
from hostile_kinds import SIGNED, UNSIGNED

from agfl_client.cli import app as client_app
from agfl_server.cli import app as server_app

COMMANDS = {"agfl-client": client_app, "agfl-server": server_app}
BIN = Path(sys.executable).parent
OWNERS = ("alice", "bob", "carol", "mallory")
CONFIG = """
seed: 1
num_rounds: 1000000
task: {type: language_modeling, sequence_length: 32}
model: {vocab_size: 259, dim: 16, layers: [{type: rnn, cell: mingru}, {type: ff}]}
training: {optimizer: {type: sgd, lr: 0.3}, batch_size: 2, local_steps: 2}
aggregation: {type: secure, server_optimizer: {type: nesterov}, round_timeout_s: 60, min_cohort: 3}
evaluation: {every: 1000, max_examples: 16}
data: {path: owners}
"""
MAX_RSS_GROWTH_MB, MAX_HEALTH_S, MAX_LOG_MB = 200, 1.0, 10


@dataclass
class Federation:
    """A server and three owners as processes, in a folder of their own."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def run(self, *arguments: str) -> None:
        """Run one of our commands to its end, in this process: it takes less long than to start another one."""
        with chdir(self.folder), redirect_stdout(io.StringIO()):
            COMMANDS[arguments[0]](arguments[1:], standalone_mode=False)

    def start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of our commands."""
        with (self.folder / log).open("wb") as file:
            command = [str(BIN / arguments[0]), *arguments[1:]]
            process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file)
        self.processes.append(process)
        self.logs.append(self.folder / log)
        return process

    def prepare(self) -> None:
        """Make keys, certificates and text."""
        (self.folder / "run.yaml").write_text(CONFIG)
        (self.folder / "policy.yaml").write_text("{runs: all, min_cohort: 3}")  # one of four is never honest
        (self.folder / "owners").mkdir()
        self.run("agfl-server", "init", "fed", "--config", "run.yaml")
        for name in OWNERS:
            rows = [json.dumps({"text": f"sun moon rain hill {name} {i} " * 8}) + "\n" for i in range(12)]
            (self.folder / "owners" / f"{name}.jsonl").write_text("".join(rows))
            self.run("agfl-client", "keygen", name, "--keys", f"keys/{name}")
            self.run("agfl-server", "add-node", name, f"keys/{name}/{name}.pub", "--federation", "fed")
        self.run("agfl-server", "roster", "roster.yaml", "--federation", "fed")

    def begin(self) -> subprocess.Popen[bytes]:
        """Start all but mallory; return the server once a round is done."""
        server = self.start("server.log", "agfl-server", "start", "--federation", "fed", "--port", str(self.port))
        for name in OWNERS[:3]:
            place = ["--server", f"127.0.0.1:{self.port}", "--ca", "fed/ca.pem", "--keys", f"keys/{name}"]
            place += ["--data", f"owners/{name}.jsonl", "--roster", "roster.yaml", "--policy", "policy.yaml"]
            self.start(f"{name}.log", "agfl-client", "start", *place)
        self.wait_for_rounds(1, 600)
        return server

    def wait_for_rounds(self, rounds: int, timeout_s: float) -> None:
        """Return once so many rounds are done."""
        deadline = time.monotonic() + timeout_s
        while self.rounds < rounds:
            for process, log in zip(self.processes, self.logs, strict=True):
                assert process.poll() is None, f"{log.stem} ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    @property
    def rounds(self) -> int:
        """Rounds done so far."""
        return len(re.findall(rb"round \d+ done", (self.folder / "server.log").read_bytes()))

    def end(self) -> None:
        """Stop what was started."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


class Watch:
    """Looks at the server twice a second: memory, and how long /health takes."""

    def __init__(self, pid: int, peer: Peer) -> None:
        self._pid, self._peer, self._done = pid, peer, threading.Event()
        self.before_mb = self.peak_mb = rss_mb(pid)
        self.health_s: list[float] = []
        self._threads = [threading.Thread(target=look, daemon=True) for look in (self._look, self._ask)]
        for thread in self._threads:
            thread.start()

    def worst_health_s(self) -> float:
        """Return how long /health took at most."""
        return max(self.health_s, default=30.0)

    def end(self) -> None:
        """Look no longer."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.peak_mb = max(self.peak_mb, rss_mb(self._pid))

    def _ask(self) -> None:
        while not self._done.wait(0.5):
            begin = time.monotonic()
            try:
                reply = self._peer.ask(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 30.0)
            except OSError:
                reply = b""
            took = time.monotonic() - begin
            self.health_s.append(took if reply.startswith(b"HTTP/1.1 200") else 30.0)


def rss_mb(pid: int) -> float:
    """Return the memory that a process holds; 0 where it is gone."""
    with suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def attack(
    port: int, folder: Path, requests: int, seed: int, workers: int, seconds: float, answers: Queue[dict[str, int]]
) -> None:
    """Make the requests, within the time, from many threads of a process of its own; put how they were answered."""
    caller = Caller(peer_of(port, folder), folder / "keys/mallory")
    rng = random.Random(seed)
    kinds = [rng.choice(UNSIGNED if i % 2 else SIGNED) for i in range(requests)]
    seeds = [rng.randrange(2**63) for _ in kinds]
    made: list[int] = []

    end = time.monotonic() + seconds

    def make(index: int) -> None:
        if time.monotonic() > end:
            return
        made.append(index)
        with suppress(OSError):
            kinds[index](caller, random.Random(seeds[index]))
        if index % 1000 == 999:
            print(f"{index + 1} requests", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(make, range(requests)))
    caller.close()
    answers.put({"made": len(made), **dict(sorted(caller.answers.items()))})


def peer_of(port: int, folder: Path) -> Peer:
    """Return the federation's port."""
    return Peer(port, ssl.create_default_context(cafile=str(folder / "fed/ca.pem")))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> int:
    """Run the federation and the attack, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="300 requests, and no bound on /health")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=3600.0, help="make no further requests after so long")
    options = parser.parse_args()
    requests = 300 if options.smoke else options.requests
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), free_port())
        try:
            federation.prepare()
            server = federation.begin()
            watch = Watch(server.pid, peer_of(federation.port, federation.folder))
            time.sleep(10 if not options.smoke else 1)
            calm_s, rounds_before = watch.worst_health_s(), federation.rounds
            begin = time.monotonic()
            answers: Queue[dict[str, int]] = get_context("forkserver").Queue()
            arguments = (
                federation.port,
                federation.folder,
                requests,
                options.seed,
                options.workers,
                options.seconds,
                answers,
            )
            attacker = get_context("forkserver").Process(target=attack, args=arguments)
            attacker.start()
            answered = answers.get()
            attacker.join()
            seconds, rounds_during = time.monotonic() - begin, federation.rounds - rounds_before
            federation.wait_for_rounds(federation.rounds + 1, 120)
            time.sleep(0 if options.smoke else 10)
            watch.end()
            rounds_after = federation.rounds - rounds_before - rounds_during
            figures = {
                "requests": answered.pop("made"),
                "kinds": len(SIGNED) + len(UNSIGNED),
                "seconds": round(seconds, 1),
                "rounds during": rounds_during,
                "rounds after": rounds_after,
                "server lives": server.poll() is None,
                "rss before, MB": round(watch.before_mb),
                "rss peak, MB": round(watch.peak_mb),
                "rss after, MB": round(rss_mb(server.pid)),
                "health worst before, s": round(calm_s, 3),
                "health worst, s": round(watch.worst_health_s(), 3),
                "health median, s": round(sorted(watch.health_s)[len(watch.health_s) // 2], 3),
                "log, MB": round((federation.folder / "server.log").stat().st_size / 2**20, 3),
                "answers": answered,
            }
        finally:
            federation.end()
    for name, value in figures.items():
        print(f"{name}: {value}")
    holds = (
        server.returncode in (0, 130, -signal.SIGTERM)
        and (rounds_during > 0 or options.smoke)
        and rounds_after > 0
        and watch.peak_mb - watch.before_mb < MAX_RSS_GROWTH_MB
        and watch.worst_health_s() < (30.0 if options.smoke else MAX_HEALTH_S)
        and figures["log, MB"] < MAX_LOG_MB  # type: ignore[operator]
    )
    print("all bounds hold" if holds else "a bound is broken")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
