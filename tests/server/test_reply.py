"""One kernel decides as the readable steps do: the same bytes, events and counters, or nothing at all."""

from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandits.graph import Graph
from server import errors
from server.bodies import check_query, decode
from server.outbox import unpack
from server.routes.recommend import ONE
from server.schemas import Decision, User
from server.shared import DROPPED, POLICIES
from streaming.control import ItemPut, KeyAdd, PolicyDelete, PolicyPut, PolicySpec
from tests.server.host_parts import Host

DIM, CLUSTERS, ITEMS = 4, 12, 60
IDS = [f'é "{i}"\n' if i % 7 == 0 else f"item-{i}" for i in range(ITEMS)]

PLAIN = [item_id for item_id in IDS if item_id.isascii()]


def graph() -> Graph:
    rng = np.random.default_rng(4)
    rows = [np.sort(rng.choice(ITEMS, 15, replace=False)) for _ in range(CLUSTERS)]
    items = np.concatenate(rows).astype(np.uint32)
    return Graph(rng.standard_normal((CLUSTERS, DIM), np.float32), np.arange(CLUSTERS + 1) * 15, items, tuple(IDS))


class Pair:
    """Two hosts of one seed; one is asked by steps, one by the kernel."""

    def __init__(self, path: Path, shards: int, **parameters: Any) -> None:
        self.steps, self.kernel = (Host(path / name, shards=shards, seed=5) for name in ("steps", "kernel"))
        for host in (self.steps, self.kernel):
            host.diag("films", graph(), clusters_per_user=3, **parameters)
            host.recommender._stream = (1 << 31) + 9

    def left(self, host: Host) -> Any:
        return sorted(unpack(host.outbox.gathered())), list(host.row.words), host.recommender._sequence

    def same(self, query: dict[str, Any]) -> bytes | None:
        """The kernel's answer, which is the steps' too; None where it left the query to the steps."""
        before, body = self.left(self.kernel), msgspec.json.encode(query)
        answer = self.kernel.recommender.answer(body)
        if answer is None:
            assert self.left(self.kernel) == before
        outcomes = []
        for host in (self.steps, self.kernel) if answer is None else (self.steps,):
            try:
                asked = check_query(decode(ONE, body))
                outcomes.append(msgspec.json.encode(host.recommender.recommend(asked)))
            except errors.Problem as problem:
                assert answer is None, "what is wrong is no usual request"
                outcomes.append(problem.body())
        other = outcomes[-1] if answer is None else answer
        assert other == outcomes[0]
        assert self.left(self.kernel) == self.left(self.steps)
        return answer

    def learn(self, seed: int) -> None:
        """The same decisions and rewards into both."""
        for host in (self.steps, self.kernel):
            rng = np.random.default_rng(seed)
            for _ in range(30):
                clusters = rng.choice(CLUSTERS, 3, replace=False).tolist()
                decision = host.recommend("films", user=User(clusters=clusters), k=3)
                host.reward(decision, decision.items[0].id, float(rng.random()))
            host.now_ms += 10_000
            host.outbox.flush()
            host.learn()
            host.follow()


WAYS: dict[str, dict[str, Any]] = {
    "explore": {},
    "exploit": {"mode": "exploit", "alpha": 0.0},
    "thompson": {"mode": "thompson"},
    "mixed": {"explore_share": 0.4},
    "randomized": {"randomize_top": 7},
    "fresh first": {"fresh": "first", "fresh_share": 0.3},
    "forgetting": {"half_life_s": 60.0},
}


