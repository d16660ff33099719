"""Items of a policy (arms; a graph's items), and what has been learned about them."""

import asyncio
from typing import Annotated

import msgspec
import numpy as np
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from bandits.graph import Graph, GraphError
from server import errors
from server.definitions import item_path_id
from server.engine import ControlResult, Engine, PolicyInfo
from server.routes.common import AWAY, answer, changed, engine_of, read_json, route
from server.routes.policies import CHANGE, SHOWN
from server.schemas import TEXT_MAX, Arms, Changed, ItemInfo, ItemPatchBody, ItemPutBody
from streaming.control import GraphPut, ItemDelete, ItemPut

router = APIRouter(tags=["items"])
PUT = msgspec.json.Decoder(ItemPutBody)
PATCH = msgspec.json.Decoder(ItemPatchBody)
PATH = "/v1/policies/{name}/items/{id:path}"
NEW = {
    "arm": {"paused": False},
    "films-by-clusters": {"clusters": [0, 3]},
    "films-by-embedding": {"embedding": [0.1, 0.7, -0.2], "paused": True},
}


@route(router, "GET", "/v1/policies/{name}/arms", role="admin", answers={200: Arms},
       problems=("unknown-policy", "unknown-segment", "no-graph-yet", "invalid-field", *AWAY))  # fmt: skip
async def get_arms(
    request: Request,
    name: str,
    segment: Annotated[str, Query(max_length=TEXT_MAX, description="Whose bank; diag-linucb has none.")] = "all",
    limit: Annotated[int, Query(ge=1, le=1000, description="Arms on one page.")] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31, description="Arms to skip.")] = 0,
) -> Response:
    """What has been learned about each arm: mean, width, probability, plays, rewards."""
    return answer(await engine_of(request).arms(name, segment, limit, offset))


@route(router, "GET", PATH, role="admin", answers={200: ItemInfo},
       problems=("unknown-policy", "unknown-item", "invalid-field"))  # fmt: skip
async def get_item(request: Request, name: str, id: str) -> Response:
    """Read an item."""
    return answer(await engine_of(request).item(name, item_path_id(id)))


@route(router, "PUT", PATH, role="admin", body=ItemPutBody, answers={200: Changed, 201: Changed, 202: Changed},
       problems=(*CHANGE, "no-graph-yet"), examples=NEW)  # fmt: skip
async def put_item(request: Request, name: str, id: str) -> Response:
    """Add an item, or pause or resume one that is there.

    A new arm of a bank starts at the bank's mean. A new item of a diag-linucb policy needs `embedding` or `clusters`,
    and its graph's other edges keep what they have learned.
    """
    engine = engine_of(request)
    item_path_id(id)
    body = await read_json(request, PUT)
    policy = await engine.policy(name)
    before = await find_item(engine, name, id)
    if not policy.spec.is_diag:
        for field in ("embedding", "clusters"):
            if getattr(body, field) is not None:
                raise errors.invalid(field, f"Policy {name!r} is no diag-linucb policy; its arms have no {field}.")
        return changed(await engine.control(ItemPut(name, id, body.paused)), 200 if before else 201)
    if before is None:
        return changed(await add_to_graph(engine, policy, id, body), 201)
    if body.embedding is not None or body.clusters is not None:
        detail = "The item is in the graph already; delete it first, or PUT a whole graph, to give it other edges."
        raise errors.conflict(detail)
    return changed(await engine.control(ItemPut(name, id, body.paused)))


@route(router, "PATCH", PATH, role="admin", body=ItemPatchBody, answers=SHOWN, problems=(*CHANGE, "unknown-item"),
       examples={"pause": {"paused": True}, "resume": {"paused": False}})  # fmt: skip
async def patch_item(request: Request, name: str, id: str) -> Response:
    """Pause or resume an item. A paused item is not shown; rewards for it still teach."""
    engine = engine_of(request)
    body = await read_json(request, PATCH)
    await engine.item(name, item_path_id(id))
    return changed(await engine.control(ItemPut(name, id, body.paused)))


@route(router, "DELETE", PATH, role="admin", answers=SHOWN, problems=(*CHANGE, "unknown-item", "invalid-field"))
async def delete_item(request: Request, name: str, id: str) -> Response:
    """Remove an item; later rewards for it are counted as gone."""
    engine = engine_of(request)
    policy = await engine.policy(name)
    await engine.item(name, item_path_id(id))
    if not policy.spec.is_diag:
        return changed(await engine.control(ItemDelete(name, id)))
    if policy.items == 1:
        raise errors.conflict("This is the graph's last item; PUT another graph, or delete the policy.")
    graph = await engine.graph(name)
    return changed(await put_graph_of(engine, name, policy.version, await asyncio.to_thread(graph.without_item, id)))


async def find_item(engine: Engine, policy: str, item: str) -> ItemInfo | None:
    try:
        return await engine.item(policy, item)
    except errors.Problem as problem:
        if problem.status != 404:
            raise
        return None


async def add_to_graph(engine: Engine, policy: PolicyInfo, item: str, body: ItemPutBody) -> ControlResult:
    """A graph with one item more; every other edge keeps what it has learned."""
    if (body.embedding is None) == (body.clusters is None):
        raise errors.invalid(
            "embedding", "A new item of a diag-linucb policy needs embedding or clusters, one of them."
        )
    graph = await engine.graph(policy.name)
    clusters = body.clusters if body.embedding is None else clusters_of(graph, body.embedding)
    assert clusters is not None
    try:
        larger = await asyncio.to_thread(graph.with_item, item, clusters)
    except GraphError as error:
        raise errors.invalid(error.field, errors.as_sentence(error.sentence)) from None
    # Paused or not is said first, so that the item is never shown before; one of this id may have left it otherwise.
    said = await engine.control(ItemPut(policy.name, item, body.paused), if_version=policy.version)
    return await put_graph_of(engine, policy.name, said.number, larger)


def clusters_of(graph: Graph, embedding: list[float]) -> list[int]:
    """The clusters with the highest inner product, as many as an item of this graph has on average."""
    dim = graph.centroids.shape[1]
    if len(embedding) != dim:
        detail = f"The embedding has {len(embedding)} numbers; the graph's centroids have {dim}."
        raise errors.invalid("embedding", detail)
    n = max(1, round(len(graph.items) / len(graph.ids)))
    vector = np.asarray(embedding, np.float64)
    vector /= np.abs(vector).max() or 1.0  # the order is the same, and no product overflows
    similarity = graph.centroids.astype(np.float64) @ vector
    return sorted(int(c) for c in np.argsort(-similarity, kind="stable")[:n])


async def put_graph_of(engine: Engine, policy: str, if_version: int, graph: Graph) -> ControlResult:
    """A changed graph in place of the policy's; 409 when somebody else changed the policy meanwhile."""
    blob = await engine.put_blob(await asyncio.to_thread(graph.to_bytes))
    return await engine.control(GraphPut(policy, blob, keeps_clusters=True), if_version=if_version)
