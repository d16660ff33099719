"""Learning: equal to the slow twin, whatever the order, the batches and the shards; forgetting; never NaN."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bandits import kernels
from bandits.diag_linucb import Context, DiagError, DiagLinUCB, DiagParameters
from bandits.graph import Graph, ItemEdges, by_item
from tests.bandits.diag_problems import random_graph
from tests.naive import diag as naive

DAY_MS = 86_400_000


def random_updates(rng: np.random.Generator, graph: Graph, n: int) -> list[dict[str, Any]]:
    joined = set(
        zip(np.repeat(np.arange(graph.n_clusters), np.diff(graph.indptr)).tolist(), graph.items.tolist(), strict=True)
    )
    updates = []
    for _ in range(n):
        clusters = rng.choice(graph.n_clusters, int(rng.integers(1, graph.n_clusters + 1)), replace=False)
        context = dict(zip(clusters.tolist(), (rng.integers(0, 65536, len(clusters)) / 65535.0).tolist(), strict=True))
        numbers = {"play": float(rng.random() < 0.5), "amount": float(rng.normal()), "scale": float(rng.exponential())}
        updates.append({"item": int(rng.integers(len(graph.ids))), "context": context, "joined": joined, **numbers})
    return updates


def learn(view: ItemEdges, updates: list[dict[str, Any]], edges: Any) -> set[int]:
    counts = np.array([len(u["context"]) for u in updates], np.int64)
    touched, dirty = np.zeros(len(view.serving), np.uint8), np.empty(len(view.serving) + 1, np.int64)
    n = kernels.learn(
        np.array([u["item"] for u in updates], np.int64),
        np.cumsum(counts) - counts,
        counts,
        np.array([c for u in updates for c in u["context"]], np.uint32),
        np.array([w for u in updates for w in u["context"].values()]),
        *(np.array([u[name] for u in updates]) for name in ("play", "amount", "scale")),
        *(view.indptr, view.clusters, edges, touched, dirty, 0),
    )
    assert set(np.flatnonzero(touched)) == set(dirty[:n].tolist())
    return set(dirty[:n].tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_learning_equals_the_formula_in_any_order_batch_and_shard(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    view, updates = by_item(graph), random_updates(rng, graph, 60)
    whole = np.zeros((len(graph.items), 2))
    dirty = learn(view, updates, whole)

    twin = naive.learn(updates)
    item = np.repeat(np.arange(len(graph.ids)), np.diff(view.indptr))
    for e in range(len(whole)):
        edge = (int(view.clusters[e]), int(item[e]))
        assert_allclose(whole[e], twin.get(edge, (0.0, 0.0)), rtol=1e-12, atol=1e-12)
        assert (e in dirty) == (edge in twin)

    shuffled = np.zeros_like(whole)
    learn(view, [updates[i] for i in rng.permutation(len(updates))], shuffled)
    assert_allclose(shuffled, whole, rtol=1e-12, atol=1e-12)

    batches, cut = np.zeros_like(whole), int(rng.integers(1, len(updates)))
    learn(view, updates[:cut], batches)
    learn(view, updates[cut:], batches)
    assert_array_equal(batches, whole)

    shard = rng.integers(0, 3, len(graph.ids))
    by_serving = np.zeros_like(whole)
    for s in range(3):
        part = by_item(graph, shard == s)
        mine = np.zeros((len(part.serving), 2))
        learn(part, updates, mine)
        by_serving[part.serving] = mine
    assert_array_equal(by_serving, whole[np.argsort(view.serving)])


def test_known_edges_learn_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    edges, same = np.zeros((50, 2)), np.zeros((50, 2))
    e, w, play, amount = rng.integers(0, 50, 300), rng.random(300), np.ones(300), rng.normal(size=300)
    kernels.learn_edges(e, w, play, amount, edges)
    for i in range(300):
        same[e[i]] += (amount[i] * w[i], play[i] * w[i] * w[i])
    assert_array_equal(edges, same)


def test_pairs_are_the_formula_and_their_sign_says_fresh() -> None:
    rng = np.random.default_rng(2)
    edges = np.stack([rng.normal(size=40) * 10.0 ** rng.integers(-5, 5, 40), rng.exponential(size=40)], axis=1)
    edges[::3] = 0.0
    serving, pairs = rng.permutation(40).astype(np.uint32), np.empty((40, 2), np.float32)
    kernels.refresh_all(edges, 2.0, 3.0, serving, pairs)
    for e in range(40):
        assert_array_equal(pairs[serving[e]], np.array(naive.pair(edges[e, 0], edges[e, 1], 2.0, 3.0), np.float32))
    edges += 1.0
    before = pairs.copy()
    kernels.refresh(edges, 2.0, 3.0, serving, np.array([5, 7]), pairs)
    assert set(np.flatnonzero((pairs != before).any(axis=1))) == {serving[5], serving[7]}
    assert_array_equal(pairs[serving[5]], np.array(naive.pair(edges[5, 0], edges[5, 1], 2.0, 3.0), np.float32))


def everyone(policy: DiagLinUCB) -> Context:
    n = policy.graph.n_clusters
    return Context(np.arange(n, dtype=np.uint32), np.full(n, 65535 // n, np.uint16))


@pytest.mark.parametrize("rewards", [[0.0], [1e-300], [1e300], [1e-300, 1e300], [1e300, -1e300, 1e300], [3.0, 3.0]])
@pytest.mark.parametrize("half_life_s", [None, 60.0])
def test_scores_are_never_nan(rewards: list[float], half_life_s: float | None) -> None:
    rng = np.random.default_rng(3)
    for mode in ("explore", "exploit", "thompson"):
        parameters = DiagParameters(mode=mode, half_life_s=half_life_s, explore_share=0.5)
        policy = DiagLinUCB(random_graph(rng), parameters, default=None)
        user = everyone(policy)
        for i in range(40):
            slate = policy.choose(user, 5, rng)
            assert np.isfinite(slate.scores).all()
            policy.rewarded(user, int(slate.items[0]), rewards[i % len(rewards)], time_ms=i * 100_000)
        assert np.isfinite(policy.pairs).all()


def test_a_default_is_learned_at_once_and_an_answer_corrects_it() -> None:
    graph = random_graph(np.random.default_rng(4))
    item = int(graph.items[0])
    at_once, answered_only = DiagLinUCB(graph, default=0.25), DiagLinUCB(graph, default=None)
    user = everyone(at_once)
    at_once.decided(user, [item])
    assert at_once.edges[:, 1].any()
    answered_only.decided(user, [item])
    assert not answered_only.edges.any()
    at_once.rewarded(user, item, 1.0)
    answered_only.rewarded(user, item, 1.0)
    assert_allclose(at_once.edges, answered_only.edges, rtol=1e-12)
    at_once.rewarded(user, item, 0.5, old=1.0)  # amended: only the difference, no further play
    answered_only.rewarded(user, item, 0.5, old=1.0)
    assert_allclose(at_once.edges, answered_only.edges, rtol=1e-12)
    for bad in (np.nan, np.inf):
        with pytest.raises(DiagError, match="reward"):
            at_once.rewarded(user, item, bad)


def test_a_half_life_forgets_by_half_and_a_rebase_changes_nothing() -> None:
    graph = random_graph(np.random.default_rng(5))
    item, day = int(graph.items[0]), DAY_MS
    parameters = DiagParameters(half_life_s=86_400.0, prior=1.0)
    policy = DiagLinUCB(graph, parameters, default=None)
    user = everyone(policy)
    policy.rewarded(user, item, 1.0, time_ms=0)
    edge = np.flatnonzero(policy.edges[:, 1])[0]
    serving = policy.by_item.serving[edge]
    b, d = policy.edges[edge]
    policy.at(day)  # one half-life later the play weighs half against the prior
    assert_allclose(policy.pairs[serving], (0.5 * b / (0.5 * d + 1.0), 1.0 / (0.5 * d + 1.0)), rtol=1e-6)
    policy.at(29 * day)
    before = policy.pairs.copy()
    assert policy.origin_ms == 0
    policy.at(31 * day)
    assert policy.origin_ms == 30 * day
    assert policy.edges[edge, 1] == d * 2.0**-30
    policy.at(29 * day)  # time does not run backwards
    assert policy.time_ms == 31 * day
    assert_allclose(policy.pairs[serving, 0], before[serving, 0] / 4, rtol=1e-5)


def test_late_and_early_answers_under_a_half_life_commute() -> None:
    rng = np.random.default_rng(6)
    graph = random_graph(rng)
    events = [
        (int(rng.integers(len(graph.ids))), float(rng.normal()), int(t)) for t in rng.integers(0, 100 * DAY_MS, 80)
    ]
    results = []
    for order in (np.arange(80), rng.permutation(80)):
        policy = DiagLinUCB(graph, DiagParameters(half_life_s=86_400.0), default=None)
        for i in order:
            item, reward, time_ms = events[i]
            policy.rewarded(everyone(policy), item, reward, time_ms=time_ms)
        policy.at(101 * DAY_MS)
        results.append(policy.edges * 2.0 ** (policy.origin_ms / DAY_MS - 90))
    assert_allclose(results[0], results[1], rtol=1e-12, atol=1e-300)