@pytest.fixture(scope="module", params=[(way, shards) for way in WAYS for shards in (1, 5)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    way, shards = request.param
    made = Pair(tmp_path_factory.mktemp("pair"), shards, **WAYS[way])
    made.learn(1)
    return made


NUMBERS = st.floats(0, 3) | st.integers(0, 9) | st.sampled_from([1e-300, 1e300, 1e308])
CONTEXTS = st.lists(st.integers(0, CLUSTERS - 1), min_size=1, max_size=CLUSTERS, unique=True).flatmap(
    lambda clusters: st.fixed_dictionaries(
        {"clusters": st.just(clusters)},
        optional={"weights": st.lists(NUMBERS, min_size=len(clusters), max_size=len(clusters))},
    )
)
ODD_USERS = st.fixed_dictionaries(
    {},
    optional={
        "embedding": st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=DIM + 1),
        "clusters": st.lists(st.integers(0, CLUSTERS + 1), min_size=1, max_size=5),
        "weights": st.lists(NUMBERS, max_size=4),
        "segment": st.just("all"),
    },
)
EMBEDDINGS = st.fixed_dictionaries({"embedding": st.lists(st.floats(-3, 3, width=32), min_size=DIM, max_size=DIM)})
LISTS = st.lists(st.sampled_from([*IDS, "nobody"]), max_size=20)
QUERIES = st.fixed_dictionaries(
    {"policy": st.just("films"), "user": CONTEXTS | CONTEXTS | EMBEDDINGS | ODD_USERS, "k": st.integers(1, 20)},
    optional={
        "mode": st.sampled_from(["explore", "exploit", "thompson"]),
        "exclude": LISTS,
        "candidates": LISTS | st.none(),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=QUERIES)
def test_any_query(pair: Pair, query: dict[str, Any]) -> None:
    pair.same(query)


def payload_of(answer: bytes | None) -> bytes:
    assert answer is not None
    return urlsafe_b64decode(msgspec.json.decode(answer)["decision_id"] + "==")


def usual(**more: Any) -> dict[str, Any]:
    return {"policy": "films", "user": {"clusters": [3, 1, 7], "weights": [0.2, 0.5, 0.3]}, "k": 5} | more


@pytest.fixture
def one(tmp_path: Path) -> Pair:
    return Pair(tmp_path, 3)


def test_usual_queries_are_answered_by_the_kernel(pair: Pair) -> None:
    for more in ({}, {"mode": "exploit"}, {"exclude": PLAIN[:3]}, {"candidates": PLAIN}, {"exclude": []}, {"k": 20}):
        assert pair.same(usual(**more)) is not None
    for user in ({"clusters": [0]}, {"embedding": [0.3, -0.2, 0.9, 0.1]}):
        assert pair.same(usual(user=user)) is not None


def test_changes_of_the_catalog_are_seen(one: Pair) -> None:
    before = one.same(usual())
    assert before is not None
    shown = msgspec.json.decode(before)["items"][0]["id"]
    for host in (one.steps, one.kernel):
        host.follow(ItemPut("films", shown, paused=True))
    after = one.same(usual())
    assert after is not None
    assert shown not in [item["id"] for item in msgspec.json.decode(after)["items"]]


def test_a_catalog_that_nobody_has_looked_at_yet_is_seen(one: Pair) -> None:
    assert one.same(usual()) is not None
    for host in (one.steps, one.kernel):
        host.control(ItemPut("films", PLAIN[0], paused=True))
        host.learn()
        host.replica.poll()
    answer = one.same(usual())
    assert answer is not None
    assert msgspec.json.decode(answer)["version"] == one.kernel.controls


def test_another_key_signs(one: Pair) -> None:
    first = one.same(usual())
    for host in (one.steps, one.kernel):
        host.follow(KeyAdd(1, "22" * 32, host.now_ms))
        host.now_ms += 60_000
        host.views.choose_key()
    second = one.same(usual())
    assert [payload_of(each)[1] for each in (first, second)] == [0, 1]


def test_a_key_signs_when_it_has_rested_and_nothing_else_has_changed(one: Pair) -> None:
    for host in (one.steps, one.kernel):
        host.follow(KeyAdd(1, "22" * 32, host.now_ms))
    resting = one.same(usual())
    for host in (one.steps, one.kernel):
        host.now_ms += 60_000
        host.views.choose_key()
    assert [payload_of(each)[1] for each in (resting, one.same(usual()))] == [0, 1]


def test_no_more_items_than_are_not_paused(one: Pair) -> None:
    for host in (one.steps, one.kernel):
        host.follow(*(ItemPut("films", item_id, paused=True) for item_id in IDS[:50]))
    assert one.same(usual(k=10)) is not None
    assert one.same(usual(k=11)) is None
    assert one.same(usual(k=1, candidates=PLAIN[:20])) is None


def test_nothing_is_answered_before_the_first_catalog(one: Pair) -> None:
    one.kernel.views.generation = 0
    assert one.kernel.recommender.answer(msgspec.json.encode(usual())) is None


def test_what_a_kernel_decided_is_handed_over_without_being_asked_for(one: Pair) -> None:
    calls: list[Any] = []
    one.kernel.outbox._later = lambda _seconds, call: calls.append(call)
    assert one.kernel.recommender.answer(msgspec.json.encode(usual())) is not None
    (call,) = calls
    sent = len(one.kernel.sent)
    call()
    assert len(one.kernel.sent) > sent


def test_what_may_be_dropped_is_left_to_the_steps(one: Pair) -> None:
    for host in (one.steps, one.kernel):
        host.outbox._kept_bytes = host.outbox._max
    assert one.same(usual()) is None
    assert one.kernel.row[DROPPED] > 0


def test_a_full_outbox_leaves_decisions_to_the_steps(one: Pair) -> None:
    for host in (one.steps, one.kernel):
        host.outbox.fill[1] = host.outbox.fill[0] + 300  # room for one event only
    assert one.same(usual()) is None


def test_what_a_worker_can_take_for_one_answer_is_bounded(tmp_path: Path) -> None:
    ids = tuple(f"{i}-" + "x" * 490 for i in range(200))
    long = Graph(np.ones((1, 1), np.float32), np.array([0, 200]), np.arange(200, dtype=np.uint32), ids)
    one = Pair(tmp_path, 1)
    for host in (one.steps, one.kernel):
        host.diag("long", long, clusters_per_user=1)
    short, whole = ({"policy": "long", "user": {"clusters": [0]}, "k": k} for k in (40, 200))
    assert one.same(short) is not None
    assert one.same(whole) is None


def test_its_decisions_are_learned(one: Pair) -> None:
    answer = one.same(usual())
    assert answer is not None
    host, decision = one.kernel, msgspec.json.decode(answer, type=Decision)
    host.outbox.flush()
    assert host.reward(decision, decision.items[0].id, 1.0).reason is None
    host.follow()
    assert host.outcomes(2) == {"applied": 1, "decisions_explore": 1}


def test_an_embedding_too_large_for_some_clusters_is_left_to_the_steps(tmp_path: Path) -> None:
    """1e38 * 9 - 1e38 * 9 is no number: one cluster of three cannot be ranked."""
    centroids = np.zeros((3, 64), np.float32)
    centroids[0, ::2], centroids[0, 1::2], centroids[1, 0], centroids[2, 1] = 9, -9, 1, 1
    odd = Graph(centroids, np.arange(4), np.arange(3, dtype=np.uint32), ("a", "b", "c"))
    one = Pair(tmp_path, 1)
    for host in (one.steps, one.kernel):
        host.diag("odd", odd, clusters_per_user=3)
    assert one.same({"policy": "odd", "user": {"embedding": [1] * 64}}) is not None
    assert one.same({"policy": "odd", "user": {"embedding": [1e38] * 64}}) is None


def test_a_name_that_is_no_utf8_is_not_the_policy_it_looks_like(one: Pair) -> None:
    for host in (one.steps, one.kernel):
        host.diag("\ufffd", graph(), clusters_per_user=3)
    before = one.left(one.kernel)
    for name in (b"\xff", b"\xf0\x9f\x98", b"\xed\xa0\x80"):
        assert one.kernel.recommender.answer(b'{"policy":"%b","user":{"clusters":[1]}}' % name) is None
        assert one.left(one.kernel) == before
    assert one.same(usual(policy="\ufffd")) is not None


@pytest.mark.parametrize("name", ["é" * 500, "w" * 1000, "\U0001f3b2 & <b>", "\x7f/"])
def test_policies_of_any_name(one: Pair, name: str) -> None:
    for host in (one.steps, one.kernel):
        host.diag(name, graph(), clusters_per_user=3)
    for policy in (name, "films", name[:-1], name + "x", name):
        assert (one.same(usual(policy=policy)) is not None) == (policy in (name, "films"))
    for host in (one.steps, one.kernel):
        host.follow(PolicyDelete(name))
    assert one.same(usual(policy=name)) is None


def test_more_policies_than_are_counted_apart(tmp_path: Path) -> None:
    one = Pair(tmp_path, 1)
    for host in (one.steps, one.kernel):
        host.control(*(PolicyPut(f"p{i}", PolicySpec("diag-linucb")) for i in range(POLICIES)))
        host.diag("last", graph(), clusters_per_user=3)
    assert one.same(usual(policy="last")) is not None
    assert one.kernel.row.decisions()[0] == [1, 0, 0]


def test_what_may_be_shown_is_limited_one_time_only(one: Pair) -> None:
    for more in ({"exclude": PLAIN}, {"candidates": PLAIN[:9], "exclude": PLAIN[3:20]}, {"candidates": PLAIN[:1]}, {}):
        one.same(usual(k=20, **more))


def test_clusters_that_are_none_or_named_twice_are_left_to_the_steps(one: Pair) -> None:
    for clusters in ([CLUSTERS], [0, CLUSTERS], [3, 1, 3], [5, 5]):
        assert one.same(usual(user={"clusters": clusters})) is None
    for weights in ([0, 0, 0], [1, 1], [1e308, 1e308, 1e308], [1, 1, 1, 1]):
        assert one.same(usual(user={"clusters": [3, 1, 7], "weights": weights})) is None
    for user in ({"embedding": [1.0] * DIM, "clusters": [1]}, {"embedding": [1.0] * DIM, "weights": [1]}):
        assert one.same(usual(user=user)) is None
    assert one.same(usual(k=ITEMS + 1)) is None


def test_a_stream_of_decisions_is_numbered_by_both_ways(one: Pair) -> None:
    """Each in turn, into one host: no number is left out or given twice, and events come in order."""
    host = one.kernel
    for i in range(40):
        body = msgspec.json.encode(usual(k=1 + i % 5))
        assert host.recommender.answer(body) if i % 3 else host.recommender.recommend(check_query(decode(ONE, body)))
        if i % 7 == 0:
            host.outbox.flush()
    host.outbox.flush()
    numbers: dict[int, list[int]] = {}
    for shard, count, data in host.sent:
        at = 0
        for _ in range(count):
            numbers.setdefault(shard, []).append(int.from_bytes(data[at + 24 : at + 28], "little"))
            at += 8 * int.from_bytes(data[at + 4 : at + 6], "little")
        assert at == len(data)
    assert len(numbers) == 3
    assert all(each == list(range(len(each))) for each in numbers.values())
