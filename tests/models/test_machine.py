"""What a process may use: by affinity and by control groups of both versions, as containers and schedulers set them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agfl_models import machine

GB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of a machine of 64 processors and 256 GB, none of which limits anything yet."""
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_physical_memory", lambda: 256 * GB)
    (tmp_path / "meminfo").write_text(f"MemTotal: {256 * GB // 1024} kB\nMemAvailable:   {200 * GB // 1024} kB\n")
    return tmp_path / "cgroup"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_limits_it_is_the_machine(root: Path) -> None:
    assert (machine.usable_cpus(), machine.usable_memory(), machine.free_memory()) == (64, 256 * GB, 200 * GB)
    write(root, cpu__max="max 100000\n", memory__max="max\n", memory__current="5\n")
    assert (machine.usable_cpus(), machine.usable_memory(), machine.free_memory()) == (64, 256 * GB, 200 * GB)
    write(root, cpu__max="odd", memory__max="", memory__current="\0")
    assert (machine.usable_cpus(), machine.usable_memory(), machine.free_memory()) == (64, 256 * GB, 200 * GB)


@pytest.mark.parametrize(("quota", "cpus"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)])
def test_a_containers_quota(root: Path, quota: str, cpus: int) -> None:
    write(root, cpu__max=quota)
    assert machine.usable_cpus() == cpus


def test_affinity_bounds_as_well(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, cpu__max="800000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert machine.usable_cpus() == 3


def test_the_narrowest_group_around_us_counts(root: Path) -> None:
    (root.parent / "own").write_text("0::/batch.slice/job/step\n")
    write(root / "batch.slice", memory__max=str(32 * GB), memory__current=str(30 * GB))
    write(root / "batch.slice" / "job", cpu__max="400000 100000")
    write(root / "batch.slice" / "job" / "step", memory__max=str(64 * GB), memory__current=str(GB))
    write(root / "other", memory__max="1", cpu__max="1 1")
    assert (machine.usable_cpus(), machine.usable_memory(), machine.free_memory()) == (4, 32 * GB, 2 * GB)


def test_files_in_memory_do_not_count_as_taken(root: Path) -> None:
    stat = f"anon {GB}\ninactive_file {3 * GB}\n"
    write(root, memory__max=str(8 * GB), memory__current=str(4 * GB), memory__stat=stat)
    assert machine.free_memory() == 7 * GB


def test_groups_of_version_1(root: Path) -> None:
    (root.parent / "own").write_text("5:cpuacct,cpu:/docker/x\n4:memory:/docker/x\n1:name=systemd:/\n")
    write(root / "cpu" / "docker" / "x", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    write(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(root / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes=str(99 * GB))
    limited = {"memory__limit_in_bytes": str(4 * GB), "memory__usage_in_bytes": str(GB)}
    write(root / "memory" / "docker" / "x", **limited)
    assert (machine.usable_cpus(), machine.usable_memory(), machine.free_memory()) == (3, 4 * GB, 3 * GB)


def test_the_kind_of_machine_is_said_in_full() -> None:
    found = machine.kind()
    assert found.keys() == {"processor", "machine", "system", "torch", "instructions"}
    assert all(found.values())


def test_a_process_knows_its_age(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import time; from agfl_models.machine import process_age; time.sleep(0.5); print(process_age())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - started + 0.02  # the system counts hundredths
    monkeypatch.setattr(machine, "_OWN_STATUS", tmp_path / "none")
    assert machine.process_age() == 0.0
