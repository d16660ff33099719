"""`create_app`: the HTTP application of one worker, a thin skin around an `Engine`."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server import errors, pages
from server.engine import Engine
from server.openapi import document
from server.routes import feedback, graph, health, items, live, policies, recommend, snapshots
from server.routes.common import Counted, Service, problem_response
from server.settings import Settings

log = logging.getLogger(__name__)
ROUTERS = (recommend, feedback, policies, graph, items, snapshots, health, live)
TITLES = {404: "Not found", 405: "Method not allowed"}


class App(FastAPI):
    """FastAPI, with the document of `server.openapi`."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document(self.routes, self.title, self.version)
        return self.openapi_schema


def create_app(settings: Settings, engine: Engine | None = None) -> App:
    """The application.

    With an `engine` it serves from that one (what a worker does). Without, the whole loop runs inside this process from
    the app's start to its end: agent and learner as threads, on the data folder of `settings`.
    """
    service = Service(settings, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        if engine is not None:
            yield
            return
        from server.local import local_engine  # opens log and store; a worker has no use for it

        async with local_engine(settings) as own:
            service.engine = own
            try:
                yield
            finally:
                service.engine = None

    app = App(
        title="croupier",
        version=version("croupier"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.watch = live.Watch()
    app.add_middleware(Counted, service=service)
    app.add_exception_handler(errors.Problem, _problem)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crash)
    for module in ROUTERS:
        app.router.routes.extend(module.router.routes)  # as they are: including costs every request a second matching
    _add_pages(app)
    return app


def _add_pages(app: App) -> None:
    docs: list[str] = []

    @app.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        if not docs:
            docs.append(pages.docs(app.openapi()))
        return HTMLResponse(docs[0])


async def _problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, errors.Problem)
    return problem_response(error)


async def _parameters(request: Request, error: Exception) -> Response:
    """A path or query parameter that FastAPI refused."""
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return problem_response(errors.invalid(str(first["loc"][-1]), errors.as_sentence(first["msg"])))


async def _http(request: Request, error: Exception) -> Response:
    """What the router itself refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {errors.shown(request.url.path)} is not here; /docs lists what is."
    headers: Mapping[str, str] | None = error.headers
    if headers and "Allow" in headers:
        detail = f"{errors.shown(request.url.path)} takes {headers['Allow']}, not {request.method}."
    title = TITLES.get(error.status_code, error.detail)
    return problem_response(errors.Problem(error.status_code, title, detail), headers)


async def _crash(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(errors.internal())
