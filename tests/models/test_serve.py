"""`agfl-model serve` on a real socket: its answers are the model's, one after the other, for this machine alone."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.commands import Started

from agfl_models import AutoGenModel
from agfl_models.errors import TransportError
from agfl_models.files.store import save_model
from agfl_models.inference import Answerer, Classifier, Continuer, Rewriter, open_model
from agfl_models.tasks.language_modeling import LanguageModelingConfig
from agfl_models.tokenizers.tokenizer import Tokenizer
from agfl_models.web.asgi_server import AsgiServer
from agfl_models.web.facts import model_facts
from agfl_models.web.serve import is_loopback

if TYPE_CHECKING:
    from tests.models.conftest import Serve

COMMAND = Path(sys.executable).with_name("agfl-model")
TEXT, CONTEXT = "Grüße 😀 there", "Grüße 😀 there, the cat sat on the mat."


@pytest.mark.parametrize("command", ["translate", "summarize"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "max_tokens": 9, "length_penalty": 0, "no_repeat_ngram": 2}])
def test_texts_are_written_as_the_model_does(command: str, settings: dict[str, Any], serve: Serve) -> None:
    user, client = serve(command)
    assert isinstance(user, Rewriter)
    given = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in settings.items()}
    (expected,) = user.write([TEXT], user.decoding(given))
    body = {"text": TEXT, **settings}
    assert client.post(f"/v1/{command}", json=body).json() == {"text": expected, "is_cut": False}
    streamed = client.post(f"/v1/{command}", json={**body, "stream": True})
    assert (streamed.content.decode(), streamed.headers["text-cut"]) == (expected, "false")


def test_a_text_that_is_cut_is_said_to_be(serve: Serve) -> None:
    _, client = serve("translate")
    body = {"text": "long " * 20}
    assert client.post("/v1/translate", json=body).json()["is_cut"] is True
    assert client.post("/v1/translate", json={**body, "stream": True}).headers["text-cut"] == "true"


def test_questions_are_answered_as_the_model_does(serve: Serve) -> None:
    user, client = serve("answer")
    assert isinstance(user, Answerer)
    for context, question in [(CONTEXT, "who?"), ("Ships", "What was it?"), (CONTEXT, "long " * 20)]:
        found = user.answer(context, question)
        answer = client.post("/v1/answer", json={"context": context, "question": question}).json()
        assert (answer["answer"], answer["start"], answer["end"]) == found
        assert answer["is_cut"] == (question == "long " * 20)


def test_texts_are_classified_as_the_model_does(serve: Serve) -> None:
    user, client = serve("classify")
    assert isinstance(user, Classifier)
    for text in (TEXT, "long " * 20):
        (expected,) = user.classify([text])
        reply = client.post("/v1/classify", json={"text": text}).json()
        assert reply == {"label": next(iter(expected)), "probabilities": expected, "is_cut": text != TEXT}
        assert list(reply["probabilities"]) == list(expected), "the most probable one comes first"


def test_texts_are_continued_as_the_model_does(serve: Serve) -> None:
    user, client = serve("generate")
    assert isinstance(user, Continuer)
    settings = {"temperature": 1.5, "top_k": 5}
    expected = "".join(user.stream(TEXT, user.decoding({**settings, "max_new_tokens": 9}), seed=3))
    body = {"text": TEXT, **settings, "max_tokens": 9, "seed": 3}
    assert client.post("/v1/generate", json=body).json()["text"] == expected
    assert client.post("/v1/generate", json={**body, "stream": True}).content.decode() == expected
    unasked = "".join(user.stream("", user.decoding({})))
    assert client.post("/v1/generate", json={}).json()["text"] == unasked


def test_a_stream_comes_before_its_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    user, client = serve("generate")
    go_on, step, steps = threading.Event(), user.model.step, iter(range(10**6))

    def halting(*arguments: Any) -> Any:
        if next(steps) == 30:
            assert go_on.wait(30)
        return step(*arguments)

    monkeypatch.setattr(user.model, "step", halting)
    body = {"text": "the cat", "max_tokens": 60, "stream": True}
    with client.stream("POST", "/v1/generate", json=body) as response:
        pieces = response.iter_bytes()
        assert next(pieces)
        assert client.get("/v1/model").status_code == client.get("/").status_code == 200  # nothing waits for it
        go_on.set()
        assert any(pieces)


def test_one_request_at_a_time_uses_the_model(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    user, client = serve("generate")
    assert isinstance(user, Continuer)
    expected = ["".join(user.stream("x", user.decoding({"max_new_tokens": 20}), seed)) for seed in range(6)]
    step, inside, most = user.model.step, [0], [0]

    def counting(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)
        result = step(*arguments)
        inside[0] -= 1
        return result

    monkeypatch.setattr(user.model, "step", counting)

    def ask(seed: int) -> str:
        body = {"text": "x", "max_tokens": 20, "seed": seed, "stream": seed % 2 == 0}
        response = client.post("/v1/generate", json=body)
        return response.content.decode() if seed % 2 == 0 else str(response.json()["text"])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == expected
    assert most == [1]


def test_who_leaves_in_the_middle_of_a_stream_frees_the_model(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    user, client = serve("generate")
    step, count = user.model.step, [0]

    def counting(*arguments: Any) -> Any:
        count[0] += 1
        time.sleep(0.01)
        return step(*arguments)

    monkeypatch.setattr(user.model, "step", counting)
    with client.stream("POST", "/v1/generate", json={"text": "x", "max_tokens": 1000, "stream": True}) as response:
        next(response.iter_bytes())
    assert client.post("/v1/generate", json={"text": "x", "max_tokens": 1}).status_code == 200
    assert count[0] < 500


def test_the_model_is_described(serve: Serve, model_folders: dict[str, Path]) -> None:
    user, client = serve("translate")
    facts = client.get("/v1/model").json()
    assert facts["task"]["type"] == "translation"
    assert facts["task"]["source_length"] == 24
    assert facts["endpoint"] == "/v1/translate"
    assert facts["parameters"] == sum(weights.numel() for weights in user.model.parameters())
    assert (facts["tokenizer"], facts["vocabulary"]) == ("byte-level BPE, 3 merges", 262)
    assert facts["metrics"] == {}
    assert set(client.get("/openapi.json").json()["paths"]) == {"/", "/v1/model", "/v1/translate"}


def test_the_last_evaluation_of_a_run_is_told(model_folders: dict[str, Path]) -> None:
    folder = model_folders["translate"]
    user, task = open_model(folder)
    rows: list[dict[str, Any]] = [
        {"round": 0, "eval/bleu": 0.5},
        {"round": 1, "eval/bleu": 2.5, "train/loss": 1.0},
        {"round": 2},
    ]
    metrics = folder / "metrics.jsonl"
    try:
        metrics.write_text("".join(json.dumps({"eval/bleu": None, **row}) + "\n" for row in rows) + '{"round": 3, "ev')
        assert model_facts(folder, user, task).metrics == {"eval/bleu": 2.5}
    finally:
        metrics.unlink()


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.5.5.5", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_what_is_local(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_a_port_in_use_is_named(model_folders: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            TransportError, match=rf"must be a free address .* got 127.0.0.1:{port} .*in use.*AGFL-TRANSPORT-001"
        ):
            AsgiServer(lambda *_: None, "127.0.0.1", port).__enter__()  # type: ignore[arg-type]


@contextmanager
def served(*arguments: str | Path) -> Iterator[tuple[Started, list[str], int]]:
    """Start the command; give the process, the lines that it says first and the port."""
    process = Started("agfl-model", "serve", *arguments, "--port", "0")
    try:
        lines = [process.stderr.readline()]
        while lines[-1] and not lines[-1].startswith("the model answers at http://"):
            lines.append(process.stderr.readline())
        yield process, lines, int(lines[-1].rpartition(":")[2].partition(";")[0])
    finally:
        process.kill()
        process.communicate()


def test_it_listens_on_this_machine_alone_and_stops_at_once(tmp_path: Path) -> None:
    layers = [{"repeat": 4, "layers": [{"type": "attention"}, {"type": "ff"}]}]
    head = {"type": "language_model", "tied": False}
    model = AutoGenModel({"vocab_size": 259, "dim": 256, "layers": layers, "head": head}, seed=0)
    weights = model.state_dict()
    weights["head.projection.weight"][Tokenizer.eos_id] = 0  # never the most probable token: it writes for seconds
    save_model(tmp_path, model.config, weights, LanguageModelingConfig(type="language_modeling"))
    with served(tmp_path) as (process, lines, port), ThreadPoolExecutor(1) as pool:
        assert lines == [f"the model answers at http://127.0.0.1:{port}; stop with Ctrl-C\n"]
        assert listens_on(port) == {"0100007F"}
        body = {"max_tokens": 1000, "temperature": 0}
        request = pool.submit(httpx.post, f"http://127.0.0.1:{port}/v1/generate", json=body, timeout=60)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(20) == 130
        assert time.monotonic() - start < 1
        with pytest.raises(httpx.TransportError):
            request.result()


def test_it_warns_where_others_reach_it(model_folders: dict[str, Path]) -> None:
    with served(model_folders["answer"], "--host", "0.0.0.0") as (process, lines, port):
        warning = f"whoever reaches 0.0.0.0 port {port} can use this model: no password, no encryption\n"
        assert lines[0] == warning
        assert listens_on(port) == {"00000000"}
        assert httpx.get(f"http://127.0.0.1:{port}/v1/model", headers={"host": "anything"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130


def listens_on(port: int) -> set[str]:
    """Return the IPv4 addresses, as Linux writes them, on which someone listens on `port`."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = (columns[1].split(":") for columns in sockets if columns[3] == "0A")
    return {address for address, number in found if int(number, 16) == port}
