"""The standard gRPC health service (grpc.health.v1), for the operator's monitoring; loopback only."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from agfl_models.errors import TransportError


@contextmanager
def health_service(port: int) -> Iterator[int]:
    """Answer SERVING on 127.0.0.1:`port` (0 picks a free one) while the block runs; yield the port.

    Raises:
        TransportError: the port is taken.
    """
    # Without so_reuseport=0 two servers would share a port and each get half the calls.
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=[("grpc.so_reuseport", 0)])
    add_HealthServicer_to_server(HealthServicer(), server)
    try:
        bound_port = server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        raise TransportError(
            "AGFL-TRANSPORT-008", f"health port: 127.0.0.1 port must be free to listen on, got {port}"
        ) from None
    server.start()
    try:
        yield bound_port
    finally:
        server.stop(grace=0.5).wait()
