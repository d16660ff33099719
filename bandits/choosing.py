"""The kernel that chooses: from the edges of a user's clusters to a slate with exact propensities.

    clusters, weights --accumulate--> sum w mean, sum w^2 |inverse| per item --rank--> the n best --draw--> slate

Long-lived arrays come in as addresses in one int64 array (an array argument costs 0.1 us of dispatch, and there are
fourteen); `bandits.diag_linucb.Serving` builds it and keeps the arrays alive:

    place[ ]  0 indptr i64[C+1]   1 items u32[E]   2 pairs f32[E,2]   3 paused u8[N]   4 C   5 N
              6 sums f32[N',2]    7 marks u8[N]    8 gate u8[N]       (scratch; blank or zero between calls)
              9 ids u32[2N'+1]   10 moments f64[2,N']  11 scores f64[N]  12 order i64[3,N]   (N': N in whole blocks)
             13 slate_index u32[N]  14 slate_numbers f64[2,N] = (score, propensity)
             15 settings f64[6] = (alpha, explore_share, randomize_top, fresh_first, fresh_share, mode)
             16 top f64[MOST], and lots u64[MOST] behind it
             17 B, see bandits/reaching.py    18 edge i64[2,CLUSTERS_MAX]

The common choice, one ranking of at most MOST items, is made by bandits/reaching.py; the functions here rank in tiers,
by sampled scores, or twice, and say what the propensities are.

Nothing here draws random numbers: one 64-bit word comes in and every coin is derived from it by `mix`, the finaliser of
splitmix64, so that a choice is a function of (state, context, word). The slow twin is tests/naive/diag.py.
"""

import math
from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from bandits.kernels import load_pair
from bandits.reaching import MOST, accumulate, begin, best, pointer, take

EXPLORE, EXPLOIT, THOMPSON = 0, 1, 2
PLACES, CLUSTERS_MAX = 19, 256

EXCLUDED, CANDIDATE = 1, 2  # gate of an item during one choice

# What the word is used for, and where the counters of each use begin.
COIN, TIE, SHUFFLE, NORMAL = 1 << 40, 2 << 40, 3 << 40, 4 << 40

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_REACH = 8.0  # standard deviations beyond which a normal has no mass worth counting (1e-15)


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
def _mark_played(place: Any, clusters: Any, weights: Any, marks: Any) -> None:
    """marks = 1 for items with a play on an edge of the context."""
    n_clusters = place[4]
    indptr = carray(pointer(place[0], np.int64), (n_clusters + 1,))
    items = carray(pointer(place[1], np.uint32), (indptr[n_clusters],))
    for i in range(clusters.shape[0]):
        c = clusters[i]
        if weights[i] != 0 and c < n_clusters:
            for e in range(indptr[c], indptr[c + 1]):
                marks[items[e]] |= load_pair(place[2] + 8 * e)[1] > 0


@njit(cache=True, nogil=True)
def _collect(
    place: Any, clusters: Any, weights: Any, wanted: int, tiers: bool, marks: Any, ids: Any, moments: Any
) -> Any:
    """ids, moments = the context's items that may be shown, their means and widths; the scratch is left blank.

    With `tiers`, played items come first, fresh ones after them; returns how many there are and where fresh ones begin.
    `ids` holds a span's touched items in its second half.
    """
    n_items = place[5]
    edge = carray(pointer(place[18], np.int64), (2, CLUSTERS_MAX))
    begin(place, clusters, edge[0], edge[1])
    played, back = 0, n_items
    for first in range(0, n_items, place[17]):
        n = accumulate(place, weights, edge[0], edge[1], first, True, ids[n_items:])
        played, back = _collect_span(place, first, n, wanted, tiers, marks, ids, moments, played, back)
    count = played
    for slot in range(back, n_items):
        ids[count] = ids[slot]
        moments[0, count] = moments[0, slot]
        moments[1, count] = moments[1, slot]
        count += 1
    return count, played


@njit(cache=True, nogil=True)
def _collect_span(
    place: Any,
    first: int,
    n: int,
    wanted: int,
    tiers: bool,
    marks: Any,
    ids: Any,
    moments: Any,
    played: int,
    back: int,
) -> Any:
    """The n touched items of a span; fresh ones fill ids from its end on."""
    n_items = place[5]
    paused = carray(pointer(place[3], np.uint8), (n_items,))
    gate = carray(pointer(place[8], np.uint8), (n_items,))
    for t in range(n):
        j = ids[n_items + t]
        mean, spread = take(place[6] + 8 * (np.int64(j) - first))
        fresh = tiers and marks[j] == 0
        marks[j] = 0
        if paused[j] != 0 or gate[j] != wanted:
            continue
        if fresh:
            back -= 1
            slot = back
        else:
            slot = played
            played += 1
        ids[slot] = j
        moments[0, slot] = mean
        moments[1, slot] = math.sqrt(np.float64(spread))
    return played, back


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
def limit(place: NDArray[np.int64], items: NDArray[np.int64], bit: int) -> None:
    """Set this bit of the gate of these items; 0: open it. Numbers that are no item's are ignored."""
    n_items = place[5]
    gate = carray(pointer(place[8], np.uint8), (n_items,))
    for i in range(items.shape[0]):
        if 0 <= items[i] < n_items:
            gate[items[i]] = gate[items[i]] | bit if bit else 0


