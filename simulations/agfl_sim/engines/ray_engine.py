"""Flower's Ray runtime, with the same apps; however it ends, it ends in seconds and leaves the folder free."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import thread as pool
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import ConfigRecordValues, Context, Message
from flwr.serverapp import Grid, ServerApp

from agfl_client.app import (
    DEVICE_VARIABLE,
    OWNERS_VARIABLE,
    PLUGINS_VARIABLE,
    PRETRAINED_VARIABLE,
    SEED_VARIABLE,
)
from agfl_client.app import app as client_app
from agfl_client.training.device import AUTO, choose_device
from agfl_models import stop_signal
from agfl_models.errors import AgflError, ConfigError
from agfl_models.machine import usable_cpus
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_server.app import run_federation
from agfl_server.rounds.observer import Observer
from agfl_server.run.sittings import SittingLog
from agfl_server.transport.messaging import ask_nodes
from agfl_sim.engines.grid import StoppableGrid, Stopped

_STOP_S = 10.0  # for the server's thread to reach its next call to a node
_CLOSE_S = 3.0  # for Flower's threads, once Ray is gone
_START_S = 120.0  # for the first of Ray's processes to answer: on a busy machine it took more than 30
_WAKE_S = 300.0  # for all of them to have PyTorch loaded
_POLL_S = 0.1
log = logging.getLogger("agfl.simulate")


class RayEngine:
    """Clients are processes of a Ray of this run's own, on this machine; they keep nothing between messages."""

    roster = None

    def __init__(self, config: RunConfig, owners: Sequence[Path], device: str = AUTO) -> None:
        """Say early what the engine cannot run.

        Raises:
            ConfigError: the device is not there; the run is secure, or has owners keep state or hold parts of the
                model; or the extra `ray` is not installed.
        """
        self._config, self._owners, self._device = config, owners, device
        choose_device(device)  # of "auto" each of Ray's processes makes what it is given
        if config.aggregation.type == "secure":
            raise ConfigError(
                "AGFL-CONFIG-200",
                "--engine ray: runs aggregation.type plain only, since Ray keeps no node's keys between messages, "
                "got secure; add --set aggregation.type=plain",
            )
        if config.data.max_widths is not None:
            raise ConfigError(
                "AGFL-CONFIG-201", "--engine ray: every node there holds the whole model, got data.max_widths"
            )
        if config.client_plan.keeps_state:
            raise ConfigError(
                "AGFL-CONFIG-202",
                "--engine ray: runs no aggregation.server_optimizer for which owners keep state, since Ray keeps none "
                f"between messages, got {config.aggregation.server_optimizer.type}",
            )
        # Read when Ray is imported: else a call of Flower's after the end would start another Ray.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ConfigError(
                "AGFL-CONFIG-203", "--engine ray: needs the extra `ray` (pip install 'agfl[ray]'), which is missing"
            ) from None

    def run(self, folder: Path, *, resume: bool, observer: Observer, sitting: SittingLog | None = None) -> None:
        """Run the federation to its last round; raises as `run_federation`.

        Flower waits for its threads without end, whatever became of Ray or of us. So they are daemons here, which they
        inherit from the thread that starts them, and the server's part is stopped at its next call to a node.
        """
        os.environ[OWNERS_VARIABLE] = str(self._owners[0].parent.resolve())
        os.environ[SEED_VARIABLE] = str(self._config.seed)
        os.environ[DEVICE_VARIABLE] = self._device
        os.environ[PLUGINS_VARIABLE] = " ".join(plugin.name for plugin in self._config.plugins)
        if self._config.pretrained is not None:
            os.environ[PRETRAINED_VARIABLE] = str(self._config.pretrained.resolve())
        server = _Server(self._config, len(self._owners), folder, resume, observer, sitting)
        runtime = threading.Thread(target=server.run, name="flower", daemon=True)
        try:
            with _own_ray(usable_cpus()):
                runtime.start()
                try:
                    while runtime.is_alive():
                        stop_signal.check()
                        runtime.join(0.2)
                finally:
                    server.stop()
        finally:
            if runtime.is_alive():
                runtime.join(_CLOSE_S)
            _forget_threads()
        server.raise_failure()


