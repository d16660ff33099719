"""What the benchmarks compare with does the same work, and what they read of processes is true."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import baselines, measuring, processes, pydantic_route, rewards, table
from loadtest.client import Address, Connection
from loadtest.fast import Load
from server.app import create_app
from server.schemas import RecommendRequest
from server.settings import Settings
from tests.server.conftest import TestClient
from tests.server.host_parts import Host, random_graph


class Engine:
    """One worker's decisions, and what it counted."""

    def __init__(self, path: Path) -> None:
        self.host = Host(path, seed=3)
        self.host.diag("films", random_graph(), clusters_per_user=3)
        self.host.recommender._stream = 7
        self.counted: list[tuple[str, int]] = []

    def recommend(self, query: RecommendRequest) -> Any:
        return self.host.recommender.recommend(query)

    def count_hot(self) -> None: ...

    def count(self, route: str, status: int, seconds: float) -> None:
        assert seconds > 0
        self.counted.append((route, status))


def test_the_pydantic_route_answers_as_ours_does_and_is_counted(tmp_path: Path) -> None:
    body = {"policy": "films", "user": {"clusters": [1, 4], "weights": [0.25, 0.5]}, "k": 3}
    found = []
    for path in ("/v1/recommend", pydantic_route.PATH):
        folder = tmp_path / path.replace("/", "-")
        folder.mkdir()
        engine = Engine(folder)
        app = create_app(Settings(), engine)  # type: ignore[arg-type]
        pydantic_route.add(app)
        with TestClient(app) as client:
            found.append(client.post(path, json=body))
            assert client.post(path, json={"policy": "films", "no": 1}).status_code == 422
        assert engine.counted == [(path, 200), (path, 422)]
        assert len(engine.host.outbox) == 1, "the decision is handed over"
    ours, theirs = found
    assert ours.status_code == 200
    assert theirs.json() == ours.json()
    assert len(ours.json()["items"]) == 3
    assert len(theirs.content) == len(ours.content)


def test_requests_differ_and_so_do_their_weights() -> None:
    bodies = baselines.Slates(100).bodies(50)
    assert len(set(bodies)) == 50
    assert bodies == baselines.Slates(100).bodies(50)
    assert bodies != baselines.Slates(100).bodies(50, seed=1)


def test_cpu_time_is_that_of_the_process() -> None:
    before, user = processes.cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() < user + 0.05:
        pass
    assert processes.cpu_seconds([os.getpid()]) - before == pytest.approx(0.05, abs=0.02)


async def test_a_constant_app_is_measured() -> None:
    async with baselines.Constant.running(300) as constant:
        bodies = baselines.Slates(100).bodies(20)
        assert await baselines.answer_size(constant.url, "/", bodies) == 300
        assert processes.parts(constant.pids)["supervisor"] == constant.pids
        processes.pin(constant.pids, min(os.sched_getaffinity(0)))
        subject = measuring.Subject(
            "constant", constant.url, baselines.posts(constant.url, "/", bodies), {"worker": constant.pids}
        )
        runs = measuring.closed([subject], 2, 0.1, 4)["constant"]
    assert len(runs) == 2
    described = measuring.described(runs)
    assert described["errors"] == 0
    assert described["answers_per_s"]["median"] > 100
    assert 1 < described["worker_cpu_us"]["median"] < 1e4
    assert 0 < described["worker_cores"]["median"] < 1.2
    assert measuring.ratio(runs, runs, lambda run: run.rate)["median"] == 1


async def test_a_whole_server_with_the_pydantic_route_answers_and_every_reward_is_applied_once() -> None:
    slates = baselines.Slates(20)
    with baselines.PydanticServer() as server:
        await server.ready()
        await slates.put(server.url)
        parts = processes.parts(server.pids())
        assert {part: len(pids) for part, pids in parts.items()} == dict.fromkeys(processes.PARTS, 1)
        requests = baselines.posts(server.url, pydantic_route.PATH, slates.bodies(20))
        with Load(server.url, 2) as load:
            assert load.once(requests).errors == 0
        async with Connection(Address.of(server.url)) as connection:
            metrics = (await connection.request("GET", "/metrics")).body.decode()
        assert "croupier_decisions" in metrics
        found = await rewards.one_run(server, slates, "single", 30, seed=1)
    assert found["each_applied_once"] is True
    assert found["errors"] == 0


def test_a_bar_is_found_in_every_result_that_has_it() -> None:
    one = {"median": 1.0}
    result = {
        "recommend": {f"{n} edges": {"rate_of_constant": one, "times_pydantic": one} for n in ("1,000", "5,000")},
        "open": {"0.5": {"1,000 edges": {"p50_of_constant": one, "p99_of_constant": one}}},
        "other_routes": {path: {"cpu_of_no_hot_path": one} for path in ("/healthz", "/v1/policies")},
        "two_workers": {"cpu_of_one": one, "cpu_of_one_alone": one, "constant_cpu_of_one": one},
        "sizes": {"cpu_of_few": one},
        "errors": 0,
    }
    rows = [row for row in table.rows({"http": result}) if row.op]
    assert [row.value for row in rows] == [1.0] * 8 + [0.0, 1.0]
    assert [row.holds for row in rows] == [True, True, False] + [True] * 7, "once pydantic's rate is not five times"
