"""The HTTP application: JSON answers, a page for people, what the API is, health and metrics.

It knows neither Ray nor the network of the index, only a `Backend`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jinja2
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnnbatch.config.output import Which
from cnnbatch.index.identify import RATE
from cnnbatch.index.search import MOST_RESULTS
from cnnbatch.index.serving.answers import About, IdentifyAnswer, SearchAnswer, VectorAnswer, VerifyAnswer
from cnnbatch.index.serving.gate import Gate, Limits
from cnnbatch.index.serving.measured import Metrics
from cnnbatch.index.serving.questions import (
    Backend,
    Identify,
    Refusal,
    Search,
    Verify,
    WantedPicture,
)
from cnnbatch.index.serving.token import Token
from cnnbatch.index.serving.uploads import a_body_of, photos_of, two_photos_of

PAGE = Path(__file__).parent / "page"
MOST_VECTORS = 1_000
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
Answered = TypeVar("Answered")

Rate = Annotated[float, Field(ge=1e-9, le=0.5)]
Prior = Annotated[float, Field(ge=1e-9, le=1 - 1e-9)]
K = Annotated[int, Field(ge=1, le=MOST_RESULTS, description="How many to find.")]
Where = Annotated[str | None, Field(max_length=2_000, description="A condition on kept columns.")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prior: Prior = 0.5


class _SearchQuery(_Asked):
    k: K = 10
    where: Where = None
    rate: Rate = RATE


class VectorSearch(_SearchQuery):
    """Vectors of the network of the index, and how to search for each."""

    vectors: Annotated[list[list[float]], Field(min_length=1, max_length=MOST_VECTORS)]


class _VerifyQuery(_Asked):
    rate: Rate = 1e-3
    face: Which = "largest"


class _IdentifyQuery(_Asked):
    rate: Rate = RATE


class Problem(BaseModel):
    """Why a request was refused: what was expected, what came, and what to do."""

    detail: str


def build_app(backend: Backend, limits: Limits | None = None, token: Token | None = None) -> ASGIApp:
    """Return the application that answers by ``backend`` whoever passes the gate."""
    metrics = Metrics()
    refused: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (401, 413, 422, 429, 503)
    }
    app = FastAPI(
        title="cnnbatch",
        version=version("cnnbatch"),
        description="An index of embeddings: search, verify, identify.",
        docs_url=None,
        redoc_url=None,
        responses=refused,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_questions(app, backend)
    _add_about(app, backend, metrics)
    _add_page(app)
    paths = {route.path for route in app.routes if hasattr(route, "path")}
    return metrics.counting(_with_headers(Gate(app, limits or Limits(), token)), paths)


def _add_questions(app: FastAPI, backend: Backend) -> None:
    @app.post("/search", openapi_extra=a_body_of())
    async def search(request: Request, asked: Annotated[_SearchQuery, Query()]) -> SearchAnswer:
        """Find what is most similar to each face of photos, or to whole pictures."""
        photos = await photos_of(request)
        found = await backend.ask(Search(photos=photos, **asked.model_dump()))
        return _answered(found, SearchAnswer)

    @app.post("/search/vectors")
    async def search_vectors(asked: VectorSearch) -> VectorAnswer:
        """Find what is most similar to vectors, of the network of the index."""
        vectors = tuple(tuple(one) for one in asked.vectors)
        found = await backend.ask(Search(**asked.model_dump(exclude={"vectors"}), vectors=vectors))
        return _answered(found, VectorAnswer)

    @app.post("/verify", openapi_extra=a_body_of("first", "second"))
    async def verify(request: Request, asked: Annotated[_VerifyQuery, Query()]) -> VerifyAnswer:
        """Say whether the faces of two photos are of one person."""
        photos = await two_photos_of(request)
        return _answered(await backend.ask(Verify(photos=photos, **asked.model_dump())), VerifyAnswer)

    @app.post("/identify", openapi_extra=a_body_of())
    async def identify(request: Request, asked: Annotated[_IdentifyQuery, Query()]) -> IdentifyAnswer:
        """Name the faces in photos, or say that they are of nobody who is known."""
        photos = await photos_of(request)
        return _answered(await backend.ask(Identify(photos=photos, **asked.model_dump())), IdentifyAnswer)

    @app.get("/picture", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def picture(
        id: Annotated[str, Query(max_length=4_000)],
        output: Annotated[str | None, Query(max_length=4_000)] = None,
    ) -> Response:
        """Return the crop of what the index has under an id."""
        found = _answered(await backend.picture(WantedPicture(id, output)), bytes)
        return Response(found, media_type="image/jpeg")


def _add_about(app: FastAPI, backend: Backend, metrics: Metrics) -> None:
    @app.get("/index")
    async def index() -> About:
        """Say what the index is, and at which rates there are decisions."""
        return _answered(await backend.about(), About)

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> PlainTextResponse:
        """Say whether questions are answered; needs no token."""
        refused = isinstance(await backend.about(), Refusal)
        return PlainTextResponse("not ready\n" if refused else "ok\n", 503 if refused else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> PlainTextResponse:
        """Return counts, latencies and the state of the index, as Prometheus reads them."""
        text = metrics.text(_answered(await backend.about(), About)).decode()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    kinds = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript")}
    for path, (name, kind) in {**kinds, "/page.css": ("page.css", "text/css")}.items():
        endpoint = _static((PAGE / name).read_bytes(), kind)
        app.add_api_route(path, endpoint, include_in_schema=False, response_model=None)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return the OpenAPI document as a page."""
        template = jinja2.Template((PAGE / "docs.html.j2").read_text(), autoescape=True, trim_blocks=True)
        return HTMLResponse(template.render(api=app.openapi()))


def _static(file: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    """Return an endpoint that answers with a file."""

    async def endpoint() -> Response:
        return Response(file, media_type=kind)

    return endpoint


def _answered(found: object, kind: type[Answered]) -> Answered:
    """Return an answer; raises HTTPException for a refusal."""
    if isinstance(found, Refusal):
        raise HTTPException(found.status, found.detail)
    if not isinstance(found, kind):
        raise RuntimeError(f"expected {kind.__name__}, got {type(found).__name__}")
    return found


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Say in one text what a request has that it may not have; what it has is not repeated."""
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"detail": "\n".join(lines[:10])}, 422)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Return ``app``, whose answers let a browser load nothing from elsewhere, and keep nothing."""
    more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def secured(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await app(scope, receive, with_headers)

    return secured
