"""Loads, stores and copies at addresses, for kernels that read and write byte layouts.

Addresses are int64. A store here need not be aligned; who needs one that cannot tear uses bandits/kernels.py.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are names for its types; its code generator gets the values.
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from bandits.kernels import intrinsic


@intrinsic
def put(typingctx, address, value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Store a number, as wide as its type, little-endian."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = context.get_value_type(signature.args[1])
        builder.store(args[1], builder.inttoptr(args[0], kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def get(typingctx, address, like):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The number of `like`'s type at this address."""
    kind = like.dtype if isinstance(like, types.DTypeSpec) else like

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(args[0], context.get_value_type(kind).as_pointer()), align=1)

    return kind(types.int64, like), codegen


@intrinsic
def copy(typingctx, to, source, n_bytes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """n_bytes from one address to another; they do not overlap."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def product(typingctx, x, y):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """(high, low) 64 bits of the product of two uint64."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        wide = ir.IntType(128)
        whole = builder.mul(*(builder.zext(each, wide) for each in args))
        word = ir.IntType(64)
        halves = [builder.trunc(builder.lshr(whole, wide(64)), word), builder.trunc(whole, word)]
        return cgutils.pack_struct(builder, halves)

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), codegen


@intrinsic
def bits(typingctx, value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The bits of a float64 as a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


@intrinsic
def from_bits(typingctx, word):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The float64 of these bits, a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


@intrinsic
def leading_zeros(typingctx, word):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Of a uint64 that is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen
