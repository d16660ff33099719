"""The graph of a diag-linucb policy: upload, and which one is in use."""

import asyncio
import io
import zipfile
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from bandits.graph import Graph, GraphError
from server import errors
from server.limits import read_body
from server.routes.common import JSON, NPZ, answer, engine_of, route, service_of
from server.routes.policies import CHANGE
from server.schemas import GraphInfo
from streaming.control import GraphPut

router = APIRouter(tags=["graph"])
# A graph's ids are a unicode array, four bytes a character, which packs well: more than this is no graph.
UNPACKED_TIMES_MAX = 20
ENTRIES_MAX = 16  # a graph has four arrays


class GraphPutAnswer(msgspec.Struct, frozen=True):
    """The upload is durable and ordered; GET shows when it is in use."""

    version: Annotated[int, Meta(description="Number of the change in the control log.", examples=[8])]
    shown: Annotated[bool, Meta(description="Every worker of this host uses it already.", examples=[True])]
    graph: Annotated[str, Meta(description="The graph's version.", examples=["9f2c51d0a1b24c5e8d7f6a5b4c3d2e1f"])]


@route(router, "PUT", "/v1/policies/{name}/graph", role="admin", body=NPZ, answers={202: GraphPutAnswer},
       problems=(*CHANGE, "invalid-field"))  # fmt: skip
async def put_graph(
    request: Request,
    name: str,
    keeps_clusters: Annotated[
        bool, Query(description="Same cluster numbering: edges keep what they have learned, and old decisions count.")
    ] = False,
) -> Response:
    """Give a diag-linucb policy its graph: an npz file with the arrays centroids, indptr, items and, if wanted, ids.

    Always 202: the upload is durable, `shown` says whether every worker of this host uses it already (waiting at most
    2 s), and GET shows the version in use. Without `keeps_clusters` parameters start anew.
    """
    engine = engine_of(request)
    policy = await engine.policy(name)
    if not policy.spec.is_diag:
        raise errors.refused_control("graph", f"{name!r} is of algorithm {policy.spec.algorithm}, which has no graph")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or kind.startswith(("text/", "multipart/", "application/x-www-form")):
        detail = f"A graph is an npz file; send its bytes as they are, with Content-Type: {NPZ}."
        raise errors.Problem(415, "Unsupported media type", detail)
    data = await read_body(request, service_of(request).settings.max_graph_bytes)
    graph = await asyncio.to_thread(parse_graph, data)
    blob = await engine.put_blob(await asyncio.to_thread(graph.to_bytes))
    result = await engine.control(GraphPut(name, blob, keeps_clusters))
    return answer(GraphPutAnswer(result.number, result.shown, graph.version), 202)


@route(router, "GET", "/v1/policies/{name}/graph", role="admin", answers={200: GraphInfo},
       problems=("unknown-policy", "no-graph-yet", "conflict"))  # fmt: skip
async def get_graph(request: Request, name: str) -> Response:
    """Which graph is in use, and its sizes."""
    policy = await engine_of(request).policy(name)
    if policy.graph is None:
        if not policy.spec.is_diag:
            raise errors.refused_control("graph", f"{name!r} is of algorithm {policy.spec.algorithm}: it has no graph")
        raise errors.no_graph(name)
    return answer(policy.graph)


def parse_graph(data: bytes) -> Graph:
    """The checked graph in an npz file; a 422 problem names the array that is wrong."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        entries = []  # Graph says what is wrong with it
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > UNPACKED_TIMES_MAX * len(data) + (1 << 20):
        detail = (
            f"The file unpacks to {unpacked:,} bytes, more than {UNPACKED_TIMES_MAX} times its size: no graph does."
        )
        raise errors.invalid("graph", detail)
    if len(entries) > ENTRIES_MAX:
        raise errors.invalid("graph", f"The file holds {len(entries):,} arrays; a graph has four at most.")
    try:
        return Graph.from_bytes(data)
    except GraphError as error:
        raise errors.invalid(error.field, errors.as_sentence(error.sentence)) from None
