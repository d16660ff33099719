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


DECISION = {
    "decision_id": "AQAAAgcAAAB",
    "policy": "headlines",
    "version": 7,
    "items": [{"id": "b", "score": 0.1, "propensity": 0.41}],
}


class _Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests: Annotated[list[msgspec.Raw], Meta(min_length=1)]


class BatchBody(msgspec.Struct, frozen=True):
    """Several requests in one; each is checked and answered by itself."""

    requests: Annotated[
        list[RecommendRequest],
        Meta(
            min_length=1,
            description="At most `max_batch` (a setting).",
            examples=[[{"policy": "headlines", "user": {"segment": "all"}, "k": 1}]],
        ),
    ]


class BatchAnswer(msgspec.Struct, frozen=True):
    """A decision or a problem for each request, in their order."""

    results: Annotated[
        list[dict[str, Any]],
        Meta(
            description="Decision or ProblemDetails objects.",
            examples=[[DECISION, errors.unknown_policy("films", "requests[1].policy").as_dict()]],
        ),
    ]


ONE = msgspec.json.Decoder(RecommendRequest)
MANY = msgspec.json.Decoder(_Batch)
EXAMPLES: dict[str, dict[str, Any]] = {
    "segment": {"policy": "headlines", "user": {"segment": "all"}, "k": 1},
    "embedding": {"policy": "films", "user": {"embedding": [0.12, -0.5, 0.33]}, "k": 2, "exclude": ["318"]},
    "clusters": {"policy": "films", "user": {"clusters": [4, 17], "weights": [0.8, 0.2]}, "k": 2, "mode": "exploit"},
    "candidates": {"policy": "headlines", "candidates": ["a", "b"]},
}
BATCH = {"two": {"requests": [EXAMPLES["segment"], EXAMPLES["embedding"]]}}


def recommend_bytes(engine: Engine, body: bytes) -> bytes:
    """The answer's body to a recommend request's body; raises Problem."""
    return msgspec.json.encode(engine.recommend(check_query(decode(ONE, body))))


@route(router, "POST", "/v1/recommend", role="recommend", body=RecommendRequest, examples=EXAMPLES,
       answers={200: Decision}, problems=("unknown-policy", "no-graph-yet", "no-arms-yet", "unavailable"))  # fmt: skip
async def recommend(request: Request) -> Response:
    """Choose k items for a user.

    The answer's `decision_id` is a signed token that carries the whole context: send it back with each reward.
    Fewer than k items come back where `exclude`, `candidates` or the user's clusters leave fewer.
    """
    body = await read_json_bytes(request)
    return Response(recommend_bytes(engine_of(request), body), media_type="application/json")


@route(router, "POST", "/v1/recommend/batch", role="recommend", body=BatchBody, examples=BATCH,
       answers={200: BatchAnswer})  # fmt: skip
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
