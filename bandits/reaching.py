"""The sums of a context, item by item, and the items whose score reaches the n-th best: the hot part of a choice.

    sums   f32[B, 2]   row j - first = (sum_c w_c mean_cj, sum_c w_c^2 |inverse_cj|), 8 bytes, of the B items from
                       `first` on; B is a multiple of BLOCK

Items are taken in spans of B, and each cluster's edges, which ascend by item, a span at a time: so the sums of all
items go through the same few rows, and these stay in the first cache. Weights, products and sums are rounded to
float32, as the pairs are: half the memory is twice the items there, and that is what bounds a choice.

Between spans every row is (0, -0.0). No sum of widths is ever -0.0, so this tells items not met yet from the others and
needs no second array.

A score mean + alpha sqrt(spread) below a threshold t is refused without a root: t > mean and
(t - mean)^2 > alpha^2 spread.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are names for its types; its code generator gets the values.
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils

from bandits.kernels import intrinsic, prefetch

BLOCK = 16  # items that `best_of_all` looks at together
MOST = 64  # largest n the functions of this module serve
AHEAD = 64  # edges of every segment asked for before the first is read
FIRST_STAGE = 32  # items scored before there is a threshold; a multiple of BLOCK
SPARSE = 8  # a context with fewer edges than a SPARSE-th of the items lists the items it meets
SPAN, SPANS_MAX = 4096, 8  # items whose sums are in the first cache; but with more items, larger spans


def span_of(n_items: int) -> int:
    """Items in a span, B.

    >>> span_of(3), span_of(20_000), span_of(1_000_000)
    (16, 4096, 125008)
    """
    whole = -(-n_items // BLOCK) * BLOCK
    return min(whole, max(SPAN, -(-n_items // SPANS_MAX // BLOCK) * BLOCK))


_BIT, _I32, _I64, _FLOAT = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
_PAIR = ir.VectorType(_FLOAT, 2)
_BLANK = 1 << 63  # the bits of (0, -0.0)


class _VolatileLoad(ir.LoadInstr):  # type: ignore[misc]
    """A load the optimiser may neither split nor repeat: one instruction, so an aligned pair is never torn.

    An atomic load would say the same, but the code generator takes those through an integer register.
    """

    def descr(self, buf: list[str]) -> None:
        text: list[str] = []
        super().descr(text)
        buf.append("".join(text).replace("load ", "load volatile ", 1))


def _spread(builder: Any, values: Any, kind: Any) -> Any:
    vector = ir.Constant(kind, ir.Undefined)
    for i, value in enumerate(values):
        vector = builder.insert_element(vector, value, _I32(i))
    return vector


def _add(builder: Any, sums: Any, pair: Any, w: Any, w2: Any) -> None:
    """sums += (w mean, w2 |inverse|), one 8-byte load of the pair."""
    load = _VolatileLoad(builder.block, builder.inttoptr(pair, ir.DoubleType().as_pointer()))
    load.align = 8
    builder._insert(load)
    integers = ir.VectorType(_I32, 2)
    without_sign = ir.Constant(integers, [0xFFFFFFFF, 0x7FFFFFFF])
    values = builder.bitcast(builder.and_(builder.bitcast(load, integers), without_sign), _PAIR)
    place = builder.inttoptr(sums, _PAIR.as_pointer())
    old = builder.load(place, align=8)
    builder.store(builder.fadd(old, builder.fmul(values, _spread(builder, (w, w2), _PAIR))), place, align=8)


@intrinsic
def _add_pair(typingctx, sums, pair, w, w2):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The row at address `sums` += (w mean, w2 |inverse|) of the pair at address `pair`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _add(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.float32), codegen


@intrinsic
def _add_pair_first(typingctx, sums, pair, w, w2):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """`_add_pair`; 1 if the item was not met before, else 0."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        second = builder.load(builder.inttoptr(builder.add(args[0], _I64(4)), _I32.as_pointer()))
        _add(builder, *args)
        return builder.zext(builder.icmp_unsigned("==", second, _I32(1 << 31)), _I64)

    return types.int64(types.int64, types.int64, types.float32, types.float32), codegen


@intrinsic
def take(typingctx, sums):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(mean, spread) f32 of the row at this address, which is blank afterwards."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        old = builder.load(builder.inttoptr(args[0], _PAIR.as_pointer()), align=8)
        builder.store(_I64(_BLANK), builder.inttoptr(args[0], _I64.as_pointer()), align=8)
        return cgutils.pack_struct(builder, [builder.extract_element(old, _I32(i)) for i in (0, 1)])

    return types.UniTuple(types.float32, 2)(types.int64), codegen


