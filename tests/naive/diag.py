"""Diag-LinUCB in plain Python, as its formulas read: the slow twin of bandits/kernels.py and bandits/choosing.py."""

import math
from collections import defaultdict
from typing import Any

import numpy as np

MASK = (1 << 64) - 1


def mix(word: int, counter: int) -> int:
    z = (word + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(word: int, counter: int) -> float:
    return (mix(word, counter) >> 11) * 2.0**-53


def normal(word: int, item: int) -> float:
    first, second = (uniform(word, (4 << 40) + 2 * item + i) for i in (0, 1))
    return math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)


def learn(updates: list[dict[str, Any]]) -> dict[tuple[int, int], tuple[float, float]]:
    """{(cluster, item): (b, d)} after updates of item, context {cluster: w}, play, amount, scale, joined = edges."""
    b: dict[tuple[int, int], float] = defaultdict(float)
    d: dict[tuple[int, int], float] = defaultdict(float)
    for u in updates:
        for c, w in u["context"].items():
            if (c, u["item"]) in u["joined"]:
                b[c, u["item"]] += w * u["amount"] * u["scale"]
                d[c, u["item"]] += w * w * u["play"] * u["scale"]
    return {edge: (b[edge], d[edge]) for edge in b}


def pair(b: float, d: float, prior: float, g: float) -> tuple[float, float]:
    """(mean, inverse) of an edge; the inverse is negative while the edge has no play."""
    return b / (d + prior * g), (1.0 if d > 0.0 else -1.0) * g / (d + prior * g)


def nearest(centroids: Any, embedding: Any, k: int, temperature: float) -> tuple[list[int], list[int]]:
    similarity = [sum(float(x) * float(y) for x, y in zip(row, embedding, strict=True)) for row in centroids]
    best = sorted(range(len(similarity)), key=lambda c: (-similarity[c], c))[:k]
    powers = [math.exp((similarity[c] - similarity[best[0]]) / temperature) for c in best]
    return best, [math.floor(65535.0 * (power / sum(powers)) + 0.5) for power in powers]


def moments(graph: Any, pairs: Any, clusters: Any, weights: Any) -> dict[int, tuple[float, float, bool]]:
    """{item: (mean, width, fresh)} for the items joined to the context.

    Weights, products and sums are float32, each rounded, added in the order of the clusters; the rest is float64.
    """
    found: dict[int, tuple[np.float32, np.float32, bool]] = {}
    for c, q in zip(clusters, weights, strict=True):
        w = np.float32(int(q) / 65535.0)
        if q == 0:
            continue
        for e in range(graph.indptr[c], graph.indptr[c + 1]):
            mean, spread, fresh = found.get(int(graph.items[e]), (np.float32(0.0), np.float32(0.0), True))
            m, inverse = np.float32(pairs[e, 0]), np.float32(pairs[e, 1])
            played = bool(inverse > 0)
            found[int(graph.items[e])] = (mean + w * m, spread + (w * w) * abs(inverse), fresh and not played)
    return {j: (float(mean), math.sqrt(float(spread)), fresh) for j, (mean, spread, fresh) in found.items()}


def choose(
    graph: Any,
    pairs: Any,
    clusters: Any,
    weights: Any,
    k: int,
    word: int,
    *,
    mode: str,
    alpha: float,
    explore_share: float,
    randomize_top: int,
    fresh: str,
    fresh_share: float,
    exclude: Any = (),
    candidates: Any = None,
    paused: Any = (),
) -> list[tuple[int, float, float]]:
    """[(item, score, propensity)], propensity NaN where Thompson has none."""
    if mode == "thompson" and alpha == 0.0:
        mode = "exploit"
    items = {
        j: row
        for j, row in moments(graph, pairs, clusters, weights).items()
        if j not in set(exclude) and j not in set(paused) and (candidates is None or j in set(candidates))
    }
    k = min(k, len(items))
    n = min(max(k, randomize_top), len(items)) if randomize_top > 1 else k
    share = 0.0 if mode == "exploit" else explore_share
    exploring = mode != "exploit" and uniform(word, 1 << 40) < explore_share

    def lot(j: int) -> int:
        return -mix(word, (2 << 40) + j)

    exploit = {j: row[0] for j, row in items.items()}
    z = {j: normal(word, j) if mode == "thompson" else 1.0 for j in items}
    explore = {j: row[0] + alpha * row[1] * z[j] for j, row in items.items()}
    is_fresh = {j: fresh == "first" and share > 0.0 and row[2] for j, row in items.items()}
    ahead = math.ceil(fresh_share * n - 1e-9)

    by_lot = sorted((j for j in items if is_fresh[j]), key=lot)
    by_score = sorted((j for j in items if not is_fresh[j]), key=lambda j: (-explore[j], lot(j)))
    explore_order = (by_lot[:ahead] + by_score + by_lot[ahead:])[: max(n, 0)]
    if fresh == "first":  # the played ones leave room for those ahead only
        taken = by_score[: n - len(by_lot[:ahead])]
        explore_order = by_lot[:ahead] + taken + by_lot[ahead : n - len(taken)]
    exploit_order = sorted(items, key=lambda j: (-exploit[j], lot(j)))[:n]

    def chance(j: int, position: int, order: list[int], score: dict[int, float], tiers: bool) -> float:
        """Average over all ways to break ties: the places of j's group, shared evenly by its members."""

        def group(i: int) -> tuple[bool, float]:
            return (True, 0.0) if tiers and is_fresh[i] else (False, score[i])

        members = sum(group(i) == group(j) for i in items)
        if randomize_top > 1:
            return sum(group(i) == group(j) for i in order) / members / n
        return (group(order[position]) == group(j)) / members

    chosen = list(explore_order if exploring else exploit_order)
    if randomize_top > 1:
        for i in range(k):
            other = i + int(uniform(word, (3 << 40) + i) * (n - i))
            chosen[i], chosen[other] = chosen[other], chosen[i]
    slate = []
    for i, j in enumerate(chosen[:k]):
        p = 0.0
        if share > 0.0:
            p += share * (math.nan if mode == "thompson" else chance(j, i, explore_order, explore, True))
        if share < 1.0:
            p += (1.0 - share) * chance(j, i, exploit_order, exploit, False)
        slate.append((j, (explore if exploring else exploit)[j], p))
    return slate


def best_of_normals(t: int, means: Any, sds: Any, nodes: int = 40_001) -> float:
    """P(normal t is the largest) by a fine trapezoid over 9 standard deviations."""
    from scipy.special import ndtr

    x = np.linspace(means[t] - 9 * sds[t], means[t] + 9 * sds[t], nodes)
    value = np.exp(-0.5 * ((x - means[t]) / sds[t]) ** 2) / (math.sqrt(2 * math.pi) * sds[t])
    for i in range(len(means)):
        if i != t:
            value = value * ndtr((x - means[i]) / sds[i])
    return float(np.trapezoid(value, x))
