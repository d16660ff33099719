"""Snapshots: keep what has been learned under a label, and put a policy back to it."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.engine import Engine
from server.routes.common import AWAY, answer, changed, engine_of, read_json, route
from server.routes.policies import CHANGE, SHOWN
from server.schemas import Changed, SnapshotAnswer
from streaming.control import ControlError, SnapshotDrop, SnapshotTake, check_label

router = APIRouter(tags=["snapshots"])


class SnapshotList(msgspec.Struct, frozen=True):
    """All snapshots, by label."""

    snapshots: Annotated[list[SnapshotAnswer], Meta(description="Those that are kept.")]


class RestoreBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to go back to."""

    label: Annotated[str, Meta(description="The snapshot's label.", max_length=64, examples=["before-sale"])]


BODY: msgspec.json.Decoder[Any] = msgspec.json.Decoder(RestoreBody)


@route(router, "GET", "/v1/snapshots", role="admin", answers={200: SnapshotList}, problems=AWAY)
async def list_snapshots(request: Request) -> Response:
    """List the snapshots, and whether each is complete."""
    return answer(SnapshotList(await engine_of(request).snapshots()))


@route(router, "PUT", "/v1/snapshots/{label}", role="admin", answers={201: Changed, 202: Changed},
       problems=("conflict", "invalid-field", *AWAY))  # fmt: skip
async def put_snapshot(request: Request, label: str) -> Response:
    """Keep what all policies have learned by now under a label: 1 to 64 of a-z, 0-9, dot, underscore and hyphen.

    Each shard makes its copy at this place of the event log, or moments after; GET says when all have. A label is
    never moved: 409 where there is one, or as many as are kept (16).
    """
    _check(label)
    return changed(await engine_of(request).control(SnapshotTake(label)), 201)


@route(router, "DELETE", "/v1/snapshots/{label}", role="admin", answers=SHOWN,
       problems=("unknown-snapshot", "conflict", "invalid-field", *AWAY))  # fmt: skip
async def delete_snapshot(request: Request, label: str) -> Response:
    """Forget a snapshot."""
    engine = engine_of(request)
    _check(label)
    await _existing(engine, label)
    return changed(await engine.control(SnapshotDrop(label)))


@route(router, "POST", "/v1/policies/{name}/restore", role="admin", body=RestoreBody, answers=SHOWN,
       problems=("unknown-snapshot", *CHANGE), examples={"label": {"label": "before-sale"}})  # fmt: skip
async def restore_policy(request: Request, name: str) -> Response:
    """Put what a policy has learned back to a snapshot; its definition, items and graph stay as they are.

    409 while the snapshot is not complete, and where the policy, or its graph's cluster numbering, is another than
    then. What was counted stays counted, and a reward that was learned is not learned again. Items, edges, banks and
    arms that came later begin anew.
    """
    body = await read_json(request, BODY)
    return changed(await engine_of(request).restore(name, body.label))


def _check(label: str) -> None:
    try:
        check_label(label)
    except ControlError as error:
        raise errors.invalid("label", errors.as_sentence(str(error))) from None


async def _existing(engine: Engine, label: str) -> None:
    if label not in [snapshot.label for snapshot in await engine.snapshots()]:
        raise errors.unknown_snapshot(label)
