"""Choosing: equal to the slow twin, and every propensity the true probability."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import chisquare

from bandits.choosing import best_of_normals
from bandits.diag_linucb import MODES, DiagError, DiagLinUCB, DiagParameters
from bandits.graph import Graph
from bandits.reaching import MOST
from tests.bandits.diag_problems import Problem, random_graph, random_problem, serve
from tests.naive import diag as naive

DEFAULTS = {"explore_share": 1.0, "fresh": "prior", "fresh_share": 0.5}


def random_settings(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": str(rng.choice(["explore", "explore", "exploit", "thompson"])),
        "alpha": float(rng.choice([0.0, 0.5, 2.0])),
        "explore_share": float(rng.choice([0.0, 0.3, 1.0, 1.0])),
        "randomize_top": int(rng.choice([1, 1, 2, 6, 50])),
        "fresh": str(rng.choice(["first", "prior"])),
        "fresh_share": float(rng.choice([0.0, 0.2, 0.5, 1.0])),
    }


@pytest.mark.parametrize("block", range(4))
def test_a_slate_equals_the_slow_twin(block: int) -> None:
    for seed in range(block * 250, block * 250 + 250):
        rng = np.random.default_rng(seed)
        problem, settings = random_problem(rng), random_settings(rng)
        n_items = len(problem.graph.ids)
        limits: dict[str, Any] = {}
        if rng.random() < 0.3:
            limits["exclude"] = rng.integers(0, n_items, 3)
        if rng.random() < 0.3:
            limits["candidates"] = rng.integers(0, n_items, 8)
        paused = rng.integers(0, n_items, int(rng.integers(0, 3))).tolist()
        serving = serve(problem, paused=paused, **settings)
        for asked in (limits, {}):  # the second call must find the scratch as the first did
            k, word = int(rng.integers(1, 8)), int(rng.integers(0, 2**63))
            slate = serving.choose(problem.clusters, problem.weights, k, word, **asked)
            twin = naive.choose(
                problem.graph,
                *(problem.pairs, problem.clusters, problem.weights, k, word),
                **settings,
                **asked,
                paused=paused,
            )
            assert slate.items.tolist() == [row[0] for row in twin], seed
            assert_allclose(slate.scores, [row[1] for row in twin], rtol=1e-12, atol=1e-14, err_msg=str(seed))
            expected = np.array([row[2] for row in twin])
            known = ~np.isnan(expected)
            assert_allclose(slate.propensities[known], expected[known], rtol=1e-12, err_msg=str(seed))
            if len(twin) > 1:
                assert np.isnan(slate.propensities[~known]).all(), seed


@pytest.mark.parametrize("joined", [0.004, 0.03, 0.3], ids=["listed", "either", "all items"])
def test_a_slate_of_many_items_equals_the_slow_twin(joined: float) -> None:
    """Few edges for the number of items list what they meet, many look at every item; both drop items by stages."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n_items, n_clusters = int(rng.integers(700, 1500)), int(rng.integers(2, 8))
        met = rng.random((n_clusters, n_items)) < joined
        indptr = np.concatenate(([0], np.cumsum(met.sum(axis=1))))
        graph = Graph(
            np.empty((n_clusters, 0), np.float32), indptr, np.nonzero(met)[1], tuple(map(str, range(n_items)))
        )
        size = float(rng.choice([1e-38, 1e-18, 1e-3, 1.0, 1e9, 1e34]))
        pairs = (rng.standard_normal((len(graph.items), 2)) * (size, 1.0)).astype(np.float32)
        alike = rng.random(len(pairs)) < rng.choice([0.0, 0.9])
        pairs[alike] = (size, 0.5)  # ties, also with the last one taken
        weights = rng.integers(0, 65536, n_clusters).astype(np.uint16)
        weights[:] = weights[0] if rng.random() < 0.5 else weights
        problem = Problem(graph, None, pairs, np.arange(n_clusters, dtype=np.uint32), weights)
        settings: dict[str, Any] = {
            **DEFAULTS,
            "mode": str(rng.choice(["explore", "exploit"])),
            "alpha": float(rng.choice([0.0, 1e-18, 0.5, 1e6])),
            "randomize_top": int(rng.choice([1, 1, 30])),
        }
        paused = rng.integers(0, n_items, 100).tolist()
        serving = serve(problem, paused=paused, **settings)
        for k in (1, 10, MOST, MOST + 1):
            word = int(rng.integers(0, 2**63))
            slate = serving.choose(problem.clusters, weights, k, word)
            twin = naive.choose(graph, pairs, problem.clusters, weights, k, word, **settings, paused=paused)
            assert slate.items.tolist() == [row[0] for row in twin], seed
            assert_allclose(slate.scores, [row[1] for row in twin], rtol=1e-12, err_msg=str(seed))
            assert_allclose(slate.propensities, [row[2] for row in twin], rtol=1e-12, err_msg=str(seed))


