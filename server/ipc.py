"""The unix socket between the workers and their agent.

    frame   length of the body u32 | kind u8 | three zeros | number u64, then the body

    worker -> agent   DECISIONS  a batch (server.outbox)                    -> CONFIRMED with its number
                      REWARDS    a batch                                    -> DONE or PROBLEM with its number
                      CALL       MessagePack [method, arguments]            -> DONE (MessagePack) or PROBLEM
    agent -> worker   PROBLEM    MessagePack [status, title, detail, field, retry after]

A worker numbers its batches of decisions and its other requests apart. When the agent is gone, requests fail with 503
at once, those under way as being in doubt, and decisions wait in the outbox; a new connection sends them again.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from server import errors
from server.errors import Problem
from server.outbox import Outbox, unpack
from server.writer import problem_of
from streaming.errors import StreamingError

if TYPE_CHECKING:
    from server.agent import Agent  # a worker does without it

log = logging.getLogger(__name__)
HEAD = struct.Struct("<IB3xQ")
DECISIONS, REWARDS, CALL, CONFIRMED, DONE, PROBLEM = range(1, 7)
RECONNECT_S = 0.02
ANSWER_S = 30.0  # an agent that is stopped, or waits for its disk so long, must not gather requests without end
_AWAY = "The agent, which writes the event log, is away; it is being started again."


def frame(kind: int, number: int, body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEAD.pack(len(body), kind, number) + body


class Frames(asyncio.Protocol):
    """One end of a connection: whole frames go to `received(kind, number, body)`, its end to `lost()`."""

    def __init__(self, received: Callable[["Frames", int, int, bytes], None], lost: Callable[["Frames"], None]) -> None:
        self._received, self._lost = received, lost
        self._transport: Any = None  # asyncio's or uvloop's, which is no subclass
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        self._lost(self)

    def send(self, kind: int, number: int, body: bytes = b"") -> bool:
        """False where the connection is gone."""
        return self.write(frame(kind, number, body))

    def write(self, frames: bytes) -> bool:
        """The same for whole frames, one after another."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(frames)
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEAD.size:
            size, kind, number = HEAD.unpack_from(buffer, at)
            end = at + HEAD.size + size
            if len(buffer) < end:
                break
            self._received(self, kind, number, bytes(buffer[at + HEAD.size : end]))
            at = end
        del buffer[:at]


class AgentServer:
    """The agent's end. What one append has settled goes to each connection in one write."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._calls = concurrent.futures.ThreadPoolExecutor(8, "call")
        self._scrapes = concurrent.futures.ThreadPoolExecutor(1, "scrape")  # they wait for nobody who changes something
        self._connections: set[Frames] = set()
        self._settled: deque[tuple[Frames, bytes]] = deque()  # answers of the writer's thread
        self._told = False  # the loop, that there are some
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of an agent that was killed; the data folder's lock says that there is no other
        self._server = await self._loop.create_unix_server(self._connected, str(path))

    async def close(self) -> None:
        """Takes no more; what came before is still in the writer."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        for pool in (self._calls, self._scrapes):
            pool.shutdown(wait=False, cancel_futures=True)

    def _connected(self) -> Frames:
        connection = Frames(self._received, self._connections.discard)
        self._connections.add(connection)
        return connection

    def _received(self, connection: Frames, kind: int, number: int, body: bytes) -> None:
        if kind == CALL:
            self._loop.create_task(self._call(connection, number, body))
            return
        assert kind in (DECISIONS, REWARDS)
        decisions = kind == DECISIONS

        def done(error: Exception | None) -> None:
            if error is None:
                self._settle(connection, frame(CONFIRMED if decisions else DONE, number))
            elif not decisions:
                self._settle(connection, frame(PROBLEM, number, _packed(problem_of(error))))

        self._agent.writer.submit(list(unpack(body)), done, keep=decisions)

    def _settle(self, connection: Frames, answer: bytes) -> None:
        """Called from any thread."""
        self._settled.append((connection, answer))
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._told = False  # first: what is settled from here on is told again, or still in time
        answers: dict[Frames, list[bytes]] = {}
        while self._settled:
            connection, answer = self._settled.popleft()
            answers.setdefault(connection, []).append(answer)
        for connection, parts in answers.items():
            connection.write(b"".join(parts))

    async def _call(self, connection: Frames, number: int, body: bytes) -> None:
        method, args = msgspec.msgpack.decode(body)
        pool = self._scrapes if method == "metrics" else self._calls
        try:
            result = await self._loop.run_in_executor(pool, self._agent.call, method, args)
        except Problem as problem:
            connection.send(PROBLEM, number, _packed(problem))
        except StreamingError as error:
            connection.send(PROBLEM, number, _packed(errors.unavailable(f"Log or store is away: {error}.")))
        except Exception:
            log.exception("the agent's %s failed", method)
            detail = "This is a mistake of the server; its log says more."
            connection.send(PROBLEM, number, _packed(Problem(500, "Internal error", detail)))
        else:
            connection.send(DONE, number, result)


