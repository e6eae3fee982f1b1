"""A Ray for a run: the cluster that RAY_ADDRESS names, or one of the run's own on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from agfl_models.errors import ConfigError
from agfl_models.machine import usable_cpus

OWN = "local"
_CONNECT_S = 10.0


@contextmanager
def ray_cluster() -> Iterator[int]:
    """Join or start a Ray for the block, and yield how many of its processors are free.

    A Ray that this process has joined already, as in a notebook, is used and left as it is.

    Raises:
        ConfigError: it is not there, or cannot start.
    """
    if ray.is_initialized():
        yield _free_cpus()
        return
    address = os.environ.get("RAY_ADDRESS") or OWN
    if address not in (OWN, "auto"):
        _refuse_absent(address)
    try:
        _init(address)
        yield _free_cpus()
    finally:
        ray.shutdown()


def _refuse_absent(address: str) -> None:
    """Raise ConfigError where nobody listens at an address: Ray itself tries for minutes, and hears no signal."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not port.isdecimal():
        rule = f"must be auto or HOST:PORT, as machines of the cluster call it, got {address}"
        raise ConfigError("AGFL-CONFIG-239", f"--engine ray: RAY_ADDRESS: {rule}")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        rule = f"must be that of a Ray which is there, got {address} ({error})"
        raise ConfigError("AGFL-CONFIG-206", f"--engine ray: RAY_ADDRESS: {rule}") from None


def _init(address: str) -> None:
    own: dict[str, Any] = {}
    if address == OWN:
        own = {"num_cpus": usable_cpus(), "include_dashboard": False}
        entries = [*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, entries)))
        os.environ.setdefault("RAY_worker_niceness", "0")  # else a worker yields to whatever else the machine does
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # what will be its default, without a warning
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except SystemExit:  # what SIGTERM is to Ray's own handler
        raise KeyboardInterrupt from None
    except Exception as error:  # of many kinds: OSError, ValueError, RuntimeError, Ray's own
        what = "Ray cannot start here" if own else f"the Ray at RAY_ADDRESS {address} cannot be joined"
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise ConfigError("AGFL-CONFIG-208", f"--engine ray: {what}: {reason}") from None
    finally:
        with suppress(ValueError):  # not the main thread: it has no handlers
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which leaves our folder held


def _free_cpus() -> int:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return max(int(free.get("CPU", 0)), 1)
