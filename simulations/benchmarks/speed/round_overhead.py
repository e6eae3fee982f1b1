"""Seconds that a round costs beyond training: three nodes, TLS on loopback, almost nothing to train.

Runs `agfl-server` with three `agfl-client` processes, then Flower's own `flower-superlink` with three
`flower-supernode` processes and an app whose training does nothing, and prints the median of each.

    python simulations/benchmarks/speed/round_overhead.py [--rounds 20] [--stock-phases 4]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agfl_models.machine import usable_cpus

BIN = Path(sys.executable).parent
NUM_NODES = 3
CONFIG = """
num_rounds: {rounds}
task: {{type: language_modeling, sequence_length: 8}}
model: {{vocab_size: 259, dim: 8, layers: [{{type: ff, hidden_dim: 8}}]}}
training: {{batch_size: 1, local_steps: 1, optimizer: {{type: sgd, lr: 0.5}}}}
aggregation: {{type: plain, min_cohort: {nodes}}}
evaluation: {{every: 1000000, max_examples: 1}}
"""
STOCK_PYPROJECT = """
[project]
name = "noop"
version = "1.0.0"
description = "does nothing"
license = {text = "Apache-2.0"}
dependencies = []
[tool.flwr.app]
publisher = "agfl"
[tool.flwr.app.components]
serverapp = "noop:server"
clientapp = "noop:client"
[tool.flwr.app.config]
phases = 4
"""
STOCK_APP = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    return Message(RecordDict({"c": ConfigRecord({"x": 1})}), reply_to=message)

@server.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.2)
    for phase in range(int(context.run_config["phases"])):
        content = RecordDict({"c": ConfigRecord({"x": 1})})
        began = time.time()
        replies = list(grid.send_and_receive([Message(content, n, "train") for n in grid.get_node_ids()]))
        assert len(replies) == 3 and not any(r.has_error() for r in replies)
        print(f"PHASE {time.time() - began:.3f}", flush=True)
"""


def main() -> None:
    """Run both and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stock-phases", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="two rounds of one node of ours: does it run?")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nodes, rounds = (1, 2) if arguments.smoke else (NUM_NODES, arguments.rounds)
        ours = measure_ours(folder, rounds, nodes)
        stock = [] if arguments.smoke else measure_stock(folder, arguments.stock_phases)
    load = os.getloadavg()[0]
    print(f"{nodes} nodes, TLS on loopback, {usable_cpus()} processors, load average {load:.1f}")
    for label, values in (("agfl, a whole round", ours), ("stock Flower, one phase (of two a round)", stock)):
        if values:
            print(f"{label:<42} p50 {statistics.median(values):7.3f} s   max {max(values):7.3f} s   n = {len(values)}")
    if stock:
        print(f"ratio of the medians: {statistics.median(stock) / statistics.median(ours):.1f}")


def measure_ours(folder: Path, rounds: int, nodes: int) -> list[float]:
    """Return the seconds of each round but the first, in which the nodes build their model."""
    (folder / "run.yaml").write_text(CONFIG.format(rounds=rounds, nodes=nodes))
    federation = folder / "federation"
    command("agfl-server", "init", federation, "--config", folder / "run.yaml")
    for i in range(nodes):
        keys = folder / f"keys{i}"
        command("agfl-client", "keygen", f"node{i}", "--keys", keys)
        command("agfl-server", "add-node", f"node{i}", keys / f"node{i}.pub", "--federation", federation)
    (folder / "text.txt").write_text("to be, or not to be\n\nthat is the question\n")
    (folder / "policy.yaml").write_text("allow_plain: true\nruns: all\n")
    with ExitStack() as processes:
        port = free_port()
        start = ("agfl-server", "start", "--federation", federation, "--port", port)
        running = [background(processes, folder / "server.log", *start)]
        for i in range(nodes):
            address = ("--server", f"127.0.0.1:{port}", "--ca", federation / "ca.pem")
            own = ("--keys", folder / f"keys{i}", "--data", folder / "text.txt", "--policy", folder / "policy.yaml")
            log = folder / f"node{i}.log"
            running.append(background(processes, log, "agfl-client", "start", *address, *own, "--once"))
        wait_for_all(running, 300)
    rows = [json.loads(line) for line in (federation / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows if row["round"] > 1]


def measure_stock(folder: Path, phases: int) -> list[float]:
    """Return the seconds of each phase (one message to each node and back) of stock Flower."""
    federation, app, home = folder / "federation", folder / "noop", folder / "flwr"
    for path in (app, home):
        path.mkdir()
    (app / "pyproject.toml").write_text(STOCK_PYPROJECT)
    (app / "noop.py").write_text(STOCK_APP)
    port = free_port()
    ca = federation / "ca.pem"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "tls"\n[superlink.tls]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'
    )
    os.environ |= {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    with ExitStack() as processes:
        tls = ("--ssl-certfile", federation / "server.pem", "--ssl-keyfile", federation / "server.key")
        address = ("--host", "127.0.0.1", "--port", port, "--ssl-ca-certfile", ca)
        link = ("flower-superlink", *address, *tls, "--disable-runtime-dependency-installation")
        background(processes, folder / "superlink.log", *link)
        wait_for_port(port)
        for i in range(NUM_NODES):
            place = ("--root-certificates", ca, "--superlink", f"127.0.0.1:{port}", "--port", free_port())
            background(processes, folder / f"supernode{i}.log", "flower-supernode", *place)
        run = ("flwr", "run", app, "tls", "--stream", "--run-config", f"phases={phases}")
        output = command(*run, timeout_s=400)
    seconds = [float(text) for text in re.findall(r"PHASE ([\d.]+)", output)]
    if len(seconds) != phases:
        raise SystemExit(f"stock Flower failed:\n{output}")
    return seconds


def command(*arguments: object, timeout_s: float = 60) -> str:
    """Run a command to its end and return what it printed."""
    words = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@dataclass
class Started:
    """A command that runs, and where it writes what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self.process.poll() not in (None, 0)


def background(processes: ExitStack, log: Path, *arguments: object) -> Started:
    """Start a command that ends with `processes` at the latest."""
    words = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    processes.callback(process.wait)
    processes.callback(process.terminate)
    return Started(process, log)


def wait_for_all(running: list[Started], timeout_s: float) -> None:
    """Return once all have ended well; raises SystemExit as soon as one has not, with what it said."""
    deadline = time.monotonic() + timeout_s
    while any(one.process.poll() is None for one in running):
        if any(one.has_failed for one in running) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    bad = [one for one in running if one.has_failed] or [one for one in running if one.process.poll() is None]
    if bad:
        how = f"exit status {bad[0].process.returncode}" if bad[0].has_failed else f"still runs after {timeout_s:.0f} s"
        raise SystemExit(f"{bad[0].log.stem}: {how}:\n{bad[0].log.read_text()}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, timeout_s: float = 60) -> None:
    """Return once something listens on `port`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
