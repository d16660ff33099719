"""The whole loop inside one process: agent and learner as threads. For tests, notebooks, and an app of one's own.

With log and store of many machines there is no learner in it: `croupier learner` processes learn.

async with local_engine(Settings(data=Path("croupier-data"))) as engine:
    ...
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from server import data
from server.agent import Agent
from server.errors import Problem
from server.host import HostEngine
from server.learner_loop import LearnerLoop
from server.outbox import unpack
from server.settings import Settings
from server.shared import HostFile, run_folder
from server.writer import problem_of
from streaming.log import Clock, wall_clock

log = logging.getLogger(__name__)


class DirectChannel:
    """The channel of a worker that lives with its agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self.engine: HostEngine | None = None

    def send(self, number: int, batch: bytes) -> bool:
        """See `Channel.send`."""

        def done(error: Exception | None) -> None:
            if error is None and self.engine is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self.engine.outbox.confirmed, number)

        self._agent.writer.submit(list(unpack(batch)), done, keep=True)
        return True

    def rewards(self, batch: bytes, done: Callable[[Problem | None], None]) -> None:
        """See `Channel.rewards`."""

        def appended(error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, None if error is None else problem_of(error))

        self._agent.writer.submit(list(unpack(batch)), appended)

    async def call(self, method: str, *args: Any) -> bytes:
        """See `Channel.call`."""
        return await asyncio.to_thread(self._agent.call, method, list(args))


@contextlib.asynccontextmanager
async def local_engine(settings: Settings, clock: Clock = wall_clock) -> AsyncIterator[HostEngine]:
    """An engine on the data folder of `settings`, from here to the end of the block, when all of it is committed."""
    lock = await asyncio.to_thread(data.take, settings.data)
    place = data.place_of(settings)
    apart = place.folder is None
    try:
        store_id = await asyncio.to_thread(data.prepare, place, settings.shards)
        folder = run_folder(settings.data, data.run_id(settings, store_id), settings.run_dir)
        folder.claim()
        host = HostFile.create(folder, 1, apart)
        async with contextlib.AsyncExitStack() as stack:
            parts = await asyncio.to_thread(lambda: data.open_parts(place, write=True, clock=clock))
            stack.callback(folder.remove)
            stack.callback(parts.close)
            agent = Agent(parts.log, parts.store, host, folder, clock, apart)
            stack.push_async_callback(asyncio.to_thread, agent.close)
            if not apart:
                await stack.enter_async_context(_learning(settings, host, clock))
            stack.push_async_callback(asyncio.to_thread, agent.writer.stop)
            await asyncio.to_thread(agent.open)
            channel = DirectChannel(agent)
            engine = HostEngine(host, folder, 0, settings.flush_ms, channel, clock)
            channel.engine = engine
            engine.start()
            try:
                yield engine
            finally:
                await engine.drain(settings.drain_s)
    finally:
        os.close(lock)


@contextlib.asynccontextmanager
async def _learning(settings: Settings, host: HostFile, clock: Clock) -> AsyncIterator[None]:
    """A thread that learns; at the end, what is in the log by then."""
    parts = data.open_parts(data.place_of(settings), write=False, clock=clock)
    loop = LearnerLoop(
        parts.log, parts.store, host, settings.learner_poll_ms / 1000,
        settings.snapshot_interval_s, settings.keep_snapshots, clock=clock,
    )  # fmt: skip
    learner = threading.Thread(target=_run, args=(loop,), name="learner", daemon=True)
    learner.start()
    try:
        yield
    finally:
        loop.stop.set()
        await asyncio.to_thread(learner.join, 30.0)
        parts.close()


def _run(loop: LearnerLoop) -> None:
    try:
        loop.run()
    except Exception:
        log.exception("the learner stops")