def test_the_chance_to_be_the_largest_normal_equals_a_fine_sum() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 12))
        means, sds = rng.standard_normal(n), rng.exponential(1.0, n) * 10.0 ** rng.integers(-2, 1, n) + 1e-3
        got = [best_of_normals(t, 0, n, means, sds, 1.0) for t in range(n)]
        assert_allclose(got, [naive.best_of_normals(t, means, sds) for t in range(n)], atol=1e-7)
        assert sum(got) == pytest.approx(1.0, abs=1e-8)


CASES: dict[str, dict[str, Any]] = {
    "randomize_top": {"randomize_top": 5, "k": 3},
    "randomize_top of few": {"randomize_top": 50, "k": 2},
    "explore_share": {"explore_share": 0.3, "k": 3},
    "explore_share of a random top": {"explore_share": 0.4, "randomize_top": 4, "k": 2},
    "ties": {"alpha": 0.0, "k": 4},
    "fresh first": {"fresh": "first", "fresh_share": 0.5, "k": 4},
    "fresh first, share": {"fresh": "first", "fresh_share": 0.5, "k": 4, "explore_share": 0.5},
    "fresh first, random top": {"fresh": "first", "fresh_share": 0.3, "k": 2, "randomize_top": 6},
    "thompson": {"mode": "thompson", "k": 1, "alpha": 0.7},
    "thompson, share": {"mode": "thompson", "k": 1, "explore_share": 0.6},
    "thompson, fresh first": {"mode": "thompson", "k": 1, "fresh": "first"},
}


@pytest.mark.parametrize("case", CASES)
def test_every_propensity_is_the_true_probability(case: str) -> None:
    """100,000 draws: the items at each position follow the propensities they were given."""
    settings = dict(CASES[case])
    k = settings.pop("k")
    rng = np.random.default_rng(11)
    problem = random_problem(rng, n_clusters=4, n_items=12)
    while len(naive.moments(problem.graph, problem.pairs, problem.clusters, problem.weights)) < 10:
        problem = random_problem(rng, n_clusters=4, n_items=12)
    serving = serve(problem, **settings)
    seen, given = np.zeros((k, 12)), np.full((k, 12), np.nan)
    draws = 100_000
    for word in rng.integers(0, 2**63, draws).tolist():
        slate = serving.choose(problem.clusters, problem.weights, k, word)
        for i in range(k):
            j, p = slate.items[i], slate.propensities[i]
            assert math.isnan(given[i, j]) or given[i, j] == p
            given[i, j] = p
            seen[i, j] += 1
    for i in range(k):
        shown = ~np.isnan(given[i])
        assert given[i, shown].sum() == pytest.approx(1.0, abs=1e-6)
        if shown.sum() > 1:
            expected = given[i, shown] / given[i, shown].sum() * draws
            often = expected >= 5
            if often.sum() > 1:
                total = seen[i, shown][often].sum()
                chances = expected[often] / expected[often].sum() * total
                assert chisquare(seen[i, shown][often], chances).pvalue > 1e-4


