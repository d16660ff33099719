"""A user's context: the clusters of an embedding and their softmax, or given weights, in units of 1/65535.

The clusters of an embedding: inner products with all centroids, the largest of them, their softmax.

What bounds it is reading the centroids, so all else is kept out of that pass: it computes float32 products and the
largest of every LANES-th one. The n-th best of those LANES maxima is at most the n-th best product, and little less;
a second pass over the products, which are cached, takes those that reach it. They are ranked again in float64.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.kernels import prefetch
from bandits.reaching import push

LANES = 64  # room for as many is needed behind the products
_AHEAD_BYTES = 2048  # centroids are asked for this long before they are used
_GROUP = 32  # products looked at together in the second pass


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _products(centroids: Any, embedding: Any, products: Any) -> None:
    """products[:C] = centroids @ embedding in float32, added in any order; products[C + i] = max of lane i."""
    n, dim = np.uint64(centroids.shape[0]), np.uint64(centroids.shape[1])
    row_bytes = np.int64(4 * dim)
    maxima = products[n:]
    for i in range(np.uint64(LANES)):
        maxima[i] = -np.inf
    for first in range(np.uint64(0), n, np.uint64(LANES)):
        end = min(first + np.uint64(LANES), n)
        for c in range(first, end):
            ahead = centroids.ctypes.data + np.int64(c) * row_bytes + _AHEAD_BYTES
            for byte in range(0, row_bytes, 64):
                prefetch(ahead + byte)
            s = np.float32(0.0)
            for i in range(dim):
                s += centroids[c, i] * embedding[i]
            products[c] = s
        for i in range(end - first):
            s = products[first + i]
            maxima[i] = s if s > maxima[i] else maxima[i]


@njit(cache=True, nogil=True)
def _any_reaches(values: Any, threshold: Any) -> bool:
    """Written as a count, which the compiler turns into vector instructions."""
    n = np.uint32(0)
    for i in range(np.uint64(values.shape[0])):
        n += np.uint32(values[i] >= threshold)
    return bool(n != 0)


@njit(cache=True, nogil=True)
def _shortlist(products: Any, n: int, shortlist: Any, similarity: Any) -> int:
    """shortlist, similarity = the best products[:n], largest first; as many as there is room for; how many."""
    room, found = shortlist.shape[0], 0
    for i in range(room):
        similarity[i] = -np.inf
    for i in range(LANES):
        push(np.float64(products[n + i]), similarity, room)
    threshold = np.float32(similarity[room - 1]) if room <= LANES else np.float32(-np.inf)
    for first in range(0, n, _GROUP):
        end = min(first + _GROUP, n)
        if not _any_reaches(products[first:end], threshold):
            continue
        for c in range(first, end):
            s = products[c]
            if s >= threshold and (found < room or s > similarity[room - 1]):
                i = min(found, room - 1)
                while i > 0 and similarity[i - 1] < s:
                    similarity[i] = similarity[i - 1]
                    shortlist[i] = shortlist[i - 1]
                    i -= 1
                similarity[i] = s
                shortlist[i] = c
                found = min(found + 1, room)
    return found


@njit(cache=True, nogil=True)
def nearest(
    centroids: NDArray[np.float32],
    embedding: NDArray[np.float32],
    temperature: float,
    products: NDArray[np.float32],
    shortlist: NDArray[np.int64],
    similarity: NDArray[np.float64],
    clusters: NDArray[np.uint32],
    weights: NDArray[np.uint16],
) -> int:
    """The clusters.shape[0] centroids of largest inner product with `embedding`, nearest first, and their weights.

    products f32[C + LANES], shortlist and similarity [a little longer than clusters] are scratch. The order is that of
    the inner products in float64, ties to the lower cluster; the weights softmax(similarity / temperature) are rounded
    to 1/65535. Returns how many were found: fewer than asked only when a product is not finite.
    """
    _products(centroids, embedding, products)
    found = _shortlist(products, centroids.shape[0], shortlist, similarity)
    for j in range(found):
        for byte in range(0, 4 * centroids.shape[1], 64):
            prefetch(centroids.ctypes.data + shortlist[j] * 4 * centroids.shape[1] + byte)
    for j in range(found):  # again in float64, by insertion
        c = shortlist[j]
        exact = 0.0
        for i in range(embedding.shape[0]):
            exact += np.float64(centroids[c, i]) * np.float64(embedding[i])
        if not math.isfinite(exact):
            return 0
        i = j
        while i > 0 and (similarity[i - 1] < exact or (similarity[i - 1] == exact and shortlist[i - 1] > c)):
            similarity[i] = similarity[i - 1]
            shortlist[i] = shortlist[i - 1]
            i -= 1
        similarity[i] = exact
        shortlist[i] = c
    wanted = min(found, clusters.shape[0])
    total = 0.0
    for i in range(wanted):
        total += math.exp((similarity[i] - similarity[0]) / temperature)
    for i in range(wanted):
        clusters[i] = shortlist[i]
        weights[i] = int(65535.0 * (math.exp((similarity[i] - similarity[0]) / temperature) / total) + 0.5)
    return wanted


@njit(cache=True, nogil=True)
def quantise(given: NDArray[np.float64], weights: NDArray[np.uint16]) -> bool:
    """weights[m] = the given ones, or m equal ones where there are none, divided by their sum, rounded to 1/65535.

    False where their sum is not positive and finite.
    """
    m = weights.shape[0]
    if given.shape[0] == 0:
        for i in range(m):
            weights[i] = int(np.rint(65535.0 * (1.0 / m)))
        return True
    total = largest = 0.0
    for i in range(m):
        total += given[i]
        largest = max(largest, given[i])
    if not (total > 0.0 and math.isfinite(total)):
        return False
    total = 0.0
    for i in range(m):  # by the largest first: the sum of tiny weights has no room for small differences
        total += given[i] / largest
    for i in range(m):
        weights[i] = int(np.rint(65535.0 * (given[i] / largest / total)))
    return True
