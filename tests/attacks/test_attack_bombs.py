"""Small inputs that ask for much: of a file, of a request, of a configuration. Each is refused in one short line."""

from __future__ import annotations

import json
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from tests.client.test_node import request_of

from agfl_client.app import REFUSED, create_client_app
from agfl_client.node import Node
from agfl_client.policy import Policy, PolicyViolation, load_policy
from agfl_client.training.memory_estimate import estimate
from agfl_client.training.part import Part
from agfl_client.training.probe import measure
from agfl_client.training.trainer import BatchTrainer
from agfl_models.bounded import MAX_DEPTH, MAX_SHOWN, load_json, shown
from agfl_models.errors import AgflError, CheckpointError, ConfigError
from agfl_models.files.store import load_model, save_model
from agfl_models.validation import load_yaml
from agfl_protocol.config.run_config import RunConfig, load_run_config
from agfl_protocol.identity.identity import PublicIdentity
from agfl_protocol.identity.roster_file import read_roster
from agfl_protocol.messages import wire
from agfl_protocol.plans.client_plan import client_plan_from_json
from agfl_sim.engines.grid import InProcessGrid

MakeConfig = Callable[..., RunConfig]
MB = 1 << 20


def aliases(key: str, levels: int = 9) -> str:
    """A document of a few hundred bytes whose value, written out, has 9 ** levels items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"{key}: *a{levels - 1}"])


@contextmanager
def cheap(most_mb: float = 60, most_s: float = 20) -> Iterator[None]:
    """Fail where the block takes more memory or time; traced memory makes it several times slower."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_mb * MB, f"{peak / MB:.0f} MB"
    assert time.monotonic() - start < most_s


def is_one_short_line(error: BaseException) -> None:
    assert len(str(error)) <= 2000
    assert "\n" not in str(error)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pub": ("name", PublicIdentity.read),
    "roster": ("owners", read_roster),
    "policy": ("min_cohort", load_policy),
    "run": ("num_rounds", load_run_config),
    "set": ("num_rounds", lambda path: load_run_config(path.with_name("tiny.yaml"), ["seed=[&a x, *a]"])),
    "model": ("tokenizer", lambda path: load_model(path.parent)),
}


# 4 levels are enough to tell: on code that follows aliases, 9 are gigabytes
@pytest.mark.parametrize("kind", READERS)
def test_attack_aliases_of_aliases_are_refused(tmp_path: Path, config_file: Path, kind: str) -> None:
    key, read = READERS[kind]
    path = tmp_path / "config.yaml"
    path.write_text(aliases(key, 4))
    assert path.stat().st_size < 500
    with cheap(), pytest.raises(AgflError, match=r"anchors and aliases \(& and \*\) are not allowed") as refusal:
        read(path)
    is_one_short_line(refusal.value)


