"""Decision ids read by kernels, and events of rewards written: `streaming.token.verify`, `streaming.events.reward`.

What those do with bytes objects, for one row after another in the same memory. Addresses are int64.
"""

from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from bandits.raw import copy, get, put
from bandits.reaching import pointer
from streaming.events import EVENT_SIZE, LAYOUT, REWARD
from streaming.mac import BLOCK, mac
from streaming.scan import CRC_TABLES, crc32
from streaming.token import ARMS, ARMS_SIZE, DIAG, HEADER_SIZE, MAC_SIZE
from streaming.token import LAYOUT as TOKEN_LAYOUT
from streaming.writing import event_bytes

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_NONE = 1 << 24  # not a character of the alphabet


def _sixes() -> NDArray[np.uint32]:
    table = np.full(256, _NONE, np.uint32)
    table[np.frombuffer(_ALPHABET, np.uint8)] = np.arange(64)
    return table


_SIX = _sixes()


@njit(cache=True, nogil=True)
def read_base64(source: int, n: int, to: int) -> int:
    """URL-safe base64 without padding, n characters; one byte after the result is written. Its bytes, -1 where it is
    none, or not spelled as `urlsafe_b64encode` does: the bits beyond the last byte are zeros."""
    wrong, whole, rest = np.uint32(0), n >> 2, n & 3
    for _ in range(whole):
        four = get(source, np.uint32)
        a, b = _SIX[four & np.uint32(0xFF)], _SIX[four >> np.uint32(8) & np.uint32(0xFF)]
        c, d = _SIX[four >> np.uint32(16) & np.uint32(0xFF)], _SIX[four >> np.uint32(24)]
        wrong |= a | b | c | d
        three = a << np.uint32(18) | b << np.uint32(12) | c << np.uint32(6) | d
        put(to, np.uint8(three >> np.uint32(16)))
        put(to + 1, np.uint8(three >> np.uint32(8)))
        put(to + 2, np.uint8(three))
        source += 4
        to += 3
    if rest == 1:
        return -1
    if rest:
        a, b = _SIX[get(source, np.uint8)], _SIX[get(source + 1, np.uint8)]
        c = _SIX[get(source + 2, np.uint8)] if rest == 3 else np.uint32(0)
        wrong |= a | b | c
        three = a << np.uint32(18) | b << np.uint32(12) | c << np.uint32(6)
        if three & np.uint32(0xFF if rest == 3 else 0xFFFF):
            return -1
        put(to, np.uint8(three >> np.uint32(16)))
        put(to + 1, np.uint8(three >> np.uint32(8)))
    return -1 if wrong >= np.uint32(_NONE) else 3 * whole + max(0, rest - 1)


@njit(cache=True, nogil=True)
def size_of(payload: int) -> Any:
    """The size that a payload says it has; -1 where it is of no known kind."""
    kind, m, k = (
        get(payload + 2, np.uint8),
        np.int64(get(payload + 22, np.uint8)),
        np.int64(get(payload + 23, np.uint8)),
    )
    if kind == DIAG:
        return HEADER_SIZE + 6 * (m + k)
    return ARMS_SIZE + 6 * k if kind == ARMS and m == 0 else -1


@njit(cache=True, nogil=True)
def read_token(source: int, n: int, keys: int, to: int) -> Any:
    """The payload of a decision id of n characters, with zeros after it up to a multiple of BLOCK and at least for
    MAC_SIZE bytes; its size, 0 where `verify` has something to say.

    keys: address of u64[256, 9], the states of `mac.keyed` by key id, the ninth word 0 where there is no such key.
    """
    size: Any = read_base64(source, n, to) - MAC_SIZE
    if size < HEADER_SIZE or get(to, np.uint8) != TOKEN_LAYOUT:
        return 0
    key: Any = keys + 72 * np.int64(get(to + 1, np.uint8))
    found = get(to + size, np.uint64)
    for i in range(size, max(-(-size // BLOCK) * BLOCK, size + MAC_SIZE)):
        put(to + i, np.uint8(0))
    if get(key + 64, np.uint64) == np.uint64(0) or mac(key, to, size) != found:
        return 0
    return size if size == size_of(to) else 0


@njit(cache=True, nogil=True)
def slot_of(payload: int, number: int) -> int:
    """Which of the decision's items has this number; -1: none."""
    m, k = np.int64(get(payload + 22, np.uint8)), np.int64(get(payload + 23, np.uint8))
    items = payload + (ARMS_SIZE if get(payload + 2, np.uint8) == ARMS else HEADER_SIZE + 4 * m)
    for slot in range(k):
        if np.int64(get(items + 4 * slot, np.uint32)) == number:
            return slot
    return -1


@njit(cache=True, nogil=True)
def write_reward(at: int, payload: int, size: int, slot: int, value: float, key: Any) -> None:
    """The event of a reward at address `at`, a multiple of 8; `key` u64 is the hash of its event id, 0: none."""
    n_bytes = event_bytes(size)
    put(at + 4, np.uint16(n_bytes >> 3))
    put(at + 6, np.uint8(LAYOUT))
    put(at + 7, np.uint8(REWARD))
    put(at + 8, np.float64(value))
    put(at + 16, np.uint64(key))
    put(at + 24, np.uint32(0))
    put(at + 28, np.uint32(slot))
    put(at + n_bytes - 8, np.int64(0))
    copy(at + EVENT_SIZE, payload, size)
    u8, u32 = carray(pointer(at, np.uint8), (n_bytes,)), carray(pointer(at, np.uint32), (n_bytes >> 2,))
    put(at, np.uint32(crc32(u8, u32, 4, n_bytes, CRC_TABLES, np.uint32(0))))
