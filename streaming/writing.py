"""Decisions written by kernels: payload, token and event, as `streaming.token` and `streaming.events` draw them.

What those modules do with structs and bytes objects, for one decision after another into the same memory.
"""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from bandits.raw import bits, copy, get, put
from bandits.reaching import pointer
from streaming.events import DECISION, EVENT_SIZE, LAYOUT
from streaming.mac import BLOCK
from streaming.scan import CRC_TABLES, crc32
from streaming.token import HEADER_SIZE

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TWO = np.array([a | b << 8 for a in _ALPHABET for b in _ALPHABET], np.uint16)  # characters of twelve bits
_U = np.uint64


@njit(cache=True, nogil=True)
def half(value: float) -> Any:
    """The bits of the nearest float16, ties to even, of a number from 0 to 1, or of NaN."""
    if value != value:
        return np.uint16(0x7E00)
    word = bits(value)
    power = np.int64(word >> _U(52)) - 1023
    fraction = word & _U((1 << 52) - 1)
    if power < -25:
        return np.uint16(0)
    shift, whole = _U(42), _U(0)
    if power < -14:  # a subnormal half
        fraction |= _U(1 << 52)
        shift = _U(42 - 14 - power)
    else:
        whole = _U(power + 15) << _U(10)
    kept, rest, tie = fraction >> shift, fraction & ((_U(1) << shift) - _U(1)), _U(1) << (shift - _U(1))
    return np.uint16(whole + kept + _U(rest > tie or (rest == tie and kept & _U(1) == _U(1))))


@njit(cache=True, nogil=True)
def write_base64(at: int, source: int, n_bytes: int) -> int:
    """URL-safe base64 without padding; three bytes after the source are read. Where it ends."""
    for i in range(0, n_bytes, 3):
        word = np.uint64(get(source + i, np.uint32))
        if i + 3 > n_bytes:
            word &= (_U(1) << _U(8 * (n_bytes - i))) - _U(1)
        three = (word & _U(0xFF)) << _U(16) | (word & _U(0xFF00)) | (word >> _U(16) & _U(0xFF))
        put(at, _TWO[three >> _U(12)])
        put(at + 2, _TWO[three & _U(0xFFF)])
        at += 4
    return at - (0, 2, 1)[n_bytes % 3]


@njit(cache=True, nogil=True)
def write_payload(
    at: int,
    header: int,
    key_id: Any,
    mode: int,
    decision: Any,
    now_ms: int,
    clusters: Any,
    weights: Any,
    numbers: Any,
    slate: Any,
    propensities: Any,
) -> int:
    """The payload of a Diag-LinUCB decision at address `at`, and zeros up to a multiple of BLOCK; its size.

    header: address of a payload's first HEADER_SIZE bytes, with zeros where this decision's own come. numbers u32[N] of
    the items, of which slate u32[k] were chosen.
    """
    m, k = clusters.shape[0], slate.shape[0]
    copy(at, header, HEADER_SIZE)
    put(at + 1, np.uint8(key_id))
    put(at + 3, np.uint8(get(at + 3, np.uint8) | mode << 2))
    put(at + 8, decision)
    put(at + 16, np.uint32(now_ms))
    put(at + 20, np.uint16(now_ms >> 32))
    put(at + 22, np.uint8(m))
    put(at + 23, np.uint8(k))
    to = at + HEADER_SIZE
    for i in range(m):
        put(to + 4 * i, clusters[i])
        put(to + 4 * (m + k) + 2 * i, weights[i])
    for i in range(k):
        put(to + 4 * (m + i), numbers[slate[i]])
        put(to + 6 * m + 4 * k + 2 * i, half(propensities[i]))
    size = HEADER_SIZE + 6 * (m + k)
    for i in range(size, -(-size // BLOCK) * BLOCK):
        put(at + i, np.uint8(0))
    return size


@njit(cache=True, nogil=True)
def event_bytes(size: int) -> int:
    """Of the event of a payload."""
    return (EVENT_SIZE + size + 7) // 8 * 8


@njit(cache=True, nogil=True)
def write_decision(at: int, payload: int, size: int, sequence: Any) -> None:
    """The event of a decision at address `at`, a multiple of 8."""
    n_bytes = event_bytes(size)
    put(at + 4, np.uint16(n_bytes >> 3))
    put(at + 6, np.uint8(LAYOUT))
    put(at + 7, np.uint8(DECISION))
    put(at + 8, np.int64(0))
    put(at + 16, np.int64(0))
    put(at + 24, np.uint32(sequence))
    put(at + 28, np.uint32(0))
    put(at + n_bytes - 8, np.int64(0))
    copy(at + EVENT_SIZE, payload, size)
    u8, u32 = carray(pointer(at, np.uint8), (n_bytes,)), carray(pointer(at, np.uint32), (n_bytes >> 2,))
    put(at, np.uint32(crc32(u8, u32, 4, n_bytes, CRC_TABLES, np.uint32(0))))