FILES: dict[str, tuple[str, str]] = {
    "lists": ("[" * 20_000, "must nest at most 64 deep"),
    "mappings": ("{a: " * 20_000, "must nest at most 64 deep"),
    "items": ("- " * 20_000, "must nest at most 64 deep"),
    "keys": ("? " * 20_000, "must nest at most 64 deep"),
    "depth": ("x: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "must nest at most 64 deep"),
    "base 60": ("x: " + "1:1" * 20_000, "a number has at most 100 characters"),
    "hexadecimal": ("x: 0x" + "f" * 20_000, "a number has at most 100 characters"),
    "float": ("x: " + "1:1" * 20_000 + ".", "a number has at most 100 characters"),
    "values": ("x: [" + "1," * 1_000 + "]", "at most 1000 values are allowed"),
    "length": ("x: " + "y" * (4 * MB), "must have at most 4194304 bytes, has more"),
    "key": ("k" * 100_000 + ": 1", "mapping values are not allowed here"),
}


@pytest.mark.parametrize("kind", FILES)
def test_attack_a_file_is_deep_or_long_or_one_huge_number(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agfl_models.validation._MAX_NODES", 1000)  # so many are read in a moment
    path = tmp_path / "run.yaml"
    text, line = FILES[kind]
    path.write_text(text)
    with cheap(), pytest.raises(ConfigError, match=line) as refusal:
        load_run_config(path)
    is_one_short_line(refusal.value)


@pytest.mark.parametrize("load", [load_yaml, load_json])
def test_attack_a_text_is_too_long(load: Callable[[str], Any]) -> None:
    with cheap(), pytest.raises(Exception, match=r"^must have at most 4194304 characters, got 4194305$"):
        load("x" * (4 * MB + 1))


def test_the_deepest_document_that_is_allowed_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert load_yaml(text) == load_json(text)
    for load in (load_yaml, load_json):
        with pytest.raises(Exception, match=f"must nest at most {MAX_DEPTH} deep"):
            load(f"[{text}]")


def test_attack_an_endless_file_is_not_read_to_its_end() -> None:
    with cheap(), pytest.raises(ConfigError, match=r"^/dev/zero: .*AGFL-CONFIG-002"):
        load_policy(Path("/dev/zero"))
    with cheap(), pytest.raises(AgflError, match=r"^/dev/zero: .*AGFL-IDENTITY-014"):
        PublicIdentity.read(Path("/dev/zero"))


WIRE_BOMBS: dict[str, Callable[[dict[str, Any]], object]] = {
    "deep": lambda c: c.update(model="DEEP"),
    "list of wrong layers": lambda c: c["model"].update(layers=[{}] * 300_000),
    "list of wrong keys": lambda c: c["model"].update(layers=[{"type": "ff", "x": 1}] * 100_000),
    "wrong merges": lambda c: c.update(tokenizer={"type": "bpe", "vocab_size": 300, "merges": [[]] * 300_000}),
    "alternatives": lambda c: c["model"].update(layers=[{"type": "choice", "name": "a", "of": [[]] * 300_000}]),
    "columns": lambda c: c.update(data={"columns": {str(i): i for i in range(100_000)}}),
    "rungs": lambda c: c.update(search={"rungs": [0] * 300_000}),
    "key": lambda c: c.update({"k" * MB: 1}),
    "value": lambda c: c.update(seed="s" * MB),
    "length": lambda c: c.update(seed="s" * 5 * MB),
}


@pytest.mark.parametrize("kind", WIRE_BOMBS)
def test_attack_a_configuration_from_the_server_fails_in_many_places(run_config: MakeConfig, kind: str) -> None:
    content = json.loads(run_config().client_plan.to_json())
    WIRE_BOMBS[kind](content)
    text = json.dumps(content).replace('"DEEP"', "[" * 90_000 + "]" * 90_000)
    with cheap(), pytest.raises(ConfigError) as refusal:
        client_plan_from_json(text)
    is_one_short_line(refusal.value)


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**100_000, [["x" * 100] * 100] * 100, {"a" * 10**6: 1}, b"x" * 10**6],
    ids=["text", "number", "lists", "key", "bytes"],
)
def test_a_value_is_shown_in_bounded_length(value: object) -> None:
    with cheap(20, 2):
        text = shown(value)
    assert len(text) <= MAX_SHOWN
    assert "\n" not in shown("a\nb")


# 10 ** 9 or more of each would be more than a lifetime, or more than any memory
HUGE = (
    "num_rounds", "training.local_steps", "training.batch_size", "evaluation.max_examples", "evaluation.every",
    "aggregation.cohort_size", "aggregation.min_cohort", "aggregation.max_colluders", "aggregation.max_attempts",
    "aggregation.round_timeout_s", "task.sequence_length", "model.vocab_size", "model.dim", "data.num_owners",
    "model.layers.0.embed_dim", "model.layers.0.head_dim", "model.layers.0.num_heads", "model.layers.0.window",
    "model.layers.1.hidden_dim", "model.layers.1.input_dim", "model.layers.1.output_dim",
)  # fmt: skip


@pytest.mark.parametrize("field", HUGE)
def test_every_count_of_a_configuration_has_a_bound(run_config: MakeConfig, field: str) -> None:
    with pytest.raises(ConfigError, match=r"less than or equal to \d+, got 1000000000000.*AGFL-CONFIG-011"):
        run_config(f"{field}={10**12}")


