"""The standard health check of gRPC finds the server."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from agfl_models.errors import TransportError
from agfl_server.transport.health import health_service


def _status(port: int) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response: HealthCheckResponse = HealthStub(channel).Check(HealthCheckRequest(), timeout=5)
        return int(response.status)


def test_a_running_server_is_serving_and_a_stopped_one_is_gone() -> None:
    with health_service(0) as port:
        assert _status(port) == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError):
        _status(port)


def test_a_port_in_use_is_named() -> None:
    with (
        health_service(0) as port,
        pytest.raises(
            TransportError, match=rf"health port: .* must be free to listen on, got {port}.*AGFL-TRANSPORT-008"
        ),
        health_service(port),
    ):
        pass
