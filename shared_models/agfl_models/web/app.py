"""The page, the JSON endpoint of the model's own task, and `GET /v1/model`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from agfl_models.errors import AgflError, ConfigError, RequestError
from agfl_models.inference import Answerer, Classifier, Continuer, Rewriter, User
from agfl_models.validation import broken, problem_line
from agfl_models.web.bodies import (
    AnswerReply,
    AnswerRequest,
    ClassifyReply,
    ClassifyRequest,
    ContinueRequest,
    ErrorReply,
    RewriteRequest,
    WrittenReply,
)
from agfl_models.web.facts import ModelFacts
from agfl_models.web.guard import Guard

T = TypeVar("T")

PAGE = files("agfl_models").joinpath("web/page.html").read_text("utf-8")
CUT_HEADER = "text-cut"


def create_app(user: User, facts: ModelFacts, hosts: frozenset[str] | None) -> ASGIApp:
    """Return the app that serves a model; `hosts` as in `Guard`."""
    # Without /docs: that page loads its scripts from elsewhere. /openapi.json stays for programs.
    app = FastAPI(title="AutoGen Federated", docs_url=None, redoc_url=None, responses={422: {"model": ErrorReply}})
    turns = _Turns()
    if isinstance(user, Rewriter):
        _serve_rewriter(app, facts.endpoint, user, turns)
    elif isinstance(user, Answerer):
        _serve_answerer(app, facts.endpoint, user, turns)
    elif isinstance(user, Classifier):
        _serve_classifier(app, facts.endpoint, user, turns)
    else:
        _serve_continuer(app, facts.endpoint, user, turns)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/v1/model")
    async def model() -> ModelFacts:
        return facts

    _answer_errors(app, facts)
    return Guard(app, hosts, _headers())


class _Turns:
    """Lets one request after the other use the model, in a thread, so that the rest stays reachable meanwhile."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def whole(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""
        async with self._lock:
            return await run_in_threadpool(work)

    async def pieces(self, work: Iterator[str]) -> AsyncIterator[str]:
        """Yield what `work` yields."""
        async with self._lock:
            while (piece := await run_in_threadpool(next, work, None)) is not None:
                yield piece


def _serve_rewriter(app: FastAPI, endpoint: str, rewriter: Rewriter, turns: _Turns) -> None:
    @app.post(endpoint, response_model=WrittenReply)
    async def rewrite(body: RewriteRequest) -> Response | WrittenReply:
        decoding, is_cut = rewriter.decoding(body.decoding()), rewriter.cuts(body.text)
        if body.stream:
            return _streamed(turns.pieces(rewriter.stream(body.text, decoding)), is_cut)
        (text,) = await turns.whole(lambda: rewriter.write([body.text], decoding))
        return WrittenReply(text=text, is_cut=is_cut)


def _serve_answerer(app: FastAPI, endpoint: str, answerer: Answerer, turns: _Turns) -> None:
    @app.post(endpoint)
    async def answer(body: AnswerRequest) -> AnswerReply:
        found = await turns.whole(lambda: answerer.answer(body.context, body.question))
        return AnswerReply(answer=found.text, start=found.start, end=found.end, is_cut=answerer.cuts(body.question))


def _serve_classifier(app: FastAPI, endpoint: str, classifier: Classifier, turns: _Turns) -> None:
    @app.post(endpoint)
    async def classify(body: ClassifyRequest) -> ClassifyReply:
        (found,) = await turns.whole(lambda: classifier.classify([body.text]))
        return ClassifyReply(label=next(iter(found)), probabilities=found, is_cut=classifier.cuts(body.text))


def _serve_continuer(app: FastAPI, endpoint: str, continuer: Continuer, turns: _Turns) -> None:
    @app.post(endpoint, response_model=WrittenReply)
    async def generate(body: ContinueRequest) -> Response | WrittenReply:
        pieces = continuer.stream(body.text, continuer.decoding(body.decoding()), body.seed)
        if body.stream:
            return _streamed(turns.pieces(pieces), is_cut=False)
        return WrittenReply(text=await turns.whole(lambda: "".join(pieces)))


def _streamed(pieces: AsyncIterator[str], is_cut: bool) -> Response:
    headers = {CUT_HEADER: "true" if is_cut else "false"}
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=headers)


def _answer_errors(app: FastAPI, facts: ModelFacts) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _error(422, _refusal(error))

    @app.exception_handler(ConfigError)
    async def refused(request: Request, error: ConfigError) -> Response:
        return _error(422, error)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code in (404, 405):
            line = f"{error.detail}: this model answers POST {facts.endpoint}, GET /v1/model and GET /"
            return _error(error.status_code, RequestError("AGFL-REQUEST-001", line))
        return _error(error.status_code, RequestError("AGFL-REQUEST-002", str(error.detail)))


def _refusal(error: RequestValidationError) -> AgflError:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return RequestError("AGFL-REQUEST-003", f"body: malformed JSON: {problem['ctx']['error']}")
    if problem["loc"] == ("body",) and problem["type"] != "value_error":
        return RequestError("AGFL-REQUEST-004", "body: must be a JSON object, with content-type application/json")
    return broken(problem, problem_line({**problem, "loc": problem["loc"][1:]}, error.body))


def _error(status: int, error: AgflError) -> JSONResponse:
    return JSONResponse({"error": " ".join(error.sentence.split()), "code": error.code}, status)


def _headers() -> dict[str, str]:
    """Return what every answer says to a browser: run the page's own script, load and send nothing elsewhere."""
    policy = [
        "default-src 'none'",
        f"script-src {_digest('script')}",
        f"style-src {_digest('style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "content-security-policy": "; ".join(policy),
        "cross-origin-resource-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }


def _digest(element: str) -> str:
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
