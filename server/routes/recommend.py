"""POST /v1/recommend and /v1/recommend/batch: one decision behind both."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.bodies import check_query, decode
from server.engine import Engine
from server.routes.common import answer, engine_of, read_json, read_json_bytes, route, service_of
from server.schemas import Decision, RecommendRequest

router = APIRouter(tags=["recommend"])


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests: Annotated[list[msgspec.Raw], Meta(min_length=1)]


class BatchBody(msgspec.Struct, frozen=True):
    """Several requests in one; each is checked and answered by itself."""

    requests: Annotated[list[RecommendRequest], Meta(min_length=1, description="At most `max_batch` (a setting).")]


class BatchAnswer(msgspec.Struct, frozen=True):
    """A decision or a problem for each request, in their order."""

    results: Annotated[list[dict[str, Any]], Meta(description="Decision or ProblemDetails objects.")]


ONE = msgspec.json.Decoder(RecommendRequest)
MANY = msgspec.json.Decoder(_Batch)
EXAMPLE = {"policy": "headlines", "user": {"segment": "all"}, "k": 1}
PROBLEMS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)


def recommend_bytes(engine: Engine, body: bytes) -> bytes:
    """The answer's body to a recommend request's body; raises Problem."""
    return msgspec.json.encode(engine.recommend(check_query(decode(ONE, body))))


@route(router, "POST", "/v1/recommend", role="recommend", body=RecommendRequest, example=EXAMPLE,
       answers={200: Decision}, problems=PROBLEMS)  # fmt: skip
async def recommend(request: Request) -> Response:
    """Choose k items for a user.

    The answer's `decision_id` is a signed token that carries the whole context: send it back with each reward.
    Fewer than k items come back where `exclude`, `candidates` or the user's clusters leave fewer.
    """
    body = await read_json_bytes(request)
    return Response(recommend_bytes(engine_of(request), body), media_type="application/json")


@route(router, "POST", "/v1/recommend/batch", role="recommend", body=BatchBody, example={"requests": [EXAMPLE]},
       answers={200: BatchAnswer}, problems=(400, 401, 403, 413, 415, 422, 429, 503))  # fmt: skip
async def recommend_batch(request: Request) -> Response:
    """Choose for several users at once.

    Each request is answered by itself: a decision, or the problem that it alone would have got. The whole call fails
    only where it is no JSON, too large, or not allowed.
    """
    engine = engine_of(request)
    queries = (await read_json(request, MANY)).requests
    most = service_of(request).settings.max_batch
    if len(queries) > most:
        raise errors.invalid(
            "requests", f"There are {len(queries)} requests; at most {most} go in one call (max_batch)."
        )
    results: list[Any] = []
    for i, raw in enumerate(queries):
        at = f"requests[{i}]"
        try:
            results.append(engine.recommend(check_query(decode(ONE, raw, at), at)))
        except errors.Problem as problem:
            body = problem.as_dict()
            if problem.field is not None and not problem.field.startswith(at):  # the engine knows no batch
                body["field"] = f"{at}.{problem.field}"
            results.append(body)
    return answer({"results": results})
