"""How the cost of one recommendation grows: `python -m benchmarks.growth [--quick]`.

A worker's engine in this process (`benchmarks.worker`) answers requests of ten clusters, a hundred edges each, with
slates of ten. One thing grows at a time, everything else stays:

    edges      10,000 to 10,000,000 in total: more clusters, of which a request touches ten, over 20,000 items
    items      1,000 to 1,000,000, with a million edges
    policies   1 to 1,000, asked in turn: with a graph of 10,000 edges each, or with ten arms
    shards     1 to 32, with a million edges: a decision's event goes to each shard of its items

CPU microseconds of this thread a request, the handing over of events included; sizes take turns in every round, and the
median of the rounds counts. Requests differ, so what is not in the cache has to come from memory, as on a server.
"""

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bandits.graph import Graph
from benchmarks.worker import Part, call_of, worker
from server.host import HostEngine
from server.schemas import RecommendRequest, User
from streaming.control import DIAG_LINUCB, PolicySpec

CLUSTERS, WIDTH, SLATE = 10, 100, 10  # of a request; edges of a cluster
ITEMS = 20_000
EDGES = (10_000, 100_000, 1_000_000, 10_000_000)
MANY_ITEMS = (1_000, 10_000, 100_000, 1_000_000)
POLICIES = (1, 10, 100, 1_000)
SHARDS = (1, 2, 8, 32)
BAR = 1.5  # ten million edges over ten thousand
BURST = 200  # requests that are timed together
DIAG = PolicySpec(DIAG_LINUCB, parameters={"alpha": 0.3})


class Case(NamedTuple):
    """One size of one thing: what is asked, of whom."""

    size: int
    engine: HostEngine
    call: Callable[[Any], object]
    requests: list[Any]


def graph(edges: int, items: int, rng: np.random.Generator) -> Graph:
    """Clusters of a hundred items each, at a stride of their own."""
    clusters = edges // WIDTH
    stride = rng.choice([1, 3, 7, 9], (clusters, 1))  # none has a factor in common with the number of items
    lists = np.sort((rng.integers(items, size=(clusters, 1)) + stride * np.arange(WIDTH)) % items, axis=1)
    ids = tuple(f"item{i}" for i in range(items))
    indptr = np.arange(clusters + 1) * WIDTH
    return Graph(np.zeros((clusters, 0), np.float32), indptr, lists.astype(np.uint32).ravel(), ids)


def diag_query(policy: str, clusters: int, rng: np.random.Generator) -> RecommendRequest:
    user = User(clusters=rng.choice(clusters, CLUSTERS, replace=False).tolist(), weights=[0.1] * CLUSTERS)
    return RecommendRequest(policy, user, k=SLATE)


def queries(names: Sequence[str], clusters: int, count: int, rng: np.random.Generator) -> list[RecommendRequest]:
    """Requests to the policies in turn; without clusters they are K-armed."""
    names = [names[i % len(names)] for i in range(count)]
    if not clusters:
        return [RecommendRequest(name, User(), k=1) for name in names]
    return [diag_query(name, clusters, rng) for name in names]


def measure(cases: Sequence[Case], rounds: int) -> dict[int, float]:
    """size -> CPU us a request."""
    times: dict[int, list[float]] = {case.size: [] for case in cases}
    at = {case.size: 0 for case in cases}
    for case in cases:  # kernels, and the ids that are asked for all the time
        for request in case.requests:
            case.call(request)
        case.engine.outbox.flush()
    for _ in range(rounds):
        for case in cases:
            first = at[case.size]
            burst = case.requests[first : first + BURST]
            at[case.size] = (first + BURST) % len(case.requests)
            gc.collect(0)
            start = time.thread_time_ns()
            for request in burst:
                case.call(request)
            case.engine.outbox.flush()
            times[case.size].append((time.thread_time_ns() - start) / 1000 / len(burst))
    return {size: median(found) for size, found in times.items()}


def grow(
    sizes: Sequence[int], rounds: int, parts: Callable[[int], tuple[list[Part], int]], shards: Callable[[int], int]
) -> dict[int, float]:
    """Cost by size; `parts` gives the policies of a size and how many clusters they have."""
    rng = np.random.default_rng(5)
    with ExitStack() as stack:
        cases = []
        for size in sizes:
            made, clusters = parts(size)
            engine = stack.enter_context(worker(made, shards(size)))
            asked = queries([part.name for part in made], clusters, BURST * max(10, len(made) // BURST), rng)
            cases.append(Case(size, engine, *call_of(engine, asked)))
            del made
            gc.collect()
        return measure(cases, rounds)


def _one(edges: int, items: int) -> tuple[list[Part], int]:
    return [Part("p", DIAG, graph(edges, items, np.random.default_rng(1)))], edges // WIDTH


def _many(count: int) -> tuple[list[Part], int]:
    shared = graph(10_000, 2_000, np.random.default_rng(1))
    return [Part(f"p{i}", DIAG, shared) for i in range(count)], 10_000 // WIDTH


def _arms(count: int) -> tuple[list[Part], int]:
    return [Part(f"p{i}", PolicySpec("banker"), arms=[f"a{j}" for j in range(10)]) for i in range(count)], 0


def _plot(title: str, x: str, series: dict[str, dict[int, float]]) -> dict[str, Any]:
    return {
        "title": title,
        "x": x,
        "y": "us a request",
        "logx": True,
        "series": {name: [[size, cost] for size, cost in found.items()] for name, found in series.items()},
    }


async def _run(quick: bool) -> dict[str, Any]:
    rounds = 15 if quick else 60
    most = 1_000_000 if quick else 10_000_000
    edges = grow([n for n in EDGES if n <= most], rounds, lambda n: _one(n, ITEMS), lambda _: 1)
    items = grow([n for n in MANY_ITEMS if n <= most // 10], rounds, lambda n: _one(most // 10, n), lambda _: 1)
    few = [n for n in POLICIES if n <= (100 if quick else 1000)]
    policies = grow(few, rounds, _many, lambda _: 1)
    arms = grow(few, rounds, _arms, lambda _: 1)
    shards = grow(SHARDS, rounds, lambda _: _one(most // 10, ITEMS), lambda n: n)
    return {
        "bar": BAR,
        "edges_us": edges,
        "edges_ratio": edges[max(edges)] / edges[min(edges)],
        "items_us": items,
        "policies_us": policies,
        "policies_with_arms_us": arms,
        "shards_us": shards,
        "plots": [
            _plot("A recommendation and the graph's edges", "edges in total", {"1,000 edges touched": edges}),
            _plot("A recommendation and the number of items", "items", {"1,000 edges touched": items}),
            _plot("A recommendation and the policies", "policies", {"with graphs": policies, "with ten arms": arms}),
            _plot("A recommendation and the shards", "shards", {"ten items a slate": shards}),
        ],
    }


def run(quick: bool = False) -> dict[str, Any]:
    """Up to ten million edges; one million when quick."""
    return asyncio.run(_run(quick))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to a million edges, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("CPU us a request")
    for name in ("edges", "items", "policies", "policies_with_arms", "shards"):
        row = "  ".join(f"{size:>10,} {cost:6.1f}" for size, cost in found[f"{name}_us"].items())
        print(f"  {name.replace('_', ' '):<19}{row}")
    print(f"  most edges over fewest: {found['edges_ratio']:.2f} times (bar {BAR})")


if __name__ == "__main__":
    main()
