"""The socket between a worker and its agent, where the agent ends."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import Problem
from server.ipc import REWARDS, AgentServer, Frames, SocketChannel
from server.outbox import Outbox, pack
from server.shared import HostFile, RunFolder
from streaming.errors import LogUnavailable


async def rewards(channel: SocketChannel) -> None:
    """Returns after the durable append of a batch; raises Problem."""
    found: asyncio.Future[Problem | None] = asyncio.get_running_loop().create_future()
    channel.rewards(BATCH, found.set_result)
    if (problem := await found) is not None:
        raise problem


BATCH = pack({0: [b"8 bytes."]})


async def test_a_request_under_way_when_the_agent_ends_is_in_doubt(tmp_path: Path) -> None:
    host = HostFile.create(RunFolder(tmp_path, tmp_path), 1)
    loop = asyncio.get_running_loop()
    channel = SocketChannel(tmp_path / "agent.sock")
    channel.open(Outbox(host.row(0), 0.01, loop.call_later))
    try:
        with pytest.raises(Problem) as caught:
            await rewards(channel)
        assert (caught.value.status, caught.value.title) == (503, "Unavailable"), "it was not even sent"

        got: list[int] = []

        def received(connection: Frames, kind: int, number: int, body: bytes) -> None:
            del number, body
            got.append(kind)
            connection.close()  # an agent that ends between the append and the answer

        server = await loop.create_unix_server(lambda: Frames(received, lambda _: None), str(tmp_path / "agent.sock"))
        problem = caught.value
        async with asyncio.timeout(5):
            while problem.title == "Unavailable":  # until it has connected
                await asyncio.sleep(0.005)
                with pytest.raises(Problem) as caught:
                    await rewards(channel)
                problem = caught.value
        assert got == [REWARDS]
        assert (problem.status, problem.title, problem.retry_after) == (503, "In doubt", 1.0)
        server.close()
    finally:
        channel.close()


async def test_an_agent_that_does_not_answer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    host = HostFile.create(RunFolder(tmp_path, tmp_path), 1)
    loop = asyncio.get_running_loop()
    got: list[int] = []

    def received(connection: Frames, kind: int, number: int, body: bytes) -> None:
        del connection, number, body
        got.append(kind)

    server = await loop.create_unix_server(lambda: Frames(received, lambda _: None), str(tmp_path / "agent.sock"))
    channel = SocketChannel(tmp_path / "agent.sock", answer_s=0.05)
    channel.open(Outbox(host.row(0), 0.01, loop.call_later))
    try:
        async with asyncio.timeout(5):
            title = "Unavailable"
            while title == "Unavailable":  # until it has connected
                await asyncio.sleep(0.005)
                with pytest.raises(Problem) as caught:
                    await rewards(channel)
                title = caught.value.title
        assert (title, got) == ("In doubt", [REWARDS])
        assert not channel._waiting
    finally:
        channel.close()
        server.close()


class Waiting:
    """An agent's writer that appends when it is told to."""

    def __init__(self) -> None:
        self.done: list[tuple[Callable[[Exception | None], None], bool]] = []

    def submit(self, batch: object, done: Callable[[Exception | None], None], keep: bool = False) -> None:
        del batch
        self.done.append((done, keep))

    def settle(self) -> None:
        """Every second request for rewards is refused."""
        for i, (done, _) in enumerate(self.done):
            done(LogUnavailable("full") if i % 2 else None)


async def test_what_one_append_has_settled_is_answered_in_one_write_per_worker(tmp_path: Path) -> None:
    writer = Waiting()
    server = AgentServer(SimpleNamespace(writer=writer))  # type: ignore[arg-type]
    await server.start(tmp_path / "agent.sock")
    host = HostFile.create(RunFolder(tmp_path, tmp_path), 2)
    loop = asyncio.get_running_loop()
    channels = [SocketChannel(tmp_path / "agent.sock") for _ in range(2)]
    found: list[list[object]] = [[], []]
    for number, channel in enumerate(channels):
        outbox = Outbox(host.row(number), 60.0, loop.call_later)
        outbox.send = channel.send
        channel.open(outbox)
        while channel._connection is None:
            await asyncio.sleep(0.005)
        for _ in range(10):
            channel.rewards(BATCH, found[number].append)
        outbox.add(0, b"8 bytes.")
        outbox.flush()
        while len(writer.done) < 11 * (number + 1):
            await asyncio.sleep(0.005)
    written: list[bytes] = []
    for connection in server._connections:
        transport = connection._transport

        def write(data: bytes, transport: Any = transport) -> None:
            written.append(data)
            transport.write(data)

        connection._transport = SimpleNamespace(write=write, is_closing=transport.is_closing, close=transport.close)
    thread = threading.Thread(target=writer.settle)
    thread.start()
    thread.join()  # before the loop hears of any of it
    async with asyncio.timeout(5):
        while [len(each) for each in found] != [10, 10]:
            await asyncio.sleep(0.005)
    assert len(written) == 2
    titles = [[problem and problem.title for problem in each] for each in found]  # type: ignore[attr-defined]
    assert titles == [[None, "Unavailable"] * 5, ["Unavailable", None] * 5]
    assert [len(channel.outbox or ()) for channel in channels] == [0, 1]  # decisions of the second wait on
    for channel in channels:
        channel.close()
    await server.close()
