"""What this process may use of its machine: a container or a scheduler may give it less than there is."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_OWN_STATUS = Path("/proc/self/stat")
_CPU_INFO, _MEMORY_INFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MIB = 2**20
_LARGE = 2**20  # parameters: with fewer, what is freed is not worth the time
_NO_LIMIT = 2**60  # what version 1 of control groups says for none is near 2**63


def usable_cpus() -> int:
    """Return how many threads can work at once: by affinity, and by the quota of each control group we are in."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS
        count = os.cpu_count() or 1
    quotas = [quota for folder in _own_groups("cpu") if (quota := _cpu_quota(folder)) is not None]
    return min([count, *(max(1, math.ceil(quota)) for quota in quotas)])


def usable_memory() -> int:
    """Return the bytes of memory that this process may take at most."""
    return min([_physical_memory(), *(limit for folder in _own_groups("memory") if (limit := _limit(folder)))])


def free_memory() -> int:
    """Return the bytes of memory that this process can still take."""
    free = [_available_memory()]
    for folder in _own_groups("memory"):
        limit, used = _limit(folder), _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit and used is not None:
            free.append(max(0, limit - used + _reclaimable(folder)))
    return min(free)


def return_freed_memory() -> None:
    """Have glibc give each freed block of a mebibyte or more back to the system; elsewhere nothing is done.

    Else it keeps blocks up to 32 MiB in a heap of each thread: pieces of messages (5 MiB) in dozens of them.
    """
    _set_malloc(_M_MMAP_THRESHOLD, _MIB)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """As `return_freed_memory`, within the block alone: it would make training slower by 40 %.

    It is of the whole process, so of one node's alone.
    """
    return_freed_memory()
    try:
        yield
    finally:  # what glibc makes of them by itself, once it has freed large blocks
        _set_malloc(_M_MMAP_THRESHOLD, 32 * _MIB)
        _set_malloc(_M_TRIM_THRESHOLD, 64 * _MIB)


def _set_malloc(option: int, value: int) -> None:
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(option, value)


def make_room(num_parameters: int) -> None:
    """Have glibc give what is freed by now back to the system, once, where a model is large; elsewhere do nothing."""
    if num_parameters < _LARGE:
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def process_age() -> float:
    """Return for how many seconds this process has run; 0 where the system does not say."""
    fields = _text(_OWN_STATUS).rpartition(")")[2].split()  # after the name, which may hold anything
    started = _whole(fields[19]) if len(fields) > 19 else None
    if started is None:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))


def kind() -> dict[str, str]:
    """Return what the bits of a result may depend on."""
    import torch

    return {
        "processor": _processor_name(),
        "machine": platform.machine(),
        "system": platform.system(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _own_groups(controller: str) -> list[Path]:
    """Return the folders of our control group and of those around it, of either version."""
    return _groups(_CGROUPS, _text(_OWN_CGROUPS), controller)


@lru_cache(maxsize=4)  # every owner of a simulation asks, and the folders stay as long as the process is in them
def _groups(top: Path, lines: str, controller: str) -> list[Path]:
    folders = [top, top / controller]  # a container often sees its own group as the root
    for line in lines.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = top / controller if controllers else top
        own = root / path.lstrip("/")
        folders += [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _cpu_quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2:
        quota, period = _whole(words[0]), _whole(words[1])
    else:
        quota, period = _number(folder, "cpu.cfs_quota_us"), _number(folder, "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 and period > 0 else None


def _limit(folder: Path) -> int | None:
    found = _number(folder, "memory.max", "memory.limit_in_bytes")
    return found if found and found < _NO_LIMIT else None


def _reclaimable(folder: Path) -> int:
    """Return the bytes that files have in memory and leave where they are needed."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _whole(value) or 0
    return 0


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _available_memory() -> int:
    for line in _text(_MEMORY_INFO).splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * (_whole(line.split()[1]) or 0)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # macOS
        return _physical_memory()


def _processor_name() -> str:
    for line in _text(_CPU_INFO).splitlines():
        if line.lower().startswith(("model name", "cpu model", "hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _number(folder: Path, *names: str) -> int | None:
    """Return the number in the first of these files that has one."""
    return next((found for name in names if (found := _whole(_text(folder / name))) is not None), None)


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "max"
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
