"""What `Intake` takes is what `judge` takes, row by row: the same verdicts, the same events, the same counts."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.feedback import NOT_YET, judge
from server.intake import FEW, Intake
from server.outbox import pack, unpack
from server.schemas import FeedbackRow, User
from streaming import token
from streaming.control import GraphPut, KeyAdd, PolicyDelete, PolicyPut, PolicySpec, RewardContract
from tests.naive.streaming import split
from tests.server.host_parts import Host, random_graph
from tests.server.test_feedback import Behind


class World:
    """A host whose past has everything: items removed and back again, a policy deleted, two keys."""

    def __init__(self, path: Path, shards: int) -> None:
        host = self.host = Host(path, shards)
        host.diag("films", random_graph(1))
        host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "b", 'c"é\\\n', "d"]))
        host.follow(PolicyPut("sums", PolicySpec("ucb1", reward=RewardContract(aggregation="sum")), ["a", "b"]))
        host.follow(PolicyPut("gone", PolicySpec("banker"), ["a"]), PolicyPut("empty", PolicySpec("diag-linucb")))
        self.ids: list[str] = []
        self.items: set[str] = {"", "nobody", 'item "40" é'}
        self.decide()
        host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "d", "e"]))
        host.follow(GraphPut("films", host.store.put_blob(random_graph(2, items=44).to_bytes())))
        host.follow(PolicyDelete("gone"), KeyAdd(1, "22" * 32, 0))
        self.decide()
        host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "b", "d", "e"]))  # b is back
        host.follow(PolicyPut("sums", PolicySpec("ucb1", reward=RewardContract(aggregation="sum")), ["a", "b", "c"]))
        self.behind = Behind(host)
        host.follow(PolicyPut("h", PolicySpec("thompson-beta"), ["a", "b", "d", "new"]), KeyAdd(2, "33" * 32, 0))
        host.follow(PolicyPut("last", PolicySpec("banker"), ["a"]))
        self.decide()
        payload = token.verify(self.ids[0], host.views.keys)
        self.ids += [token.sign(payload, b"forged"), token.sign(b"\2" + payload[1:], host.views.keys[0]), "x", ""]

    def decide(self) -> None:
        host = self.host
        made = [
            host.recommend(name, k=k, user=user)
            for name, k, user in (
                ("films", 10, User(clusters=[1, 2, 3])),
                ("films", 40, User(clusters=list(range(12)))),  # every item
                ("films", 3, User(embedding=[0.5, 1.0, 0.0, -1.0])),
                ("h", 3, User()),
                ("h", 2, User(segment="sport")),
                ("sums", 2, User()),
                ("gone", 1, User()),
                ("last", 1, User()),
            )
            if name in host.views.by_name
        ]
        self.ids += [decision.decision_id for decision in made]
        self.items |= {item.id for decision in made for item in decision.items}


@pytest.fixture(scope="module", params=[1, 5])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), request.param)


def answers(batch: Sequence[tuple[int, int, bytes]]) -> dict[tuple[int, int, bytes], list[tuple[float, int]]]:
    """(shard, slot, payload) -> its rewards in order: (reward, hash of the event id)."""
    found = defaultdict(list)
    for shard, count, data in batch:
        head = b"CRPR\x01\x00\x00\x00" + count.to_bytes(4, "little")
        events = list(split(head + crc32(head).to_bytes(4, "little") + data))
        assert len(events) == count
        assert all(kind == 2 for _, kind, *_ in events)
        for _, _, reward, key, sequence, slot, body in events:
            assert sequence == 0
            found[shard, slot, body].append((reward, key))
    return dict(found)


class Counted:
    """Refusals by reason."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def refusal(self, reason: str) -> None:
        self.reasons.append(reason)


def compare(intake: Intake, rows: Sequence[FeedbackRow]) -> None:
    counters = intake._counters = Counted()
    taken, expected = intake.take(rows), Counted()
    verdicts, by_shard = judge(rows, intake._views, expected)
    assert taken.verdicts == verdicts
    assert taken.late == [i for i, verdict in enumerate(verdicts) if verdict.detail is NOT_YET]
    assert counters.reasons == expected.reasons
    found = list(unpack(taken.batch))
    assert answers(found) == answers(list(unpack(pack(by_shard))))


REWARDS = st.floats() | st.sampled_from([0.0, 1.0, 1e300, -1e300, 1.1e300, float("nan"), float("inf")])
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@st.composite
def some_rows(draw: st.DrawFn, world: World) -> list[FeedbackRow]:
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        text = draw(st.sampled_from(world.ids))
        if draw(st.integers(0, 5)) == 0 and text:
            at, other = draw(st.integers(0, len(text) - 1)), draw(st.sampled_from(ALPHABET + "+/=é"))
            text = draw(
                st.sampled_from([text[:at] + other + text[at + 1 :], text[:at], text + other, text[:-1] + other])
            )
        item = draw(st.sampled_from(sorted(world.items)))
        event_id = draw(st.sampled_from([None, None, "e", "é", ""]))
        rows.append(FeedbackRow(text, item, draw(REWARDS), event_id))
    return rows * draw(st.sampled_from([1, 1, 2]))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_rows(world: World, data: st.DataObject) -> None:
    rows = data.draw(some_rows(world))
    compare(Intake(world.host.views, Counted()), rows)
    compare(Intake(world.behind, Counted()), rows)


def test_every_item_of_every_decision_and_calls_of_any_size(world: World) -> None:
    """One `Intake`, whose memory grows and is used again; all rows of one policy, then of all together."""
    intake = Intake(world.host.views, Counted())
    every = [[FeedbackRow(text, item, 0.5, "e") for item in sorted(world.items)] for text in world.ids]
    for rows in [*every, [row for each in every for row in each], *every]:
        for size in (len(rows), FEW + 1, 7):
            compare(intake, rows[:size])


def test_the_order_of_rewards_for_one_item_is_kept(world: World) -> None:
    intake = Intake(world.host.views, Counted())
    for text in world.ids[:-4]:
        for item in sorted(world.items):
            rows = [FeedbackRow(text, item, float(i), f"e{i % 3}") for i in range(FEW + 4)]
            compare(intake, rows)


def never(*_: object) -> None:
    raise AssertionError("the other way")


def test_usual_rows_need_no_twin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.intake.judge", never)
    intake = Intake(world.host.views, Counted())
    for name, k, user in (
        ("films", 9, User(clusters=[1, 2])),
        ("h", 4, User()),
        ("sums", 3, User()),
        ("last", 1, User()),
    ):
        decision = world.host.recommend(name, k=k, user=user)
        for item in decision.items:
            rows = [FeedbackRow(decision.decision_id, item.id, 1.0, "e")] * (FEW + 1)
            assert [verdict.status for verdict in intake.take(rows).verdicts] == ["accepted"] * len(rows)


def test_a_key_that_comes_later_is_known_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", PolicySpec("banker"), ["a", "b"]))
    intake = Intake(host.views, host.row)
    decision = host.recommend("h")
    payload = bytearray(token.verify(decision.decision_id, host.views.keys))
    payload[1] = 5
    row = FeedbackRow(token.sign(bytes(payload), bytes.fromhex("55" * 32)), decision.items[0].id, 1.0)
    assert {verdict.reason for verdict in intake.take([row] * 9).verdicts} == {"bad-token"}
    host.follow(KeyAdd(5, "55" * 32, 0))
    monkeypatch.setattr("server.intake.judge", never)
    assert {verdict.status for verdict in intake.take([row] * 9).verdicts} == {"accepted"}
    assert [count for count in host.row.refusals() if count] == [9]
