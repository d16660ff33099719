"""The socket between a worker and its agent, where the agent ends."""

import asyncio
from pathlib import Path

import pytest

from server.errors import Problem
from server.ipc import REWARDS, Frames, SocketChannel
from server.outbox import Outbox, pack
from server.shared import HostFile, RunFolder


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
