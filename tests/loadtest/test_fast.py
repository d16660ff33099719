"""The compiled driver against a small real server that can be slow, rude and wrong."""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from loadtest import libc
from loadtest.answers import PARTIAL, STRANGE, read_head
from loadtest.client import Address, Unreachable
from loadtest.fast import Load, Outcome, Requests

LENGTH = re.compile(rb"content-length: (\d+)")
OK = b"HTTP/1.1 200 OK\r\nserver: x\r\nContent-Length: 5\r\n\r\nhello"
Reply = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Counts requests and answers the n-th by `reply(n, writer)`; `bodies` is what was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.connections = 0
        self.reply: Reply = self.ok
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: Any = None

    async def ok(self, n: int, writer: asyncio.StreamWriter) -> None:
        del n
        writer.write(OK)

    async def start(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = LENGTH.search(head)
                self.bodies.append(await reader.readexactly(int(found[1])) if found else b"")
                await self.reply(len(self.bodies) - 1, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def requests(self, n: int = 1, size: int = 0) -> Requests:
        """n requests; the r-th body is the number r, and blanks up to `size`."""
        address = Address.of(self.url)
        return Requests.of([address.request("POST", "/x", b"%d" % r + b" " * size) for r in range(n)])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = await Server().start()
    yield made
    await made.stop()


async def run(server: Server, call: Callable[[Load], Outcome], connections: int = 1) -> Outcome:
    """`call` in a thread: the driver takes a whole one."""

    def work() -> Outcome:
        with Load(server.url, connections) as load:
            return call(load)

    return await asyncio.to_thread(work)


async def test_a_closed_loop_counts_every_answer(server: Server) -> None:
    requests = server.requests(7)
    outcome = await run(server, lambda load: load.closed(requests, seconds=0.2), connections=4)
    assert server.connections == 4
    assert outcome.scheduled == outcome.answers == len(outcome.latency_ns) == len(server.bodies) > 20
    assert outcome.errors == outcome.lost == outcome.reconnects == 0
    assert 0.19 < outcome.seconds < 2
    assert outcome.rate == pytest.approx(outcome.answers / outcome.seconds)
    assert 0 < outcome.latency_us(50) < outcome.latency_us(99) < 0.3e6
    assert abs(server.bodies.count(b"0") - server.bodies.count(b"6")) <= 1, "they take turns"


async def test_once_sends_each_request_exactly_once(server: Server) -> None:
    requests = server.requests(200)
    outcome = await run(server, lambda load: load.once(requests), connections=5)
    assert sorted(map(int, server.bodies)) == list(range(200))
    assert (outcome.answers, outcome.errors, outcome.unsent) == (200, 0, 0)


async def test_requests_that_a_socket_does_not_take_at_once_arrive_whole(server: Server) -> None:
    async def slowly(n: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        await server.ok(n, writer)

    server.reply = slowly
    requests = server.requests(4, size=16 << 20)  # more than the buffers of both sockets
    outcome = await run(server, lambda load: load.once(requests, patience_s=10), connections=2)
    assert outcome.answers == 4
    assert {len(body) for body in server.bodies} == {(16 << 20) + 1}
    assert sorted(int(body[:1]) for body in server.bodies) == list(range(4))


async def test_one_load_does_several_runs(server: Server) -> None:
    requests = server.requests()

    def twice(load: Load) -> Outcome:
        assert load.closed(requests, seconds=0.05).errors == 0
        return load.open(requests, rate=100, seconds=0.1, arrivals="constant")

    outcome = await run(server, twice, connections=2)
    assert (outcome.answers, outcome.errors, server.connections) == (10, 0, 2)


async def test_latency_is_the_servers_delay(server: Server) -> None:
    async def later(n: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        await server.ok(n, writer)

    server.reply = later
    requests = server.requests()
    outcome = await run(server, lambda load: load.open(requests, rate=200, seconds=0.5), connections=40)
    assert outcome.answers == outcome.scheduled == len(server.bodies)
    assert len(outcome.latency_ns) == len(outcome.late_ns) == outcome.scheduled > 50
    assert outcome.latency_ns.min() >= 30e6
    assert 30e3 <= outcome.latency_us(50) < 100e3
    assert outcome.late_us(50) < 15e3
    assert 0.5 <= outcome.seconds < 2


async def test_latency_counts_the_wait_for_a_connection(server: Server) -> None:
    """One connection and answers of 20 ms can do 50 a second. Asked for 100, the line grows: the last of 50 requests
    is due at 0.49 s and answered at 1.0 s. A clock that started with the sending would say 20 ms."""

    async def later(n: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        await server.ok(n, writer)

    server.reply = later
    requests = server.requests()
    outcome = await run(server, lambda load: load.open(requests, rate=100, seconds=0.5, arrivals="constant"))
    assert outcome.answers == 50
    assert outcome.latency_us(100) > 400e3
    assert 200e3 < outcome.latency_us(50) < 1000e3
    assert outcome.rate < 60
    closed = await run(server, lambda load: load.closed(requests, seconds=0.1))
    assert 20e3 <= closed.latency_us(50) < 100e3


async def test_answers_that_are_not_2xx_are_errors_and_not_latencies(server: Server) -> None:
    async def refuse(n: int, writer: asyncio.StreamWriter) -> None:
        bad = b"HTTP/1.1 %d Oh\r\ncontent-length: 0\r\n\r\n" % (503 if n % 2 else 404)
        writer.write(bad if n < 6 else OK)

    server.reply = refuse
    requests = server.requests(30)
    outcome = await run(server, lambda load: load.once(requests), connections=2)
    assert outcome.statuses == {200: 24, 404: 3, 503: 3}
    assert (outcome.answers, outcome.errors, len(outcome.latency_ns)) == (24, 6, 24)


async def test_lost_connections_are_counted_and_made_again(server: Server) -> None:
    async def drop(n: int, writer: asyncio.StreamWriter) -> None:
        if n in (3, 4):
            writer.write(OK[:-2])
            await writer.drain()
            writer.transport.abort()
        else:
            writer.write(OK)

    server.reply = drop
    requests = server.requests(30)
    outcome = await run(server, lambda load: load.once(requests), connections=2)
    assert (outcome.lost, outcome.reconnects, outcome.answers, outcome.errors) == (2, 2, 28, 2)
    assert server.connections == 4


async def test_a_server_that_is_gone_ends_the_run_and_all_is_counted(server: Server) -> None:
    async def stop(n: int, writer: asyncio.StreamWriter) -> None:
        if n == 5:
            await server.stop()
        else:
            writer.write(OK)

    server.reply = stop
    requests = server.requests(30)
    began = time.monotonic()
    outcome = await run(server, lambda load: load.once(requests, patience_s=20), connections=3)
    assert time.monotonic() - began < 10
    assert outcome.dead_connections == 3
    assert outcome.answers == outcome.statuses[200] >= 3
    assert outcome.lost + outcome.unsent == outcome.errors == 30 - outcome.answers
    assert outcome.lost >= 1


async def test_what_is_out_when_the_patience_ends_is_counted(server: Server) -> None:
    async def never(n: int, writer: asyncio.StreamWriter) -> None:
        del n, writer
        await asyncio.sleep(0)

    server.reply = never
    requests = server.requests()
    outcome = await run(
        server, lambda load: load.open(requests, rate=20, seconds=0.2, arrivals="constant", patience_s=0.1)
    )
    assert (outcome.answers, outcome.unanswered, outcome.unsent, outcome.errors) == (0, 1, 3, 4)
    closed = await run(server, lambda load: load.closed(requests, seconds=0.1, patience_s=0), connections=2)
    assert (closed.unanswered, closed.scheduled, closed.unsent, closed.errors) == (2, 2, 0, 2)
    assert np.isnan(closed.latency_us(50))


@pytest.mark.parametrize("size", [1, 7, 47])
async def test_answers_in_pieces_are_put_together(server: Server, size: int) -> None:
    whole = OK.replace(b"5\r\n", b"50\r\n") + b"o" * 45

    async def pieces(n: int, writer: asyncio.StreamWriter) -> None:
        del n
        for at in range(0, len(whole), size):
            writer.write(whole[at : at + size])
            await asyncio.sleep(0.0005)

    server.reply = pieces
    requests = server.requests(10)
    outcome = await run(server, lambda load: load.once(requests), connections=3)
    assert (outcome.answers, outcome.errors, server.connections) == (10, 0, 3)


async def test_a_body_longer_than_what_is_read_at_once(server: Server) -> None:
    async def long(n: int, writer: asyncio.StreamWriter) -> None:
        del n
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 20) + bytes(1 << 20))

    server.reply = long
    requests = server.requests(5)
    outcome = await run(server, lambda load: load.once(requests), connections=2)
    assert (outcome.answers, outcome.errors) == (5, 0)


async def test_a_server_that_closes_after_each_answer_loses_nothing(server: Server) -> None:
    async def close(n: int, writer: asyncio.StreamWriter) -> None:
        del n
        writer.write(OK.replace(b"server: x", b"Connection: close"))
        writer.close()

    server.reply = close
    requests = server.requests(10)
    outcome = await run(server, lambda load: load.once(requests), connections=2)
    assert (outcome.answers, outcome.lost, outcome.errors) == (10, 0, 0)
    assert outcome.reconnects == 10


async def test_an_idle_connection_that_ends_is_made_again_and_nothing_is_lost(server: Server) -> None:
    async def close_soon(n: int, writer: asyncio.StreamWriter) -> None:
        del n
        writer.write(OK)
        writer.close()

    server.reply = close_soon
    requests = server.requests()
    outcome = await run(server, lambda load: load.open(requests, rate=4, seconds=1, arrivals="constant"))
    assert (outcome.answers, outcome.lost) == (4, 0)
    assert outcome.reconnects >= 3


async def test_a_word_in_between_is_not_the_answer(server: Server) -> None:
    async def continued(n: int, writer: asyncio.StreamWriter) -> None:
        del n
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    server.reply = continued
    requests = server.requests(10)
    outcome = await run(server, lambda load: load.once(requests))
    assert (outcome.statuses, outcome.errors) == ({200: 10}, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        OK + b"more",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10_000,
    ],
    ids=["chunked", "not http", "too long", "endless head"],
)
async def test_answers_that_are_not_understood_are_counted(server: Server, answer: bytes) -> None:
    async def strange(n: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK if n else answer)

    server.reply = strange
    requests = server.requests(5)
    outcome = await run(server, lambda load: load.once(requests, patience_s=5))
    assert (outcome.misread, outcome.answers, outcome.errors) == (1, 4, 1)


def parsed(text: bytes) -> tuple[int, int, int, bool]:
    return read_head(np.frombuffer(text, np.uint8), len(text))


def test_heads_are_read_whatever_the_letters() -> None:
    head = b"HTTP/1.1 202 Accepted\r\nX: content-length: 7\r\nCONTENT-LENGTH:  12 \r\nconnection:Close\r\n\r\n"
    assert parsed(head + b"body") == (len(head), 202, 12, True)
    for n in range(len(head)):
        assert parsed(head[:n])[0] == PARTIAL
    assert parsed(b"HTTP/1.1 204 No Content\r\n\r\n")[1:3] == (204, 0)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_heads_that_are_wrong_are_strange(head: bytes) -> None:
    assert parsed(head)[0] == STRANGE


def test_nobody_listening_is_said_at_once() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1: Connection refused"), Load("http://127.0.0.1:1"):
        pass


def test_bad_wishes_are_told() -> None:
    with pytest.raises(ValueError, match="no TLS"):
        Load("https://127.0.0.1")
    with pytest.raises(ValueError, match="connections"):
        Load("http://127.0.0.1", 0)
    with pytest.raises(ValueError, match="at least one request"):
        Requests.of([])


async def test_rates_and_times_must_be_above_zero(server: Server) -> None:
    requests = server.requests()
    for call in (
        lambda load: load.open(requests, rate=0, seconds=1),
        lambda load: load.closed(requests, seconds=0),
        lambda load: load.once(requests, patience_s=0),
    ):
        with pytest.raises(ValueError, match="above zero"):
            await run(server, call)


def test_a_system_without_the_functions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libc._libc("epoll_pwait3", libc._INT) is libc._missing
    assert libc.MISSING.pop() == "epoll_pwait3"
    monkeypatch.setattr(libc, "MISSING", ["epoll_pwait2"])
    with pytest.raises(libc.Unsupported, match=r"needs Linux .* no epoll_pwait2"):
        Load("http://127.0.0.1:1")
    monkeypatch.setattr(libc, "MISSING", [])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(libc.Unsupported, match="needs Linux"):
        Load("http://127.0.0.1:1")
