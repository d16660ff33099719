"""The whole loop inside one process, on real files: what is said becomes what is shown."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server.data import DataFolderError, open_parts
from server.errors import Problem
from server.host import HostEngine
from server.local import local_engine
from server.schemas import FeedbackRow, RecommendRequest, User
from server.settings import Settings
from streaming.control import DIAG_LINUCB, GraphPut, ItemPut, PolicyDelete, PolicyPut, PolicySpec
from streaming.errors import LayoutMismatch, LogCorrupt
from streaming.place import Place
from tests.server.host_parts import random_graph

BANK = PolicyPut("h", PolicySpec("banker"), ["a", "b"])


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.005)


async def plays(engine: HostEngine, policy: str, segment: str = "all") -> float:
    page = await engine.arms(policy, segment, 100, 0)
    return sum(arm.plays for arm in page.arms)


async def test_a_reward_is_seen_in_the_next_choices(tmp_path: Path) -> None:
    async with local_engine(Settings(data=tmp_path / "data")) as engine:
        assert engine.status().ready
        assert (await engine.control(BANK)).shown
        first = engine.recommend(RecommendRequest("h"))
        assert first.items[0].propensity == 0.5
        verdicts = await engine.feedback([FeedbackRow(first.decision_id, first.items[0].id, 1.0)])
        assert verdicts[0].status == "accepted"

        await until(lambda: engine.recommend(RecommendRequest("h")).items[0].propensity != 0.5)
        assert engine.status().degraded == []


async def test_diag_linucb_end_to_end(tmp_path: Path) -> None:
    graph = random_graph()
    async with local_engine(Settings(data=tmp_path / "data", shards=3)) as engine:
        await engine.control(PolicyPut("films", PolicySpec(DIAG_LINUCB)))
        with pytest.raises(Problem) as caught:
            await engine.graph("films")
        assert caught.value.status == 409
        result = await engine.control(GraphPut("films", await engine.put_blob(graph.to_bytes())))
        info = await engine.policy("films")
        assert info.version == result.number
        assert info.graph is not None
        assert (info.graph.version, info.items) == (graph.version, 40)
        assert (await engine.graph("films")).version == graph.version
        item = await engine.item("films", graph.ids[5])
        assert item.clusters == [c for c in range(12) if 5 in graph.items[graph.indptr[c] : graph.indptr[c + 1]]]
        user = User(embedding=np.arange(4.0).tolist())
        decision = engine.recommend(RecommendRequest("films", user, k=5))
        rows = [FeedbackRow(decision.decision_id, each.id, 1.0) for each in decision.items]
        assert {verdict.status for verdict in await engine.feedback(rows)} == {"accepted"}
        deadline = time.monotonic() + 20
        while await plays(engine, "films") < 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert sum(arm.rewards for arm in (await engine.arms("films", "all", 100, 0)).arms) == 5


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", shards=2)
    async with local_engine(settings) as engine:
        await engine.control(BANK)
        decision = engine.recommend(RecommendRequest("h"))
    async with local_engine(settings) as engine:
        assert await plays(engine, "h") == 1  # the decision was handed over, appended and learned before the end
        row = FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)
        assert (await engine.feedback([row]))[0].status == "accepted"
        assert [policy.name for policy in await engine.policies()] == ["h"]
        await engine.control(PolicyDelete("h"))
        assert await engine.policies() == []
        with pytest.raises(Problem):
            await engine.policy("h")


async def test_a_change_needs_the_version_it_was_made_for(tmp_path: Path) -> None:
    async with local_engine(Settings(data=tmp_path / "data")) as engine:
        version = (await engine.control(BANK)).number
        assert (await engine.control(ItemPut("h", "c"), version)).shown
        with pytest.raises(Problem) as caught:
            await engine.control(ItemPut("h", "d"), version)
        assert caught.value.status == 409
        with pytest.raises(Problem) as caught:
            await engine.item("h", "d")
        assert caught.value.status == 404
        assert (await engine.item("h", "c")).number == 2


async def test_a_full_disk_refuses_feedback_and_goes_on_recommending(tmp_path: Path) -> None:
    """The append fails as on a full disk (tests/streaming fills a real one)."""
    async with local_engine(Settings(data=tmp_path / "data", shards=1)) as engine:
        await engine.control(BANK)
        decision = engine.recommend(RecommendRequest("h"))
        row = FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)
        await engine.feedback([row])
        log = engine.channel._agent.log  # type: ignore[attr-defined]
        real = log.append

        def full(_batches: object) -> None:
            from streaming.errors import LogUnavailable

            raise LogUnavailable("the disk is full")

        log.append = full
        try:
            for _ in range(3):
                with pytest.raises(Problem) as caught:
                    await engine.feedback([row])
                assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
                engine.recommend(RecommendRequest("h"))
            assert any("event log is away" in each for each in engine.status().degraded)
            assert engine.status().ready
        finally:
            log.append = real
        deadline = time.monotonic() + 20
        while engine.status().degraded:  # it finds out by itself
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await engine.feedback([row])
        while await plays(engine, "h") < 4:  # the decisions waited
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_the_classic_rule_hears_of_a_play_before_its_answer(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", flush_ms=2000)
    async with local_engine(settings) as engine:
        classic = PolicySpec("banker", parameters={"rule": "classic"})
        await engine.control(PolicyPut("h", classic, ["a", "b"]))
        decision = engine.recommend(RecommendRequest("h"))
        await engine.feedback([FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)])
        wanted = 'croupier_reward_outcomes_total{outcome="applied",policy="h"} 1.0'
        deadline = time.monotonic() + 20
        while wanted not in (await engine.metrics()).decode():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_one_server_per_folder(tmp_path: Path) -> None:
    async with local_engine(Settings(data=tmp_path / "data")):
        with pytest.raises(DataFolderError, match="another server runs"):
            async with local_engine(Settings(data=tmp_path / "data")):
                pass


async def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        async with local_engine(Settings(data=tmp_path / name)) as engine:
            await engine.control(BANK)
    os.rename(tmp_path / "one" / "store.sqlite", tmp_path / "two" / "store.sqlite")
    with pytest.raises(LayoutMismatch, match="made for another log"):
        async with local_engine(Settings(data=tmp_path / "two")):
            pass
    with pytest.raises(LayoutMismatch, match="is empty"):
        async with local_engine(Settings(data=tmp_path / "one")):
            pass
    (tmp_path / "two" / "log.sqlite").write_bytes(b"this is no database, however long it is made" * 200)
    with pytest.raises(LogCorrupt, match=r"log\.sqlite"):
        async with local_engine(Settings(data=tmp_path / "two")):
            pass
    (tmp_path / "three").mkdir()
    open_parts(Place.of_folder(tmp_path / "three"), 2, write=True).close()
    with pytest.raises(LayoutMismatch, match="shards"):
        async with local_engine(Settings(data=tmp_path / "three", shards=4)):
            pass


async def test_nothing_is_left_in_memory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with local_engine(Settings(data=tmp_path / "data", run_dir=run)) as engine:
        await engine.control(BANK)
        assert run.exists()
    assert not run.exists()
