"""The page of `agfl-model serve` in a real browser: a person at a keyboard gets what the model says, and no errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agfl_models.inference import Answerer, Classifier, Rewriter, User

if TYPE_CHECKING:
    from tests.models.conftest import Serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TAB, ENTER, ESCAPE = 9, 13, 27
CONTROL = 2  # as a modifier

# Chromium reads and writes at 3 and 4, wherever our pipes are.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for wanted, pipe in zip((3, 4), pipes):
    os.dup2(pipe, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless Chromium that is told what to do over two pipes (Chrome DevTools Protocol)."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self.messages: list[dict[str, Any]] = []  # what the page reported by itself
        self._number = 0
        from_us, self._to_browser = os.pipe()
        self._from_browser, to_us = os.pipe()
        flags = ["--headless", "--remote-debugging-pipe", "--disable-gpu", f"--user-data-dir={profile}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(from_us), str(to_us), CHROMIUM, *flags, "about:blank"],
            pass_fds=(from_us, to_us),
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._rest = b""
        self._session: str | None = None
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._to_browser)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._from_browser)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            request["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(request).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.messages.append(message)

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is on the page."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + 30
        while not (value := self.value(expression)):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"), self.complaints())
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && !document.getElementById('main').hidden")

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if code == ENTER and not modifiers else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def complaints(self) -> list[dict[str, Any]]:
        """Return what the console would show in red or yellow."""
        self.value("1")  # whatever was reported before this is here
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [message for message in self.messages if message.get("method") in bad]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for."""
        sent = [message["params"] for message in self.messages if message.get("method") == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from_browser, 1 << 16)
            assert part, "the browser is gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def visit(browser: Browser, serve: Serve) -> Iterator[Callable[[str], User]]:
    """Open the page of a command's model in the browser; return what uses the model."""
    browser.messages.clear()

    def open_page(command: str) -> User:
        user, client = serve(command)
        browser.open(str(client.base_url))
        assert browser.value("document.querySelector('dl').innerText").startswith("Parameters")
        return user

    yield open_page
    assert browser.complaints() == []
    hosts = {url.split("/")[2].rpartition(":")[0] for url in browser.requests() if not url.startswith("data:")}
    assert hosts == {"127.0.0.1"}


DONE = "document.getElementById('output').getAttribute('aria-busy') === 'false'"
OUTPUT = "document.getElementById('output').textContent"


@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_a_text_becomes_what_the_model_writes(command: str, visit: Callable[[str], User], browser: Browser) -> None:
    rewriter = visit(command)
    assert isinstance(rewriter, Rewriter)
    browser.type("Grüße 😀 there")  # the field has the focus
    browser.press("Enter", ENTER, CONTROL)
    browser.wait_for(DONE)
    assert browser.value(OUTPUT) == rewriter.write(["Grüße 😀 there"], rewriter.decoding({}))[0]
    assert browser.value("document.getElementById('note').textContent") == ""


def test_options_count_and_a_text_that_is_cut_is_said_to_be(visit: Callable[[str], User], browser: Browser) -> None:
    rewriter = visit("translate")
    assert isinstance(rewriter, Rewriter)
    text = "long and " * 10
    browser.type(text)
    browser.press("Tab", TAB)
    browser.press("Enter", ENTER)  # unfolds the options
    for field, value in [("num_beams", "3"), ("max_tokens", "5")]:
        browser.press("Tab", TAB)
        assert browser.value("document.activeElement.id") == field
        browser.type(value)
    browser.press("Enter", ENTER)
    browser.wait_for(DONE)
    assert browser.value(OUTPUT) == rewriter.write([text], rewriter.decoding({"num_beams": 3, "max_new_tokens": 5}))[0]
    assert "only the beginning" in browser.value("document.getElementById('note').textContent")


def test_an_answer_is_marked_where_it_stands(visit: Callable[[str], User], browser: Browser) -> None:
    answerer, context = visit("answer"), "😀😀 Grüße 😀 there, the <b>cat</b> sat on the mat."
    assert isinstance(answerer, Answerer)
    found = answerer.answer(context, "who?")
    assert found.text
    browser.type(context)
    browser.press("Tab", TAB)
    browser.type("who?")
    browser.press("Enter", ENTER)
    browser.wait_for(DONE)
    assert browser.value(OUTPUT) == browser.value("document.querySelector('mark').textContent") == found.text
    assert browser.value("document.getElementById('context-shown').textContent") == context
    before = browser.value("document.querySelector('mark').previousSibling?.textContent ?? ''")
    assert before == context[: found.start]


def test_a_text_has_a_label_and_each_its_probability(visit: Callable[[str], User], browser: Browser) -> None:
    classifier = visit("classify")
    assert isinstance(classifier, Classifier)
    (expected,) = classifier.classify(["Grüße there"])
    browser.type("Grüße there")
    browser.press("Enter", ENTER, CONTROL)
    browser.wait_for(DONE)
    shown = browser.value(OUTPUT)
    assert shown.startswith(next(iter(expected)))
    assert sorted(shown.find(label) for label in expected) == [shown.find(label) for label in expected]


def test_no_answer_is_said_to_be_none(visit: Callable[[str], User], browser: Browser) -> None:
    answerer = visit("answer")
    assert isinstance(answerer, Answerer)
    assert answerer.answer("Ships", "What was it?").text == ""
    browser.type("Ships")
    browser.press("Tab", TAB)
    browser.type("What was it?")
    browser.press("Enter", ENTER)
    browser.wait_for(DONE)
    assert "holds no answer" in browser.value(OUTPUT)
    assert browser.value("document.getElementById('context-shown').hidden") is True


def test_a_text_goes_on_until_it_is_stopped(
    visit: Callable[[str], User], browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    continuer = visit("generate")
    step = continuer.model.step

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return step(*arguments)

    monkeypatch.setattr(continuer.model, "step", slow)
    browser.value("document.getElementById('max_tokens').value = 1000")
    browser.type("the cat")
    browser.press("Enter", ENTER, CONTROL)
    browser.wait_for(f"{OUTPUT}.length > 20")
    assert browser.value(OUTPUT).startswith("the cat")
    assert browser.value(DONE) is False
    browser.press("Escape", ESCAPE)
    browser.wait_for(DONE)
    assert browser.value("document.getElementById('note').textContent") == "Stopped."
    assert browser.value("document.getElementById('submit').disabled") is False


@pytest.mark.parametrize("command", ["translate", "answer", "generate", "classify"])
def test_nothing_is_wider_than_a_small_screen(command: str, visit: Callable[[str], User], browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=True)
    visit(command)
    browser.value("document.getElementById('details').open = true")
    assert browser.value("document.documentElement.scrollWidth") == 320
    browser.call("Emulation.clearDeviceMetricsOverride")
