"""The engine of one worker: its view of the replica, and a channel to the host's agent.

`Channel` is a unix socket in a worker of its own (`server.ipc`) and a direct call where the agent lives in the same
process (`server.local`); everything else is the same code.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from bandits.graph import Graph
from server import errors
from server.engine import ControlResult, PolicyInfo
from server.errors import Problem
from server.feedback import NOT_YET
from server.intake import Intake, Taken
from server.live_figures import Live
from server.outbox import Outbox
from server.recommender import Recommender
from server.schemas import (
    ACCEPTED,
    Arms,
    Decision,
    FeedbackRow,
    ItemInfo,
    RecommendRequest,
    SnapshotAnswer,
    Status,
    Verdict,
)
from server.shared import (
    AGENT_BEAT,
    APART,
    AWAY,
    BEAT,
    BEHIND_SINCE,
    DRAINING,
    LEARNER_BEAT,
    LOG,
    NO_ROOM,
    PID,
    SEEN,
    SILENT_MS,
    STORE,
    HostFile,
    RunFolder,
)
from server.view_diag import DiagView
from server.views import Views
from streaming.control import ControlRecord, to_json
from streaming.log import Clock, wall_clock

TICK_S = 0.02
STALE_MS = 5_000
NOT_YET_S = 1.0
Told = Callable[[Verdict | Exception], None]
log = logging.getLogger(__name__)
_ARMS = msgspec.msgpack.Decoder(Arms)
_LIVE = msgspec.msgpack.Decoder(Live)
_SNAPSHOTS = msgspec.msgpack.Decoder(list[SnapshotAnswer])
_RESULT = msgspec.msgpack.Decoder(ControlResult)
_TEXT = msgspec.msgpack.Decoder(str)
_BYTES = msgspec.msgpack.Decoder(bytes)


class Channel(Protocol):
    """What a worker asks of the agent."""

    def send(self, number: int, batch: bytes) -> bool:
        """Hands over a batch of decisions; False while the agent is away."""

    def rewards(self, batch: bytes, done: Callable[[Problem | None], None]) -> None:
        """Hands over rewards; `done` is called after their durable append, or with Problem 503; perhaps at once."""

    async def call(self, method: str, *args: Any) -> bytes:
        """One of `Agent.call`'s methods; MessagePack of what it returns. Raises Problem."""


