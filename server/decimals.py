"""A float64 as JSON writes it and reads it, as kernels.

Written are the shortest digits that are read back as the same number. Schubfach (Raffaello Giulietti, "The Schubfach
way to render doubles", 2020): one multiplication by a power of ten from a table, for the number and for both halves of
the way to its neighbours, finds the shortest decimal between them.
Spelled as `msgspec.json.encode` spells it: 0.00001 to 1000000000000000.0 in full, else 1.5e-6, 1.5e16.

Read are numbers of up to 19 digits, by one multiplication with the same table; where that leaves open which float64 is
the nearest, the number is left to somebody else.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.raw import bits, from_bits, get, leading_zeros, product, put

ROOM = 32  # bytes that `write_number` may use
_LEAST, _MOST = -292, 324  # powers of ten that occur


def _powers() -> NDArray[np.uint64]:
    """Row k - _LEAST = (high, low) of 10^k as 128 bits with the first one set, rounded up."""
    table = np.empty((_MOST - _LEAST + 1, 2), np.uint64)
    for row, k in enumerate(range(_LEAST, _MOST + 1)):
        shift = 127 - (k * 1741647 >> 19)  # 127 - floor(log2(10^k))
        above, below = (10**k, 1) if k >= 0 else (1, 10**-k)
        value = -(-(above << max(shift, 0)) // (below << max(-shift, 0)))
        table[row] = value >> 64, value & (1 << 64) - 1
    return table


_POWERS = _powers()
_PAIRS = np.frombuffer(b"".join(b"%02d" % i for i in range(100)), "<u2").copy()  # two digits
_TENS = np.array([10.0**n for n in range(23)])  # all exact
_U = np.uint64


@njit(cache=True, nogil=True)
def _scaled(high: Any, low: Any, x: Any) -> Any:
    """x times a power of ten, without its last 128 bits; the last bit is set if any of those was ("round to odd")."""
    a, _ = product(low, x)
    b, c = product(high, x)
    c += a
    b += _U(c < a)
    return b | _U(c > _U(1))


@njit(cache=True, nogil=True)
def shortest(value: float) -> Any:
    """(digits, exponent): value = digits * 10^exponent, with as few digits as tell it from its neighbours, but that
    zeros may follow them. value is finite and above zero."""
    word = bits(value)
    fraction, power = word & _U((1 << 52) - 1), np.int64(word >> _U(52))
    c, q = (fraction | _U(1 << 52), power - 1075) if power != 0 else (fraction, np.int64(-1074))
    if 0 <= -q < 53 and c & ((_U(1) << _U(-q)) - _U(1)) == 0:  # a whole number
        return c >> _U(-q), np.int64(0)
    closer = fraction == 0 and power > 1  # the neighbour below is half as far as the one above
    k = (q * 1262611 - (524031 if closer else 0)) >> 22
    h = _U(q + (-k * 1741647 >> 19) + 1)
    high, low = _POWERS[-k - _LEAST, 0], _POWERS[-k - _LEAST, 1]
    odd = c & _U(1)
    below = _scaled(high, low, (_U(4) * c - _U(2) + _U(closer)) << h) + odd
    here = _scaled(high, low, _U(4) * c << h)
    above = _scaled(high, low, (_U(4) * c + _U(2)) << h) - odd
    s = here >> _U(2)
    if s >= _U(10):
        tens = s // _U(10)
        lower = below <= _U(40) * tens
        upper = _U(40) * tens + _U(40) <= above
        if lower != upper:
            return tens + _U(upper), k + 1
    lower = below <= _U(4) * s
    upper = _U(4) * s + _U(4) <= above
    if lower != upper:
        return s + _U(upper), k
    middle = _U(4) * s + _U(2)
    return s + _U(here > middle or (here == middle and s & _U(1) == _U(1))), k


@njit(cache=True, nogil=True)
def write_whole(at: int, n: Any) -> int:
    """Decimal digits of a uint64 from address `at` on; where they end."""
    size, rest = 1, n
    while rest >= _U(10):
        rest //= _U(10)
        size += 1
    _write_digits(at + size, n, size)
    return at + size


@njit(cache=True, nogil=True)
def _write_digits(end: int, n: Any, size: int) -> None:
    """The last `size` decimal digits of n, up to address `end`."""
    while size >= 2:
        tail = n % _U(100)
        n //= _U(100)
        end -= 2
        size -= 2
        put(end, _PAIRS[tail])
    if size:
        put(end - 1, np.uint8(48 + n % _U(10)))


@njit(cache=True, nogil=True)
def _fill(at: int, character: int, count: int) -> int:
    for i in range(count):
        put(at + i, np.uint8(character))
    return at + count


@njit(cache=True, nogil=True)
def write_number(at: int, value: float) -> int:
    """The number as JSON from address `at` on, where there is ROOM; NaN is null. Where it ends."""
    if value != value:
        put(at, np.uint32(0x6C6C756E))  # null
        return at + 4
    if bits(value) >> _U(63):
        put(at, np.uint8(45))
        at += 1
        value = -value
    if value == 0.0 or value == 1.0:
        put(at, np.uint32(0x302E30 + int(value)))  # 0.0, 1.0
        return at + 3
    digits, exponent = shortest(value)
    while digits % _U(10000) == 0:
        digits //= _U(10000)
        exponent += 4
    while digits % _U(10) == 0:
        digits //= _U(10)
        exponent += 1
    size, rest = 1, digits
    while rest >= _U(10):
        rest //= _U(10)
        size += 1
    point = size + exponent  # digits before the decimal point
    if 0 < point <= 16:
        if exponent >= 0:
            _write_digits(at + size, digits, size)
            at = _fill(at + size, 48, exponent)
            put(at, np.uint16(0x302E))  # .0
            return at + 2
        _write_digits(at + size + 1, digits, -exponent)
        for _ in range(-exponent):
            digits //= _U(10)
        _write_digits(at + point, digits, point)
        put(at + point, np.uint8(46))
        return at + size + 1
    if -5 < point <= 0:
        put(at, np.uint16(0x2E30))  # 0.
        at = _fill(at + 2, 48, -point) + size
        _write_digits(at, digits, size)
        return at
    return _write_power(at, digits, size, point - 1)


@njit(cache=True, nogil=True)
def _write_power(at: int, digits: Any, size: int, power: int) -> int:
    """d.ddde-7"""
    _write_digits(at + size + 1, digits, size)
    put(at, np.uint8(48 + digits // _ten_to(size - 1)))
    if size > 1:
        put(at + 1, np.uint8(46))
        at += size + 1
    else:
        at += 1
    put(at, np.uint8(101))
    at += 1
    if power < 0:
        put(at, np.uint8(45))
        at += 1
        power = -power
    return write_whole(at, _U(power))


@njit(cache=True, nogil=True)
def _ten_to(n: int) -> Any:
    power = _U(1)
    for _ in range(n):
        power *= _U(10)
    return power


@njit(cache=True, nogil=True)
def nearest_float(digits: Any, power: int) -> Any:
    """(digits * 10^power as the nearest float64, True), or (0, False) where that was not found."""
    if digits == 0:
        return 0.0, True
    if digits < _U(1 << 53) and -22 <= power <= 22:  # both are exact, so one rounding is right
        x = np.float64(digits)
        return (x * _TENS[power] if power >= 0 else x / _TENS[-power]), True
    if not _LEAST <= power <= _MOST - 20:
        return 0.0, False
    zeros = leading_zeros(digits)
    word = digits << _U(zeros)
    high, low = product(word, _POWERS[power - _LEAST, 0])
    carry, _ = product(word, _POWERS[power - _LEAST, 1])
    low += carry
    high += _U(low < carry)
    exponent = (power * 1741647 >> 19) + 63 - zeros
    if high >> _U(63):
        exponent += 1
        low = high << _U(63) | low >> _U(1)
        high >>= _U(1)
    kept, rest, half = high >> _U(10), high & _U(0x3FF), _U(0x200)
    # (high, low) is off by less than 4 in its last place.
    unclear = (rest == half and low <= _U(4)) or (rest == half - _U(1) and low >= _U(0xFFFFFFFFFFFFFFFB))
    kept += _U(rest >= half)
    if kept >> _U(53):
        kept >>= _U(1)
        exponent += 1
    if unclear or not -1022 <= exponent <= 1023:
        return 0.0, False
    return from_bits(_U(exponent + 1023) << _U(52) | kept & _U((1 << 52) - 1)), True


@njit(cache=True, nogil=True)
def digit(at: int) -> Any:
    """The value of the digit at this address; above 9 where there is none."""
    return np.int64(np.uint8(get(at, np.uint8) - np.uint8(48)))


@njit(cache=True, nogil=True)
def read_number(at: int) -> Any:
    """(the JSON number from address `at` on, the address after it), or (0, 0) where it is none, or an unusual one.

    Something that is no part of a number has to end it.
    """
    negative = get(at, np.uint8) == 45
    at += negative
    digits, n, power = _U(0), 0, 0
    d = digit(at)
    if d > 9 or (d == 0 and digit(at + 1) <= 9):
        return 0.0, 0
    while d <= 9:
        digits = digits * _U(10) + _U(d)
        n += n > 0 or d > 0
        at += 1
        d = digit(at)
    if get(at, np.uint8) == 46:
        at += 1
        d = digit(at)
        if d > 9:
            return 0.0, 0
        while d <= 9:
            digits = digits * _U(10) + _U(d)
            n += n > 0 or d > 0
            power -= 1
            at += 1
            d = digit(at)
    if n > 19:
        return 0.0, 0
    if get(at, np.uint8) | 32 == 101:
        at += 1
        sign = get(at, np.uint8)
        at += sign == 43 or sign == 45
        d = digit(at)
        if d > 9:
            return 0.0, 0
        by = 0
        while d <= 9:
            by = min(10 * by + d, 10_000)
            at += 1
            d = digit(at)
        power += -by if sign == 45 else by
    value, found = nearest_float(digits, power)
    if not found:
        return 0.0, 0
    return (-value if negative else value), at
