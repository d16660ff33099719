"""The client for asyncio. `croupier.blocking` runs the same one in a thread."""

import asyncio
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import msgspec

from croupier.calls import Calls, decoded
from croupier.sender import Sender
from croupier.wire import (
    PROBLEM,
    CroupierError,
    Decision,
    Item,
    Mode,
    ProblemBody,
    ProblemError,
    Query,
    Row,
    Stats,
    UnavailableError,
    User,
    Verdict,
    error_of,
)

T = TypeVar("T")
BACKOFF_FIRST_S = 0.05
BACKOFF_MOST_S = 5.0
# Servers take 4 MiB unless told otherwise. One that refuses closes while we still send, and asyncio then often shows a
# lost connection, not the 413; such a call would be sent again for ever.
CALL_MOST_BYTES = 1 << 20
IGNORED = Verdict("ignored", "fallback")


class _Batch(msgspec.Struct):
    results: list[dict[str, Any]]


class _Verdicts(msgspec.Struct):
    results: list[Verdict]


class Options(TypedDict, total=False):
    """What a client may be given; `AsyncClient` says what each is."""

    api_key: str | None
    timeout_s: float
    fallback: Sequence[str] | None
    fallbacks: Mapping[str, Sequence[str]] | None
    request_timeout_s: float
    retry_for_s: float
    max_batch: int
    max_delay_s: float
    max_queue: int
    queue_wait_s: float
    on_refused: Callable[[Row, Verdict], None] | None


