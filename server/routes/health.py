"""Whether the server lives, can recommend, and how it fares."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from server.routes.common import AWAY, Text, answer, engine_of, route
from server.schemas import Status

router = APIRouter(tags=["operations"])
EXAMPLE = """\
# HELP croupier_reward_outcomes_total What became of the rewards in the log.
# TYPE croupier_reward_outcomes_total counter
croupier_reward_outcomes_total{outcome="applied",policy="headlines"} 77
"""


class Alive(msgspec.Struct, frozen=True):
    """This process answers."""

    status: Annotated[Literal["ok"], Meta(examples=["ok"], description="Always ok.")] = "ok"


@route(router, "GET", "/healthz", role=None, open=True, answers={200: Alive})
async def healthz(request: Request) -> Response:
    """Whether this process answers at all."""
    del request
    return answer(Alive())


@route(router, "GET", "/readyz", role=None, open=True, answers={200: Status, 503: Status}, problems=("not-ready",))
async def readyz(request: Request) -> Response:
    """Whether this worker can recommend.

    200 whenever it can, with what is away (log, store, fresh parameters) in `degraded`; 503 before the first load and
    while draining.
    """
    status = engine_of(request).status()
    return answer(status, 200 if status.ready else 503)


@route(router, "GET", "/metrics", role=None, answers={200: Text(EXAMPLE)}, problems=AWAY)
async def metrics(request: Request) -> Response:
    """Prometheus metrics of all processes of this host. Any key will do."""
    body = await engine_of(request).metrics()
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")