@njit(cache=True, nogil=True)
def _by_lot(scores: Any, count: int, n: int, ids: Any, word: int, order: Any, top: Any, lots: Any) -> int:
    """`_best` of scores none of which is below top[n - 1], the n-th best: only equal ones have to be told apart.

    An untaught policy is full of them, so each gets its lot once, and of those that equal the last only the drawn are
    put in order.
    """
    lowest = top[n - 1]
    above = 0
    while above < n and top[above] > lowest:
        above += 1
    higher, drawn = 0, above
    for t in range(count):
        lot = mix(word, TIE + ids[t])
        if scores[t] > lowest:
            i, first, higher = higher, 0, higher + 1
        elif drawn < n:
            i, first, drawn = drawn, above, drawn + 1
        elif lot > lots[n - 1]:
            i, first = n - 1, above
        else:
            continue
        while i > first:
            before = order[i - 1]
            if scores[before] > scores[t] or (scores[before] == scores[t] and lots[i - 1] > lot):
                break
            order[i], lots[i] = before, lots[i - 1]
            i -= 1
        order[i], lots[i] = t, lot
    return count - n


@njit(cache=True, nogil=True)
def _one_ranking(
    place: Any,
    clusters: Any,
    weights: Any,
    wanted: int,
    alpha: float,
    n: int,
    word: int,
    ids: Any,
    scores: Any,
    order: Any,
) -> Any:
    """order[:n] = positions in ids, scores of the n <= MOST best items. Returns (count, n, left_out, all differ)."""
    n_items = place[5]
    top = carray(pointer(place[16], np.float64), (MOST,))
    edge = carray(pointer(place[18], np.int64), (2, CLUSTERS_MAX))
    count = best(place, clusters, weights, wanted, alpha, n, ids[n_items:], ids, scores, top, edge[0], edge[1])
    differ = count <= n
    for i in range(1, count if differ else 0):  # `top` has no room for more than n
        differ &= top[i - 1] > top[i]
    n = min(n, count)
    if not differ:
        lots = carray(pointer(place[16] + 8 * MOST, np.uint64), (MOST,))
        return count, n, _by_lot(scores, count, n, ids, word, order, top, lots), False
    for t in range(count):  # the rank is how many scores are larger: no branch to mispredict
        rank = 0
        for i in range(count):
            rank += top[i] > scores[t]
        order[rank] = t
    return count, n, 0, True


@njit(cache=True, nogil=True)
def choose(
    place: NDArray[np.int64],
    clusters: NDArray[np.uint32],
    weights: NDArray[np.uint16],
    wanted: int,
    k: int,
    mode: int,
    word: int,
) -> tuple[int, int]:
    """Fill the slate; return (number of items, mode used).

    wanted: the gate of items that may be shown, see `limit`: 0, or CANDIDATE. mode: -1 is the policy's own; another one
    is not mixed with exploiting.
    """
    n_items = place[5]
    ids = carray(pointer(place[9], np.uint32), (2 * n_items + 1,))
    moments = carray(pointer(place[10], np.float64), (2, n_items))
    scores = carray(pointer(place[11], np.float64), (n_items,))
    order = carray(pointer(place[12], np.int64), (3, n_items))
    slate = carray(pointer(place[13], np.uint32), (n_items,))
    numbers = carray(pointer(place[14], np.float64), (2, n_items))
    settings = carray(pointer(place[15], np.float64), (6,))
    alpha, explore_share, fresh_first, fresh_share = settings[0], settings[1], settings[3], settings[4]
    randomize_top = int(settings[2])
    if mode < 0:
        mode = int(settings[5])
    else:
        explore_share = 1.0
    if alpha == 0.0 and mode == THOMPSON:
        mode = EXPLOIT
    both = mode != EXPLOIT and 0.0 < explore_share < 1.0
    exploring = mode != EXPLOIT and uniform(word, COIN) < explore_share
    used = mode if exploring else EXPLOIT
    tiers = fresh_first > 0.0 and mode != EXPLOIT and explore_share > 0.0
    randomized = bool(randomize_top > 1)
    n = min(max(k, randomize_top) if randomized else k, n_items)
    means, widths = moments[0], moments[1]
    explore_left = exploit_left = 0
    differ = False  # known: nothing ties and nothing is mixed
    if 0 < n <= MOST and not (both or tiers or used == THOMPSON):
        spread = alpha if exploring else 0.0
        ranking = order[0] if exploring else order[1]
        count, n, left, differ = _one_ranking(place, clusters, weights, wanted, spread, n, word, ids, scores, ranking)
        played, explore_left, exploit_left = count, left, left
        for t in range(count):
            means[t], widths[t] = scores[t], 0.0
    else:
        marks = carray(pointer(place[7], np.uint8), (n_items,))
        if tiers:
            _mark_played(place, clusters, weights, marks)
        count, played = _collect(place, clusters, weights, wanted, tiers, marks, ids, moments)
        n = min(n, count)
        if exploring or both:
            for t in range(count):
                z = normal(word, ids[t]) if mode == THOMPSON else 1.0
                scores[t] = means[t] + alpha * widths[t] * z
            fresh_cap = math.ceil(fresh_share * n - 1e-9) if tiers else 0
            explore_left = _rank(scores, count, played, n, fresh_cap, ids, word, order[0], order[2])
        if both or not exploring:
            exploit_left = _best(means, 0, count, n, ids, word, order[1])

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
        numbers[1, i] = 1.0 / n if randomized else 1.0
    if differ:
        return k, used
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
