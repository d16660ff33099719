"""The kernel that chooses: from the edges of a user's clusters to a slate with exact propensities.

    clusters, weights --accumulate--> sum w mean, sum w^2 |inverse| per item --rank--> the n best --draw--> slate

Long-lived arrays come in as addresses in one int64 array (an array argument costs 0.1 us of dispatch, and there are
twelve); `bandits.diag_linucb.Serving` builds it and keeps the arrays alive:

    place[ ]  0 indptr i64[C+1]   1 items u32[E]   2 pairs f32[E,2]   3 paused u8[N]   4 C   5 N
              6 sums f64[N,2] (16)  7 marks u8[N]    8 gate u8[N]       (scratch that is zero between calls)
              9 ids u32[2N]      10 moments f64[2,N]  11 scores f64[N]  12 order i64[3,N]
             13 slate_index u32[N]  14 slate_numbers f64[2,N] = (score, propensity)

Nothing here draws random numbers: one 64-bit word comes in and every coin is derived from it by `mix`, the finaliser of
splitmix64, so that a choice is a function of (state, context, word). The slow twin is tests/naive/diag.py.
"""

import math
from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numpy.typing import NDArray

from bandits.kernels import add_pair, intrinsic, load_pair, take

EXPLORE, EXPLOIT, THOMPSON = 0, 1, 2
PLACES = 15

_EXCLUDED, _CANDIDATE = 1, 2  # gate of an item during one choice

# What the word is used for, and where the counters of each use begin.
COIN, TIE, SHUFFLE, NORMAL = 1 << 40, 2 << 40, 3 << 40, 4 << 40

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_REACH = 8.0  # standard deviations beyond which a normal has no mass worth counting (1e-15)


@intrinsic
def _pointer(typingctx, address, like):  # type: ignore[no-untyped-def]  # noqa: ARG001  # pragma: no cover - compiled
    """The address as a pointer to elements of `like`'s type."""
    pointer = types.CPointer(like.dtype if isinstance(like, types.DTypeSpec) else like)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]  # noqa: ARG001
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(address, like), codegen


