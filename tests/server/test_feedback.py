"""Rewards one by one, and for what another server has shown and this one does not see yet."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from server.errors import Problem, unavailable
from server.feedback import NOT_YET, judge
from server.host import HostEngine
from server.local import local_engine
from server.schemas import ACCEPTED, FeedbackRow, RecommendRequest, User, Verdict
from server.settings import Settings
from server.view import View
from streaming.control import GraphPut, PolicyDelete, PolicyPut, PolicySpec
from tests.server.host_parts import Host, random_graph


class Behind:
    """What a server knows that has not followed since."""

    def __init__(self, host: Host) -> None:
        self.keys: Mapping[int, bytes] = dict(host.views.keys)
        self.by_number: Mapping[int, View] = dict(host.views.by_number)
        self.applied = host.views.applied

    def refresh(self) -> None:
        pass


def test_new_items_are_not_mistaken_for_one_another(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "b"]))
    host.diag("films", random_graph(1))
    behind = Behind(host)
    host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["b", "c", "d", "e"]))  # a is gone, three are new
    host.follow(GraphPut("films", host.store.put_blob(random_graph(1, items=60).to_bytes()), keeps_clusters=True))
    user = User(clusters=list(range(8)))
    for decision in (host.recommend("h", k=4), host.recommend("films", user=user, k=40)):
        for item in decision.items:
            row = FeedbackRow(decision.decision_id, item.id, 1.0)
            (verdict,), _ = judge([row], behind, host.row)
            (known,), _ = judge([row], host.views, host.row)
            assert known.status == "accepted"
            new = item.id in ("c", "d", "e") or any(item.id == f'item "{n}" é' for n in range(40, 60))
            assert (verdict.detail is NOT_YET) == new, item.id
    assert host.row.refusals() == [0] * len(host.row.refusals())


def test_an_item_that_was_removed_is_still_taken_for_what_is_gone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "b"]))
    decision = host.recommend("h", k=2)
    host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["b", "c"]))
    assert host.reward(decision, "a", 1.0).status == "accepted"
    assert host.reward(decision, "c", 1.0).status == "accepted"  # an id of no item then: it is one that is gone
    host.follow(PolicyDelete("h"))
    verdict = host.reward(decision, "b", 1.0)
    assert (verdict.reason, verdict.detail is NOT_YET) == ("unknown-policy", False)


async def test_a_server_waits_a_moment_for_a_policy_it_does_not_see_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_engine(Settings(data=tmp_path / "data")) as engine:
        await engine.control(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
        engine.views.refresh()
        decision = engine.recommend(RecommendRequest("h"))
        rows = [FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)] * 2
        monkeypatch.setattr(engine.views, "refresh", lambda: None)  # a catalog may be made meanwhile
        by_number, applied = engine.views.by_number, engine.views.applied
        engine.views.by_number, engine.views.applied = {}, 1  # as before the policy was made
        began = time.monotonic()
        with pytest.raises(Problem) as caught:
            await engine.feedback(rows)
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
        assert 0.5 < time.monotonic() - began < 5
        waiting = asyncio.create_task(engine.feedback(rows))
        await asyncio.sleep(0.1)
        engine.views.by_number, engine.views.applied = by_number, applied
        assert [verdict.status for verdict in await waiting] == ["accepted"] * 2


Outcome = Verdict | Exception


@asynccontextmanager
async def fed(path: Path) -> AsyncIterator[tuple[HostEngine, list[FeedbackRow], dict[int, Outcome]]]:
    """An engine, rows of which every third is refused, and what they are told when they are fed in one turn."""
    async with local_engine(Settings(data=path / "data", shards=3)) as engine:
        await engine.control(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
        engine.views.refresh()
        rows = []
        for i in range(9):
            decision = engine.recommend(RecommendRequest("h", User(segment=f"s{i}")))
            item = decision.items[0].id if i % 3 else "nobody"
            rows.append(FeedbackRow(decision.decision_id, item, 1.0))
        yield engine, rows, {}


async def told(engine: HostEngine, rows: Sequence[FeedbackRow], outcomes: dict[int, Outcome]) -> list[Outcome]:
    for i, row in enumerate(rows):
        engine.feed(row, partial(outcomes.__setitem__, i))
    async with asyncio.timeout(10):
        while len(outcomes) < len(rows):
            await asyncio.sleep(0.001)
    return [outcomes[i] for i in range(len(rows))]


async def test_what_is_fed_in_one_turn_is_appended_together_and_answered_by_itself(tmp_path: Path) -> None:
    async with fed(tmp_path) as (engine, rows, outcomes):
        sent: list[bytes] = []
        rewards = engine.channel.rewards
        engine.channel.rewards = lambda batch, done: (sent.append(batch), rewards(batch, done))[1]  # type: ignore
        found = await told(engine, rows, outcomes)
        assert found == await engine.feedback(rows)
        assert [verdict.status for verdict in found] == ["refused", "accepted", "accepted"] * 3  # type: ignore
        assert len(sent) == 2
        assert sent[0] == sent[1]


async def test_when_the_append_fails_only_those_are_told_that_were_in_it(tmp_path: Path) -> None:
    async with fed(tmp_path) as (engine, rows, outcomes):
        away = unavailable("The event log is away.")
        engine.channel.rewards = lambda _, done: done(away)  # type: ignore[method-assign]
        found = await told(engine, rows, outcomes)
        assert [outcome is away for outcome in found] == [False, True, True] * 3


async def test_a_mistake_of_our_own_is_told_to_all_and_one_in_an_answer_is_of_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fed(tmp_path) as (engine, rows, outcomes):
        with monkeypatch.context() as patch:
            patch.setattr(engine.intake, "take", lambda _: 1 // 0)
            assert {type(outcome) for outcome in await told(engine, rows, outcomes)} == {ZeroDivisionError}
        outcomes.clear()
        engine.feed(rows[1], lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
        assert len(await told(engine, rows, outcomes)) == len(rows)
        assert "ZeroDivisionError" in caplog.text


async def test_what_is_fed_too_early_waits_and_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fed(tmp_path) as (engine, rows, outcomes):
        views = engine.views
        await engine.control(PolicyPut("new", PolicySpec("banker"), ["a"]))
        views.refresh()
        decision = engine.recommend(RecommendRequest("new"))
        row = FeedbackRow(decision.decision_id, "a", 1.0)
        monkeypatch.setattr(views, "refresh", lambda: None)  # banks of new segments make new catalogs meanwhile
        by_number, applied = views.by_number, views.applied
        new = views.by_name["new"].entry.number
        views.by_number = {number: view for number, view in by_number.items() if number != new}
        views.applied = new - 1
        found = await told(engine, [*rows, row], outcomes)
        assert isinstance(found[-1], Problem)
        assert (found[-1].status, found[-1].retry_after) == (503, 1.0)
        assert found[:-1] == await engine.feedback(rows)
        outcomes.clear()
        waiting = asyncio.create_task(told(engine, [*rows, row], outcomes))
        await asyncio.sleep(0.1)
        assert len(outcomes) == len(rows)
        views.by_number, views.applied = by_number, applied
        assert (await waiting)[-1] == ACCEPTED
