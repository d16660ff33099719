"""The head of an HTTP answer, as far as a load driver has to understand it: compiled, over bytes in an array."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

PARTIAL, STRANGE = 0, -1
_CR, _LF, _SPACE, _ZERO, _CAPITAL, _TO_SMALL = 13, 10, 32, 48, 65, 32
_VERSION, _LENGTH, _CONNECTION, _CLOSE = (
    np.frombuffer(text, np.uint8) for text in (b"http/1.", b"content-length:", b"connection:", b"close")
)
_LONGEST = 1 << 40  # a content-length beyond this is a mistake


@njit(nogil=True)
def begins(text: Bytes, at: int, end: int, name: Bytes) -> bool:
    """Whether `name` (small letters) stands at `at`, in whatever letters."""
    if end - at < len(name):
        return False
    for i in range(len(name)):
        c = text[at + i]
        if _CAPITAL <= c < _CAPITAL + 26:
            c += _TO_SMALL
        if c != name[i]:
            return False
    return True


@njit(nogil=True)
def number(text: Bytes, at: int, end: int) -> int:
    """The decimal digits from `at` to `end`, spaces around them left out; -1 where there is anything else."""
    while at < end and text[at] == _SPACE:
        at += 1
    while at < end and text[end - 1] == _SPACE:
        end -= 1
    value = 0 if at < end else -1
    for i in range(at, end):
        digit = int(text[i]) - _ZERO
        if not 0 <= digit <= 9 or value > _LONGEST:
            return -1
        value = value * 10 + digit
    return value


@njit(nogil=True)
def read_head(text: Bytes, n: int) -> tuple[int, int, int, bool]:
    """(end, status, length, closes) of the answer whose first n bytes are here.

    end: where the body begins; PARTIAL while the head is not whole; STRANGE where it is no head of HTTP/1, or its
    body has no content-length (chunked, or until the connection closes). length: bytes of the body. closes: the
    server will close the connection.
    """
    status, length, closes, begin, i = 0, -1, False, 0, 0
    while i + 1 < n:
        if text[i] != _CR or text[i + 1] != _LF:
            i += 1
            continue
        if i == begin:
            if status < 200 or status == 204 or status == 304:
                length = 0
            return (i + 2 if status and length >= 0 else STRANGE), status, length, closes
        if begin == 0:
            status = number(text, 9, min(12, i))
            if not begins(text, 0, i, _VERSION) or not 100 <= status <= 999:
                return STRANGE, 0, length, closes
        elif begins(text, begin, i, _LENGTH):
            length = number(text, begin + len(_LENGTH), i)
            if length < 0:
                return STRANGE, status, length, closes
        elif begins(text, begin, i, _CONNECTION):
            at = begin + len(_CONNECTION)
            while at < i and text[at] == _SPACE:
                at += 1
            closes = closes or begins(text, at, i, _CLOSE)
        i += 2
        begin = i
    return PARTIAL, status, length, closes