def test_a_slate_is_a_function_of_state_context_and_word() -> None:
    problem = random_problem(np.random.default_rng(5))
    one, other = serve(problem, mode="thompson"), serve(problem, mode="thompson")
    a = one.choose(problem.clusters, problem.weights, 5, 99)
    one.choose(problem.clusters, problem.weights, 5, 100)
    b, c = other.choose(problem.clusters, problem.weights, 5, 99), one.choose(problem.clusters, problem.weights, 5, 99)
    assert_array_equal(a.items, b.items)
    assert_array_equal(a.items, c.items)


def test_a_mode_asked_for_is_not_mixed_with_exploiting() -> None:
    problem = random_problem(np.random.default_rng(6))
    serving = serve(problem, explore_share=0.0)
    assert serving.choose(problem.clusters, problem.weights, 2, 1).mode == MODES["exploit"]
    assert serving.choose(problem.clusters, problem.weights, 2, 1, mode=MODES["explore"]).mode == MODES["explore"]


def test_nothing_to_show_is_an_empty_slate() -> None:
    problem = random_problem(np.random.default_rng(7))
    none = serve(problem).choose(problem.clusters, problem.weights, 3, 1, candidates=np.empty(0, np.int64))
    assert len(none.items) == len(none.scores) == len(none.propensities) == 0
    out = serve(problem).choose(problem.clusters, problem.weights, 3, 1, candidates=np.array([-1, 10**6, -(2**62)]))
    assert len(out.items) == 0
    far = np.array([10**6], np.uint32)
    assert len(serve(problem).choose(far, np.array([65535], np.uint16), 3, 1).items) == 0


def test_nearest_equals_the_slow_twin() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        dim = int(rng.integers(1, 40))
        graph = random_graph(rng, n_clusters=int(rng.integers(1, 60 if seed < 30 else 1500)), dim=dim)
        if seed % 3 == 0:  # rows that are alike: ties
            alike = graph.centroids[rng.integers(0, min(graph.n_clusters, 40 - seed), graph.n_clusters)]
            graph = Graph(alike, graph.indptr, graph.items, graph.ids)
        k = int(rng.integers(1, 12))
        serving = serve(
            Problem(graph, None, np.zeros((len(graph.items), 2), np.float32), None, None),
            clusters_per_user=k,
            temperature=2.0,
        )
        user = rng.standard_normal(dim).astype(np.float32)
        clusters, weights = naive.nearest(graph.centroids, user, k, 2.0)
        context = serving.nearest(user)
        assert context.clusters.tolist() == clusters
        assert context.weights.tolist() == weights


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, 2.0, math.nan], [math.inf, 0, 0], [[1.0, 2.0, 3.0]]])
def test_an_embedding_that_cannot_be_used_is_named(bad: Any) -> None:
    policy = DiagLinUCB(random_graph(np.random.default_rng(8)))
    with pytest.raises(DiagError) as caught:
        policy.nearest(bad)
    assert caught.value.field == "embedding"


@pytest.mark.parametrize("size", [1e-30, 1e9, 1e37])
def test_large_and_small_embeddings_give_weights(size: float) -> None:
    policy = DiagLinUCB(random_graph(np.random.default_rng(8)))
    context = policy.nearest([size, -size, size])
    assert context.weights.astype(int).sum() == pytest.approx(65535, abs=len(context.weights))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clusters_per_user", 0), ("temperature", 0.0), ("alpha", math.nan), ("alpha", math.inf), ("prior", 0.0),
        ("mode", "greedy"), ("explore_share", 1.5), ("randomize_top", 0), ("fresh", "last"), ("fresh_share", -0.1),
        ("half_life_s", 0.0),
    ],
)  # fmt: skip
def test_a_bad_hyper_parameter_is_named(field: str, value: Any) -> None:
    with pytest.raises(DiagError) as caught:
        DiagParameters(**{field: value})
    assert caught.value.field == field