class AsyncClient(Calls):
    """Talks to one croupier server, or to the load balancer before several. Used in one event loop.

    `timeout_s` is the whole time that a recommendation may take; then, and when the server is away or overloaded, the
    answer is the fallback: the call's, else the policy's in `fallbacks`, else `fallback`; without any of them it is an
    `UnavailableError`. `request_timeout_s` is the time of one call with rewards or of administration, and
    `retry_for_s` bounds how long `feedback` tries again. The others are the background sender's (`feedback_later`).

    >>> import asyncio
    >>> async def main():
    ...     async with AsyncClient(url, timeout_s=5) as client:
    ...         decision = await client.recommend("headlines", fallback=["calm"])
    ...         return await client.feedback(decision, decision.items[0].id, 1.0)
    >>> asyncio.run(main()).status
    'accepted'
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 0.05,
        fallback: Sequence[str] | None = None,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
        request_timeout_s: float = 10.0,
        retry_for_s: float = 30.0,
        max_batch: int = 100,
        max_delay_s: float = 0.05,
        max_queue: int = 10_000,
        queue_wait_s: float = 1.0,
        on_refused: Callable[[Row, Verdict], None] | None = None,
    ) -> None:
        super().__init__(base_url, api_key, request_timeout_s)
        self._timeout_s = timeout_s
        self._fallback = fallback
        self._fallbacks = dict(fallbacks or {})
        self._retry_for_s = retry_for_s
        self.stats = Stats()
        self._sender = Sender(
            self._post_rows,
            backoff_s,
            self.stats,
            on_refused,
            max_batch=max_batch,
            max_delay_s=max_delay_s,
            max_queue=max_queue,
            queue_wait_s=queue_wait_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:  # fmt: skip
        await self.close()

    async def recommend(
        self,
        policy: str,
        *,
        user: User | None = None,
        k: int = 1,
        exclude: Sequence[str] | None = None,
        candidates: Sequence[str] | None = None,
        mode: Mode | None = None,
        fallback: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Decision:
        """Which `k` items to show, best first. A `ProblemError` is the caller's mistake and has no fallback."""
        query = Query(policy=policy, user=user, k=k, exclude=exclude, candidates=candidates, mode=mode)
        self.stats.decisions += 1
        try:
            body = await self._call("POST", "/v1/recommend", query, self._timeout_s if timeout_s is None else timeout_s)
            return decoded(body, Decision)
        except UnavailableError as error:
            return self._instead(query, fallback, error)

    async def recommend_batch(
        self, queries: Sequence[Query], *, fallback: Sequence[str] | None = None, timeout_s: float | None = None
    ) -> list[Decision | ProblemError]:
        """A decision, or the problem it alone would have raised, for each query, in their order."""
        self.stats.decisions += len(queries)
        within_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            body = await self._call("POST", "/v1/recommend/batch", {"requests": queries}, within_s)
            results = decoded(body, _Batch).results
            if len(results) != len(queries):
                raise UnavailableError("an answer for another number of queries")
        except UnavailableError as error:
            return [self._instead(query, fallback, error) for query in queries]
        found: list[Decision | ProblemError] = []
        for query, result in zip(queries, results, strict=True):
            if "decision_id" in result:
                found.append(msgspec.convert(result, Decision))
                continue
            problem = error_of(msgspec.convert(result, ProblemBody).status, msgspec.json.encode(result))
            found.append(problem if isinstance(problem, ProblemError) else self._instead(query, fallback, problem))
        return found

    async def feedback(
        self, decision: Decision | str, item: str, reward: float, event_id: str | None = None
    ) -> Verdict:
        """Sends one reward and returns when it is durably in the log; tries again for `retry_for_s`.

        A repeat counts once, because each reward has an `event_id`: yours, else one that is made here. Give your own
        where your program may itself report the same thing twice. Raises `ProblemError` where it is refused and
        `UnavailableError` where the time is up: it may be in the log or not, and may be sent again with the same
        `event_id`.
        """
        row = self._row(decision, item, reward, event_id)
        if row is None:
            return IGNORED
        self.stats.sent += 1
        self.stats.unsent += 1
        try:
            verdict = (await self._retried([row]))[0]
        finally:
            self.stats.unsent -= 1
        if verdict.status == "refused":
            self.stats.refused += 1
            raise ProblemError(422, f"{PROBLEM}{verdict.reason}", verdict.detail or "", verdict.field)
        self.stats.accepted += 1
        return verdict

    async def feedback_later(
        self, decision: Decision | str, item: str, reward: float, event_id: str | None = None
    ) -> None:
        """Puts a reward into the queue of the background sender. Raises `QueueFullError` where it stays full."""
        row = self._row(decision, item, reward, event_id)
        if row is not None:
            await self._sender.put(row)

    async def flush(self, timeout_s: float = 30.0) -> bool:
        """Waits until every reward of the queue was answered; False where that took longer."""
        return await self._sender.flush(timeout_s)

    async def close(self, timeout_s: float = 30.0) -> int:
        """Flushes and ends; returns how many rewards were left, which are then lost."""
        await self._sender.flush(timeout_s)
        await self._sender.end()
        await self._http.aclose()
        return self.stats.unsent

    async def _post_rows(self, rows: list[Row]) -> list[Verdict]:
        content = msgspec.json.encode({"feedback": rows})
        if len(content) > CALL_MOST_BYTES:
            detail = f"The call is larger than {CALL_MOST_BYTES:,} bytes."
            raise ProblemError(413, f"{PROBLEM}body-too-large", detail)
        body = await self._call("POST", "/v1/feedback", content, self._request_timeout_s)
        verdicts = decoded(body, _Verdicts).results
        if len(verdicts) != len(rows):
            raise UnavailableError("an answer for another number of rewards")
        return verdicts

    async def _retried(self, rows: list[Row]) -> list[Verdict]:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._retry_for_s
        attempt = 0
        while True:
            try:
                return await self._post_rows(rows)
            except UnavailableError as error:
                wait_s = backoff_s(attempt, error.retry_after_s)
                if loop.time() + wait_s > until:
                    raise
            attempt += 1
            self.stats.retried += 1
            await asyncio.sleep(wait_s)

    def _row(self, decision: Decision | str, item: str, reward: float, event_id: str | None) -> Row | None:
        if not math.isfinite(reward):
            raise ValueError(f"a reward is a finite number, not {reward}")
        decision_id = decision if isinstance(decision, str) else decision.decision_id
        if decision_id is None:
            self.stats.ignored += 1
            return None
        row = Row(decision_id, item, float(reward), event_id or uuid.uuid4().hex)
        msgspec.json.encode(row)  # what cannot be written is the caller's to see, not the sender's
        return row

    def _instead(self, query: Query, fallback: Sequence[str] | None, error: CroupierError) -> Decision:
        """The fallback for a query, less what it excludes and what it does not allow."""
        if fallback is None:
            fallback = self._fallbacks.get(query.policy, self._fallback)
        if fallback is None:
            raise error
        excluded = set(query.exclude or ())
        allowed = None if query.candidates is None else set(query.candidates)
        ids = [id for id in fallback if id not in excluded and (allowed is None or id in allowed)]
        self.stats.fallbacks += 1
        return Decision(None, query.policy, None, [Item(id) for id in ids[: query.k]], True, str(error))


def backoff_s(attempt: int, retry_after_s: float) -> float:
    """How long to wait before the next attempt: what the server asked for, and a random part that doubles.

    >>> 2.0 <= backoff_s(3, 2.0) <= 2.4
    True
    """
    return retry_after_s + random.uniform(0, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 16)))
