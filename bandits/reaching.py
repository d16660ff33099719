"""The sums of a context, item by item, and the items whose score reaches the n-th best: the hot part of a choice.

    sums   f32[N', 2]   row j = (sum_c w_c mean_cj, sum_c w_c^2 |inverse_cj|), 8 bytes, N' = N rounded up to 16

Between calls every row is (0, -0.0). No sum of widths is ever -0.0, so this tells items not met yet from the others and
needs no second array. Weights, products and sums are rounded to float32, as the pairs are: half the memory is twice
the items in the first cache, and that is what bounds a choice.

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

BLOCK = 16  # items looked at together by `best_of_all`
MOST = 64  # largest n the functions of this module serve
AHEAD = 64  # edges of every segment asked for before the first is read
FIRST_STAGE = 32  # items scored before there is a threshold

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
    """Bit i: row i of the BLOCK rows at this address is not refused; `_refused` written for a whole block at once."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        one, both = ir.VectorType(_FLOAT, BLOCK), ir.VectorType(_FLOAT, 2 * BLOCK)
        rows = builder.load(builder.inttoptr(args[0], both.as_pointer()), align=64)

        def column(c: int) -> Any:
            picks = ir.Constant(ir.VectorType(_I32, BLOCK), [_I32(2 * i + c) for i in range(BLOCK)])
            return builder.shuffle_vector(rows, ir.Constant(both, ir.Undefined), picks)

        threshold, squared = (_spread(builder, [args[i]] * BLOCK, one) for i in (1, 2))
        gap = builder.fsub(threshold, column(0))
        kind = ir.FunctionType(one, [one])
        size = builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fabs.v{BLOCK}f32"), [gap])
        room = builder.fadd(builder.fmul(squared, column(1)), ir.Constant(one, [float(_TINY)] * BLOCK))
        bits = builder.bitcast(builder.fcmp_unordered("<=", builder.fmul(gap, size), room), ir.IntType(BLOCK))
        return builder.zext(bits, _I64)

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
def ask_for_segments(place: Any, clusters: Any) -> int:
    """Prefetch the beginning of every cluster's edges, so that their misses overlap; how many edges there are."""
    n_clusters, n_edges = np.uint64(place[4]), 0
    indptr = carray(pointer(place[0], np.int64), (1,))
    for i in range(clusters.shape[0]):
        c = np.uint64(clusters[i])
        if c < n_clusters:
            first, last = indptr[c], indptr[c + np.uint64(1)]
            n_edges += last - first
            for e in range(first, min(last, first + AHEAD), 16):
                prefetch(place[1] + 4 * e)
                prefetch(place[2] + 8 * e)
                prefetch(place[2] + 8 * e + 64)
    return n_edges


@njit(cache=True, nogil=True)
def accumulate(place: Any, clusters: Any, weights: Any, listed: bool, touched: Any) -> Any:
    """Add every edge of the context to its item's sums; `listed`: each item once in `touched`; return how many."""
    n_clusters = np.uint64(place[4])
    indptr = carray(pointer(place[0], np.int64), (1,))  # indices are unsigned: no test for a negative one
    items = carray(pointer(place[1], np.uint32), (1,))
    pairs, sums = place[2], place[6]
    n = np.uint64(0)
    for i in range(clusters.shape[0]):
        c = np.uint64(clusters[i])
        if weights[i] == 0 or c >= n_clusters:  # a weight that rounds to zero is not part of the context
            continue
        w = np.float32(weights[i] / 65535.0)
        w2 = w * w
        first, last = np.uint64(indptr[c]), np.uint64(indptr[c + np.uint64(1)])
        if listed:
            for e in range(first, last):
                touched[n] = items[e]  # written always, kept only the first time: no branch to mispredict
                n += np.uint64(_add_pair_first(sums + 8 * np.int64(items[e]), pairs + np.int64(8 * e), w, w2))
        else:
            for e in range(first, last):
                _add_pair(sums + 8 * np.int64(items[e]), pairs + np.int64(8 * e), w, w2)
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
    """Into the n best scores, in descending order. No branch: which scores are pushed cannot be predicted."""
    for i in range(np.uint64(n)):
        other = top[i]
        stays = other > score
        top[i] = other if stays else score
        score = score if stays else other


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
def best_of_listed(
    place: Any, touched: Any, n_touched: int, wanted: int, alpha: float, n: int, ids: Any, scores: Any, top: Any
) -> Any:
    """Items of `touched` that may be shown and whose score is at least the n-th best, in no order; blank all sums.

    ids, scores: theirs. top: the n best scores, descending, -inf where there are fewer. Returns how many items.
    In stages, each twice as long as the one before: a stage first drops what the threshold of the last one refuses,
    without a branch, and then takes the few others' roots. Backwards, for the last rows touched are still cached.
    """
    paused = carray(pointer(place[3], np.uint8), (1,))
    gate = carray(pointer(place[8], np.uint8), (1,))
    rows = carray(pointer(place[10], np.float32), (1, 2))
    sums, squared = place[6], np.float32(alpha * alpha) * _SAFE
    threshold = np.float32(-np.inf)
    for i in range(n):
        top[i] = -np.inf
    kept, left, size = np.uint64(0), np.uint64(n_touched), np.uint64(FIRST_STAGE)
    while left > 0:
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
        for i in range(kept, last):
            j = np.uint64(ids[i])
            if (paused[j] == 0) & (gate[j] == wanted):
                score = np.float64(rows[i, 0]) + alpha * math.sqrt(np.float64(rows[i, 1]))
                ids[kept] = j
                scores[kept] = score
                kept += np.uint64(1)
                push(score, top, n)
        threshold = _below(top[n - 1])
    return _keep(ids, scores, np.int64(kept), top[n - 1])


@njit(cache=True, nogil=True)
def best_of_all(place: Any, wanted: int, alpha: float, n: int, ids: Any, scores: Any, top: Any) -> Any:
    """`best_of_listed` by looking at every item there is: for contexts with edges to a good part of them."""
    paused = carray(pointer(place[3], np.uint8), (1,))
    gate = carray(pointer(place[8], np.uint8), (1,))
    rows = carray(pointer(place[6], np.float32), (1, 2))
    sums, squared = place[6], np.float32(alpha * alpha) * _SAFE
    threshold = np.float32(-np.inf)
    for i in range(n):
        top[i] = -np.inf
    kept = np.uint64(0)
    for block in range(np.uint64(0), np.uint64(place[5]), np.uint64(BLOCK)):
        bits = _may_reach(sums + np.int64(8 * block), threshold, squared)
        while bits != 0:
            j = block + np.uint64(_lowest_bit(bits))
            bits &= bits - 1
            mean, spread = np.float64(rows[j, 0]), np.float64(rows[j, 1])
            score = mean + alpha * math.sqrt(spread)
            met = not (spread == 0.0 and math.copysign(1.0, spread) < 0.0)  # rows beyond N are never met
            if score >= top[n - 1] and met and paused[j] == 0 and gate[j] == wanted:
                ids[kept] = j
                scores[kept] = score
                kept += np.uint64(1)
                push(score, top, n)
                threshold = _below(top[n - 1])
        _blank(sums + np.int64(8 * block))
    return _keep(ids, scores, np.int64(kept), top[n - 1])
