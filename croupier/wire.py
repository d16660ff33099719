"""What the client's calls give and raise: structs of the answers, and the errors. docs/http.md explains the fields."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import msgspec

Mode = Literal["explore", "exploit", "thompson"]
PROBLEM = "urn:croupier:problem:"


class User(TypedDict, total=False):
    """Who asks: an embedding, or clusters (with weights), or a segment. Empty: the segment "all"."""

    embedding: Sequence[float]
    clusters: Sequence[int]
    weights: Sequence[float]
    segment: str


class Query(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One recommendation to ask for; see `Client.recommend`."""

    policy: str
    user: User | None = None
    k: int = 1
    exclude: Sequence[str] | None = None
    candidates: Sequence[str] | None = None
    mode: Mode | None = None


class Item(msgspec.Struct, frozen=True):
    """One place of a slate. Score and propensity are null where the item is a fallback's."""

    id: str
    score: float | None = None
    propensity: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """What to show, best first. A fallback has no decision id, and `reason` says why it is one."""

    decision_id: str | None
    policy: str
    version: int | None
    items: list[Item]
    fallback: bool = False
    reason: str | None = None


class Row(msgspec.Struct, frozen=True):
    """One reward on its way."""

    decision_id: str
    item: str
    reward: float
    event_id: str


class Verdict(msgspec.Struct, frozen=True):
    """What became of a reward. Ignored: it was for a fallback, which nothing can learn from."""

    status: Literal["accepted", "refused", "ignored"]
    reason: str | None = None
    field: str | None = None
    detail: str | None = None


class Changed(msgspec.Struct, frozen=True):
    """A change that is durable; `shown`: every worker of the host that answered shows it already."""

    version: int
    shown: bool
    graph: str | None = None


class Arm(msgspec.Struct, frozen=True):
    """An arm and what has been learned about it."""

    id: str
    mean: float | None
    width: float | None
    probability: float | None
    plays: float
    rewards: float
    paused: bool


class Policy(msgspec.Struct, frozen=True):
    """A policy; `definition` is what `put_policy` takes."""

    name: str
    version: int
    definition: dict[str, Any]


class Stats(msgspec.Struct):
    """Counters since the client was made. Rewards: sent = accepted + refused once nothing is on its way."""

    decisions: int = 0
    fallbacks: int = 0
    sent: int = 0  # rewards handed to the client, less those it had no room for
    accepted: int = 0
    refused: int = 0
    ignored: int = 0  # rewards of fallbacks
    dropped: int = 0  # rewards that the full queue did not take
    retried: int = 0  # calls with rewards that were made once more
    unsent: int = 0  # rewards that wait in the queue or are on their way


class CroupierError(Exception):
    """Anything that the client raises by itself."""


class UnavailableError(CroupierError):
    """No answer in time, or one that says the server cannot now. Sending again may help."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class QueueFullError(CroupierError):
    """The queue of rewards had no room in time; this reward was not taken."""


class ProblemError(CroupierError):
    """The request is wrong: `type` is stable, `detail` a sentence with the remedy, `field` a path into it.

    >>> str(ProblemError(404, "urn:croupier:problem:unknown-policy", "There is no policy 'x'.", "policy"))
    "unknown-policy (404) at policy: There is no policy 'x'."
    """

    def __init__(self, status: int, type: str, detail: str, field: str | None = None) -> None:
        where = f" at {field}" if field else ""
        super().__init__(f"{type.removeprefix(PROBLEM)} ({status}){where}: {detail}")
        self.status = status
        self.type = type
        self.detail = detail
        self.field = field


class ProblemBody(msgspec.Struct):
    """Problem details, as much of them as a stranger's proxy may send."""

    type: str = "about:blank"
    detail: str = ""
    status: int = 0
    field: str | None = None
    retry_after: float | None = None


def error_of(status: int, body: bytes, retry_after: str | None = None) -> CroupierError:
    """The error that an answer of this status is: unavailable for 429 and 5xx, else the caller's mistake.

    >>> error_of(503, b"<html>", "2").retry_after_s
    2.0
    """
    try:
        problem = msgspec.json.decode(body, type=ProblemBody)
    except msgspec.MsgspecError:
        problem = ProblemBody(detail=body[:200].decode(errors="replace"))
    if status == 429 or status >= 500 or status < 400:
        try:
            wait_s = float(retry_after or problem.retry_after or 0.0)
        except ValueError:  # an HTTP date, which the backoff stands in for
            wait_s = 0.0
        return UnavailableError(f"status {status}: {problem.detail}", max(wait_s, 0.0))
    return ProblemError(status, problem.type, problem.detail, problem.field)
