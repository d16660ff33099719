"""Rows that one process writes and others read, none of them ever waiting for another.

Each row has two copies and a version. The copy `version & 1` is whole. The writer fills the other one, then adds 1 to
the version. A reader copies the whole one between two looks at the version: when that has moved meanwhile the copy may
have been written over, and it reads again. A writer that is stopped, or dies, in the middle of a row holds up nobody.
Fences keep compiler and processor from moving the row's loads and stores across the version's.
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
    states: NDArray[np.float64], versions: NDArray[np.uint64], index: NDArray[np.int64], rows: NDArray[np.float64]
) -> None:
    """Row index[i] becomes rows[i], for all i; `states` is (R, 2, S), `versions` (R,), `rows` (n, S)."""
    for i in range(index.shape[0]):
        at = index[i]
        copy = np.int64(versions[at] + np.uint64(1)) & 1
        for j in range(states.shape[2]):
            states[at, copy, j] = rows[i, j]
        _fence()
        versions[at] += np.uint64(1)
        _fence()


@njit(cache=True, nogil=True)
def read_row(states: int, versions: int, at: int, out: NDArray[np.float64]) -> bool:
    """out = row `at` of the table at address `states`, whole; False when it was rewritten at each of many tries."""
    size = out.shape[0]
    for _ in range(TRIES):
        before = _load(versions + 8 * at)
        start = states + 8 * size * (2 * at + (before & 1))
        for j in range(size):
            out[j] = _float(_load(start + 8 * j))
        _fence()
        if _load(versions + 8 * at) == before:
            return True
    return False


def address(array: NDArray[Any]) -> int:
    """Where an array lies; it must stay alive while the address is used."""
    return int(array.ctypes.data)
