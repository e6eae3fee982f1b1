"""What the server of a model refuses, it refuses in one line, before it costs anything."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from agfl_models.web.guard import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from tests.models.conftest import Serve

TEXT = "Grüße 😀 there"

BAD_BODIES: dict[str, tuple[str, Any, str]] = {
    "a missing text": ("translate", {}, "text: required but missing [AGFL-CONFIG-008]"),
    "a blank text": ("translate", {"text": " \n"}, "text: must hold text, got ' \\n'"),
    "another type": ("translate", {"text": 5}, "got 5 [AGFL-CONFIG-010]"),
    "a misspelled key": ("translate", {"txt": "a"}, "unknown key 'txt' (did you mean 'text'?) [AGFL-CONFIG-001]"),
    "too many beams": (
        "translate",
        {"text": "a", "num_beams": 17},
        "to 16, got 17 [AGFL-CONFIG-011]",
    ),
    "too many tokens": (
        "generate",
        {"max_tokens": 1001},
        "to 1000, got 1001 [AGFL-CONFIG-011]",
    ),
    "no number": ("generate", {"temperature": "warm"}, "temperature: Input should be a valid number"),
    "half a character": (
        "answer",
        {"context": "a", "question": "\ud800"},
        "question: Input should be a valid string",
    ),
    "a long text": ("translate", {"text": "a" * 20_001}, "text: String should have at most 20000 characters, got"),
    "a long context": ("answer", {"context": "a" * 200_001, "question": "b"}, "context: String should have at most"),
    "a long prompt": ("generate", {"text": "a" * 4_001}, "text: String should have at most 4000 characters, got"),
    "no text": ("classify", {}, "text: required but missing [AGFL-CONFIG-008]"),
    "a blank text to classify": ("classify", {"text": " "}, "text: must hold text, got ' ' [AGFL-"),
    "a list": ("translate", ["a"], "AGFL-REQUEST-004"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_one_line(name: str, serve: Serve) -> None:
    command, body, line = BAD_BODIES[name]
    _, client = serve(command)
    response = client.post(f"/v1/{command}", content=json.dumps(body), headers={"content-type": "application/json"})
    assert_error(response, 422, line)
    assert len(response.json()["error"]) < 200


def test_a_body_that_is_no_json_is_one_line(serve: Serve) -> None:
    _, client = serve("translate")
    headers = {"content-type": "application/json"}
    for content, line in [
        (b"{", "AGFL-REQUEST-003"),
        (b"", "AGFL-REQUEST-004"),
        (b"\xff\xfe", "AGFL-REQUEST-003"),
        (b"[" * 100_000, "AGFL-REQUEST-002"),
    ]:
        response = client.post("/v1/translate", content=content, headers=headers)
        assert_error(response, 400 if content[:1] == b"[" else 422, line)


def test_a_page_from_elsewhere_cannot_use_the_model(serve: Serve) -> None:
    _, client = serve("translate")
    text = json.dumps({"text": TEXT})
    # What a browser sends without asking first, it may send for any page.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post("/v1/translate", content=text, headers={"content-type": kind})
        assert_error(response, 422, "AGFL-REQUEST-004")
    assert "access-control-allow-origin" not in client.options("/v1/translate").headers
    response = client.get("/v1/model", headers={"host": "evil.example:8600"})
    assert_error(response, 403, "got 'evil.example' [AGFL-REQUEST-005]")
    for name in ("localhost", "localhost:1", "[::1]:8600"):
        assert client.get("/v1/model", headers={"host": name}).status_code == 200


def test_a_body_that_is_too_large_is_refused_whether_it_comes_or_not(serve: Serve) -> None:
    _, client = serve("translate")
    headers = {"content-type": "application/json", "content-length": str(MAX_REQUEST_BYTES + 1)}
    lines = ["POST /v1/translate HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    for body in (b"", b"x" * 1000, b"x" * (MAX_REQUEST_BYTES + 1)):
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as connection:
            connection.sendall(head)
            time.sleep(0.1)
            connection.sendall(body)
            time.sleep(0.2)  # whoever closes on what comes late resets the connection, and the answer is lost
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    assert_error(client.post("/v1/translate", content=iter([b"{}"])), 411, "got 'none' [AGFL-REQUEST-006]")


@pytest.mark.parametrize(
    "path",
    ["/../config.yaml", "/%2e%2e/config.yaml", "/v1/..%2f..%2fconfig.yaml", "//etc/passwd", "/docs", "/page.html"],
)
def test_there_is_nothing_else(path: str, serve: Serve) -> None:
    _, client = serve("translate")
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    assert answer.startswith("HTTP/1.1 404 ")
    assert "this model answers POST /v1/translate, GET /v1/model and GET /" in answer
    assert "vocab_size" not in answer


def test_another_tasks_endpoint_names_the_models_own(serve: Serve) -> None:
    _, client = serve("answer")
    line = "POST /v1/answer, GET /v1/model and GET / [AGFL-REQUEST-001]"
    assert_error(client.post("/v1/translate", json={"text": "a"}), 404, line)
    assert_error(client.get("/v1/answer"), 405, line)


def test_every_answer_keeps_a_browser_from_other_places(serve: Serve) -> None:
    _, client = serve("translate")
    for response in (
        client.get("/"),
        client.get("/v1/model"),
        client.get("/nothing"),
        client.get("/", headers={"host": "evil.example"}),
        client.post("/v1/translate", json={"text": "a", "stream": True}),
    ):
        parts = response.headers["content-security-policy"].split("; ")
        policy: dict[str, str] = {name: value for name, _, value in (part.partition(" ") for part in parts)}
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["script-src"].startswith("'sha256-")
        assert policy["style-src"].startswith("'sha256-")
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "server" not in response.headers
    page = client.get("/").text
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")  # nothing comes from elsewhere


def assert_error(response: httpx.Response, status: int, line: str) -> None:
    assert response.status_code == status, response.text
    answer = response.json()
    assert list(answer) == ["error", "code"]
    assert line in f"{answer['error']} [{answer['code']}]"
    assert "\n" not in answer["error"]
