"""The engine whose workers are actors of Ray, on one machine or on those of a cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agfl_models.errors import ConfigError
from agfl_sim.engines.workers.shared_mark import shared_mark
from agfl_sim.engines.workers.workers_engine import WorkersEngine, Workplace

_TOKEN_BYTES = 32


class RayEngine(WorkersEngine):
    """Actors in place of worker processes, as many as the cluster has free processors."""

    name = "ray"

    def _prepare(self) -> None:
        super()._prepare()
        # Read when Ray is imported: else a call after the end would start another Ray.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
            # Else whoever reaches this machine could run code of theirs in the run's own Ray.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(_TOKEN_BYTES)}
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ConfigError(
                "AGFL-CONFIG-203", "--engine ray: needs the extra `ray` (pip install 'agfl[ray]'), which is missing"
            ) from None

    @contextmanager
    def _open_workplace(self, folder: Path) -> Iterator[Workplace]:
        from agfl_sim.engines.workers.ray_cluster import ray_cluster
        from agfl_sim.engines.workers.ray_link import RayLink

        with ray_cluster() as num_cpus, shared_mark(folder) as mark:
            # One that takes a dead one's place waits for no processor: those of a dead machine never become free.
            yield Workplace(num_cpus, lambda is_first: RayLink(mark, num_cpus=1 if is_first else 0))
