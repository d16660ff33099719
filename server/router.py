"""The router: rewards that other producers send to Kafka as JSON become events of the log.

    NAME.rewards --poll--> sort (JSON, server.feedback.judge) --frames--> event log, one partition per shard
                             |
                             `-- refused, with the reason --> NAME.dead-letters;   then the group's offsets

Offsets are committed after all of a message is durable, so every message is taken at least once, wherever a router is
killed; what comes twice is absorbed by the reward contract. While the log or the store is away the router keeps its
place in the group, fetches nothing, and goes on where it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from server.feedback import Judged, judge
from server.router_metrics import RouterMetrics
from server.router_rows import DeadLetter, Message, encoded, frames, slices, sort
from server.router_view import KnownPolicies
from server.schemas import FeedbackRow
from server.waiting import Stopping
from streaming.errors import LogUnavailable, StoreUnavailable
from streaming.log import EventLog

log = logging.getLogger(__name__)
POLL_MS = 200
RETRY_S = 0.2
DUTY_S = 1.0
APPEND_BYTES = 8 << 20
LETTERS_AT_ONCE = 2_000  # the brokers have seconds for them, and where they fail these alone are sent again
# What may be otherwise once the newest keys and policies are known.
DOUBTFUL = {"bad-token", "unknown-policy", "unknown-item"}
T = TypeVar("T")


class Source(Protocol):
    """See `server.router_kafka.RewardsTopic`."""

    rebalances: int

    def poll(self, timeout_ms: int) -> list[Message]: ...
    def stay(self) -> None: ...
    def done(self, messages: Sequence[Message]) -> None: ...
    def commit(self, now: bool = False) -> None: ...
    def lag(self) -> dict[int, int]: ...


class Letters(Protocol):
    """See `server.router_kafka.DeadLetters`."""

    def append(self, letters: Sequence[tuple[bytes | None, bytes]]) -> None: ...


class _Uncounted:
    def refusal(self, reason: str) -> None:
        """What is refused is counted when its letter is written."""


class Router:
    """`run` until `stop` is set; it then finishes what it has polled, unless log or store is away."""

    def __init__(
        self,
        event_log: EventLog,
        known: KnownPolicies,
        source: Source,
        letters: Letters,
        metrics: RouterMetrics,
        stop: threading.Event,
    ) -> None:
        self._log, self._known, self._source, self._letters = event_log, known, source, letters
        self._metrics = metrics
        self._away: dict[str, bool] = {}
        self._rebalances = 0
        self._next_duty = 0.0
        self.stop = stop

    def run(self) -> None:
        """Raises what trying again does not help against: LogCorrupt, StoreCorrupt, our mistake."""
        try:
            self._insist(self._known.renew)
            while not self.stop.is_set():
                self.turn()
        except Stopping:
            pass
        self._commit(now=True)

    def turn(self) -> int:
        """One poll, and everything that belongs to it; returns the number of messages."""
        messages = self._insist(lambda: self._source.poll(POLL_MS))
        began = time.monotonic()
        for each in slices(messages):
            self._take(each)
        if messages:
            self._metrics.batch_seconds.observe(time.monotonic() - began)
        self._commit()
        if began >= self._next_duty:
            self._next_duty = began + DUTY_S
            self._duty()
        return len(messages)

    def _take(self, messages: Sequence[Message]) -> None:
        self._metrics.messages.inc(len(messages))
        found = sort(messages, self._judge)
        self._append(found.by_shard)
        self._metrics.accepted.inc(found.accepted)
        if found.dead:
            self._bury(found.dead)
        self._source.done(messages)

    def _judge(self, rows: Sequence[FeedbackRow]) -> Judged:
        """`judge`, and again with the newest keys and policies for rows that are refused for want of them."""
        verdicts, by_shard = judge(rows, self._known, _Uncounted())
        doubtful = [i for i, verdict in enumerate(verdicts) if verdict.reason in DOUBTFUL]
        if doubtful:
            self._insist(self._known.renew)
            again, more = judge([rows[i] for i in doubtful], self._known, _Uncounted())
            for i, verdict in zip(doubtful, again, strict=True):
                verdicts[i] = verdict
            for shard, made in more.items():
                by_shard.setdefault(shard, []).extend(made)
        return verdicts, by_shard

    def _append(self, by_shard: dict[int, list[bytes]]) -> None:
        records: list[tuple[int, bytes]] = []
        size = 0
        for shard, frame in frames(by_shard):
            if records and size + len(frame) > APPEND_BYTES:
                self._insist(lambda batch=records: self._log.append(batch))  # type: ignore[misc]
                records, size = [], 0
            records.append((shard, frame))
            size += len(frame)
        if records:
            self._insist(lambda: self._log.append(records))

    def _bury(self, dead: Sequence[tuple[bytes | None, DeadLetter]]) -> None:
        for start in range(0, len(dead), LETTERS_AT_ONCE):
            some = dead[start : start + LETTERS_AT_ONCE]
            letters = [(key, encoded(letter)) for key, letter in some]
            self._insist(lambda batch=letters: self._letters.append(batch))  # type: ignore[misc]
            self._metrics.dead_letters.inc(len(letters))
            for _, letter in some:
                self._metrics.refused.labels(letter.reason).inc()

    def _commit(self, now: bool = False) -> None:
        try:
            self._source.commit(now)
        except LogUnavailable as error:  # tried again with the next batch; else these messages are read again
            log.info("the group's offsets were not committed: %s", error)

    def _insist(self, what: Callable[[], T]) -> T:
        """Does it, however long log or store are away. Raises Stopping: what is under way is read again by the next."""
        waited_for = ""
        while True:
            try:
                result = what()
            except (LogUnavailable, StoreUnavailable) as error:
                waited_for = "log" if isinstance(error, LogUnavailable) else "store"
                self._is(waited_for, error)
                if self.stop.is_set():
                    raise Stopping from None
                self.stop.wait(RETRY_S)
                self._stay()
            else:
                if waited_for:
                    self._is(waited_for, None)
                return result

    def _stay(self) -> None:
        try:
            self._source.stay()
        except LogUnavailable as error:
            self._is("log", error)

    def _duty(self) -> None:
        """Once a second: how far behind, and who is away (a poll of Kafka says nothing where the brokers are gone)."""
        try:
            self._log.ends()
            self._is("log", None)
        except LogUnavailable as error:
            self._is("log", error)
        self._known.refresh()
        self._is("store", self._known.away)
        self._metrics.lags(self._source.lag())
        self._metrics.rebalances.inc(self._source.rebalances - self._rebalances)
        self._rebalances = self._source.rebalances

    def _is(self, part: str, error: Exception | None) -> None:
        """Notes that a part is away, or there, and says so when that is news."""
        away = error is not None
        if away and not self._away.get(part):
            log.warning("the router waits: %s", error)
        elif self._away.get(part) and not away:
            log.warning("the %s is there again", part)
        self._away[part] = away
        self._metrics.up.labels(part).set(not away)
