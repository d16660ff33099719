"""Numbers are written with the digits, and in the spelling, of msgspec."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit

from server import decimals

SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 9.5, 1e-4, 1e-5, 9.999e-6, 1e-6, 1.25e-7, 5e-324, 2.2250738585072014e-308,
    4.4501477170144023e-308, 1.7976931348623157e308, 123456.789, 1e15, 123456789012345.6, 9007199254740993.0, 1e16,
    1.5e16, 1e17, 1e22, 1e23, 123456789012345678.0, -2.5e-10, 2.0**-1074, 2.0**1023, 2.0**53, 2.0**54 + 4,
]  # fmt: skip


def written(value: float) -> bytes:
    room = np.zeros(decimals.ROOM + 8, np.uint8)
    size = decimals.write_number(room.ctypes.data, value) - room.ctypes.data
    assert size <= decimals.ROOM
    assert not room[decimals.ROOM :].any(), "nothing is written beyond the room"
    return room[:size].tobytes()


@pytest.mark.parametrize("value", SPECIAL)
def test_special_numbers(value: float) -> None:
    assert written(value) == msgspec.json.encode(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(-1.2345678901234567e-300)
def test_any_number(value: float) -> None:
    assert written(value) == msgspec.json.encode(value)


def test_nan_is_null() -> None:
    assert written(float("nan")) == b"null"


@njit
def _write_all(values, at, ends):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        at = decimals.write_number(at, values[i])
        ends[i] = at


@pytest.mark.parametrize("kind", ["bits", "unit", "float32", "cents", "powers of two", "powers of ten"])
def test_many_numbers_of_each_kind(kind: str) -> None:
    rng = np.random.default_rng(1)
    n = 20_000
    values = {
        "bits": lambda: rng.integers(0, 0x7FE << 52, n, np.uint64).view(np.float64),
        "unit": lambda: rng.random(n),
        "float32": lambda: rng.random(n, np.float32).astype(np.float64),
        "cents": lambda: np.round(rng.random(n) * 1000, 2),
        "powers of two": lambda: 2.0 ** rng.integers(-1074, 1023, n),
        "powers of ten": lambda: 10.0 ** rng.integers(-320, 308, n),
    }[kind]()
    room, ends = np.zeros(decimals.ROOM * (n + 1), np.uint8), np.empty(n, np.int64)
    _write_all(values, room.ctypes.data, ends)
    places = (ends - room.ctypes.data).tolist()
    found = [room[a:b].tobytes() for a, b in zip([0, *places], places, strict=False)]
    assert found == [msgspec.json.encode(value) for value in values.tolist()]
