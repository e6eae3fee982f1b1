"""The ClientApp: one registered function a message type, around one `Node`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from agfl_client.node import Node
from agfl_client.own_screen import OwnScreen
from agfl_client.policy import Policy, load_policy
from agfl_client.secure.secure_member import SecureMember
from agfl_models.errors import AgflError, ConfigError, DataError, PretrainedError
from agfl_models.examples import parse_columns
from agfl_models.reading.files import list_owners
from agfl_protocol.messages import wire
from agfl_protocol.messages.counting import CountRequest

log = logging.getLogger("agfl.client")
OWNERS_VARIABLE = "AGFL_OWNERS"
REFUSED = 100  # Flower reserves the codes below
NodeOf = Callable[[Context], Node]


def create_client_app(node_of: Node | NodeOf) -> ClientApp:
    """Return the ClientApp of a node, or of the nodes that `node_of` finds by a message's context."""
    app, screens = ClientApp(), dict[int, OwnScreen]()  # of nodes that refuse
    find: NodeOf = (lambda context: node_of) if isinstance(node_of, Node) else node_of

    def answer(message: Message, reply: Callable[[], RecordDict]) -> Message:
        """Refusals travel as one line; anything else is a defect and goes up."""
        kind = message.metadata.message_type
        # One node alone may come back under another id.
        node = 0 if isinstance(node_of, Node) else message.metadata.dst_node_id
        try:
            wire.check_version(message.content)
            answered = Message(reply(), reply_to=message)
        except AgflError as error:
            screens.setdefault(node, OwnScreen()).refused(kind, error)
            return Message(Error(REFUSED, _for_the_server(error)), reply_to=message)
        if node in screens:
            screens[node].answered(kind)
        return answered

    def handle_round(message: Message, context: Context) -> Message:
        def reply() -> RecordDict:
            request = [wire.RoundRequest.from_record(message.content)]
            message.content = RecordDict()  # it holds the model, which the node lets go of when it can
            return find(context).handle_round(request.pop())

        return answer(message, reply)

    app.train()(handle_round)
    app.evaluate()(handle_round)

    @app.query("count")
    def count(message: Message, context: Context) -> Message:
        return answer(message, lambda: find(context).handle_count(CountRequest.from_record(message.content)))

    @app.query("identify")
    def identify(message: Message, context: Context) -> Message:
        return answer(message, lambda: find(context).identify().to_record())

    @app.query("propose")
    def propose(message: Message, context: Context) -> Message:
        def reply() -> RecordDict:
            return find(context).propose(wire.ProposeRequest.from_record(message.content)).to_record()

        return answer(message, reply)

    @app.query("model")
    def model(message: Message, context: Context) -> Message:
        def reply() -> RecordDict:
            find(context).keep_model(wire.ModelRequest.from_record(message.content))
            return wire.acknowledgment()

        return answer(message, reply)

    def trip(take: Callable[[SecureMember, RecordDict], RecordDict]) -> Callable[[Message, Context], Message]:
        return lambda message, context: answer(message, lambda: take(find(context).member, message.content))

    app.query("share")(trip(lambda member, content: member.share(content)))
    app.query("mask")(trip(lambda member, content: member.mask(content)))
    app.query("agree")(trip(lambda member, content: member.agree(content)))
    app.query("unmask")(trip(lambda member, content: member.unmask(content)))

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        def reply() -> RecordDict:
            find(context).finish(wire.FinishRequest.from_record(message.content))
            return wire.acknowledgment()

        return answer(message, reply)

    return app


def _for_the_server(error: AgflError) -> str:
    """Return the line of a refusal that may leave: some quote the owner's text or paths, and stay on this machine."""
    if isinstance(error, DataError):
        return "data: this owner's data cannot be used"
    if isinstance(error, PretrainedError):
        return "pretrained: this owner's pretrained model cannot be used"
    return str(error)


def _node_of_context(context: Context) -> Node:
    """Find the owner in Flower's own runtimes, which start each message in a process of its own.

    A stock SuperNode names its owner in its node config (`name`, `data`, `columns`, `pretrained`, `policy`).
    Flower's simulation only numbers its nodes: partition i is the i-th file of the folder that the environment
    variable AGFL_OWNERS names.
    """
    config = context.node_config
    if "name" in config and "data" in config:
        try:
            policy = load_policy(Path(str(config["policy"]))) if "policy" in config else Policy()
            columns = parse_columns(str(config["columns"])) if "columns" in config else {}
        except ConfigError as error:
            log.error("%s", error)  # the line quotes what the owner wrote, and where, so it stays here
            raise ConfigError("AGFL-CONFIG-046", "node config: this owner's policy or columns cannot be used") from None
        pretrained = Path(str(config["pretrained"])) if "pretrained" in config else None
        name, data = str(config["name"]), Path(str(config["data"]))
        return Node(name, data, columns=columns, pretrained=pretrained, policy=policy)
    folder = os.environ.get(OWNERS_VARIABLE)
    if folder is None or "partition-id" not in config:
        raise ConfigError(
            "AGFL-CONFIG-047", f"node config: must give name and data, or {OWNERS_VARIABLE} a folder of owners' files"
        )
    owners = list(list_owners(Path(folder))[0].items())
    index = int(config["partition-id"])
    if index >= len(owners):
        raise ConfigError(
            "AGFL-CONFIG-048", f"{OWNERS_VARIABLE}: {folder}: must hold a file for node {index}, holds {len(owners)}"
        )
    name, data = owners[index]
    return Node(name, data, policy=Policy(allow_plain=True, runs="all"))


app = create_client_app(_node_of_context)
