"""What all routes share: who may call, how a body is read, how an answer is written, how a route is documented."""

import functools
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.auth import ApiKey, Gate
from server.bodies import decode
from server.engine import ControlResult, Engine
from server.limits import RateLimit, read_body
from server.schemas import Changed
from server.settings import Settings

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])
JSON = "application/json"
NPZ = "application/octet-stream"
AWAY = ("unavailable", "in-doubt")  # of whatever asks the agent


class Service:
    """What the routes of one app need; `engine` is there from the app's start to its end."""

    def __init__(self, settings: Settings, engine: Engine | None) -> None:
        self.settings = settings
        self.gate = Gate(settings.api_keys)
        self.limit = RateLimit(settings.rate_limit_per_s, settings.rate_limit_burst, time.monotonic)
        self._engine = engine
        self.heads: dict[bytes, tuple[bool, int]] = {}  # of server.hot: whether to recommend, and the body's size

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise errors.not_ready()
        return self._engine

    @engine.setter
    def engine(self, engine: Engine | None) -> None:
        self._engine = engine

    def count(self, route: str, status: int, seconds: float, hot: bool = False) -> None:
        if self._engine is not None:
            self._engine.count(route, status, seconds)
            if hot:
                self._engine.count_hot()

    def admit(self, request: Request, role: str | None) -> None:
        """Lets the request pass, or raises 401, 403 or 429."""
        key = self.gate.admit(request.headers.get("authorization"), role)
        if self.limit.rate_per_s:
            self.limit.check(self.caller(key, request.client.host if request.client else None))

    @staticmethod
    def caller(key: ApiKey | None, address: str | None) -> str:
        """Whose rate limit a request counts for."""
        return f"key {key.name}" if key else f"address {address or 'unknown'}"


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def engine_of(request: Request) -> Engine:
    return service_of(request).engine


async def read_json(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The body, checked: 415 when it does not say it is JSON, 413, 400, 422."""
    return decode(decoder, await read_json_bytes(request))


def is_json(content_type: str) -> bool:
    # Strict, because a browser lets any page send text/plain or a form to a server on loopback, but not JSON.
    return content_type == JSON or _kind(content_type) == JSON


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


async def read_json_bytes(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        kind = _kind(content_type)
        said = f"says {kind!r}" if kind else "does not say what it is"
        raise errors.Problem(415, "Unsupported media type", f"The body {said}; send the header Content-Type: {JSON}.")
    return await read_body(request, service_of(request).settings.max_body_bytes)


def answer(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type=JSON)


def changed(result: ControlResult, status: int = 200) -> Response:
    """200 or 201 when every worker of this host shows the change, else 202."""
    return answer(Changed(result.number, result.shown), status if result.shown else 202)


class Text(msgspec.Struct, frozen=True):
    """An answer that is plain text, with an example."""

    example: str


class Events(msgspec.Struct, frozen=True):
    """An answer that is a stream of server-sent events, each with an object of this type."""

    of: Any


class Doc(msgspec.Struct, frozen=True):
    """What the OpenAPI document says of a route beside its handler's docstring."""

    role: str | None
    body: Any
    answers: Mapping[int, Any]
    problems: tuple[str, ...]
    examples: Mapping[str, Any]
    open: bool


def route(
    router: APIRouter,
    method: str,
    path: str,
    *,
    role: str | None,
    answers: Mapping[int, Any],
    problems: Iterable[str] = (),
    body: Any = None,
    examples: Mapping[str, Any] | None = None,
    open: bool = False,
) -> Callable[[Handler], Handler]:
    """Adds a handler. `role` None with `open` false: any key will do; `open`: no key at all.

    `body` is a msgspec type, several, or `NPZ`; `examples` of it have names. The values of `answers` are msgspec types,
    `Text` or `Events`. `problems` are names (`server.error_table`): those that its caller and its body do not bring.
    """

    async def admit(request: Request) -> None:
        service_of(request).admit(request, role)

    def add(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def admitted(request: Request) -> Response:
            await admit(request)
            return await handler(request)

        # Solving a dependency of FastAPI's costs a request as much as choosing for it, so the routes that take nothing
        # else go without; the others need it, because it comes before their parameters are looked at.
        plain = set(inspect.signature(handler).parameters) == {"request"}
        endpoint: Any = admitted if plain and not open else handler
        text = (handler.__doc__ or "").strip()
        summary, _, description = text.partition("\n")
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary.rstrip("."),
            description="\n".join(line.strip() for line in description.strip().splitlines()),
            operation_id=handler.__name__,
            response_class=Response,
            status_code=min(answers),
            dependencies=[] if plain or open else [Depends(admit)],
            responses={422: {}},  # the document's own 422 replaces it (server.openapi)
        )
        endpoint.doc = Doc(role, body, dict(answers), tuple(problems), examples or {}, open)
        return handler

    return add


class Counted:
    """ASGI middleware: counts every answered request by its route's template, and times it."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status, streams_s = 500, None

        async def watch(message: Any) -> None:
            nonlocal status, streams_s
            if message["type"] == "http.response.start":
                status = message["status"]
                if (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]:
                    streams_s = time.perf_counter() - began  # a stream is answered when it begins
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            template = getattr(scope.get("route"), "path_format", "unknown")
            self.service.count(template, status, time.perf_counter() - began if streams_s is None else streams_s)


def problem_response(problem: errors.Problem, headers: Mapping[str, str] | None = None) -> Response:
    extra = dict(headers or {})
    if problem.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if problem.status == 413:  # what is still on its way is not worth reading
        extra["Connection"] = "close"
    return Response(problem.body(), problem.status, extra, errors.MEDIA_TYPE)
