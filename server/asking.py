"""The body of a usual recommend request, read by a kernel: no object is made of it.

    text --ask--> numbers i64[NUMBERS]: m clusters, weights (m, or 0 without), dim of the embedding (0 without),
                                        excluded, candidates, k, mode (-1: the policy's), where the policy's name is in
                                        the text, its bytes
                  clusters u32[CLUSTERS_MAX], given f64[CLUSTERS_MAX], embedding f32[DIM_MAX],
                  listed i64[2, LISTED_MAX]: where each excluded item's id and then each candidate's is, its bytes

Usual is JSON of the known members, each at most once, in any order and with any white space, whose strings need no
escape and whose numbers of clusters, weights and ids are within the bounds above. For anything else, what is wrong
included, the kernel says 0, and `server.bodies` reads the body and says what is wrong.
"""

from typing import Any

import numpy as np
from numba import njit

from bandits.raw import get, put
from server.decimals import digit, read_number
from streaming.scan import CRC_TABLES

NUMBERS = 9
M, N_WEIGHTS, DIMS, N_EXCLUDED, N_CANDIDATES, SLATE, MODE, NAME, NAME_BYTES = range(NUMBERS)
CLUSTERS_MAX, DIM_MAX, LISTED_MAX = 64, 4096, 4096
K_MAX = 255
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_QUOTE, _COMMA, _COLON, _OPEN, _CLOSE, _LIST, _END = (ord(c) for c in '",:{}[]')


def _word(text: bytes) -> Any:
    return np.uint64(int.from_bytes(text[:8], "little"))


_POLICY, _USER, _K, _MODE = _word(b"policy"), _word(b"user"), _word(b"k"), _word(b"mode")
_EXCLUDE, _CANDIDATES, _CANDIDATES_END = _word(b"exclude"), _word(b"candidat"), _word(b"es")
_CLUSTERS, _WEIGHTS, _EMBEDDING, _EMBEDDING_END = (
    _word(b"clusters"),
    _word(b"weights"),
    _word(b"embeddin"),
    _word(b"g"),
)
_EXPLORE, _EXPLOIT, _THOMPSON = _word(b"explore"), _word(b"exploit"), _word(b"thompson")


@njit(cache=True, nogil=True)
def _skip(at: int) -> int:
    """Past white space."""
    c = get(at, np.uint8)
    while c == 32 or c == 10 or c == 13 or c == 9:
        at += 1
        c = get(at, np.uint8)
    return at


@njit(cache=True, nogil=True)
def _string(at: int, ascii_only: bool) -> int:
    """Where the string that begins here ends, past its quote; 0 where none does, or it has an escape."""
    if get(at, np.uint8) != _QUOTE:
        return 0
    at += 1
    c = get(at, np.uint8)
    while c != _QUOTE:
        if c < 32 or c == 92 or (ascii_only and c > 127):
            return 0
        at += 1
        c = get(at, np.uint8)
    return at + 1


@njit(cache=True, nogil=True)
def _text(at: int, n_bytes: int) -> Any:
    """Up to eight bytes from this address on, as a word."""
    if n_bytes >= 8:
        return get(at, np.uint64)
    return get(at, np.uint64) & ((np.uint64(1) << np.uint64(8 * n_bytes)) - np.uint64(1))


@njit(cache=True, nogil=True)
def _whole(at: int) -> Any:
    """(the whole number of at most ten digits that begins here, its end); (0, 0) where none does."""
    value, begin = 0, at
    d = digit(at)
    while d <= 9 and at - begin < 11:
        value = 10 * value + d
        at += 1
        d = digit(at)
    size = at - begin
    if size == 0 or size > 10 or (size > 1 and get(begin, np.uint8) == 48):
        return 0, 0
    return value, at


@njit(cache=True, nogil=True)
def _clusters(at: int, clusters: Any) -> Any:
    """(how many, where the list ends); (0, 0) where it is no usual one. So do the next two."""
    n, c = 0, _LIST
    while c != _END:
        value, at = _whole(_skip(at + 1))
        if at == 0 or n == CLUSTERS_MAX or value > 0xFFFFFFFF:
            return 0, 0
        clusters[n] = value
        n += 1
        at = _skip(at)
        c = get(at, np.uint8)
        if c != _COMMA and c != _END:
            return 0, 0
    return n, at + 1


@njit(cache=True, nogil=True)
def _floats(at: int, most: int, least: float, largest: float, out: Any) -> Any:
    n, c = 0, _LIST
    while c != _END:
        value, at = read_number(_skip(at + 1))
        if at == 0 or n == most or not least <= value <= largest:
            return 0, 0
        out[n] = value
        n += 1
        at = _skip(at)
        c = get(at, np.uint8)
        if c != _COMMA and c != _END:
            return 0, 0
    return n, at + 1


@njit(cache=True, nogil=True)
def _ids(at: int, listed: Any, before: int) -> Any:
    n, c = before, _LIST
    if get(_skip(at + 1), np.uint8) == _END:
        return 0, _skip(at + 1) + 1
    while c != _END:
        begin = _skip(at + 1)
        at = _string(begin, True)
        if at == 0 or n == LISTED_MAX:
            return 0, 0
        listed[0, n], listed[1, n] = begin + 1, at - begin - 2
        n += 1
        at = _skip(at)
        c = get(at, np.uint8)
        if c != _COMMA and c != _END:
            return 0, 0
    return n - before, at + 1