def test_other_counts_have_a_bound_too(run_config: MakeConfig) -> None:
    for override in (
        "aggregation.server_optimizer={type: auto, every: 1000000000000}",
        "aggregation.server_optimizer={type: auto, max_examples: 1000000000000}",
        "elastic={growth: {patience: 1000000000000}}",
        "task={type: translation, source_length: 1000000000000}",
        "task={type: translation, target_length: 1000000000000}",
        "task={type: translation, num_beams: 1000000000000}",
        "task={type: question_answering, context_length: 1000000000000}",
        "task={type: question_answering, max_answer_length: 1000000000000}",
        "model={family: huggingface, architecture: causal, num_layers: 1000000000000}",
        "model={family: huggingface, architecture: causal, lora: {rank: 1000000000000, targets: [a]}}",
        f"seed={2**64}",
    ):
        with pytest.raises(ConfigError, match="less than"):
            run_config(override)


# --- a round without end


@pytest.fixture
def owner(make_owners: Callable[..., Path]) -> Path:
    return make_owners(1) / "owner-00.jsonl"


def test_attack_steps_without_end_stop_at_the_owners_limit(run_config: MakeConfig, owner: Path) -> None:
    """A configuration may ask for a million; of 3000 this test would come to an end without the check, too."""
    run_config("training.local_steps=1000000")
    node = Node("alice", owner, device="cpu", policy=Policy(allow_plain=True, runs="all", max_seconds_per_round=0.2))
    with pytest.raises(PolicyViolation, match=r"^max_seconds_per_round: .*AGFL-POLICY-012"):
        node.handle_round(request_of(run_config("training.local_steps=3000"), evaluate=False))
    node._policy = Policy(allow_plain=True, runs="all")
    node.handle_round(request_of(run_config("training.local_steps=2")))  # the next round has its own time


