"""Small random graphs and learned pairs for the Diag-LinUCB tests."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bandits import kernels
from bandits.diag_linucb import DiagParameters, Serving
from bandits.graph import Graph, by_item


def random_graph(rng: np.random.Generator, n_clusters: int = 8, n_items: int = 20, dim: int = 3) -> Graph:
    joined = rng.random((n_clusters, n_items)) < rng.uniform(0.1, 0.9)
    indptr = np.concatenate(([0], np.cumsum(joined.sum(axis=1))))
    centroids = rng.standard_normal((n_clusters, dim)).astype(np.float32)
    return Graph(centroids, indptr, np.nonzero(joined)[1], tuple(f"item {i}" for i in range(n_items)))


@dataclass
class Problem:
    graph: Graph
    edges: Any
    pairs: Any
    clusters: Any
    weights: Any


def random_problem(rng: np.random.Generator, **sizes: int) -> Problem:
    """Edges of which some have no play, some the same play (so that scores tie), some any."""
    graph = random_graph(rng, **sizes)
    n = len(graph.items)
    edges = np.stack([rng.standard_normal(n), rng.exponential(2.0, n)], axis=1)
    edges[rng.random(n) < rng.uniform(0, 1)] = 0.0
    edges[rng.random(n) < rng.uniform(0, 1)] = (0.5, 1.0)
    pairs = np.empty((n, 2), np.float32)
    kernels.refresh_all(edges, 1.0, 1.0, by_item(graph).serving, pairs)
    k = int(rng.integers(1, graph.n_clusters + 1))
    weights = rng.integers(0, 65536, k).astype(np.uint16)
    if rng.random() < 0.5:
        weights[:] = 6553  # equal weights: ties between items joined to the same clusters
    return Problem(graph, edges, pairs, rng.choice(graph.n_clusters, k, replace=False).astype(np.uint32), weights)


def serve(problem: Problem, **parameters: Any) -> Serving:
    graph = problem.graph
    paused = np.zeros(len(graph.ids), np.uint8)
    paused[list(parameters.pop("paused", ()))] = 1
    p = DiagParameters(**parameters)
    return Serving(graph.indptr, graph.items, problem.pairs, len(graph.ids), p, graph.centroids, paused)
