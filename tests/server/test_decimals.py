"""Numbers are written with the digits, and in the spelling, of msgspec."""

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
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


def read(text: str) -> float | None:
    """The number of the whole text; None where it is left to somebody else."""
    data = np.frombuffer(text.encode() + b",", np.uint8)
    value, end = decimals.read_number(data.ctypes.data)
    if end == 0:
        return None
    assert end == data.ctypes.data + len(text)
    return value


def same(text: str) -> bool:
    """Whether it was read; then it is the float64 that Python reads, to the bit."""
    value = read(text)
    if value is None:
        return False
    assert value.hex() == float(text).hex()
    return True


@settings(deadline=None)
@given(st.floats(0, allow_infinity=False))
def test_numbers_are_read_back(value: float) -> None:
    assert same(repr(value)) or not 1e-275 <= value <= 1e300  # those are left alone
    assert same(f"-{value!r}") or not 1e-275 <= value <= 1e300


@settings(deadline=None)
@given(st.from_regex(r"\A-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,4})?\Z"))
@example("0e9999")
@example("0.00000000000000000000000000000000001")
@example("1e99999999999999999999999")
@example("1e-99999999999999999999999")
@example("-0")
@example("99999999999999999999")
@example("9223372036854775807e-5")
def test_whatever_is_read_is_read_right(text: str) -> None:
    same(text)


@settings(deadline=None)
@given(st.integers(1 << 52, (1 << 53) - 1), st.integers(0, 9), st.sampled_from([-1, 0, 1]))
def test_halfway_numbers_are_right_or_left_alone(whole: int, shift: int, off: int) -> None:
    same(str(((2 * whole + 1) << shift) + off))


def test_nearly_all_numbers_of_nineteen_digits_are_read() -> None:
    rng = np.random.default_rng(1)
    digits, powers = rng.integers(1 << 53, 10**19, 2000, np.uint64), rng.integers(-290, 280, 2000)
    assert sum(same(f"{d}e{p}") for d, p in zip(digits.tolist(), powers.tolist(), strict=True)) > 1990


@pytest.mark.parametrize(
    "text",
    ["9007199254740993", "2.2250738585072011e-308", "2.2250738585072014e-308", "1.7976931348623158e308", "1e309",
     "5e-324", "1797693134862315807e290", "1797693134862315808e290", "9999999999999999999", "18446744073709551616",
     "1e23", "8.5e22", "4503599627370497.5", "4503599627370496.5", "0.1e1", "1E+2", "100000000000000000000",
     "1.0000000000000000000"],
)  # fmt: skip
def test_awkward_numbers(text: str) -> None:
    same(text)


@pytest.mark.parametrize(
    "text",
    ["", "-", "+1", ".5", "1.", "1.e5", "01", "-01", "00", "1e", "1e+", "1e-", "e5", "NaN", "Infinity", "null", " 1"],
)
def test_what_is_no_number(text: str) -> None:
    assert read(text) is None