def _packed(problem: Problem) -> bytes:
    return msgspec.msgpack.encode([problem.status, problem.title, problem.detail, problem.field, problem.retry_after])


Answered = Callable[[bytes | Problem], None]


class Asked(NamedTuple):
    """Who waits for an answer of the agent, and the timer that ends it."""

    answered: Answered
    late: asyncio.TimerHandle


class SocketChannel:
    """A worker's end; see `server.host.Channel`. It connects again for as long as it is open."""

    def __init__(self, path: Path, answer_s: float = ANSWER_S) -> None:
        self._path = str(path)
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._connection: Frames | None = None
        self._waiting: dict[int, Asked] = {}
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.outbox: Outbox | None = None
        self.linked: Callable[[bool], None] = lambda _: None  # told when the agent comes and goes

    def open(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._task = self._loop.create_task(self._connect())

    def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> None:
        while True:
            try:
                _, connection = await self._loop.create_unix_connection(
                    lambda: Frames(self._received, self._lost), self._path
                )
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self._connection = connection
            assert self.outbox is not None
            self.outbox.resend()
            self.linked(True)
            return

    def _lost(self, connection: Frames) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self.linked(False)
        waiting, self._waiting = self._waiting, {}
        for asked in waiting.values():
            asked.late.cancel()
            asked.answered(errors.in_doubt("The agent, which writes the event log, ended meanwhile."))
        if not self._closed:
            self._task = self._loop.create_task(self._connect())

    def _received(self, connection: Frames, kind: int, number: int, body: bytes) -> None:
        del connection
        if kind == CONFIRMED:
            assert self.outbox is not None
            self.outbox.confirmed(number)
            return
        asked = self._waiting.pop(number, None)
        if asked is not None:
            asked.late.cancel()
            asked.answered(body if kind == DONE else Problem(*msgspec.msgpack.decode(body)))

    def send(self, number: int, batch: bytes) -> bool:
        """See `Channel.send`."""
        return self._connection is not None and self._connection.send(DECISIONS, number, batch)

    def _ask(self, kind: int, body: bytes, answered: Answered) -> None:
        self._number += 1
        if self._connection is None or not self._connection.send(kind, self._number, body):
            answered(errors.unavailable(_AWAY))
            return
        late = self._loop.call_later(self._answer_s, self._late, self._number)
        self._waiting[self._number] = Asked(answered, late)

    def _late(self, number: int) -> None:
        what = f"The agent, which writes the event log, has not answered for {self._answer_s:g} s."
        self._waiting.pop(number).answered(errors.in_doubt(what))

    def rewards(self, batch: bytes, done: Callable[[Problem | None], None]) -> None:
        """See `Channel.rewards`."""
        self._ask(REWARDS, batch, lambda found: done(found if isinstance(found, Problem) else None))

    async def call(self, method: str, *args: Any) -> bytes:
        """See `Channel.call`."""
        waiter: asyncio.Future[bytes] = self._loop.create_future()

        def answered(found: bytes | Problem) -> None:
            if waiter.done():  # who asked is gone
                return
            if isinstance(found, Problem):
                waiter.set_exception(found)
            else:
                waiter.set_result(found)

        self._ask(CALL, msgspec.msgpack.encode([method, args]), answered)
        return await waiter
