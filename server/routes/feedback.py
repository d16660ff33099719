"""POST /v1/feedback: one reward or many, answered after the durable append."""

from typing import Annotated

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from server import errors
from server.bodies import decode
from server.engine import Engine
from server.routes.common import AWAY, JSON, engine_of, read_json_bytes, route, service_of
from server.schemas import ACCEPTED, FeedbackAnswer, FeedbackRow, Verdict

router = APIRouter(tags=["feedback"])


class Bulk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several rewards in one call."""

    feedback: Annotated[
        list[FeedbackRow],
        Meta(
            min_length=1,
            description="Rewards, at most `max_batch` (a setting).",
            examples=[[{"decision_id": "AQAAAgcAAAB", "item": "b", "reward": 1.0}]],
        ),
    ]


class _Peek(msgspec.Struct, frozen=True):
    feedback: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Raw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    feedback: list[msgspec.Raw]


ONE = msgspec.json.Decoder(FeedbackRow)
BULK = msgspec.json.Decoder(Bulk)
PEEK = msgspec.json.Decoder(_Peek)
RAW = msgspec.json.Decoder(_Raw)
ONE_ACCEPTED = msgspec.json.encode(FeedbackAnswer([ACCEPTED]))
ROW = {"decision_id": "AQAAAgcAAAB", "item": "b", "reward": 1}
EXAMPLES = {
    "one": ROW,
    "with-event-id": {**ROW, "reward": 24.9, "event_id": "order-77"},
    "many": {"feedback": [ROW, {**ROW, "reward": 0.5}]},
}
OWN = ("unknown-policy", "unknown-item", "bad-token", "out-of-range", "missing-event-id", *AWAY)


@route(router, "POST", "/v1/feedback", role="feedback", body=(FeedbackRow, Bulk), examples=EXAMPLES,
       answers={202: FeedbackAnswer}, problems=OWN)  # fmt: skip
async def feedback(request: Request) -> Response:
    """Say what the world answered, one reward or many.

    202 comes after the durable append. Of `{"feedback": [...]}` each row has its own verdict, in order, and refused
    rows do not hold up the others. One row sent by itself is answered with an error where it is refused. A reward that
    is late or a duplicate is accepted, and counted as such where it is learned.
    """
    body = await read_json_bytes(request)
    found = await feedback_bytes(engine_of(request), service_of(request).settings.max_batch, body)
    return Response(found, 202, media_type=JSON)


async def feedback_bytes(engine: Engine, max_batch: int, body: bytes) -> bytes:
    """The answer's body to a feedback request's body; raises Problem. The one path from bytes to bytes."""
    rows = _rows(body)
    if rows is None:
        (verdict,) = await engine.feedback([decode(ONE, body)])
        if verdict.status == "refused":
            raise problem_of(verdict)
        return ONE_ACCEPTED
    if not rows:
        raise errors.invalid("feedback", "feedback is empty; send at least one reward.")
    if len(rows) > max_batch:
        detail = f"There are {len(rows)} rewards; at most {max_batch} go in one call (max_batch)."
        raise errors.invalid("feedback", detail)
    sound = [row for row in rows if isinstance(row, FeedbackRow)]
    verdicts = iter(await engine.feedback(sound) if sound else [])
    answers = [row if isinstance(row, Verdict) else next(verdicts) for row in rows]
    return msgspec.json.encode(FeedbackAnswer(answers))


def quick_row(body: bytes) -> FeedbackRow | None:
    """The row of a usual body of one; None where it is another, or wrong: `feedback_bytes` says what."""
    if b'"feedback"' in body or b"\\" in body:
        return None
    try:
        return ONE.decode(body)
    except (ValueError, RecursionError):
        return None


def problem_of(verdict: Verdict) -> errors.Problem:
    """What the caller of one row is told whose row was refused."""
    return errors.refused_feedback(verdict.reason or "invalid", verdict.detail or "", verdict.field)


def _rows(body: bytes) -> list[FeedbackRow] | list[FeedbackRow | Verdict] | None:
    """The rows of a bulk body, an unsound one as its verdict; None where the body is no bulk."""
    may_be_bulk = b'"feedback"' in body or b"\\" in body  # or its name is spelled with escapes
    if not may_be_bulk or decode(PEEK, body).feedback is msgspec.UNSET:
        return None
    try:
        return BULK.decode(body).feedback
    except msgspec.ValidationError:  # something is unsound: find out which rows
        return [_row(i, part) for i, part in enumerate(decode(RAW, body).feedback)]


def _row(i: int, part: msgspec.Raw) -> FeedbackRow | Verdict:
    try:
        return decode(ONE, part, f"feedback[{i}]")
    except errors.Problem as problem:
        return Verdict("refused", "invalid", problem.field, problem.detail)
