"""What a node answers depends on its NAME, the round, the seed and the model; its text never leaves it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hostile_server import codec_of, first_arrays
from numpy.typing import NDArray

from agfl_client.app import OWNERS_VARIABLE, REFUSED, create_client_app
from agfl_client.app import app as stock_app
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation
from agfl_models.errors import ConfigError, DataError, WireError
from agfl_models.examples import TextRow, read_rows
from agfl_models.model.families import build_model
from agfl_protocol.config.run_config import RunConfig
from agfl_protocol.messages import wire
from agfl_protocol.messages.wire import read_vector
from agfl_protocol.methods.clipping import START
from agfl_protocol.methods.method import States
from agfl_protocol.optimizers import build_optimizer
from agfl_protocol.plans.plan import Plan
from agfl_protocol.plans.plan_fields import PlanViolation
from agfl_protocol.randomness import OwnerRandomness
from agfl_protocol.secagg.lanes import Lanes
from agfl_protocol.transforms.codec import UpdateCodec
from agfl_protocol.transforms.quantization import QuantizationPlan, Rotated
from agfl_protocol.update import Layout, Vector
from agfl_server.rounds.state import initial_state
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
MakeNode = Callable[..., Node]
SECRET = "Zanzibar"
UNASKED = Policy(allow_plain=True, runs="all")


def request_of(
    config: RunConfig, *, train: bool = True, evaluate: bool = True, exchange: int = 0, number: int = 1
) -> wire.RoundRequest:
    """Ask for a round of a run that no owner was asked to approve."""
    _, state = initial_state(config, build_optimizer(config.aggregation.server_optimizer), "r")
    return wire.RoundRequest(
        run_id="r",
        round=number,
        exchange=exchange,
        plan_hash="",
        client_plan=config.client_plan.to_json(),
        evaluate=evaluate,
        train=train,
        model=state.model,
        plan=QuantizationPlan(2, 3),
        arrays=first_arrays(config.client_plan, state.model.size, train=train),
    )


def with_previous(request: wire.RoundRequest, previous: Vector) -> States:
    """The arrays of a request with weights by alignment, after a step from the model `previous`."""
    return {**request.arrays, "alignment": {"previous": previous}}


@pytest.fixture
def make_node(make_owners: Callable[..., Path]) -> MakeNode:
    return lambda name="alice", owner=0, secret=1: Node(
        name,
        make_owners(2) / f"owner-{owner:02}.jsonl",
        device="cpu",
        policy=UNASKED,
        randomness=OwnerRandomness(bytes([secret]) * 32),
    )


@pytest.fixture
def deliver() -> Callable[..., Message]:
    """Deliver content to a ClientApp as a message of a kind."""
    InProcessGrid({}, 1)  # makes this process one that may make messages

    def send(app: ClientApp, content: RecordDict, kind: str = wire.TRAIN, **node_config: str | int) -> Message:
        message = Message(content, 7, kind)
        del content  # the message has it
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, Context(1, 7, dict(node_config), RecordDict(), {}))

    return send


def lanes(node: Node, request: wire.RoundRequest) -> NDArray[np.uint64]:
    return read_vector(node.handle_round(request), "lanes", np.uint64)


def test_an_answer_depends_on_neither_order_nor_process(run_config: MakeConfig, make_node: MakeNode) -> None:
    requests = [request_of(run_config(), exchange=exchange) for exchange in (1, 2, 3)]
    fresh = [lanes(make_node(), request) for request in requests]
    node = make_node()
    for i in (2, 0, 0, 1, 2):
        assert np.array_equal(lanes(node, requests[i]), fresh[i])


def test_draws_follow_from_the_owners_secret_the_run_and_the_exchange_alone(
    run_config: MakeConfig, make_node: MakeNode
) -> None:
    """So no server can ask for the same draws under another number, name or seed."""
    config = run_config()
    request = request_of(config)
    first = lanes(make_node(), request)
    others = [
        lanes(make_node(secret=2), request),
        lanes(make_node(), replace(request, run_id="another")),
        lanes(make_node(), replace(request, exchange=1)),
        lanes(make_node(owner=1), request),
        lanes(make_node(), replace(request, model=request.model + np.float32(0.01))),
    ]
    assert len({result.tobytes() for result in (first, *others)}) == len(others) + 1
    train_loss = [int(result[2]) for result in (first, *others)]
    assert len(set(train_loss)) == len(train_loss), "it is other batches, too, and not just other rounding"
    assert np.array_equal(lanes(make_node("bob"), request), first)
    # The public basis of the round is another one, so of the same update other integers travel.
    seeded = replace(request_of(run_config("seed=8")), model=request.model)
    for same in (seeded, replace(request, round=2)):
        assert np.array_equal(lanes(make_node(), same)[:4], first[:4]), "count, weight and the sums of training"


def test_a_node_without_a_secret_of_its_own_draws_what_nobody_can_repeat(
    run_config: MakeConfig, make_owners: Callable[..., Path]
) -> None:
    path, request = make_owners(1) / "owner-00.jsonl", request_of(run_config())
    one, two = (lanes(Node("alice", path, device="cpu", policy=UNASKED), request) for _ in range(2))
    assert one[2] != two[2]


def test_evaluation_alone_and_beside_training_says_the_same(run_config: MakeConfig, make_node: MakeNode) -> None:
    config, node = run_config(), make_node()
    alone = lanes(node, request_of(config, train=False))
    both = lanes(node, request_of(config))
    assert alone[2:-1].tolist() == both[4:27].tolist()  # after count, weight and the two training sums
    assert alone[0] == both[0] == 1


def test_candidates_are_judged_on_validation_text_and_only_the_first_is_trained(
    run_config: MakeConfig, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(node: Node, request: wire.SumRequest, purpose: str) -> np.random.Generator:
        purpose = "evaluation" if purpose == "candidates" else purpose  # on the same examples, so that they compare
        return node._randomness.generator(request.run_id, request.exchange, purpose)

    monkeypatch.setattr(Node, "_draw", draw)
    config, node = run_config("aggregation.server_optimizer={type: auto, max_examples: 8}"), make_node()
    request = request_of(config, evaluate=False)
    others = [request.model * np.float32(factor) for factor in (1.0, 0.5, 3.0)]
    both = lanes(node, replace(request, model=np.concatenate([request.model, *others])))
    first = 4  # after count, weight and the two training sums
    losses = both[first : first + 4].astype(float) / 2**20
    assert losses[0] == losses[1]
    assert len({*losses.tolist()}) == 3
    predictions = int(both[first + 4]) / 2**20
    judged = []
    for model in (request.model, *others):
        sums = lanes(node, replace(request_of(config, train=False), model=model))  # nll in the first lane after them
        judged.append(int(sums[2]) / 2**20)
        assert int(sums[3]) / 2**20 == predictions
    np.testing.assert_allclose(losses, judged, rtol=1e-5)
    alone = lanes(node, request)
    assert np.array_equal(np.delete(both, range(first, first + 5)), alone), "the update is the same"
    for wrong in ([request.model] * 2, [request.model] * 5, [request.model, others[0][:-1]]):
        with pytest.raises(WireError, match="model: must have"):
            node.handle_round(replace(request, model=np.concatenate(wrong)))
    with pytest.raises(WireError, match="model: must have"):
        node.handle_round(replace(request_of(config, train=False), model=np.concatenate([request.model, *others])))


def test_workspace_stays_warm_and_goes_when_the_run_is_over(run_config: MakeConfig, make_node: MakeNode) -> None:
    node, request = make_node(), request_of(run_config())
    first = lanes(node, request)
    warm = node._workspace
    lanes(node, replace(request, round=2, exchange=1))
    assert warm is not None
    assert node._workspace is not None
    assert node._workspace.dataset is warm.dataset
    assert not node.finished
    node.finish(wire.FinishRequest("r"))
    assert node.finished
    assert node._workspace is None
    assert np.array_equal(lanes(node, request), first)
    assert not node.finished


def test_next_run_finds_a_workspace_of_its_own(run_config: MakeConfig, make_node: MakeNode) -> None:
    node = make_node()
    for overrides in ((), ("model.dim=8",), ("task.sequence_length=8",), ()):
        request = request_of(run_config(*overrides))
        assert np.array_equal(lanes(node, request), lanes(make_node(), request))


BAD_REQUESTS: dict[str, tuple[Callable[[wire.RoundRequest], wire.RoundRequest], type[Exception], str]] = {
    "spaces": (lambda r: replace(r, client_plan=r.client_plan + " "), ConfigError, "must be canonical JSON"),
    "config": (
        lambda r: replace(r, client_plan="{}"),
        ConfigError,
        "client plan from the server: .*: .*AGFL-CONFIG-008",
    ),
    "model": (lambda r: replace(r, model=r.model[:-1]), WireError, r"model: must have \d+ parameters"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_request_that_does_not_fit_is_refused_by_name_and_leaves_no_trace(
    run_config: MakeConfig, make_node: MakeNode, kind: str
) -> None:
    node, request = make_node(), request_of(run_config())
    change, error, rule = BAD_REQUESTS[kind]
    with pytest.raises(error, match=rule):
        node.handle_round(change(request))
    assert np.array_equal(lanes(node, request), lanes(make_node(), request))


@pytest.mark.parametrize(
    "pinned", ["aggregation.clip_l2=1.5", "training={optimizer: {type: sgd, lr: 0.5}, batch_size: 4, local_epochs: 1}"]
)
def test_a_bound_that_stays_is_the_configurations(run_config: MakeConfig, make_node: MakeNode, pinned: str) -> None:
    """Sums over all text must not differ in the bound, nor those of a run whose file states it."""
    node, request = make_node(), request_of(run_config(pinned, "aggregation.weighting=uniform"))
    assert "clipping" not in request.arrays
    with pytest.raises(WireError, match="clipping/step: must not be there as configured"):
        node.handle_round(replace(request, arrays={**request.arrays, "clipping": {"step": np.array([START])}}))
    lanes(node, request)


SCAFFOLD = ("aggregation.server_optimizer={type: scaffold}", "aggregation.weighting=uniform")
ALIGNED = ("aggregation.weighting=alignment",)
ELASTIC = ("elastic={widths: [0.5, 1.0]}",)
Arrays = dict[str, dict[str, Any]]
BAD_ARRAYS: dict[str, tuple[tuple[str, ...], Callable[[Vector], Arrays], str]] = {
    "for none": ((), lambda m: {"scaffold": {"control": m}}, "scaffold/control: must not be there as configured"),
    "unknown": ((), lambda m: {"fedtruth": {"way": m}}, "fedtruth/way: must not be there as configured"),
    "one more": (SCAFFOLD, lambda m: {"scaffold": {"way": m}}, "scaffold/way: must not be there as configured"),
    "empty": (SCAFFOLD, lambda m: {"scaffold": {"control": m[:0]}}, r"scaffold/control: must have \d+ elements"),
    "short": (
        ALIGNED,
        lambda m: {"alignment": {"previous": m[1:]}},
        r"alignment/previous: must have 0 or \d+ elements",
    ),
    "type": (
        SCAFFOLD,
        lambda m: {"scaffold": {"control": m.astype(int)}},
        "scaffold/control: must be float32, got int64",
    ),
    "NaN": (SCAFFOLD, lambda m: {"scaffold": {"control": m * np.float32(np.nan)}}, "scaffold/control: must be finite"),
    "range": ((), lambda m: {"clipping": {"step": np.array([81])}}, r"clipping/step: must be in \[1, 80\], got 81"),
    "order": (SCAFFOLD, lambda m: {"scaffold": {"used": np.array([2, 1])}}, "used: must be exchanges, ascending"),
    "twice": (SCAFFOLD, lambda m: {"scaffold": {"used": np.array([1, 1])}}, "used: must be exchanges, ascending"),
    "names": (
        SCAFFOLD,
        lambda m: {"scaffold": {"names": np.frombuffer(b"a\nb", np.uint8)}},
        "used: must be exchanges, ascending, each with its names",
    ),
    "tiers": (
        ELASTIC,
        lambda m: {"elastic": {"by_tier": np.array([2, 2], np.uint8)}},
        r"the i-th number must be in \[1, i",
    ),
    "no ring": (ELASTIC, lambda m: {"elastic": {"by_tier": np.array([0, 1], np.uint8)}}, r"must be in \[1, 2\], got 0"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_beside_the_model_that_no_method_has_are_refused(
    run_config: MakeConfig, make_node: MakeNode, kind: str
) -> None:
    overrides, change, rule = BAD_ARRAYS[kind]
    request = request_of(run_config(*overrides))
    own = change(request.model)
    arrays = {**request.arrays, **{name: {**request.arrays.get(name, {}), **some} for name, some in own.items()}}
    with pytest.raises(WireError, match=rule):
        make_node().handle_round(replace(request, arrays=arrays))


@pytest.mark.parametrize("overrides", [SCAFFOLD, ALIGNED, ELASTIC, ()])
def test_an_array_that_a_method_needs_is_missed_by_its_name(
    run_config: MakeConfig, make_node: MakeNode, overrides: tuple[str, ...]
) -> None:
    request = request_of(run_config(*overrides))
    assert request.arrays
    for method, own in request.arrays.items():
        for name in own:
            less = {**request.arrays, method: {key: value for key, value in own.items() if key != name}}
            with pytest.raises(WireError, match=f"^{method}/{name}: .*AGFL-WIRE-018"):
                make_node().handle_round(replace(request, arrays=less))


def test_a_node_without_a_folder_keeps_no_state_and_refuses_before_it_trains(
    run_config: MakeConfig, make_node: MakeNode
) -> None:
    request = request_of(run_config(*SCAFFOLD))
    rule = "^aggregation.server_optimizer: scaffold and feddyn need a node that was started with a folder of its own"
    node = make_node()
    with pytest.raises(PolicyViolation, match=rule):
        node.handle_round(request)
    lanes(node, request_of(run_config(*SCAFFOLD), train=False))  # to evaluate needs none


def test_who_moves_as_the_model_did_weighs_more(run_config: MakeConfig, make_node: MakeNode) -> None:
    request = request_of(run_config("aggregation.weighting=alignment"))
    way = np.random.default_rng(0).standard_normal(request.model.size).astype(np.float32)
    weights = [
        int(
            lanes(
                make_node(),
                replace(request, arrays=with_previous(request, (request.model - scale * way).astype(np.float32))),
            )[1]
        )
        for scale in (-1, 0, 1)
    ]
    first = int(lanes(make_node(), request)[1])
    assert weights[1] == first
    assert min(weights[0], weights[2]) < first < max(weights[0], weights[2])
    assert weights[0] * weights[2] == pytest.approx(first**2, rel=1e-4), "exp(cos) exp(-cos) = 1"


def said(reply: Message) -> bytes:
    """Every byte of a reply."""
    parts = [value.deflate() for value in get_all_nested_objects(reply).values()]
    return b"".join(parts) + (str(reply.error.reason).encode() if reply.has_error() else b"")


SECRETS = {
    "good.jsonl": f'{{"text": "{SECRET} and {SECRET}"}}\n{{"text": "more of {SECRET}"}}\n',
    "broken.jsonl": f'{{"text": "{SECRET}',
    "column.jsonl": f'{{"{SECRET}": "{SECRET}"}}',
    "empty.jsonl": "",
    f"{SECRET}.jsonl": "",
    f"{SECRET}-is-not-there.jsonl": None,
}


@pytest.mark.parametrize("file", SECRETS)
def test_text_and_paths_never_leave_the_node(
    tmp_path: Path,
    run_config: MakeConfig,
    deliver: Callable[..., Message],
    caplog: pytest.LogCaptureFixture,
    file: str,
) -> None:
    path, content, request = tmp_path / file, SECRETS[file], request_of(run_config())
    if content is not None:
        path.write_text(content)
    app = create_client_app(lambda context: Node("alice", path, device="cpu", policy=UNASKED))
    requests = [(request.to_record(), wire.TRAIN), (replace(request, train=False).to_record(), wire.EVALUATE)]
    requests += [(change(request).to_record(), wire.TRAIN) for change, _, _ in BAD_REQUESTS.values()]
    requests += [(RecordDict(), wire.TRAIN), (wire.IdentifyRequest().to_record(), wire.IDENTIFY)]
    with caplog.at_level(logging.CRITICAL, "agfl.client"):
        replies = [deliver(app, record, kind) for record, kind in requests]
    for reply in replies:
        assert SECRET.encode() not in said(reply)
        assert str(tmp_path).encode() not in said(reply)
    if file == "good.jsonl":
        assert not replies[0].has_error()
    else:
        assert replies[0].error.code == REFUSED
        assert replies[0].error.reason == "data: this owner's data cannot be used"


def test_refusal_is_told_in_full_on_the_owners_machine(
    tmp_path: Path, run_config: MakeConfig, deliver: Callable[..., Message], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.jsonl").write_text(SECRETS["broken.jsonl"] or "")
    app = create_client_app(lambda context: Node("alice", tmp_path / "broken.jsonl", policy=UNASKED))
    deliver(app, request_of(run_config()).to_record())
    assert f"{tmp_path / 'broken.jsonl'}: line 1: must be a JSON object" in caplog.text


def test_other_version_is_refused_before_anything_else(make_node: MakeNode, deliver: Callable[..., Message]) -> None:
    record = wire.IdentifyRequest().to_record()
    record.config_records["config"]["version"] = 9
    reply = deliver(create_client_app(make_node()), record, wire.IDENTIFY)
    assert reply.error.code == REFUSED
    assert reply.error.reason == "version: this side speaks protocol 3, the other side 9 [AGFL-WIRE-039]"


def test_node_says_its_name_and_hears_that_the_run_is_over(
    make_node: MakeNode, deliver: Callable[..., Message]
) -> None:
    node = make_node()
    app = create_client_app(node)
    reply = deliver(app, wire.IdentifyRequest().to_record(), wire.IDENTIFY)
    assert wire.IdentifyReply.from_record(reply.content).name == "alice"
    reply = deliver(app, wire.FinishRequest("r").to_record(), wire.FINISH)
    assert not reply.has_error()
    assert node.finished


def test_node_of_flowers_own_runtimes_finds_its_file(
    make_owners: Callable[..., Path], deliver: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = make_owners(2), wire.IdentifyRequest().to_record()

    def answer(**node_config: str | int) -> str:
        reply = deliver(stock_app, record, wire.IDENTIFY, **node_config)
        return str(reply.error.reason) if reply.has_error() else wire.IdentifyReply.from_record(reply.content).name

    assert answer(name="carol", data=str(folder / "owner-01.jsonl")) == "carol"
    assert answer(**{"partition-id": 0}).startswith("node config: must give name and data, or AGFL_OWNERS")
    monkeypatch.setenv(OWNERS_VARIABLE, str(folder))
    assert [answer(**{"partition-id": i}) for i in (0, 1)] == ["owner-00", "owner-01"]
    assert "must hold a file for node 2, holds 2" in answer(**{"partition-id": 2})


def test_what_a_stock_node_s_owner_wrote_wrongly_stays_on_its_machine(
    deliver: Callable[..., Message], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy, record = tmp_path / "policy.yaml", wire.IdentifyRequest().to_record()
    policy.write_text("uploads_per_round: -1")
    wrong = ({"policy": str(policy)}, {"policy": str(tmp_path / "none.yaml")}, {"columns": "my-words"})
    for setting in wrong:
        reply = deliver(stock_app, record, wire.IDENTIFY, name="carol", data="x.jsonl", **setting)
        assert reply.error.reason == "node config: this owner's policy or columns cannot be used [AGFL-CONFIG-046]"
    assert f"{policy}: uploads_per_round: Input should be greater than 0, got -1" in caplog.text


def test_stock_node_reads_the_columns_that_its_owner_names(
    make_owners: Callable[..., Path],
    run_config: MakeConfig,
    deliver: Callable[..., Message],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agfl_client.node.secrets.token_bytes", bytes)  # two nodes that draw alike can be compared
    path, request = make_owners(1) / "owner-00.jsonl", request_of(run_config()).to_record()
    (tmp_path / "policy.yaml").write_text("allow_plain: true\nruns: all")
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(path.read_text().replace('"text"', '"words"'))
    common = {"name": "carol", "policy": str(tmp_path / "policy.yaml")}
    plain = deliver(stock_app, request, wire.TRAIN, data=str(path), **common)
    named = deliver(stock_app, request, wire.TRAIN, data=str(renamed), columns="text=words", **common)
    assert (
        read_vector(named.content, "lanes", np.uint64).tobytes()
        == read_vector(plain.content, "lanes", np.uint64).tobytes()
    )
    assert deliver(stock_app, request, wire.TRAIN, data=str(renamed), **common).has_error()


def test_rows_are_read_when_the_task_is_known_and_only_then(
    run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    source, request = make_owners(1) / "owner-00.jsonl", request_of(run_config())
    path = tmp_path / "mine.tsv"
    path.write_text("not yet what it will be")
    secret = OwnerRandomness(bytes(32))
    node = Node("alice", path, device="cpu", columns={"text": "words"}, policy=UNASKED, randomness=secret)
    texts = [row.text for row in read_rows(source, TextRow)]
    path.write_text("\n".join(["words", *texts]))
    first = lanes(node, request)
    other = Node("alice", source, device="cpu", policy=UNASKED, randomness=secret)
    assert np.array_equal(first, lanes(other, request))
    path.unlink()
    assert np.array_equal(first, lanes(node, request)), "a warm node reads nothing again"


def test_a_plan_or_sum_that_this_node_cannot_protect_touches_no_text(run_config: MakeConfig, tmp_path: Path) -> None:
    data = tmp_path / "broken.jsonl"
    data.write_text("no JSON\n")
    config = run_config("aggregation={type: secure, server_optimizer: {type: fedavg}}")
    node = Node("alice", data, device="cpu", policy=UNASKED)
    plan = Plan.of(config.client_plan, "r", ("alice", "bob", "carol"), 3)
    with pytest.raises(PolicyViolation, match=r"^aggregation.type: secure needs a node that was started with"):
        node.propose(wire.ProposeRequest(plan.to_json()))
    with pytest.raises(PlanViolation, match=r"^plan: .*AGFL-PLAN-002"):
        node.handle_round(request_of(config))


def test_a_plain_sum_needs_an_owner_who_takes_part_unasked_or_approves(
    run_config: MakeConfig, make_owners: Callable[..., Path]
) -> None:
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=Policy(allow_plain=True))
    with pytest.raises(PolicyViolation, match=r"^runs: .*AGFL-POLICY-005"):
        node.handle_round(request_of(run_config()))


def test_data_of_another_task_is_refused_in_one_line(
    run_config: MakeConfig, make_owners: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_owners(1) / "owner-00.jsonl"
    model = "{family: encoder, vocab_size: 259, dim: 8, head: {type: span}, layers: [{type: ff}]}"
    request = request_of(run_config("task={type: question_answering}", f"model={model}"))
    rule = rf"^data: {path}: line 1: .*'context', got 'text' \[AGFL-DATA-007\]$"
    with pytest.raises(DataError, match=rule):
        Node("alice", path, device="cpu", policy=UNASKED).handle_round(request)


@pytest.mark.parametrize("refused", ["plan", "vector", "policy"])
def test_a_refused_request_leaves_what_is_warm(
    run_config: MakeConfig, make_owners: Callable[..., Path], refused: str
) -> None:
    """A server cannot have an owner read its text and build its model again and again."""
    lines: list[str] = []
    policy = UNASKED.model_copy(update={"max_parameters": run_config().model.num_parameters()})
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=policy, tell=lines.append)
    config, wider = run_config(), run_config("model.dim=32")
    wrong = {
        "plan": replace(request_of(config), client_plan="{}"),
        "vector": replace(request_of(run_config("seed=9")), model=np.zeros(7, np.float32)),
        "policy": request_of(wider),
    }[refused]
    node.handle_round(request_of(config))
    for exchange in (1, 2):
        with pytest.raises((ConfigError, WireError, PolicyViolation)):
            node.handle_round(wrong)
        node.handle_round(request_of(config, exchange=exchange))
    assert [line.startswith("data for ") for line in lines].count(True) == 1


def test_node_without_text_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="AGFL-DATA-037"):
        Node("alice", tmp_path / "none.jsonl")


def test_a_direction_moves_each_parameter_of_a_part_by_its_own(
    run_config: MakeConfig, make_owners: Callable[..., Path]
) -> None:
    """FedCM on the first ring of an elastic model: with next to nothing of its own gradient an owner goes that way."""
    overrides = ("methods=[{type: fedcm, alpha: 1.0e-9}]", "training.max_grad_norm=null", "aggregation.clip_l2=1000")
    request = request_of(run_config(*ELASTIC, *overrides))
    way = np.random.default_rng(3).standard_normal(request.model.size).astype(np.float32)
    request = replace(request, arrays={**request.arrays, "fedcm": {"momentum": way}}, plan=QuantizationPlan(1, 3))
    policy = UNASKED.model_copy(update={"max_width": 0.5})
    node = Node("alice", make_owners(1) / "owner-00.jsonl", device="cpu", policy=policy)
    layout = Layout.of(build_model(run_config(*ELASTIC).model, seed=0))
    total = codec_of(request, layout).decode_sum(lanes(node, request))
    rings = run_config(*ELASTIC).build_rings()
    assert rings is not None
    expected = np.where(rings.held(1), way, 0) * total.weight
    assert np.linalg.norm(total.delta - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("weighting", ["uniform", "alignment"])
def test_the_model_that_was_broadcast_is_let_go_of_before_the_update_is_encoded(
    weighting: str,
    run_config: MakeConfig,
    make_node: MakeNode,
    deliver: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a large model, its update and the vector that leaves would be in memory together."""
    genuine_read, genuine_write = wire.RoundRequest.from_record, UpdateCodec.write
    models: list[weakref.ref[Any]] = []

    def read(record: RecordDict) -> wire.RoundRequest:
        request = genuine_read(record)
        models.extend((weakref.ref(request.model), weakref.ref(record["arrays"])))
        return request

    def write(codec: UpdateCodec, rotated: Rotated, *others: Any) -> Lanes:
        assert [model() for model in models] == [None, None]
        return genuine_write(codec, rotated, *others)

    monkeypatch.setattr(wire.RoundRequest, "from_record", read)
    monkeypatch.setattr(UpdateCodec, "write", write)
    request = request_of(run_config(f"aggregation.weighting={weighting}"))
    reply = deliver(create_client_app(make_node()), request.to_record())
    assert not reply.has_error(), reply.error.reason
    assert len(models) == 2


def test_what_is_left_of_a_request_has_its_hash_and_no_model(run_config: MakeConfig) -> None:
    request = request_of(run_config())
    left = request.without_arrays(is_hashed=True)
    assert left.broadcast_hash == request.broadcast_hash != replace(left).broadcast_hash
    assert (left.model.size, left.model.base, left.arrays) == (0, None, {})
    assert request.without_arrays(is_hashed=False).broadcast_hash == b""
