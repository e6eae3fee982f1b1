"""The parts of Flower (not public) that the node's loop stands on. tests/server has the loop against a server."""

from __future__ import annotations

import inspect

import flwr
import httpx
import pytest
from flwr.app import Context, RecordDict
from flwr.common import constant
from flwr.common.constant import ErrorCode
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable import inflatable_protobuf_utils, inflatable_utils
from flwr.supernode.fleet_http_client import FleetHttpClient

from agfl_client.transport import supernode


def _parameters(function: object) -> list[str]:
    assert callable(function)
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_contract_flower_is_the_version_that_was_read() -> None:
    assert flwr.__version__.startswith("1.41."), "read flwr's changes before you widen this"


def test_contract_the_fleet_client_takes_our_arguments() -> None:
    parameters = _parameters(FleetHttpClient)
    assert parameters[0] == "base_url"
    assert {"interceptors", "verify", "timeout"} <= set(parameters)
    assert inspect.signature(FleetHttpClient).parameters["retry_invoker"].default is None, "it now retries by itself"


@pytest.mark.parametrize(
    "method",
    [
        "ActivateNode",
        "DeactivateNode",
        "SendNodeHeartbeat",
        "PullMessages",
        "PushMessages",
        "GetRun",
        "PullObject",
        "PushObject",
        "ConfirmMessageReceived",
        "close",
    ],
)
def test_contract_the_fleet_client_has_the_call(method: str) -> None:
    assert hasattr(FleetHttpClient, method), f"FleetHttpClient.{method} is gone"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (fleet_pb2.ActivateNodeRequest, {"public_key", "heartbeat_interval"}),
        (fleet_pb2.ActivateNodeResponse, {"node_id"}),
        (fleet_pb2.PullMessagesResponse, {"messages_list", "message_object_trees"}),
        (
            fleet_pb2.PushMessagesRequest,
            {"node", "messages_list", "message_object_trees", "clientapp_runtime_list"},
        ),
        (fleet_pb2.PushMessagesResponse, {"objects_to_push", "session_id"}),
        (message_pb2.ConfirmMessageReceivedRequest, {"node", "run_id", "message_object_id"}),
    ],
)
def test_contract_the_wire_has_the_fields(message: type[fleet_pb2.PushMessagesRequest], fields: set[str]) -> None:
    assert fields <= set(message.DESCRIPTOR.fields_by_name), f"{message.__name__} has changed"


def test_contract_the_object_functions_take_our_arguments() -> None:
    pull = inflatable_protobuf_utils.make_pull_object_fn_protobuf
    push = inflatable_protobuf_utils.make_push_object_fn_protobuf
    assert _parameters(pull) == ["pull_object_protobuf", "node", "run_id"]
    assert _parameters(push) == ["push_object_protobuf", "node", "run_id", "session_id"]
    assert _parameters(inflatable_utils.pull_objects)[:2] == ["object_ids", "pull_object_fn"]
    assert _parameters(inflatable_utils.inflate_object_from_contents)[:2] == ["object_id", "object_contents"]
    assert "objects" in _parameters(inflatable_utils.inflate_object_from_contents)


def test_contract_a_context_is_made_as_we_make_it() -> None:
    context = Context(1, 2, {}, RecordDict(), {})
    assert (context.run_id, context.node_id) == (1, 2)


def test_contract_the_constants_are_as_we_read_them() -> None:
    assert (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.INVALID_FAB) == (2, 7)
    assert constant.HEARTBEAT_MIN_INTERVAL <= supernode.HEARTBEAT_PROMISE_S
    assert constant.HEARTBEAT_PATIENCE == 2
    assert supernode.HEARTBEAT_S * 2 < supernode.HEARTBEAT_PROMISE_S


def test_contract_transport_errors_are_those_of_httpx() -> None:
    with FleetHttpClient("http://127.0.0.1:1", timeout=1.0) as client, pytest.raises(httpx.TransportError):
        client.ActivateNode(fleet_pb2.ActivateNodeRequest())


def test_the_loop_never_asks_for_code() -> None:
    assert "GetFab" not in inspect.getsource(supernode)
