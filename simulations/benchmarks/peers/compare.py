"""agfl beside pfl, Flower and NVFlare on the same work: processor seconds a round, memory, and the same aggregate.

A is pfl-research's CIFAR-10 benchmark without dropout, B LEAF's Shakespeare, C a perceptron on users as uneven as
FEMNIST's; examples are synthetic. agfl learns through its door for a module of one's own, with new owners each round:
their rows are written, read and checked, and updates go over the wire, quantized. The others have arrays in memory. A
round is one epoch of plain SGD at each user. Each engine runs in a process of its own, in turn, so that what else the
machine does falls on all of them; the first round does not count. pfl and NVFlare get an environment of their own, with
pip. NVFlare, which has a process for each client of a cohort, is left out where they are more than memory holds.

    python simulations/benchmarks/peers/compare.py [A B C] [--engines ours with_pfl] [--clients 20] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from engine import measure
from meter import available_mb, pss_mb
from workloads import WORKLOADS, Users, Workload

REFERENCE = "plain_loop"
PEERS = {"with_pfl": "pfl==0.6.0", "with_nvflare": "nvflare==2.9.0"}  # Flower is among our own dependencies
ENGINES = (REFERENCE, "ours", "with_pfl", "with_flower", "with_nvflare", "hand_written")
CLIENT_MB = {"with_nvflare": 400}  # of each client of a cohort
TOLERANCE = 1e-3  # of the L2 norm of what the first round changes; a tenth of what our quantizer may lose
ENVIRONMENT = Path.home() / ".cache" / "agfl-benchmark-peers"
_LOOK_S = 0.5


@dataclass
class Found:
    """What an engine's runs had a round: processor seconds, wall seconds; most memory of all its processes."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    error: float = 0.0


def has(package: str) -> bool:
    """Return whether the peers' environment is there and has a package, in its version."""
    name, version = package.split("==")
    return any(ENVIRONMENT.glob(f"lib/python*/site-packages/{name}-{version}.dist-info"))


def python_with(package: str) -> str:
    """Return an interpreter that has a package and all that this one has; it is made where there is none."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        site = next(ENVIRONMENT.glob("lib/python*/site-packages"))
        # With what its own .pth files name: this package, where it is installed to be edited.
        (site / "benchmark.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    if not has(package):
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    return str(python)


def fits(engine: str, work: Workload) -> bool:
    """Return whether memory holds a process for each client of a cohort, where an engine has one; say where not."""
    needed, available = CLIENT_MB.get(engine, 0) * work.cohort, available_mb()
    if needed > available:
        print(f"{work.name}: {engine} is left out: {work.cohort} clients take {needed:,} MB of {available:,.0f}")
    return needed <= available


def run(engine: str, work: Workload, folder: Path, rounds: int, processors: int) -> float:
    """Run an engine in a process of its own and return the most memory that it took, in MB; exit where it fails."""
    python = python_with(PEERS[engine]) if engine in PEERS else sys.executable
    place, log = Path(__file__).parent, folder / f"{engine}.log"
    paths = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, str(place / "engine.py"), engine, work.name, folder, work.cohort, rounds, processors]
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"},
        )
        memory_mb = 0.0
        while process.poll() is None:
            memory_mb = max(memory_mb, pss_mb(process.pid))
            time.sleep(_LOOK_S)
    if process.returncode:
        sys.exit(f"{engine}: exit status {process.returncode}:\n{log.read_text()[-2000:]}")
    return memory_mb


def change(work: Workload, engine: str, folder: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return what an engine's first round added to the model, (d,)."""
    first = np.concatenate([p.detach().numpy().reshape(-1) for p in work.model().parameters()])
    changed: np.ndarray[tuple[int], np.dtype[np.float64]] = np.load(folder / engine / "model.npy").astype(float) - first
    return changed


def difference(work: Workload, engine: str, folder: Path) -> float:
    """Return how far what an engine's first round adds is from what the plain loop's adds, of the norm of that."""
    reference = change(work, REFERENCE, folder)
    return float(np.linalg.norm(change(work, engine, folder) - reference) / np.linalg.norm(reference))


def compare(work: Workload, engines: list[str], rounds: int, repetitions: int, processors: int) -> None:
    """Measure engines in turn and print a table; exit where an aggregate is another.

    processors: of each process; 0 has all engines in this one, an import less each.
    """
    found = {engine: Found() for engine in engines}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Users.write(work, folder)
        for _ in range(repetitions):
            for engine in engines:
                if processors:
                    memory_mb = run(engine, work, folder, rounds + 1, processors)
                    found[engine].memory_mb = max(found[engine].memory_mb, memory_mb)
                else:
                    measure(engine, work, folder, rounds + 1)
                report = json.loads((folder / engine / "report.json").read_text())
                found[engine].cpu += report["cpu"]
                found[engine].wall += report["wall"]
        for engine in engines:
            found[engine].error = difference(work, engine, folder)
        size = change(work, REFERENCE, folder).size
    print(
        f"\n{work.name}: {work.users} users, cohort {work.cohort}, {size:,} parameters, {processors} of "
        f"{os.cpu_count()} processors, {rounds} rounds x {repetitions}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'engine':14}{'CPU s':>9}{'wall s':>9}{'peak MB':>9}{'CPU / ours':>12}{'aggregate differs by':>22}")
    ours = median(found["ours"].cpu) if "ours" in found else float("nan")
    for engine, one in found.items():
        cpu = median(one.cpu)
        line = f"{cpu:9.3f}{median(one.wall):9.3f}{one.memory_mb:9.0f}{cpu / ours:12.2f}{one.error:22.1e}"
        print(f"{engine:14}{line}", flush=True)
    different = [engine for engine, one in found.items() if not one.error <= TOLERANCE]
    if different:
        sys.exit(f"another aggregate than that of the plain loop: {', '.join(different)}")
    print(f"the same aggregate each time, to {TOLERANCE:g} of its norm")


def main() -> None:
    """Compare on each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", default=["A", "B", "C"], help="of A, B and C; all if omitted")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--clients", type=int, help="asked a round, where fewer will do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--processors", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        compare(WORKLOADS["smoke"], [REFERENCE, "ours"], 1, 1, 0)
        return
    for name in options.workloads:
        work = WORKLOADS[name].cut(options.clients)
        engines = [one for one in options.engines if one not in (REFERENCE, "hand_written")]
        engines = [one for one in engines if fits(one, work)]
        limit = ["hand_written"] if name == "C" and "hand_written" in options.engines else []
        compare(work, [REFERENCE, *engines, *limit], options.rounds, options.repetitions, options.processors)


if __name__ == "__main__":
    main()