class _Server:
    """The server's side of a run under Flower's runtime."""

    def __init__(
        self,
        config: RunConfig,
        num_owners: int,
        folder: Path,
        resume: bool,
        observer: Observer,
        sitting: SittingLog | None,
    ) -> None:
        self._config, self._num_owners, self._folder = config, num_owners, folder
        self._resume, self._observer, self._sitting = resume, observer, sitting
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._ended.set()

    def run(self) -> None:
        """Run it; what goes wrong is kept for `raise_failure`."""
        from flwr.simulation import run_simulation

        logging.getLogger("flwr").setLevel(logging.ERROR)  # that its way in is deprecated helps nobody here
        app = ServerApp()
        app.main()(self._main)
        backend: dict[str, dict[str, ConfigRecordValues]] = {"client_resources": {"num_cpus": 1}}
        try:
            run_simulation(app, client_app, self._num_owners, backend_config=backend)
        except Exception as error:
            if self._failure is None and not self._stopped.is_set():
                cause = error.__cause__ or error
                self._failure = ConfigError(
                    "AGFL-CONFIG-204", f"--engine ray: Flower's runtime ended: {cause.__cause__ or cause}"
                )

    def _main(self, grid: Grid, context: Context) -> None:
        self._ended.clear()
        stoppable = StoppableGrid(grid, self._stopped)
        try:
            self._wake(stoppable)
            run_federation(
                stoppable,
                self._config,
                self._folder,
                resume=self._resume,
                observer=self._observer,
                sitting=self._sitting,
            )
        except Stopped:
            pass
        except (AgflError, OSError) as error:
            self._failure = error
        finally:
            self._ended.set()

    def _wake(self, grid: Grid) -> None:
        """Wait for all nodes: they start one by one, slowly on a busy machine, longer than the server waits for one.

        Raises:
            ConfigError: one of them cannot work.
        """
        while len(nodes := list(grid.get_node_ids())) < self._num_owners:
            time.sleep(_POLL_S)
        requests = [Message(wire.IdentifyRequest().to_record(), node, wire.IDENTIFY) for node in nodes]
        awake = 0
        for awake, (_, reply) in enumerate(ask_nodes(grid, requests, _WAKE_S), start=1):  # noqa: B007
            if reply.has_error():
                reason = _first_line(reply.error.reason or "")
                raise ConfigError("AGFL-CONFIG-205", f"--engine ray: a client's process cannot work: {reason}")
        if awake < len(nodes):
            raise ConfigError(
                "AGFL-CONFIG-206",
                f"--engine ray: all nodes must answer within {_WAKE_S:g} s, got {awake} of {len(nodes)}",
            )

    def stop(self) -> None:
        """End the server's part, if it has not: then its folder is free."""
        if not self._ended.is_set():
            flower = logging.getLogger("flwr")
            flower.setLevel(logging.CRITICAL)  # it would tell at length that its nodes are gone
        self._stopped.set()
        self._ended.wait(_STOP_S)

    def raise_failure(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure


@contextmanager
def _own_ray(num_cpus: int) -> Iterator[None]:
    """Start a Ray on this machine for the block, with so many processors.

    Another Ray that RAY_ADDRESS names has neither the owners' files nor, often, the same packages.

    Raises:
        ConfigError: it cannot start.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        log.warning("RAY_ADDRESS: left aside, since the run starts a Ray of its own on this machine, with its files")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # what will be its default, without a warning
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR)
            # Ray says that it is there, and waits for its workers without end, where none of them can start.
            ray.get(ray.remote(_answer).remote(), timeout=_START_S)
        except ray.exceptions.GetTimeoutError:
            rule = f"none of its processes answered within {_START_S:g} s"
            raise ConfigError("AGFL-CONFIG-207", f"--engine ray: Ray cannot start here: {rule}") from None
        except Exception as error:  # of many kinds: OSError, ValueError, RuntimeError, Ray's own
            raise ConfigError(
                "AGFL-CONFIG-208", f"--engine ray: Ray cannot start here: {_first_line(str(error))}"
            ) from None
        finally:
            with suppress(ValueError):  # not the main thread: it has no handlers
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which leaves our folder held
        yield
    finally:
        ray.shutdown()


def _answer() -> bool:
    return True


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "no reason given"


def _forget_threads() -> None:
    """Let the process end although a thread waits for a client that Ray has taken away: Python would wait for it."""
    queues: MutableMapping[threading.Thread, object] = vars(pool)["_threads_queues"]
    for thread in [thread for thread in queues if thread.daemon]:
        queues.pop(thread, None)