class HostEngine:
    """`server.engine.Engine` for the worker that owns row `worker` of the host file.

    Make it inside the running loop that serves the requests. `start` once the channel is there, `drain` at the end.
    """

    def __init__(
        self,
        host: HostFile,
        folder: RunFolder,
        worker: int,
        flush_ms: float,
        channel: Channel,
        clock: Clock = wall_clock,
    ) -> None:
        self.host, self.row, self.channel = host, host.row(worker), channel
        self._clock = clock
        self.views = Views(host, self.row, folder, clock)
        loop = asyncio.get_running_loop()
        self.outbox = Outbox(self.row, flush_ms / 1000, loop.call_later)
        self.outbox.send = channel.send
        self.intake = Intake(self.views, self.row)
        self._fed: list[tuple[FeedbackRow, Told]] = []  # in this turn of the loop
        self._late: set[asyncio.Task[list[Verdict]]] = set()
        self.recommender = Recommender(self.views, self.outbox, self.row, clock=clock)
        self.answer = self.recommender.answer
        self.count, self.count_hot = self.row.request, self.row.hot
        self.draining = False
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Shows that this worker lives, and keeps its catalog new while no request comes."""
        self.row[SEEN] = 0
        self.row[BEAT] = self._clock()
        self.row[PID] = os.getpid()
        self._tick()
        self._ticker = asyncio.get_running_loop().create_task(self._ticking())

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._tick()

    def _tick(self) -> None:
        self.row[BEAT] = self._clock()
        with contextlib.suppress(errors.Problem, OSError):
            self.views.refresh()
            self.views.choose_key()

    async def drain(self, seconds: float) -> None:
        """Hands over every decision and waits, so long, until the log has them."""
        self.draining = True
        self.outbox.flush()
        deadline = asyncio.get_running_loop().time() + seconds
        while len(self.outbox) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        if self._ticker is not None:
            self._ticker.cancel()
        self.row[PID] = 0

    # ------------------------------------------------------------------------------------------------------- engine

    def recommend(self, query: RecommendRequest) -> Decision:
        """See `Engine.recommend`."""
        return self.recommender.recommend(query)

    async def feedback(self, rows: Sequence[FeedbackRow]) -> list[Verdict]:
        """See `Engine.feedback`."""
        taken = self._take(rows)
        batch = taken.batch
        if taken.late:
            batch += await self._take_late(rows, taken)
        if batch:
            appended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._hand_over(batch, partial(_settle, appended))
            await appended
        return taken.verdicts

    def feed(self, row: FeedbackRow, done: Told) -> None:
        """See `Engine.feed`. What comes in the same turn of the loop is judged and appended together."""
        if not self._fed:
            asyncio.get_running_loop().call_soon(self._take_fed)
        self._fed.append((row, done))

    def _take_fed(self) -> None:
        fed, self._fed = self._fed, []
        try:
            taken = self._take([row for row, _ in fed])
        except Exception as error:
            for _, done in fed:
                _tell(done, error)
            return
        accepted = []
        for (row, done), verdict in zip(fed, taken.verdicts, strict=True):
            if verdict is ACCEPTED:
                accepted.append(done)
            elif verdict.detail is NOT_YET:
                self._feed_late(row, done)
            else:
                _tell(done, verdict)

        def appended(problem: Problem | None) -> None:
            for done in accepted:
                _tell(done, problem or ACCEPTED)

        if accepted:
            self._hand_over(taken.batch, appended)

    def _feed_late(self, row: FeedbackRow, done: Told) -> None:
        def settled(task: asyncio.Task[list[Verdict]]) -> None:
            self._late.discard(task)
            if not task.cancelled():
                _tell(done, task.exception() or task.result()[0])  # type: ignore[arg-type]

        task = asyncio.get_running_loop().create_task(self.feedback([row]))
        self._late.add(task)
        task.add_done_callback(settled)

    def _take(self, rows: Sequence[FeedbackRow]) -> Taken:
        if not self.views.generation:
            self.views.refresh()
            if not self.views.generation:
                raise errors.not_ready()
        return self.intake.take(rows)

    async def _take_late(self, rows: Sequence[FeedbackRow], taken: Taken) -> bytes:
        """Judges the rows again that name what is not seen here yet, until it is; the batch of those that are accepted.

        Problem where that takes too long.
        """
        late, batch = taken.late, b""
        deadline = asyncio.get_running_loop().time() + NOT_YET_S
        while late:
            if asyncio.get_running_loop().time() > deadline:
                raise errors.unavailable(NOT_YET)
            await asyncio.sleep(TICK_S)
            again = self.intake.take([rows[i] for i in late])
            for i, verdict in zip(late, again.verdicts, strict=True):
                taken.verdicts[i] = verdict
            batch += again.batch
            late = [late[i] for i in again.late]
        return batch

    def _hand_over(self, batch: bytes, done: Callable[[Problem | None], None]) -> None:
        if self.views.ordered:  # the classic rule cannot pay for an answer to a play it has not heard of
            self.outbox.flush()
        self.channel.rewards(batch, done)

    async def control(self, record: ControlRecord, if_version: int | None = None) -> ControlResult:
        """See `Engine.control`."""
        return _RESULT.decode(await self.channel.call("control", to_json(record), if_version))

    async def put_blob(self, data: bytes) -> str:
        """See `Engine.put_blob`."""
        return _TEXT.decode(await self.channel.call("put_blob", data))

    async def policies(self) -> list[PolicyInfo]:
        """See `Engine.policies`."""
        self.views.refresh()
        return [view.info() for _, view in sorted(self.views.by_name.items())]

    async def policy(self, name: str) -> PolicyInfo:
        """See `Engine.policy`."""
        return self.views.view(name).info()

    async def item(self, policy: str, item: str) -> ItemInfo:
        """See `Engine.item`."""
        return self.views.view(policy).item(item)

    async def graph(self, policy: str) -> Graph:
        """See `Engine.graph`."""
        view = self.views.view(policy)
        if not isinstance(view, DiagView):
            raise errors.no_graph(policy)
        return view.graph()

    async def arms(self, policy: str, segment: str, limit: int, offset: int) -> Arms:
        """See `Engine.arms`."""
        self.views.view(policy)
        return _ARMS.decode(await self.channel.call("arms", policy, segment, limit, offset))

    async def snapshots(self) -> list[SnapshotAnswer]:
        """See `Engine.snapshots`."""
        return _SNAPSHOTS.decode(await self.channel.call("snapshots"))

    async def restore(self, policy: str, label: str) -> ControlResult:
        """See `Engine.restore`."""
        return _RESULT.decode(await self.channel.call("restore", policy, label))

    def status(self) -> Status:
        """See `Engine.status`."""
        with contextlib.suppress(errors.Problem, OSError):
            self.views.refresh()
        draining = self.draining or bool(self.host[DRAINING])
        now_ms, since = self._clock(), self.host[BEHIND_SINCE]
        staleness_ms = max(0, now_ms - since) if since else None
        return Status(
            bool(self.views.generation) and not draining,
            draining,
            self._degraded(now_ms, staleness_ms),
            len(self.views.by_name),
            staleness_ms,
        )

    def _degraded(self, now_ms: int, staleness_ms: int | None) -> list[str]:
        host = self.host
        found = []
        if now_ms - host[AGENT_BEAT] > SILENT_MS:
            found.append("The agent is away: feedback and changes are refused, decisions wait for it.")
        if host[LOG] == AWAY:
            found.append("The event log is away: feedback and changes are refused, decisions wait for it.")
        if host[STORE] == AWAY:
            found.append("The parameter store is away: decisions are made with the parameters of before.")
        if not host[APART] and now_ms - host[LEARNER_BEAT] > SILENT_MS:
            found.append("The learner is away: rewards are kept in the log and learned when it is back.")
        elif staleness_ms is not None and staleness_ms > STALE_MS:
            why = "the learners are catching up, or none is there" if host[APART] else "the learner is catching up"
            found.append(f"Parameters are {staleness_ms / 1000:.0f} s behind the log; {why}.")
        if host[NO_ROOM]:
            found.append(
                f"Memory and disk have no room for {host[NO_ROOM]} of the newest tables: what they hold is served as "
                "before, or not yet."
            )
        return found

    async def live(self, policy: str, segment: str) -> Live:
        """See `Engine.live`."""
        return _LIVE.decode(await self.channel.call("live", policy, segment))

    async def metrics(self) -> bytes:
        """See `Engine.metrics`."""
        return _BYTES.decode(await self.channel.call("metrics"))


def _tell(done: Told, outcome: Verdict | Exception) -> None:
    """A mistake with one answer must not keep the others from theirs."""
    try:
        done(outcome)
    except Exception:
        log.exception("a reward's answer failed")


def _settle(waiter: asyncio.Future[None], problem: Problem | None) -> None:
    if waiter.done():  # who asked is gone
        return
    if problem is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(problem)
