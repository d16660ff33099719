"""The loops of Diag-LinUCB: learn and refresh. Arrays in, arrays out; bandits/diag_linucb.py says what they mean.

Two orders of the same edges, both fixed by the graph:

    item order (learning)      edges   f64[E, 2]   row = (b, d): sum of w * reward, sum of w^2, both without the prior
                               indptr  i64[N+1]    edges of item j are indptr[j]:indptr[j+1], their clusters ascending
    cluster order (serving)    pairs   f32[E, 2]   row = (mean, inverse), 8 bytes, little endian:

        byte 0        4        8
             | mean   | inverse |      mean = b / (d + prior g),  |inverse| = g / (d + prior g),  < 0: no play yet
             +--------+---------+

A row is written with one aligned 8-byte store and read with one aligned 8-byte load, so a reader in another process
sees an old row or a new one and never half of each.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are names for its types; its code generator gets the values.
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _typed_intrinsic
from numpy.typing import NDArray

intrinsic: Any = _typed_intrinsic  # its calls have fewer arguments than its type says

F32_MAX = 1.0e35  # means beyond it are held there, so that no float32 sum over a user's clusters overflows
F32_TINY = 1.0e-30  # an edge has some width, however often it was shown


@intrinsic
def load_pair(typingctx, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The row of `pairs` at this address, (mean, inverse), by one atomic load: the optimiser may not split it."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        word = builder.load_atomic(place, ordering="monotonic", align=8)
        pair = builder.bitcast(word, ir.VectorType(ir.FloatType(), 2))
        halves = [builder.extract_element(pair, ir.Constant(ir.IntType(32), i)) for i in (0, 1)]
        return cgutils.pack_struct(builder, halves)

    return types.UniTuple(types.float32, 2)(types.int64), codegen


@intrinsic
def store_pair(typingctx, address, mean, inverse):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the row of `pairs` at this address by one atomic store."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pair = ir.Constant(ir.VectorType(ir.FloatType(), 2), ir.Undefined)
        for i in (0, 1):
            pair = builder.insert_element(pair, args[1 + i], ir.Constant(ir.IntType(32), i))
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store_atomic(builder.bitcast(pair, ir.IntType(64)), place, ordering="monotonic", align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.float32), codegen


@intrinsic
def prefetch(typingctx, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Ask for the cache line of this address; any address will do."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(
            call, [builder.inttoptr(args[0], pointer), number(0), number(3), number(1)]
        )  # a read, of data, to keep
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# ---------------------------------------------------------------------------------------------------------- learning


@njit(cache=True, nogil=True)
def find_edge(edge_clusters: NDArray[np.uint32], low: int, high: int, cluster: int) -> int:
    """Position of `cluster` in edge_clusters[low:high] (ascending), or -1."""
    length = high - low
    while length > 1:
        half = length >> 1
        low += half if edge_clusters[low + half - 1] < cluster else 0
        length -= half
    return low if length == 1 and edge_clusters[low] == cluster else -1


@njit(cache=True, nogil=True)
def learn(
    item: NDArray[np.int64],
    start: NDArray[np.int64],
    count: NDArray[np.int64],
    clusters: NDArray[np.uint32],
    weights: NDArray[np.float64],
    play: NDArray[np.float64],
    amount: NDArray[np.float64],
    scale: NDArray[np.float64],
    indptr: NDArray[np.int64],
    edge_clusters: NDArray[np.uint32],
    edges: NDArray[np.float64],
    touched: NDArray[np.uint8],
    dirty: NDArray[np.int64],
    n_dirty: int,
) -> int:
    """For update u and every cluster c of clusters[start[u]:start[u]+count[u]] with an edge to item[u], in this order:

        d += play[u] w_c^2 scale[u];    b += amount[u] w_c scale[u]

    Edges changed for the first time since `touched` was cleared are appended to `dirty` (room for all edges).
    Returns the new n_dirty.
    """
    for u in range(item.shape[0]):
        low, high = indptr[item[u]], indptr[item[u] + 1]
        for i in range(start[u], start[u] + count[u]):
            e = find_edge(edge_clusters, low, high, clusters[i])
            if e >= 0:
                w = weights[i]
                edges[e, 0] += amount[u] * w * scale[u]
                edges[e, 1] += play[u] * w * w * scale[u]
                dirty[n_dirty] = e
                n_dirty += 1 - touched[e]
                touched[e] = 1
    return n_dirty


@njit(cache=True, nogil=True)
def learn_edges(
    edge: NDArray[np.int64],
    w: NDArray[np.float64],
    play: NDArray[np.float64],
    amount: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> None:
    """`learn` where the edges are known: d += play w^2; b += amount w, one edge after the other."""
    base = edges.ctypes.data
    for i in range(edge.shape[0]):  # their misses overlap
        prefetch(base + 16 * edge[i])
    for i in range(edge.shape[0]):
        e = np.uint64(edge[i])  # unsigned: no test for a negative index
        edges[e, 0] += amount[i] * w[i]
        edges[e, 1] += play[i] * w[i] * w[i]


@njit(cache=True, nogil=True)
def rebase(edges: NDArray[np.float64], factor: float) -> None:
    """Multiply every accumulator by `factor` (a power of two: exact), when forward decay moves its origin."""
    for e in range(edges.shape[0]):
        edges[e, 0] *= factor
        edges[e, 1] *= factor


@njit(cache=True, nogil=True)
def growth(time_ms: NDArray[np.int64], origin_ms: int, half_life_ms: float, out: NDArray[np.float64]) -> None:
    """out = g(t) = 2^((t - origin) / half_life), the scale of forward decay; half_life 0 means no decay: 1."""
    for i in range(time_ms.shape[0]):
        out[i] = 2.0 ** ((time_ms[i] - origin_ms) / half_life_ms) if half_life_ms > 0.0 else 1.0


# ----------------------------------------------------------------------------------------------------------- serving


@njit(cache=True, nogil=True, error_model="numpy")
def _refresh_one(address: Any, b: float, d: float, prior: float, g: float) -> None:
    total = d + prior * g
    mean = b / total
    mean = mean if mean < F32_MAX else F32_MAX
    mean = mean if mean > -F32_MAX else -F32_MAX
    inverse = max(g / total, F32_TINY)
    store_pair(address, np.float32(mean), np.float32(inverse if d > 0.0 else -inverse))


@njit(cache=True, nogil=True, error_model="numpy")
def refresh(
    edges: NDArray[np.float64],
    prior: float,
    g: float,
    serving: NDArray[np.uint32],
    dirty: NDArray[np.int64],
    pairs: NDArray[np.float32],
) -> None:
    """Write the pairs of the edges `dirty` (item order) to their places in cluster order."""
    base = pairs.ctypes.data
    for i in range(dirty.shape[0]):
        e = dirty[i]
        _refresh_one(base + 8 * np.int64(serving[e]), edges[e, 0], edges[e, 1], prior, g)


@njit(cache=True, nogil=True, error_model="numpy")
def refresh_all(
    edges: NDArray[np.float64], prior: float, g: float, serving: NDArray[np.uint32], pairs: NDArray[np.float32]
) -> None:
    """`refresh` for every edge: at the start, and as time passes under a half-life."""
    base = pairs.ctypes.data
    for e in range(edges.shape[0]):
        _refresh_one(base + 8 * np.int64(serving[e]), edges[e, 0], edges[e, 1], prior, g)
