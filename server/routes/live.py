"""The live page, its files, and the stream that it reads."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server import errors
from server.engine import Engine
from server.live_figures import Live
from server.routes.common import AWAY, Events, engine_of, route
from server.schemas import TEXT_MAX

router = APIRouter(tags=["operations"])
FOLDER = Path(__file__).resolve().parents[1] / "static"
KINDS = {"page.css": "text/css", "page.js": "text/javascript", "chart.js": "text/javascript"}
FILES = {name: (FOLDER / name).read_bytes() for name in KINDS}
VERSION = hashlib.sha256(b"".join(FILES.values())).hexdigest()[:16]
PAGE = (FOLDER / "page.html").read_text().replace("{version}", VERSION).encode()
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
EVERY_S = 1.0
STREAM_S = 60.0  # then the page opens another: a stream never keeps a server that ends for longer
WATCHERS_MAX = 64


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return Response(PAGE, media_type="text/html", headers={**HEADERS, "Cache-Control": "no-cache"})


@router.get("/static/{name}", include_in_schema=False)
async def file(name: str) -> Response:
    if name not in FILES:
        raise HTTPException(404)
    return Response(
        FILES[name], media_type=KINDS[name], headers={**HEADERS, "Cache-Control": "max-age=31536000, immutable"}
    )


class Watch:
    """What one worker's watchers see: one question a second to the agent for each policy and segment looked at."""

    def __init__(self) -> None:
        self.watchers = 0
        self._known: dict[tuple[str, str], tuple[float, Live]] = {}
        self._asking = asyncio.Lock()

    async def look(self, engine: Engine, policy: str, segment: str) -> Live:
        async with self._asking:
            now = time.monotonic()
            at, live = self._known.get((policy, segment), (-EVERY_S, None))
            if live is None or now - at > 0.9 * EVERY_S:
                live = await engine.live(policy, segment)
                self._known = {key: each for key, each in self._known.items() if now - each[0] < EVERY_S}
                self._known[policy, segment] = now, live
            return live


@route(router, "GET", "/v1/live", role="admin", answers={200: Events(Live)}, problems=("invalid-field", *AWAY))
async def live(
    request: Request,
    policy: Annotated[str, Query(max_length=TEXT_MAX, description="The policy to look at; none: the first.")] = "",
    segment: Annotated[str, Query(max_length=TEXT_MAX, description="Whose bank its arms are shown from.")] = "all",
) -> Response:
    """What the page at / shows, as server-sent events, one a second, for a minute; then connect again.

    The first event has the policy's last ten minutes in `policy.history`, each later one what came since. 503 where as
    many watch as a worker takes (64).
    """
    engine = engine_of(request)
    watch: Watch = request.app.state.watch
    if watch.watchers >= WATCHERS_MAX:
        raise errors.unavailable(f"{WATCHERS_MAX} others look at this worker's live page: close some.")
    watch.watchers += 1
    try:
        first = await watch.look(engine, policy, segment)
    except BaseException:
        watch.watchers -= 1
        raise
    if not policy and first.policies:
        policy = first.policies[0].name
    return Stream(watch, events(watch, engine, policy, segment))


class Stream(StreamingResponse):
    """Gives its watcher's place back at its end, also where nobody has read a single event."""

    def __init__(self, watch: Watch, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watch.watchers -= 1


async def events(watch: Watch, engine: Engine, policy: str, segment: str) -> AsyncIterator[bytes]:
    sent_ms, until = 0.0, time.monotonic() + STREAM_S
    while time.monotonic() < until and not engine.status().draining:
        try:
            now = await watch.look(engine, policy, segment)
        except errors.Problem as problem:
            yield b"event: problem\ndata: " + problem.body() + b"\n\n"
        else:
            if now.policy is not None:
                history = [row for row in now.policy.history if row[0] > sent_ms]
                sent_ms = history[-1][0] if history else sent_ms
                now = msgspec.structs.replace(now, policy=msgspec.structs.replace(now.policy, history=history))
            yield b"data: " + msgspec.json.encode(now) + b"\n\n"
        await asyncio.sleep(EVERY_S)
