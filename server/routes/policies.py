"""Policies: list, read, make, change, delete."""

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.definitions import (
    PolicyAnswer,
    PolicyBody,
    PolicyList,
    check_name,
    definition,
    patched,
    to_spec,
)
from server.engine import PolicyInfo
from server.routes.common import AWAY, answer, changed, engine_of, read_json, route
from server.schemas import Changed
from streaming.control import ALGORITHMS, DIAG_LINUCB, PolicyDelete, PolicyPut

router = APIRouter(tags=["policies"])
BODY: msgspec.json.Decoder[Any] = msgspec.json.Decoder(PolicyBody)
PATCH: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
EXAMPLE = {
    "algorithm": "banker",
    "regularizer": "log-barrier",
    "arms": ["a", "b", "c"],
    "reward": {"window": "30m", "default": 0, "aggregation": "first"},
}
EXAMPLES = {"banker": EXAMPLE} | {
    algorithm: {"algorithm": algorithm, "alpha": 1.0, "reward": {"window": "7d", "default": 0}}
    if algorithm == DIAG_LINUCB
    else {"algorithm": algorithm, "arms": ["a", "b", "c"], "reward": {"window": "30m", "default": None}}
    for algorithm in ALGORITHMS
    if algorithm != "banker"
}
CHANGE = ("unknown-policy", "conflict", *AWAY)
SHOWN = {200: Changed, 202: Changed}


def shown(info: PolicyInfo) -> PolicyAnswer:
    return PolicyAnswer(
        info.name, info.number, info.version, definition(info.spec), info.items, info.paused, info.graph
    )


@route(router, "GET", "/v1/policies", role="admin", answers={200: PolicyList})
async def list_policies(request: Request) -> Response:
    """List all policies."""
    return answer(PolicyList([shown(info) for info in await engine_of(request).policies()]))


@route(router, "GET", "/v1/policies/{name}", role="admin", answers={200: PolicyAnswer}, problems=("unknown-policy",))
async def get_policy(request: Request, name: str) -> Response:
    """Read a policy: its definition, version, number of items, and the graph in use."""
    return answer(shown(await engine_of(request).policy(name)))


@route(router, "PUT", "/v1/policies/{name}", role="admin", body=PolicyBody, examples=EXAMPLES,
       answers={200: Changed, 201: Changed, 202: Changed}, problems=("conflict", *AWAY))  # fmt: skip
async def put_policy(request: Request, name: str) -> Response:
    """Make a policy, or replace its definition.

    201 made, 200 changed, once every worker of this host shows it; 202 where that takes longer than 2 s. What has been
    learned stays. A change of algorithm is refused (409). A new window or default holds for later decisions only.
    """
    check_name(name)
    engine = engine_of(request)
    try:
        body = await read_json(request, BODY)
    except errors.Problem as problem:
        raise with_algorithms(problem) from None
    spec, arms = to_spec(body)
    created = not await exists(engine, name)
    if created and not spec.is_diag and arms is None:
        raise errors.invalid("arms", "A new policy of this algorithm needs at least one arm.")
    return changed(await engine.control(PolicyPut(name, spec, arms)), 201 if created else 200)


@route(router, "PATCH", "/v1/policies/{name}", role="admin", body=dict[str, Any], answers=SHOWN, problems=CHANGE,
       examples={"window": {"reward": {"window": "1h"}}, "segments": {"max_segments": 500}})  # fmt: skip
async def patch_policy(request: Request, name: str) -> Response:
    """Change parts of a policy's definition.

    Members that are there replace those of the definition; those of `reward` one by one. null is a value (no default
    reward, no half-life), not a removal.
    """
    engine = engine_of(request)
    patch = await read_json(request, PATCH)
    before = await engine.policy(name)
    spec, arms = to_spec(patched(before.spec, patch))
    return changed(await engine.control(PolicyPut(name, spec, arms), if_version=before.version))


@route(router, "DELETE", "/v1/policies/{name}", role="admin", answers=SHOWN,
       problems=("unknown-policy", *AWAY))  # fmt: skip
async def delete_policy(request: Request, name: str) -> Response:
    """Delete a policy and what it has learned; later rewards for it are counted as gone."""
    engine = engine_of(request)
    await engine.policy(name)
    return changed(await engine.control(PolicyDelete(name)))


async def exists(engine: Any, name: str) -> bool:
    try:
        await engine.policy(name)
    except errors.Problem as problem:
        if problem.status != 404:
            raise
        return False
    return True


def with_algorithms(problem: errors.Problem) -> errors.Problem:
    """The same problem, saying which algorithms there are where that is what is wrong."""
    if problem.field != "algorithm":
        return problem
    return errors.invalid("algorithm", f"{problem.detail} There are {', '.join(ALGORITHMS)}.")
