"""The token's MAC as a kernel: BLAKE2b (RFC 7693) with a key and a digest of 8 bytes, as `hashlib.blake2b` gives it.

    key    u64[9]   the state after the block that holds the key, h[0..7], and the number of the key

The key fills the first block whatever the message, so its state is made once a key, by `keyed`.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.raw import get

BLOCK = 128
_H = np.array(
    [0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
     0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179], np.uint64
)  # fmt: skip
_ORDER = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ],
    np.int64,
) * 8  # fmt: skip
_MAC_SIZE = 8


@njit(cache=True, nogil=True)
def _turn(x: Any, n: Any) -> Any:
    return (x >> np.uint64(n)) | (x << np.uint64(64 - n))


@njit(cache=True, nogil=True)
def _mix(a: Any, b: Any, c: Any, d: Any, x: Any, y: Any) -> Any:
    a = a + b + x
    d = _turn(d ^ a, 32)
    c = c + d
    b = _turn(b ^ c, 24)
    a = a + b + y
    d = _turn(d ^ a, 16)
    c = c + d
    return a, _turn(b ^ c, 63), c, d


@njit(cache=True, nogil=True)
def _compress(h: Any, block: int, count: Any, final: bool) -> Any:
    """The state after the 128 bytes at address `block`; `count` bytes with them."""
    v0, v1, v2, v3, v4, v5, v6, v7 = h
    v8, v9, v10, v11 = _H[0], _H[1], _H[2], _H[3]
    v12, v13, v14, v15 = _H[4] ^ np.uint64(count), _H[5], _H[6], _H[7]
    if final:
        v14 = ~v14
    for turn in range(12):
        o = _ORDER[turn % 10]
        m = np.uint64
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, get(block + o[0], m), get(block + o[1], m))
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, get(block + o[2], m), get(block + o[3], m))
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, get(block + o[4], m), get(block + o[5], m))
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, get(block + o[6], m), get(block + o[7], m))
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, get(block + o[8], m), get(block + o[9], m))
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, get(block + o[10], m), get(block + o[11], m))
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, get(block + o[12], m), get(block + o[13], m))
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, get(block + o[14], m), get(block + o[15], m))
    h0, h1, h2, h3, h4, h5, h6, h7 = h
    return (
        h0 ^ v0 ^ v8, h1 ^ v1 ^ v9, h2 ^ v2 ^ v10, h3 ^ v3 ^ v11,
        h4 ^ v4 ^ v12, h5 ^ v5 ^ v13, h6 ^ v6 ^ v14, h7 ^ v7 ^ v15,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _first(block: int, key_bytes: int, out: Any) -> None:
    """out[:8] = the state after the key's block."""
    first = _H[0] ^ np.uint64(0x01010000 | key_bytes << 8 | _MAC_SIZE)
    h = _compress((first, _H[1], _H[2], _H[3], _H[4], _H[5], _H[6], _H[7]), block, BLOCK, False)
    for i in range(8):
        out[i] = h[i]


def keyed(key: bytes, number: int, out: NDArray[np.uint64]) -> None:
    """out u64[9] = the state of a key of at most 64 bytes, and its number."""
    assert 0 < len(key) <= 64
    block = np.zeros(BLOCK, np.uint8)
    block[: len(key)] = np.frombuffer(key, np.uint8)
    _first(block.ctypes.data, len(key), out)
    out[8] = number


@njit(cache=True, nogil=True)
def mac(key: int, message: int, n_bytes: int) -> Any:
    """The MAC, as a little-endian uint64, of n_bytes > 0 at address `message` by the state at address `key`.

    Zeros follow the message up to a multiple of BLOCK.
    """
    w = np.uint64
    h = (
        get(key, w), get(key + 8, w), get(key + 16, w), get(key + 24, w),
        get(key + 32, w), get(key + 40, w), get(key + 48, w), get(key + 56, w),
    )  # fmt: skip
    at = 0
    while n_bytes - at > BLOCK:
        h = _compress(h, message + at, at + 2 * BLOCK, False)
        at += BLOCK
    return _compress(h, message + at, BLOCK + n_bytes, True)[0]
