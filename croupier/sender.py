"""Rewards sent in the background: gathered, sent in bulk, and sent again until the server has answered for each."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from croupier.wire import ProblemError, QueueFullError, Row, Stats, UnavailableError, Verdict

log = logging.getLogger("croupier")
TOO_MUCH = (400, 413, 422)  # the whole call was refused: halves may pass, and find the row at fault
Post = Callable[[list[Row]], Awaitable[list[Verdict]]]


class Sender:
    """A queue of at most `max_queue` rows and one task that empties it, in order, `max_batch` rows at a time.

    A row waits at most `max_delay_s` for others. Where the queue is full, `put` waits up to `queue_wait_s` for room and
    then raises `QueueFullError`. All methods run in one event loop.
    """

    def __init__(
        self,
        post: Post,
        backoff_s: Callable[[int, float], float],
        stats: Stats,
        on_refused: Callable[[Row, Verdict], None] | None,
        *,
        max_batch: int,
        max_delay_s: float,
        max_queue: int,
        queue_wait_s: float,
    ) -> None:
        self._post = post
        self._backoff_s = backoff_s
        self._stats = stats
        self._on_refused = on_refused
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_queue = max_queue
        self._queue_wait_s = queue_wait_s
        self._rows: deque[Row] = deque()
        self._flushing = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def put(self, row: Row) -> None:
        async with self._changed:
            if self._stats.unsent >= self._max_queue:
                try:
                    async with asyncio.timeout(self._queue_wait_s):
                        await self._changed.wait_for(lambda: self._stats.unsent < self._max_queue)
                except TimeoutError:
                    self._stats.dropped += 1
                    raise QueueFullError(f"{self._stats.unsent} rewards wait already") from None
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            self._rows.append(row)
            self._stats.sent += 1
            self._stats.unsent += 1
            self._changed.notify_all()

    async def flush(self, timeout_s: float) -> bool:
        """Sends what waits, now; whether all of it was answered in time."""
        async with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: not self._stats.unsent)
            except TimeoutError:
                return False
            finally:
                self._flushing -= 1
        return True

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_due(self) -> bool:
        return len(self._rows) >= self._max_batch or self._flushing > 0

    async def _run(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._rows))
                try:
                    async with asyncio.timeout(self._max_delay_s):
                        await self._changed.wait_for(self._is_due)
                except TimeoutError:
                    pass
                batch = [self._rows.popleft() for _ in range(min(self._max_batch, len(self._rows)))]
            await self._deliver(batch)

    async def _deliver(self, rows: list[Row]) -> None:
        attempt = 0
        while True:
            try:
                verdicts = await self._post(rows)
                break
            except UnavailableError as error:
                wait_s = self._backoff_s(attempt, error.retry_after_s)
            except ProblemError as error:
                if error.status in TOO_MUCH and len(rows) > 1:
                    await self._deliver(rows[: len(rows) // 2])
                    await self._deliver(rows[len(rows) // 2 :])
                    return
                if error.status in TOO_MUCH:
                    verdicts = [Verdict("refused", error.type, error.field, error.detail)]
                    break
                # A key that is wrong can be put right; the rewards were right all along.
                log.warning("rewards wait: %s", error)
                wait_s = self._backoff_s(attempt, 0.0)
            attempt += 1
            self._stats.retried += 1
            await asyncio.sleep(wait_s)
        await self._settle(rows, verdicts)

    async def _settle(self, rows: list[Row], verdicts: list[Verdict]) -> None:
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.status == "accepted":
                self._stats.accepted += 1
                continue
            self._stats.refused += 1
            if self._on_refused is None:
                log.warning("a reward was refused: %s", verdict)
                continue
            try:
                self._on_refused(row, verdict)
            except Exception:  # the application's mistake must not end the sender
                log.exception("on_refused failed")
        async with self._changed:
            self._stats.unsent -= len(rows)
            self._changed.notify_all()