@njit(cache=True, nogil=True)
def mix(word: int, counter: int) -> np.uint64:
    """64 bits derived from (word, counter): splitmix64's finaliser over the counter's step of its sequence."""
    z = np.uint64(word) + np.uint64(counter + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def uniform(word: int, counter: int) -> float:
    """Uniform in [0, 1) with 53 bits."""
    return float(mix(word, counter) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True)
def normal(word: int, item: int) -> float:
    """Standard normal of one item, by Box and Muller."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(word, NORMAL + 2 * item)))
    return radius * math.cos(2.0 * math.pi * uniform(word, NORMAL + 2 * item + 1))


@njit(cache=True, nogil=True)
def _accumulate(place: Any, clusters: Any, weights: Any, touched: Any) -> int:
    """Add every edge of the context to its item's sums; list each item once in `touched`; return how many."""
    n_clusters = place[4]
    indptr = carray(_pointer(place[0], np.int64), (n_clusters + 1,))
    items = carray(_pointer(place[1], np.uint32), (indptr[n_clusters],))
    n = 0
    for i in range(clusters.shape[0]):
        c = clusters[i]
        if weights[i] == 0 or c >= n_clusters:  # a weight that rounds to zero is not part of the context
            continue
        w = weights[i] / 65535.0
        w2 = w * w
        for e in range(np.uint64(indptr[c]), np.uint64(indptr[c + 1])):
            j = items[e]
            touched[np.uint64(n)] = j  # written always, kept only the first time: no branch to mispredict
            n += add_pair(place[6] + 16 * np.int64(j), place[2] + np.int64(8 * e), w, w2)
    return n


@njit(cache=True, nogil=True)
def _mark_played(place: Any, clusters: Any, weights: Any, marks: Any) -> None:
    """marks = 1 for items with a play on an edge of the context."""
    n_clusters = place[4]
    indptr = carray(_pointer(place[0], np.int64), (n_clusters + 1,))
    items = carray(_pointer(place[1], np.uint32), (indptr[n_clusters],))
    for i in range(clusters.shape[0]):
        c = clusters[i]
        if weights[i] != 0 and c < n_clusters:
            for e in range(indptr[c], indptr[c + 1]):
                marks[items[e]] |= load_pair(place[2] + 8 * e)[1] > 0


@njit(cache=True, nogil=True)
def _collect(place: Any, n: int, wanted: int, tiers: bool, marks: Any, ids: Any, moments: Any) -> Any:
    """Compact the touched items that may be shown and leave the scratch at zero.

    With `tiers`, played items come first, fresh ones after them; returns how many there are and where fresh ones begin.
    `ids` holds the touched list in its second half and receives the compacted one in its first.
    """
    n_items = place[5]
    paused = carray(_pointer(place[3], np.uint8), (n_items,))
    gate = carray(_pointer(place[8], np.uint8), (n_items,))
    played, back = 0, n_items
    for t in range(n):
        j = ids[n_items + t]
        mean, spread = take(place[6] + 16 * np.int64(j))
        fresh = tiers and marks[j] == 0
        marks[j] = 0
        if spread == 0.0 or paused[j] != 0 or gate[j] != wanted:
            continue
        if fresh:
            back -= 1
            slot = back
        else:
            slot = played
            played += 1
        ids[slot] = j
        moments[0, slot] = mean
        moments[1, slot] = math.sqrt(spread)
    count = played
    for slot in range(back, n_items):
        ids[count] = ids[slot]
        moments[0, count] = moments[0, slot]
        moments[1, count] = moments[1, slot]
        count += 1
    return count, played


@njit(cache=True, nogil=True)
def _offer(scores: Any, t: int, found: int, n: int, left_out: int, ids: Any, word: int, order: Any) -> Any:
    """Let position t compete for order[:n], of which `found` are taken; ties by lot. Returns (found, left_out)."""
    if found < n:
        i = found
        found += 1
    else:
        threshold = scores[order[n - 1]]
        if scores[t] < threshold:
            return found, left_out
        if scores[t] == threshold:
            left_out += 1
            if not _before(scores, t, order[n - 1], ids, word):
                return found, left_out
        else:  # who is pushed out ties with the new last one only if the last score does not rise
            left_out = left_out + 1 if n > 1 and scores[order[n - 2]] == threshold else 0
        i = n - 1
    while i > 0 and _before(scores, t, order[i - 1], ids, word):
        order[i] = order[i - 1]
        i -= 1
    order[i] = t
    return found, left_out


@njit(cache=True, nogil=True)
def _best(scores: Any, first: int, last: int, n: int, ids: Any, word: int, order: Any) -> int:
    """order[:n] = positions in [first, last) of the n best scores, ties by lot; n <= last - first.

    Returns how many items left out tie with the last one taken.
    """
    found = left_out = 0
    if n > 0:
        for t in range(first, last):
            if found < n or scores[t] >= scores[order[n - 1]]:
                found, left_out = _offer(scores, t, found, n, left_out, ids, word, order)
    return left_out


@njit(cache=True, nogil=True)
def _collect_best(
    place: Any,
    touched: int,
    wanted: int,
    alpha: float,
    n: int,
    word: int,
    ids: Any,
    moments: Any,
    scores: Any,
    order: Any,
) -> Any:
    """`_collect`, scores mean + alpha width and `_best` in one pass, keeping only items that reached the n best.

    mean + alpha sqrt(spread) >= threshold needs no root to be refused: alpha^2 spread < (threshold - mean)^2.
    Returns (kept, found, left_out).
    """
    n_items = place[5]
    paused = carray(_pointer(place[3], np.uint8), (n_items,))
    gate = carray(_pointer(place[8], np.uint8), (n_items,))
    squared = alpha * alpha * (1.0 + 1e-12)  # room for rounding: the exact comparison follows
    threshold = -np.inf
    kept = found = left_out = 0
    for t in range(touched):
        j = ids[n_items + t]
        mean, spread = take(place[6] + 16 * np.int64(j))
        gap = threshold - mean
        if gap > 0.0 and squared * spread < gap * gap:
            continue
        if spread == 0.0 or paused[j] != 0 or gate[j] != wanted:
            continue
        width = math.sqrt(spread)
        scores[kept] = mean + alpha * width
        if scores[kept] >= threshold:
            ids[kept] = j
            moments[0, kept] = mean
            moments[1, kept] = width
            found, left_out = _offer(scores, kept, found, n, left_out, ids, word, order)
            kept += 1
            if found == n:
                threshold = scores[order[n - 1]]
    return kept, found, left_out


@njit(cache=True, nogil=True)
def _before(scores: Any, t: int, other: int, ids: Any, word: int) -> bool:
    if scores[t] != scores[other]:
        return bool(scores[t] > scores[other])
    return bool(mix(word, TIE + ids[t]) > mix(word, TIE + ids[other]))


@njit(cache=True, nogil=True)
def _rank(
    scores: Any, count: int, played: int, n: int, fresh_cap: int, ids: Any, word: int, order: Any, spare: Any
) -> int:
    """order[:n] = up to fresh_cap fresh items (positions from `played` on), then played ones, then fresh again.

    Returns how many played items left out tie with the last played one taken.
    """
    fresh = count - played
    ahead = min(fresh, fresh_cap)
    taken = min(played, n - ahead)
    left_out = _best(scores, 0, played, taken, ids, word, order)
    n_fresh = n - taken
    if n_fresh > 0:
        for t in range(played, count):  # fresh items are all alike: their order is by lot alone
            scores[t] = 0.0
        _best(scores, played, count, n_fresh, ids, word, spare)
        for i in range(taken - 1, -1, -1):
            order[ahead + i] = order[i]
        for i in range(n_fresh):
            order[i if i < ahead else taken + i] = spare[i]
    return left_out


@njit(cache=True, nogil=True)
def _probability(
    t: int, position: int, randomized: bool, scores: Any, count: int, played: int, n: int, left_out: int, order: Any
) -> float:
    """P(item at position t of the list is at `position` of the slate) under one ranking."""
    lowest = np.inf
    alike = 0
    for i in range(n):
        o = order[i]
        if o < played:
            lowest = min(lowest, scores[o])
        alike += (o >= played and t >= played) or (o < played and t < played and scores[o] == scores[t])
    if alike == 0:
        return 0.0
    group = count - played if t >= played else alike + (left_out if scores[t] == lowest else 0)
    if randomized:
        return alike / group / n
    o = order[position]
    here = (o >= played) == (t >= played) and (t >= played or scores[o] == scores[t])
    return 1.0 / group if here else 0.0


@njit(cache=True, nogil=True)
def best_of_normals(t: int, first: int, last: int, means: Any, widths: Any, alpha: float) -> float:
    """P(item t has the largest of independent normals (mean, alpha width)), items first..last-1, by quadrature.

        integral of phi_t(x) prod_{i != t} Phi_i(x) dx

    in panels of 10 Gauss-Legendre nodes, as wide as two of the smallest standard deviations that still matter at x.
    """
    low = means[t] - _REACH * alpha * widths[t]
    for i in range(first, last):
        low = max(low, means[i] - _REACH * alpha * widths[i])
    high = means[t] + _REACH * alpha * widths[t]
    total, x = 0.0, low
    while x < high:
        step = alpha * widths[t]
        for i in range(first, last):
            if means[i] + _REACH * alpha * widths[i] > x:
                step = min(step, alpha * widths[i])
        step = min(2.0 * step, high - x)
        for node in range(10):
            point = x + 0.5 * step * (1.0 + _NODES[node])
            z = (point - means[t]) / (alpha * widths[t])
            value = math.exp(-0.5 * z * z) / (math.sqrt(2.0 * math.pi) * alpha * widths[t])
            for i in range(first, last):
                z = (point - means[i]) / (alpha * widths[i])
                if i != t and z < _REACH:
                    value *= 0.5 * math.erfc(-z * math.sqrt(0.5))
                    if value < 1e-30:
                        break
            total += 0.5 * step * _NODE_WEIGHTS[node] * value
        if x + step <= x:
            break
        x += step
    return min(total, 1.0)


@njit(cache=True, nogil=True)
def choose(
    place: NDArray[np.int64],
    clusters: NDArray[np.uint32],
    weights: NDArray[np.uint16],
    exclude: NDArray[np.int64],
    candidates: NDArray[np.int64],
    restricted: bool,
    k: int,
    mode: int,
    alpha: float,
    explore_share: float,
    randomize_top: int,
    fresh_first: bool,
    fresh_share: float,
    word: int,
) -> tuple[int, int]:
    """Fill the slate; return (number of items, mode used). `candidates` counts only when `restricted`."""
    n_items = place[5]
    marks = carray(_pointer(place[7], np.uint8), (n_items,))
    gate = carray(_pointer(place[8], np.uint8), (n_items,))
    ids = carray(_pointer(place[9], np.uint32), (2 * n_items + 1,))
    moments = carray(_pointer(place[10], np.float64), (2, n_items))
    scores = carray(_pointer(place[11], np.float64), (n_items,))
    order = carray(_pointer(place[12], np.int64), (3, n_items))
    slate = carray(_pointer(place[13], np.uint32), (n_items,))
    numbers = carray(_pointer(place[14], np.float64), (2, n_items))
    if alpha == 0.0 and mode == THOMPSON:
        mode = EXPLOIT
    both = mode != EXPLOIT and 0.0 < explore_share < 1.0
    exploring = mode != EXPLOIT and uniform(word, COIN) < explore_share
    used = mode if exploring else EXPLOIT

    for i in range(exclude.shape[0]):
        if 0 <= exclude[i] < n_items:
            gate[exclude[i]] |= _EXCLUDED
    for i in range(candidates.shape[0]):
        if 0 <= candidates[i] < n_items:
            gate[candidates[i]] |= _CANDIDATE
    wanted = _CANDIDATE if restricted else 0
    tiers = fresh_first and mode != EXPLOIT and explore_share > 0.0
    randomized = randomize_top > 1
    n = min(max(k, randomize_top) if randomized else k, n_items)
    means, widths = moments[0], moments[1]
    explore_left = exploit_left = 0
    touched = _accumulate(place, clusters, weights, ids[n_items:])
    if not (both or tiers or used == THOMPSON or n == 0):  # one ranking of one tier: all in one pass
        spread = alpha if exploring else 0.0
        ranking = order[0] if exploring else order[1]
        count, n, left = _collect_best(place, touched, wanted, spread, n, word, ids, moments, scores, ranking)
        played = count
        explore_left = exploit_left = left
    else:
        if tiers:
            _mark_played(place, clusters, weights, marks)
        count, played = _collect(place, touched, wanted, tiers, marks, ids, moments)
        n = min(n, count)
        if exploring or both:
            for t in range(count):
                z = normal(word, ids[t]) if mode == THOMPSON else 1.0
                scores[t] = means[t] + alpha * widths[t] * z
            fresh_cap = math.ceil(fresh_share * n - 1e-9) if tiers else 0
            explore_left = _rank(scores, count, played, n, fresh_cap, ids, word, order[0], order[2])
        if both or not exploring:
            exploit_left = _best(means, 0, count, n, ids, word, order[1])
    for i in range(exclude.shape[0]):
        if 0 <= exclude[i] < n_items:
            gate[exclude[i]] = 0
    for i in range(candidates.shape[0]):
        if 0 <= candidates[i] < n_items:
            gate[candidates[i]] = 0

    k = min(k, n)
    chosen = order[0] if exploring else order[1]
    if randomized:  # the slate is a random sample of the n best; swapping moves nothing out of them
        for i in range(k):
            other = i + int(uniform(word, SHUFFLE + i) * (n - i))
            chosen[i], chosen[other] = chosen[other], chosen[i]
    for i in range(k):
        t = chosen[i]
        slate[i] = ids[t]
        spread = alpha * widths[t] * (normal(word, ids[t]) if used == THOMPSON else 1.0)
        numbers[0, i] = means[t] + (spread if exploring else 0.0)
    # Where the slate is not random the order is the ranking; where it is, only membership counts. Both may be read now.
    share = explore_share if both else (1.0 if exploring else 0.0)
    for i in range(k):
        t = chosen[i]
        p = 0.0
        if share > 0.0:
            if mode == THOMPSON and n > 1:
                p = np.nan  # no closed form for a place in a slate of sampled scores
            elif mode == EXPLORE or t >= played or order[0, 0] >= played:
                p = share * _probability(t, i, randomized, scores, count, played, n, explore_left, order[0])
            else:
                p = share * best_of_normals(t, 0, played, means, widths, alpha)
        if share < 1.0:
            p += (1.0 - share) * _probability(t, i, randomized, means, count, count, n, exploit_left, order[1])
        numbers[1, i] = p
    return k, used
