"""Rewards for what another server has shown, and this one does not see yet."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.errors import Problem
from server.feedback import NOT_YET, judge
from server.local import local_engine
from server.schemas import FeedbackRow, RecommendRequest, User
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


async def test_a_server_waits_a_moment_for_a_policy_it_does_not_see_yet(tmp_path: Path) -> None:
    async with local_engine(Settings(data=tmp_path / "data")) as engine:
        await engine.control(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
        engine.views.refresh()
        decision = engine.recommend(RecommendRequest("h"))
        rows = [FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)] * 2
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
