"""What the Diag-LinUCB kernels cost, as ratios within one run: `python -m benchmarks.kernels`.

    choose   a slate of 10 from the edges of 10 clusters, called from Python with the mode explore and 20 items excluded
             (their gates stand), against a pass that only touches the same segments (the sum of ids and pairs); 10,000
             clusters, 20,000 items, other clusters on every call
    learn    edge updates a second: edges known and searched for, 100 updates a call
    nearest  10 of 10,000 centroids of 64 floats, against numpy's matrix-vector product alone

Rounds are interleaved; a ratio is the median over rounds of the round's own ratio, so that a slow second slows both.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from bandits import kernels
from bandits.choosing import EXCLUDED, EXPLORE, limit
from bandits.choosing import choose as choose_kernel
from bandits.diag_linucb import DiagParameters, Serving
from bandits.graph import Graph, by_item
from bandits.reaching import pointer

N_CLUSTERS, N_ITEMS, K, SLATE, EXCLUDE = 10_000, 20_000, 10, 10, 20
BARS = {100: 1.8, 500: 1.6, 2000: 1.3}  # items per cluster: at most this many times touch-only
EDGE_UPDATES_BAR = 30e6


@njit(cache=True, nogil=True)
def touch(
    place: NDArray[np.int64],
    clusters: NDArray[np.uint32],
    _weights: NDArray[np.uint16],
    _wanted: int,
    _k: int,
    _mode: int,
    _word: int,
) -> tuple[int, Any]:
    """The sum of ids and pairs of the clusters' edges: what reading the segments costs at least.

    It is called as `choose` is: what Python takes to hand over the arguments is in both times.
    """
    n_clusters = place[4]
    indptr = carray(pointer(place[0], np.int64), (n_clusters + 1,))
    items = carray(pointer(place[1], np.uint32), (indptr[n_clusters],))
    pairs = carray(pointer(place[2], np.float32), (indptr[n_clusters], 2))
    ids, total = 0, np.float32(0.0)
    for i in range(clusters.shape[0]):
        for e in range(np.uint64(indptr[clusters[i]]), np.uint64(indptr[clusters[i] + 1])):
            ids += items[e]
            total += pairs[e, 0] + pairs[e, 1]
    return ids, total


def random_graph(rng: np.random.Generator, per_cluster: int, n_clusters: int = N_CLUSTERS) -> Graph:
    """Every cluster joined to `per_cluster` random items."""
    rows = np.sort(rng.integers(0, N_ITEMS - per_cluster + 1, (n_clusters, per_cluster)), axis=1)
    items = (rows + np.arange(per_cluster)).astype(np.uint32).ravel()  # ascending without repeats
    indptr = np.arange(n_clusters + 1) * per_cluster
    return Graph(np.empty((n_clusters, 0), np.float32), indptr, items, tuple(map(str, range(N_ITEMS))))


def microseconds(calls: list[Callable[[], Any]]) -> float:
    """Mean time of these calls, one after the other."""
    begin = time.perf_counter_ns()
    for call in calls:
        call()
    return (time.perf_counter_ns() - begin) / 1e3 / len(calls)


def interleaved(
    variants: dict[str, list[Callable[[], Any]]], rounds: int, slices: int = 1
) -> dict[str, NDArray[np.float64]]:
    """Microseconds a call of each variant in each round, after one round that is not counted.

    With slices, a round takes one of so many parts of the calls, each variant another one: a round is short, and no
    variant finds what the one before it left in the cache.
    """
    times = {name: np.array([]) for name in variants}
    for r in range(rounds + 1):
        for v, (name, calls) in enumerate(variants.items()):
            us = microseconds(calls[(r + 2 * v) % slices :: slices])
            times[name] = np.append(times[name], us) if r else times[name]
    return times


def run_choose(per_cluster: int, rounds: int, calls: int) -> dict[str, float]:
    rng = np.random.default_rng(per_cluster)
    graph = random_graph(rng, per_cluster)
    pairs = rng.random((len(graph.items), 2), np.float32)
    serving = Serving(graph.indptr, graph.items, pairs, N_ITEMS, DiagParameters(alpha=0.5))
    contexts = [
        (rng.choice(N_CLUSTERS, K, replace=False).astype(np.uint32), rng.integers(1, 13107, K).astype(np.uint16))
        for _ in range(calls)
    ]

    limit(serving._place, rng.choice(N_ITEMS, EXCLUDE, replace=False), EXCLUDED)

    def kernel(function: Any) -> list[Callable[[], Any]]:
        place = serving._place
        return [lambda c=c, w=w: function(place, c, w, 0, SLATE, EXPLORE, 12345) for c, w in contexts]

    times = interleaved(
        {
            "touch": kernel(touch),
            "choose": kernel(choose_kernel),
            "serving": [lambda c=c, w=w: serving.choose(c, w, SLATE, 12345) for c, w in contexts],
        },
        5 * rounds * max(1, 400 // per_cluster),  # the shorter, the more of them
        slices=5,
    )
    return {
        "touch_us": float(np.median(times["touch"])),
        "choose_us": float(np.median(times["choose"])),
        "serving_us": float(np.median(times["serving"])),
        "ratio": float(np.median(times["choose"] / times["touch"])),
        "serving_ratio": float(np.median(times["serving"] / times["touch"])),
        "bar": BARS[per_cluster],
    }


def run_learn(rounds: int, calls: int, per_cluster: int = 100, batch: int = 100) -> dict[str, float]:
    rng = np.random.default_rng(3)
    graph = random_graph(rng, per_cluster)
    view = by_item(graph)
    n_edges = len(graph.items)
    edges = np.zeros((n_edges, 2))
    touched, dirty = np.zeros(n_edges, np.uint8), np.empty(n_edges + 1, np.int64)
    ones, starts, counts = np.ones(batch), np.arange(batch) * K, np.full(batch, K)

    def known(n: int) -> Callable[[], Any]:
        edge, w = rng.integers(0, n_edges, n), rng.random(n)
        play, amount = np.ones(n), rng.random(n)
        return lambda: kernels.learn_edges(edge, w, play, amount, edges)

    def searched() -> Callable[[], Any]:
        item = rng.integers(0, N_ITEMS, batch)
        clusters = np.concatenate([rng.choice(view.clusters[view.indptr[j] : view.indptr[j + 1]], K) for j in item])
        w, amount = rng.random(batch * K), rng.random(batch)

        def call() -> None:
            n = kernels.learn(
                *(item, starts, counts, clusters, w, ones, amount, ones, view.indptr, view.clusters),
                *(edges, touched, dirty, 0),
            )
            touched[dirty[:n]] = 0

        return call

    times = interleaved(
        {
            "known_100": [known(batch) for _ in range(calls)],
            "known_1000": [known(batch * K) for _ in range(calls)],
            "searched": [searched() for _ in range(calls)],
        },
        rounds,
    )
    return {
        "known_100_per_s": batch / float(np.median(times["known_100"])) * 1e6,
        "known_1000_per_s": batch * K / float(np.median(times["known_1000"])) * 1e6,
        "searched_per_s": batch * K / float(np.median(times["searched"])) * 1e6,
        "bar": EDGE_UPDATES_BAR,
    }


def run_nearest(rounds: int, calls: int, dim: int = 64) -> dict[str, float]:
    rng = np.random.default_rng(4)
    centroids = rng.standard_normal((N_CLUSTERS, dim), np.float32)
    graph = Graph(centroids, np.arange(N_CLUSTERS + 1), np.zeros(N_CLUSTERS, np.uint32), ("0",))
    pairs = np.zeros((N_CLUSTERS, 2), np.float32)
    serving = Serving(graph.indptr, graph.items, pairs, 1, DiagParameters(temperature=5.0), graph.centroids)
    users = rng.standard_normal((calls, dim), np.float32)

    def numpy_way(user: NDArray[np.float32]) -> NDArray[np.int64]:
        s = graph.centroids @ user
        best = np.argpartition(-s, K)[:K]
        return best[np.argsort(-s[best])]

    times = interleaved(
        {
            "gemv": [lambda u=u: graph.centroids @ u for u in users],
            "nearest": [lambda u=u: serving.nearest(u) for u in users],
            "numpy": [lambda u=u: numpy_way(u) for u in users],
        },
        rounds,
    )
    return {
        "gemv_us": float(np.median(times["gemv"])),
        "nearest_us": float(np.median(times["nearest"])),
        "numpy_us": float(np.median(times["numpy"])),
        "ratio": float(np.median(times["nearest"] / times["gemv"])),
        "numpy_ratio": float(np.median(times["numpy"] / times["nearest"])),
    }


def run(quick: bool = False) -> dict[str, Any]:
    """All three tables; `quick` takes fewer rounds."""
    rounds, calls = (5, 200) if quick else (15, 1000)
    choose = {str(w): run_choose(w, rounds, 1000) for w in BARS}
    lines = {
        name: [[K * int(w), row[f"{name}_us"]] for w, row in choose.items()] for name in ("touch", "choose", "serving")
    }
    plot = {"title": "Choosing ten items", "series": lines, "x": "edges of the user", "y": "µs a call", "log": "xy"}
    return {
        "plots": [plot],
        "choose": choose,
        "learn": run_learn(rounds, max(100, calls // 5)),
        "nearest": run_nearest(rounds, calls // 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the Diag-LinUCB kernels, as ratios within one run.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    result = run(arguments.quick)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"choose {SLATE} of {N_ITEMS} items, {K} of {N_CLUSTERS} clusters; microseconds a call from Python")
    print("items/cluster  touch  choose  Serving.choose  choose/touch  bar  Serving/touch")
    for w, row in result["choose"].items():
        print(
            f"{w:>13}  {row['touch_us']:5.1f}  {row['choose_us']:6.1f}  {row['serving_us']:14.1f}"
            f"  {row['ratio']:12.2f}  {row['bar']:3.1f}  {row['serving_ratio']:13.2f}"
        )
    row = result["learn"]
    print(f"\nlearn, million edge updates a second and core (bar {row['bar'] / 1e6:.0f}, edges known)")
    print(f"edges known, 100 a call       {row['known_100_per_s'] / 1e6:6.1f}")
    print(f"edges known, 1,000 a call     {row['known_1000_per_s'] / 1e6:6.1f}   (100 updates of 10 clusters)")
    print(f"searched, as the learner does {row['searched_per_s'] / 1e6:6.1f}   (100 updates of 10 clusters)")
    row = result["nearest"]
    print("\nnearest 10 of 10,000 centroids of 64 floats, microseconds")
    print(
        f"numpy gemv alone {row['gemv_us']:.1f}, nearest {row['nearest_us']:.1f} ({row['ratio']:.2f} of gemv),", end=" "
    )
    print(f"gemv + argpartition {row['numpy_us']:.1f} ({row['numpy_ratio']:.2f} of nearest)")


if __name__ == "__main__":
    main()