@intrinsic
def _may_reach(typingctx, sums, threshold, squared):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Bit 2 i: row i of the BLOCK rows at this address is not refused; `_refused` written for a whole block at once.

    Means and spreads stay where they are, side by side; each spread is brought to its mean's place.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        n = 2 * BLOCK
        both = ir.VectorType(_FLOAT, n)
        rows = builder.load(builder.inttoptr(args[0], both.as_pointer()), align=64)
        threshold, squared = (_spread(builder, [args[i]] * n, both) for i in (1, 2))
        gap = builder.fsub(threshold, rows)
        kind = ir.FunctionType(both, [both])
        size = builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fabs.v{n}f32"), [gap])
        room = builder.fadd(builder.fmul(squared, rows), ir.Constant(both, [float(_TINY)] * n))
        swap = ir.Constant(ir.VectorType(_I32, n), [_I32(i ^ 1) for i in range(n)])
        room = builder.shuffle_vector(room, ir.Constant(both, ir.Undefined), swap)
        found = builder.fcmp_unordered("<=", builder.fmul(gap, size), room)
        means = builder.and_(builder.bitcast(found, _I32), _I32(0x55555555))
        return builder.zext(means, _I64)

    return types.int64(types.int64, types.float32, types.float32), codegen


@intrinsic
def _blank(typingctx, sums):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The BLOCK rows at this address become blank."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows = ir.VectorType(_I64, BLOCK)
        builder.store(ir.Constant(rows, [_BLANK] * BLOCK), builder.inttoptr(args[0], rows.as_pointer()), align=64)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _lowest_bit(typingctx, bits):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], _BIT(1))

    return types.int64(types.int64), codegen


@intrinsic
def pointer(typingctx, address, like):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The address as a pointer to elements of `like`'s type."""
    kind = types.CPointer(like.dtype if isinstance(like, types.DTypeSpec) else like)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(address, like), codegen


@njit(cache=True, nogil=True)
def begin(place: Any, clusters: Any, edge: Any, end: Any) -> int:
    """edge, end i64[K] = the edges of every cluster; how many there are. Their beginnings are asked for, so that their
    misses overlap."""
    n_clusters, n_edges = np.uint64(place[4]), 0
    indptr = carray(pointer(place[0], np.int64), (1,))
    for i in range(clusters.shape[0]):
        c = np.uint64(clusters[i])
        edge[i] = end[i] = 0
        if c < n_clusters:
            first, last = indptr[c], indptr[c + np.uint64(1)]
            edge[i], end[i] = first, last
            n_edges += last - first
            for e in range(first, min(last, first + AHEAD), 16):
                prefetch(place[1] + 4 * e)
                prefetch(place[2] + 8 * e)
                prefetch(place[2] + 8 * e + 64)
    return n_edges


@njit(cache=True, nogil=True)
def accumulate(place: Any, weights: Any, edge: Any, end: Any, first: int, listed: bool, touched: Any) -> Any:
    """Add the edges of the context to the items of the span from `first` on to their sums, and go on to the next span.

    listed: each item once in `touched`; returns how many.
    """
    items = carray(pointer(place[1], np.uint32), (1,))  # indices are unsigned: no test for a negative one
    pairs, sums, last = place[2], place[6] - 8 * first, first + place[17]
    n = np.uint64(0)
    for i in range(weights.shape[0]):
        if weights[i] == 0:  # a weight that rounds to zero is not part of the context
            continue
        w = np.float32(weights[i] / 65535.0)
        w2 = w * w
        e, stop = np.uint64(edge[i]), np.uint64(end[i])
        if listed:
            while e < stop and items[e] < last:
                touched[n] = items[e]  # written always, kept only the first time: no branch to mispredict
                n += np.uint64(_add_pair_first(sums + 8 * np.int64(items[e]), pairs + np.int64(8 * e), w, w2))
                e += np.uint64(1)
        else:
            while e < stop and items[e] < last:
                _add_pair(sums + 8 * np.int64(items[e]), pairs + np.int64(8 * e), w, w2)
                e += np.uint64(1)
        edge[i] = e
    return np.int64(n)


_TINY = np.float32(1e-37)
_SAFE = np.float32(1.0 + 1e-5)  # more than float32 rounding may take from either side of `_refused`


@njit(cache=True, nogil=True)
def _refused(mean: Any, spread: Any, threshold: Any, squared: Any) -> bool:
    """The score is below the threshold for sure: both rounded in its favour, see `_below` and _SAFE."""
    gap = threshold - mean
    return bool(gap * abs(gap) > squared * spread + _TINY)


@njit(cache=True, nogil=True)
def _below(score: float) -> Any:
    """A float32 below this score, or -inf."""
    return np.float32(score - abs(score) * 1.2e-7)


@njit(cache=True, nogil=True)
def push(score: float, top: Any, n: int) -> None:
    """Into the n best scores, in descending order. No branch, for which scores are pushed cannot be predicted; and no
    step waits for the one before."""
    for i in range(np.uint64(n - 1), np.uint64(0), -1):
        other, before = top[i], top[i - np.uint64(1)]
        low = before if before < score else score
        top[i] = other if other > low else low
    top[0] = top[0] if top[0] > score else score


@njit(cache=True, nogil=True)
def _keep(ids: Any, scores: Any, kept: Any, threshold: float) -> Any:
    """Compact to the scores of at least `threshold`."""
    n = np.uint64(0)
    for i in range(kept):
        j, score = ids[i], scores[i]
        ids[n], scores[n] = j, score
        n += np.uint64(score >= threshold)
    return np.int64(n)


