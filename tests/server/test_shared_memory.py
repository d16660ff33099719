"""The replica in shared memory among real processes: late ones, killed ones, and catalogs swapped under load."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import psutil

from loadtest.client import Address, Connection, Lost, Unreachable
from loadtest.users import set_up
from loadtest.worlds import Taste, World, films, headlines
from server.launch import ServerProcess
from server.schemas import User
from streaming.control import GraphPut, ItemPut, PolicyDelete, PolicyPut, PolicySpec
from tests.server.host_parts import Host, random_graph
from tests.server.processes import wait_for
from tests.server.seen import seen


def test_a_worker_that_comes_after_thousands_of_commits_and_swaps_sees_what_the_others_see(tmp_path: Path) -> None:
    host = Host(tmp_path, workers=2)
    host.diag("films", random_graph(0))
    host.follow(PolicyPut("h", PolicySpec("banker", max_segments=40), ["a", "b"]))
    rng = np.random.default_rng(2)
    for i in range(2000):
        decision = host.recommend("films", user=User(embedding=rng.normal(size=4).tolist()), k=3)
        host.reward(decision, decision.items[0].id, float(rng.random()))
        if i % 10 == 0:
            decision = host.recommend("h", user=User(segment=f"s{i % 70}"))
            host.reward(decision, decision.items[0].id, 1.0)
        if i % 20 == 0:
            host.control(ItemPut("films", random_graph(0).ids[i % 3], paused=i % 40 == 0))
        if i % 100 == 0:
            host.control(ItemPut("h", f"arm {i}"), PolicyPut("brief", PolicySpec("ucb1"), ["x"]), PolicyDelete("brief"))
        if i % 250 == 0:
            blob = host.store.put_blob(random_graph(i // 250 % 2).to_bytes())
            host.control(GraphPut("films", blob, keeps_clusters=i % 500 == 0))
        host.follow()
    command = [sys.executable, "-m", "tests.server.seen", str(host.folder.first), str(host.folder.second)]
    late = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    assert msgspec.json.decode(late) == seen(host.views)
    assert host.replica.shown[1] > 100, "catalogs were swapped"


class Asker:
    """One connection that asks, and rewards what it gets, until it is stopped; `pid` is the worker at its other end."""

    def __init__(self, server: ServerProcess, worlds: Sequence[World]) -> None:
        self._server, self._worlds = server, worlds
        self.connection = Connection(Address.of(server.url))
        self.pid: int | None = None
        self.port: int | None = None
        self.statuses = Counter[int]()
        self.problems: list[bytes] = []
        self.lost = 0

    async def connect(self) -> None:
        await self.connection.request("GET", "/healthz")
        self.port = self.connection.local_port
        assert self.port is not None
        self.pid = self._server.pid_of(self.port)

    @property
    def undisturbed(self) -> bool:
        """It has had one connection all along, and nothing but good answers."""
        return self.connection.local_port == self.port and (self.lost, self.problems) == (0, [])

    async def _post(self, path: str, body: bytes) -> bytes | None:
        answer = await self.connection.request("POST", path, body, timeout_s=30)
        self.statuses[answer.status] += 1
        if answer.status >= 300:
            self.problems.append(answer.body)
            return None
        return answer.body

    async def scores(self, world: World, user: int) -> list[float]:
        """Of the best slate for a user; which items they are is by lot where they tie."""
        body = b'{"policy":"%b","user":%b,"k":%d,"mode":"exploit"}'
        answer = await self._post("/v1/recommend", body % (world.policy.encode(), world.users[user], world.k))
        assert answer is not None
        return [item["score"] for item in msgspec.json.decode(answer)["items"]]

    async def run(self, stop: asyncio.Event) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            world = self._worlds[turn % len(self._worlds)]
            user = world.users[turn % len(world.users)]
            try:
                body = b'{"policy":"%b","user":%b,"k":%d}' % (world.policy.encode(), user, world.k)
                answer = await self._post("/v1/recommend", body)
                if answer is not None:
                    decision = msgspec.json.decode(answer)
                    reward = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}
                    await self._post("/v1/feedback", msgspec.json.encode(reward))
            except (Lost, Unreachable):
                self.lost += 1
                return
            await asyncio.sleep(0.002)


async def askers(server: ServerProcess, worlds: Sequence[World], a_worker: int = 2) -> dict[int, list[Asker]]:
    """So many connections to each worker; the kernel decides which one a connection reaches."""
    found: dict[int, list[Asker]] = {pid: [] for name, pid in children(server).items() if name.startswith("worker")}
    for _ in range(200):
        asker = Asker(server, worlds)
        await asker.connect()
        assert asker.pid is not None
        if len(found[asker.pid]) < a_worker:
            found[asker.pid].append(asker)
        else:
            asker.connection.close()
        if all(len(each) == a_worker for each in found.values()):
            return found
    raise AssertionError("200 connections did not reach both workers")


def children(server: ServerProcess) -> dict[str, int]:
    assert server.process is not None
    found = {}
    for each in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found[each.name()] = each.pid
    return found


def worlds() -> list[World]:
    taste = Taste.draw(np.random.default_rng(0), users=40, items=200, groups=20, dim=8)
    return [films(taste, k=5, width=40, window_s=600), headlines(window_s=600)]


async def test_a_worker_killed_while_it_reads_leaves_the_others_as_they_were() -> None:
    made = worlds()
    with ServerProcess(["--workers", "2"]) as server:
        await server.ready()
        for world in made:
            await set_up(server.url, world)
        before = children(server)
        found = await askers(server, made, 4)
        stop = asyncio.Event()
        running = [asyncio.create_task(asker.run(stop)) for each in found.values() for asker in each]
        for _ in range(3):
            await asyncio.sleep(0.4)
            pid = children(server)["worker 0"]
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda pid=pid: children(server).get("worker 0", pid) != pid)
        await asyncio.sleep(0.4)
        stop.set()
        await asyncio.gather(*running)
        after = children(server)
        assert all(after[name] == before[name] for name in ("agent", "learner", "worker 1"))
        for asker in found[before["worker 1"]]:
            assert asker.undisturbed, (asker.lost, asker.problems)
            assert asker.statuses[200] > 50
        assert not any(asker.undisturbed for asker in found[before["worker 0"]]), "they were killed in use"
        await same_answers(server, made[0])


async def same_answers(server: ServerProcess, world: World) -> None:
    """Both workers answer alike, once all is learned."""
    both = [each[0] for each in (await askers(server, [world], 1)).values()]
    assert len(both) == 2
    for user in range(10):
        deadline = time.monotonic() + 20
        while True:
            one, other = [await asker.scores(world, user) for asker in both]
            if one == other:
                break
            assert time.monotonic() < deadline, (one, other)
            await asyncio.sleep(0.05)


async def test_catalogs_are_swapped_under_load_and_no_request_fails() -> None:
    made = worlds()
    second = films(Taste.draw(np.random.default_rng(9), users=40, items=200, groups=20, dim=8), k=5, width=60)
    with ServerProcess(["--workers", "2"]) as server:
        await server.ready()
        for world in made:
            await set_up(server.url, world)
        found = await askers(server, made)
        stop = asyncio.Event()
        running = [asyncio.create_task(asker.run(stop)) for each in found.values() for asker in each]
        swaps = 0
        deadline = time.monotonic() + 5
        async with Connection(Address.of(server.url)) as admin:
            while time.monotonic() < deadline:
                graph = (made[0].graph, second.graph)[swaps % 2]
                assert graph is not None
                paused = b'{"paused":%b}' % (b"true", b"false")[swaps % 2]
                changes = [
                    ("PUT", "/v1/policies/brief", b'{"algorithm":"ucb1","arms":["x","y"]}'),
                    ("PATCH", "/v1/policies/films/items/film1", paused),
                    ("PUT", f"/v1/policies/headlines/items/new{swaps}", b"{}"),
                    ("DELETE", "/v1/policies/brief", b""),
                    ("PUT", f"/v1/policies/films/graph?keeps_clusters={str(swaps % 3 > 0).lower()}", graph),
                ]
                for method, path, body in changes:
                    kind = "application/octet-stream" if path.startswith("/v1/policies/films/g") else "application/json"
                    answer = await admin.request(method, path, body, timeout_s=30, content_type=kind)
                    assert answer.status < 300, (method, path, answer)
                    swaps += 1
        stop.set()
        await asyncio.gather(*running)
        assert swaps > 20
        for asker in (asker for each in found.values() for asker in each):
            assert asker.undisturbed, (asker.lost, asker.problems)
            assert asker.statuses[200] > 50
        await same_answers(server, made[0])
