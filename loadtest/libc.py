"""Sockets and epoll for compiled code: libc's functions as numba calls them, without Python and without its lock.

Addresses go in as integers, so that a piece of an array can be handed over; `array.ctypes.data` is where it begins.
Compiled code that calls these cannot be cached: it holds their addresses, which are other ones in each process.

    events   u32, EVENT_WORDS a row: row[0] what happened, row[DATA_WORD] the number given when the socket was watched
    pair     i64[2], a timespec: seconds, nanoseconds
"""

import ctypes
import platform
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_INT, _SIZE, _WORD = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_size_t


class Unsupported(RuntimeError):
    """This system's C library lacks what the compiled load driver calls."""


def _libc(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
    """A function of the C library; where it is missing, one that says so when it is compiled or called."""
    try:
        function: Any = getattr(ctypes.CDLL(None, use_errno=False), name)
    except (AttributeError, OSError, TypeError):
        MISSING.append(name)
        return _missing
    function.restype, function.argtypes = result, list(arguments)
    return function


def _missing(*_: int) -> int:  # pragma: no cover - not on Linux
    raise Unsupported(_why())


def _why() -> str:
    return f"The compiled load driver needs Linux with glibc 2.35 or newer; here is no {', '.join(MISSING)}."


def check() -> None:
    """Raises Unsupported where a function is missing."""
    if MISSING or not sys.platform.startswith("linux"):
        raise Unsupported(_why())
    epoll, one, pair = epoll_create1(_CLOEXEC), np.zeros(EVENT_WORDS, np.uint32), np.zeros(2, np.int64)
    try:
        if _epoll_pwait2(epoll, one.ctypes.data, 1, pair.ctypes.data, 0) < 0:  # pragma: no cover
            raise Unsupported("The compiled load driver needs Linux 5.11 or newer: this kernel has no epoll_pwait2.")
    finally:
        close(epoll)


MISSING: list[str] = []
_socket = _libc("socket", _INT, _INT, _INT, _INT)
_connect = _libc("connect", _INT, _INT, _WORD, ctypes.c_uint)
_setsockopt = _libc("setsockopt", _INT, _INT, _INT, _INT, _WORD, ctypes.c_uint)
close = _libc("close", _INT, _INT)
send = _libc("send", _SIZE, _INT, _WORD, _WORD, _INT)
recv = _libc("recv", _SIZE, _INT, _WORD, _WORD, _INT)
epoll_create1 = _libc("epoll_create1", _INT, _INT)
_epoll_ctl = _libc("epoll_ctl", _INT, _INT, _INT, _INT, _WORD)
_epoll_pwait2 = _libc("epoll_pwait2", _INT, _INT, _WORD, _INT, _WORD, _WORD)
_clock_gettime = _libc("clock_gettime", _INT, _INT, _WORD)
_errno_location = _libc("__errno_location", _WORD)
_memcpy = _libc("memcpy", _WORD, _WORD, _WORD, _WORD)

# The kernel packs the struct on x86-64 and nowhere else.
EVENT_WORDS, DATA_WORD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
IN, OUT = 0x1, 0x4
ADD, CHANGE = 1, 3
NOW = 0x4000 | 0x40  # MSG_NOSIGNAL, MSG_DONTWAIT: send and recv never wait and never kill us
AGAIN = 11
_CLOEXEC, _STREAM, _TCP, _NODELAY = 0x80000, 1, 6, 1
_MONOTONIC = time.CLOCK_MONOTONIC


@njit(nogil=True)
def errno() -> int:
    """Why the last call in this thread returned -1."""
    out = np.zeros(1, np.int32)
    _memcpy(out.ctypes.data, _errno_location(), 4)
    return int(out[0])


@njit(nogil=True)
def now_ns(pair: Ints) -> int:
    """time.monotonic_ns(); `pair` is scratch."""
    _clock_gettime(_MONOTONIC, pair.ctypes.data)
    return pair[0] * 1_000_000_000 + pair[1]


@njit(nogil=True)
def connect(address: NDArray[np.uint8]) -> int:
    """A new TCP connection to a sockaddr, waiting for it; or minus the errno."""
    one = np.ones(1, np.int32)
    fd = _socket(address.view(np.uint16)[0], _STREAM | _CLOEXEC, 0)
    if fd < 0:
        return -errno()
    if _connect(fd, address.ctypes.data, len(address)) < 0:
        why = errno()
        close(fd)
        return -why
    _setsockopt(fd, _TCP, _NODELAY, one.ctypes.data, 4)
    return int(fd)


@njit(nogil=True)
def watch(epoll: int, how: int, fd: int, number: int, what: int) -> None:
    """Watch a socket for `what` (IN, OUT); its events carry `number`. `how`: ADD or CHANGE."""
    event = np.zeros(EVENT_WORDS, np.uint32)
    event[0], event[DATA_WORD] = what, number
    _epoll_ctl(epoll, how, fd, event.ctypes.data)


@njit(nogil=True)
def wait(epoll: int, events: NDArray[np.uint32], most_ns: int, pair: Ints) -> int:
    """How many events came, after at most `most_ns`; `pair` is scratch. An interrupted wait ends with none."""
    pair[0], pair[1] = most_ns // 1_000_000_000, most_ns % 1_000_000_000
    return int(_epoll_pwait2(epoll, events.ctypes.data, len(events) // EVENT_WORDS, pair.ctypes.data, 0))


def sockaddr(host: str, port: int) -> NDArray[np.uint8]:
    """The address as the kernel takes it, a sockaddr_in or sockaddr_in6; the first that the name stands for.

    >>> sockaddr("127.0.0.1", 8000).tolist()
    [2, 0, 31, 64, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    head = int(family).to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
    if family == socket.AF_INET:
        body = socket.inet_pton(family, str(where[0])) + bytes(8)
    else:
        scope = int(where[3]) if len(where) == 4 else 0
        body = bytes(4) + socket.inet_pton(family, str(where[0])) + scope.to_bytes(4, sys.byteorder)
    return np.frombuffer(head + body, np.uint8)


class Punctual:
    """While open, the kernel wakes this thread at the time it asked for, not up to 50 us later to save power."""

    _SET, _LEAST_NS, _USUAL = 29, 1, 0

    def __enter__(self) -> None:
        ctypes.CDLL(None).prctl(self._SET, self._LEAST_NS, 0, 0, 0)

    def __exit__(self, *_: object) -> None:
        ctypes.CDLL(None).prctl(self._SET, self._USUAL, 0, 0, 0)
