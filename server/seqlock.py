"""Rows that one process writes and others read, none of them waiting: a lock word per row (a seqlock).

The writer makes the word odd, writes the row, makes it even again. A reader copies the row between two looks at the
word, and does it again when the word was odd or has changed. Fences keep compiler and processor from moving the row's
loads and stores across the word's.
"""

# ruff: noqa: ARG001 - numba fixes the parameters of intrinsics
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

TRIES = 1000


@intrinsic
def _fence_of(typingctx):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _load_of(typingctx, address):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, ordering="seq_cst", align=8)

    return types.int64(types.int64), codegen


@intrinsic
def _float_of(typingctx, word):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


# mypy takes an intrinsic for the function that makes its code, which has one argument more.
_fence: Any = _fence_of
_load: Any = _load_of
_float: Any = _float_of


@njit(cache=True, nogil=True)
def write_rows(
    states: NDArray[np.float64], locks: NDArray[np.uint64], index: NDArray[np.int64], rows: NDArray[np.float64]
) -> None:
    """states[index[i]] = rows[i] for all i; `states` is (R, S), `locks` (R,)."""
    for i in range(index.shape[0]):
        at = index[i]
        locks[at] += np.uint64(1)
        _fence()
        for j in range(states.shape[1]):
            states[at, j] = rows[i, j]
        _fence()
        locks[at] += np.uint64(1)


@njit(cache=True, nogil=True)
def read_row(states: int, locks: int, at: int, out: NDArray[np.float64]) -> bool:
    """out = row `at` of the table at address `states`, whole; False when its writer never came to rest.

    That happens when the writer died inside; its successor writes a new table.
    """
    size = out.shape[0]
    for _ in range(TRIES):
        before = _load(locks + 8 * at)
        if before & 1:
            continue
        for j in range(size):
            out[j] = _float(_load(states + 8 * (at * size + j)))
        _fence()
        if _load(locks + 8 * at) == before:
            return True
    return False


def address(array: NDArray[Any]) -> int:
    """Where an array lies; it must stay alive while the address is used."""
    return int(array.ctypes.data)