@njit(cache=True, nogil=True)
def _member(at: int) -> Any:
    """(its name's first bytes, how many it has, where its value begins); the place is 0 where it is no member."""
    end = _string(at, True)
    if end == 0:
        return np.uint64(0), 0, 0
    n_bytes = end - at - 2
    colon = _skip(end)
    if get(colon, np.uint8) != _COLON:
        return np.uint64(0), 0, 0
    return _text(at + 1, n_bytes), n_bytes, _skip(colon + 1)


@njit(cache=True, nogil=True)
def _user(at: int, numbers: Any, clusters: Any, given: Any, embedding: Any) -> int:
    """Where the user ends; 0 where it is no usual one."""
    c = _OPEN
    if get(at, np.uint8) != c:
        return 0
    while c != _CLOSE:
        key = _skip(at + 1)
        name, n_bytes, at = _member(key)
        if at == 0 or get(at, np.uint8) != _LIST:
            return 0
        if name == _CLUSTERS and n_bytes == 8 and numbers[M] == 0:
            numbers[M], at = _clusters(at, clusters)
        elif name == _WEIGHTS and n_bytes == 7 and numbers[N_WEIGHTS] == 0:
            numbers[N_WEIGHTS], at = _floats(at, CLUSTERS_MAX, 0.0, np.inf, given)
        elif name == _EMBEDDING and n_bytes == 9 and _text(key + 9, 1) == _EMBEDDING_END and numbers[DIMS] == 0:
            numbers[DIMS], at = _floats(at, DIM_MAX, -_FLOAT32_MAX, _FLOAT32_MAX, embedding)
        else:
            return 0
        if at == 0:
            return 0
        at = _skip(at)
        c = get(at, np.uint8)
        if c != _COMMA and c != _CLOSE:
            return 0
    return at + 1


@njit(cache=True, nogil=True)
def _mode(at: int, end: int) -> int:
    """The mode of this name, or -1."""
    name, n_bytes = _text(at + 1, end - at - 2), end - at - 2
    if n_bytes == 7:
        return 0 if name == _EXPLORE else 1 if name == _EXPLOIT else -1
    return 2 if n_bytes == 8 and name == _THOMPSON else -1


@njit(cache=True, nogil=True)
def read_query(text: int, n_bytes: int, numbers: Any, clusters: Any, given: Any, embedding: Any, listed: Any) -> bool:
    """Read the body of n_bytes at this address, which has room for eight bytes more; False where it is no usual one."""
    put(text + n_bytes, np.uint64(0))  # ends whatever is not complete
    numbers[:] = 0
    numbers[MODE], numbers[SLATE] = -1, 1
    seen, c = 0, _OPEN
    at = _skip(text)
    if get(at, np.uint8) != c:
        return False
    while c != _CLOSE:
        key = _skip(at + 1)
        name, size, at = _member(key)
        if at == 0:
            return False
        if name == _POLICY and size == 6:
            bit, end = 1, _string(at, False)
            numbers[NAME], numbers[NAME_BYTES] = at + 1 - text, end - at - 2
        elif name == _USER and size == 4:
            bit, end = 2, _user(at, numbers, clusters, given, embedding)
        elif name == _K and size == 1:
            bit = 4
            numbers[SLATE], end = _whole(at)
            if not 1 <= numbers[SLATE] <= K_MAX:
                return False
        elif name == _MODE and size == 4:
            bit, end = 8, _string(at, True)
            numbers[MODE] = _mode(at, end) if end else -1
            if numbers[MODE] < 0:
                return False
        elif name == _EXCLUDE and size == 7 and get(at, np.uint8) == _LIST and not seen & 32:
            bit = 16
            numbers[N_EXCLUDED], end = _ids(at, listed, 0)
        elif name == _CANDIDATES and size == 10 and _text(key + 9, 2) == _CANDIDATES_END and get(at, np.uint8) == _LIST:
            bit = 32
            numbers[N_CANDIDATES], end = _ids(at, listed, numbers[N_EXCLUDED])
            if numbers[N_CANDIDATES] == 0:
                return False
        else:
            return False
        if end == 0 or seen & bit:
            return False
        seen |= bit
        at = _skip(end)
        c = get(at, np.uint8)
        if c != _COMMA and c != _CLOSE:
            return False
    return seen & 3 == 3 and _skip(at + 1) == text + n_bytes


@njit(cache=True, nogil=True)
def same(one: int, other: int, n_bytes: int) -> bool:
    """Whether the bytes at two addresses are."""
    i = 0
    while i < n_bytes and get(one + i, np.uint8) == get(other + i, np.uint8):
        i += 1
    return i == n_bytes


@njit(cache=True, nogil=True)
def find_items(listed: Any, first: int, last: int, ids: int, at: int, hashes: Any, order: Any, found: Any) -> int:
    """found i64 = the items whose ids are listed from `first` to `last`, of those that there are; how many.

    ids, at (addresses), hashes, order: of the policy's items, see server/ids.py.
    """
    n = 0
    for i in range(first, last):
        begin, size = listed[0, i], listed[1, i]
        crc = np.uint32(0xFFFFFFFF)
        for j in range(size):
            crc = CRC_TABLES[0, (crc ^ get(begin + j, np.uint8)) & np.uint32(255)] ^ crc >> np.uint32(8)
        crc ^= np.uint32(0xFFFFFFFF)
        low, high = 0, hashes.shape[0]
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] < crc:
                low = middle + 1
            else:
                high = middle
        while low < hashes.shape[0] and hashes[low] == crc:
            item = np.int64(order[low])
            place = get(at + 8 * item, np.int64)
            if get(at + 8 * item + 8, np.int64) - place == size + 3 and same(ids + place + 1, begin, size):
                found[n] = item
                n += 1
                break
            low += 1
    return n