@njit(cache=True, nogil=True)
def _score(place: Any, wanted: int, alpha: float, n: int, kept: Any, last: Any, ids: Any, scores: Any, top: Any) -> Any:
    """Of the items ids[kept:last], whose sums are the rows at place[10], those stay that may be shown; how many are
    kept then. Their scores go into `scores` and, where they belong there, into `top`."""
    paused = carray(pointer(place[3], np.uint8), (1,))
    gate = carray(pointer(place[8], np.uint8), (1,))
    rows = carray(pointer(place[10], np.float32), (1, 2))
    for i in range(kept, last):
        j = np.uint64(ids[i])
        spread = rows[i, 1]
        met = not (spread == 0.0 and math.copysign(1.0, spread) < 0.0)
        if met and (paused[j] == 0) & (gate[j] == wanted):  # rows beyond the last item are never met
            score = np.float64(rows[i, 0]) + alpha * math.sqrt(np.float64(spread))
            ids[kept] = j
            scores[kept] = score
            kept += np.uint64(1)
            push(score, top, n)
    return kept


@njit(cache=True, nogil=True)
def best_of_listed(
    place: Any,
    first: int,
    touched: Any,
    n_touched: int,
    wanted: int,
    alpha: float,
    n: int,
    n_kept: int,
    ids: Any,
    scores: Any,
    top: Any,
) -> Any:
    """Items of `touched` that may be shown and may be among the n best so far join ids and scores; all sums are blank.

    top: the n best scores so far, descending, -inf where there are fewer. n_kept: how many items there are; returns
    how many there are then. In stages, each twice as long as the one before: a stage first drops what the threshold of
    the last one refuses, without a branch, and then takes the few others' roots. Backwards, for the last rows touched
    are still cached.
    """
    rows = carray(pointer(place[10], np.float32), (1, 2))
    sums, squared = place[6] - 8 * first, np.float32(alpha * alpha) * _SAFE
    kept, left, size = np.uint64(n_kept), np.uint64(n_touched), np.uint64(FIRST_STAGE)
    while left > 0:
        threshold = _below(top[n - 1])
        stop = left - min(size, left)
        size += size
        last = kept
        while left > stop:
            left -= np.uint64(1)
            j = np.uint64(touched[left])
            mean, spread = take(sums + np.int64(8 * j))
            ids[last] = j
            rows[last, 0] = mean
            rows[last, 1] = spread
            last += np.uint64(not _refused(mean, spread, threshold, squared))
        kept = _score(place, wanted, alpha, n, kept, last, ids, scores, top)
    return np.int64(kept)


@njit(cache=True, nogil=True)
def best_of_all(
    place: Any, first: int, wanted: int, alpha: float, n: int, n_kept: int, ids: Any, scores: Any, top: Any
) -> Any:
    """`best_of_listed` by looking at every item of the span: for contexts with edges to a good part of them."""
    sums, squared = place[6], np.float32(alpha * alpha) * _SAFE
    words = carray(pointer(place[6], np.int64), (1,))
    rows = carray(pointer(place[10], np.int64), (1,))
    kept, span = np.uint64(n_kept), np.uint64(min(place[17], place[5] - first))
    block, size = np.uint64(0), np.uint64(FIRST_STAGE)
    while block < span:
        threshold = _below(top[n - 1])
        stop = min(block + size, span)
        size += size
        last = kept
        while block < stop:
            bits = _may_reach(sums + np.int64(8 * block), threshold, squared)
            while bits != 0:
                row = block + np.uint64(_lowest_bit(bits) >> 1)
                bits &= bits - 1
                ids[last] = row + np.uint64(first)
                rows[last] = words[row]
                last += np.uint64(1)
            _blank(sums + np.int64(8 * block))
            block += np.uint64(BLOCK)
        kept = _score(place, wanted, alpha, n, kept, last, ids, scores, top)
    return np.int64(kept)


@njit(cache=True, nogil=True)
def best(
    place: Any,
    clusters: Any,
    weights: Any,
    wanted: int,
    alpha: float,
    n: int,
    touched: Any,
    ids: Any,
    scores: Any,
    top: Any,
    edge: Any,
    end: Any,
) -> Any:
    """The items of the context that may be shown and whose score is at least the n-th best, in no order; how many.

    ids, scores: theirs. top: the n best scores, descending, -inf where there are fewer.
    """
    n_items, span = place[5], place[17]
    for i in range(n):
        top[i] = -np.inf
    listed = SPARSE * begin(place, clusters, edge, end) < n_items
    kept = 0
    for first in range(0, n_items, span):
        n_touched = accumulate(place, weights, edge, end, first, listed, touched)
        if listed:
            kept = best_of_listed(place, first, touched, n_touched, wanted, alpha, n, kept, ids, scores, top)
        else:
            kept = best_of_all(place, first, wanted, alpha, n, kept, ids, scores, top)
    return _keep(ids, scores, kept, top[n - 1])