def test_a_round_ends_within_a_batch_of_its_limit(
    run_config: MakeConfig, owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each step takes one second."""
    node = Node("alice", owner, device="cpu", policy=Policy(allow_plain=True, runs="all", max_seconds_per_round=7.5))
    steps: list[int] = []
    step = BatchTrainer._step

    def counted(*arguments: Any) -> None:
        steps.append(1)
        step(*arguments)

    monkeypatch.setattr(BatchTrainer, "_step", counted)
    monkeypatch.setattr("agfl_client.training.deadline.time.monotonic", lambda: 1000.0 + len(steps))
    with pytest.raises(PolicyViolation, match=r"^max_seconds_per_round: .*AGFL-POLICY-012"):
        node.handle_round(request_of(run_config("training.local_steps=30"), evaluate=False))
    assert len(steps) == 8


def test_attack_a_round_that_only_evaluates_ends_there_too(
    run_config: MakeConfig, owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three that go over held-out text: evaluation, the losses of models, and those of rings."""
    calls = 0

    def passes() -> float:
        nonlocal calls
        calls += 1
        return 100.0 * calls

    requests = [request_of(run_config(), train=False)]
    auto = request_of(run_config("aggregation.server_optimizer={type: auto}"), evaluate=False)
    requests.append(replace(auto, model=np.concatenate([auto.model] * 4)))
    for request in requests:
        node = Node("alice", owner, device="cpu", policy=Policy(allow_plain=True, runs="all", max_seconds_per_round=1))
        monkeypatch.setattr("agfl_client.training.deadline.time.monotonic", passes)
        monkeypatch.setattr(BatchTrainer, "train", lambda *_, **__: pytest.fail("it went on"))
        with pytest.raises(PolicyViolation, match=r"^max_seconds_per_round: .*AGFL-POLICY-012"):
            node.handle_round(request)
        monkeypatch.undo()
        node._policy = Policy(allow_plain=True, runs="all")
        node.handle_round(request)


def test_out_of_time_is_one_line_on_both_sides_and_nothing_else_leaves(
    run_config: MakeConfig, owner: Path, caplog: pytest.LogCaptureFixture
) -> None:
    InProcessGrid({}, 1)  # makes this process one that may make messages
    node = Node("alice", owner, device="cpu", policy=Policy(allow_plain=True, runs="all", max_seconds_per_round=1e-6))
    message = Message(request_of(run_config()).to_record(), 7, wire.TRAIN)
    message.metadata.__dict__["_message_id"] = "m"
    with caplog.at_level(logging.ERROR):
        reply = create_client_app(node)(message, Context(1, 7, {}, RecordDict(), {}))
    assert not reply.has_content()
    line = "max_seconds_per_round: out of time [AGFL-POLICY-012]"
    assert (reply.error.code, reply.error.reason) == (REFUSED, line)
    assert caplog.messages == [
        "your node takes no part in this round: max_seconds_per_round: out of time [AGFL-POLICY-012]"
    ]


# --- more memory than there is


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.batch_size=65536", "task.sequence_length=131072"),
        ("model.dim=65536", "model.layers.0.num_heads=64"),
        ("model.layers.1.hidden_dim=65536", "training.batch_size=60000", "task.sequence_length=10000"),
    ],
)
def test_attack_a_run_that_does_not_fit_is_refused_before_anything_is_built(
    run_config: MakeConfig, owner: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(*overrides)
    policy = Policy(allow_plain=True, max_parameters=10**12, max_memory="64MB")
    monkeypatch.setattr(Part, "of", lambda *_: pytest.fail("the model was built"))
    small = request_of(run_config())
    request = replace(small, client_plan=config.client_plan.to_json())
    need = estimate(config.client_plan, 1)
    line = rf"^max_memory: must be at least {need} bytes, the run's by estimate, .*AGFL-POLICY-004"
    with cheap(20), pytest.raises(PolicyViolation, match=line):
        Node("alice", owner, device="cpu", policy=policy).handle_round(request)


def test_without_a_key_no_run_takes_more_than_this_machine_has(run_config: MakeConfig) -> None:
    config = run_config("training.batch_size=65536", "task.sequence_length=131072")  # terabytes
    with pytest.raises(PolicyViolation, match=r"^max_memory: "):
        Policy(allow_plain=True, runs="all").tier(config.client_plan)
    Policy(allow_plain=True, runs="all").tier(run_config().client_plan)


def test_memory_decides_the_width_of_an_elastic_model(run_config: MakeConfig) -> None:
    config = run_config("elastic={widths: [0.25, 0.5, 1.0]}")
    needs = [estimate(config.client_plan, k) for k in (1, 2, 3)]
    assert needs == sorted(set(needs))
    for bytes_, tier in ((needs[0], 1), (needs[1] - 1, 1), (needs[1], 2), (needs[2], 3)):
        assert Policy(allow_plain=True, max_memory=bytes_).tier(config.client_plan) == tier


SEQUENCES = "[{type: %s}, {type: ff}]"


@pytest.mark.parametrize(
    "layer", ["attention", "rnn", "rnn, cell: lstm", "rnn, cell: mingru", "rnn, cell: gated_delta", "ff"]
)
@pytest.mark.parametrize("size", ["wide", "long"])
def test_the_estimate_is_above_what_training_takes_and_not_far(
    run_config: MakeConfig, owner: Path, layer: str, size: str
) -> None:
    shape = ("model.dim=128", "task.sequence_length=32") if size == "wide" else ("task.sequence_length=256",)
    config = run_config(f"model.layers={SEQUENCES % layer}", *shape)
    found = measure(config.client_plan, owner, {}, "cpu", 1)[0].memory_bytes
    assert found <= estimate(config.client_plan, 1) <= 8 * found


# --- a model from somebody else


def test_attack_a_model_file_asks_for_more_than_its_weights(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config()
    part = Part.of(config, None, 1, "cpu")
    save_model(tmp_path, config.model, part.model.state_dict(), config.task, config.tokenizer)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("hidden_dim: 24", "hidden_dim: 65536"))
    with (
        cheap(10),
        pytest.raises(CheckpointError, match=r"shape \(65536, 16\), got \(24, 16\) \[AGFL-CHECKPOINT-011\]$"),
    ):
        load_model(tmp_path)
