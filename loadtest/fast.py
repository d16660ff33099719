"""A load driver that costs little: HTTP/1.1 over plain sockets, compiled, so that it leaves the cores to the server.

    with Load(url, connections=32) as load:
        load.closed(requests, seconds=1.0)          each connection sends the next request when it has its answer
        load.open(requests, rate=5e3, seconds=3.0)  requests leave at times drawn beforehand from a seed

In the open loop latency counts from the scheduled time: a request that finds all connections busy waits in line, and
its waiting is part of its latency. So is it when this driver itself comes late; how late it came is in the result.
Requests are made beforehand (`Requests.of`); thousands of different ones cost no more than one.

Of an answer it reads the status and passes over the body. Answers must have a content-length. What is not a 2xx
answer is counted and has no latency. A connection that is lost is made again at once; where that fails, the others
go on. The driver takes the whole thread, without Python's lock, until the run has ended: no signal is handled in
that time, so keep runs short. Linux only (`loadtest.libc`); the first run of a process compiles it, which takes
seconds. `loadtest.openloop` is the driver with callbacks.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loadtest import driver, libc
from loadtest.answers import Bytes
from loadtest.client import Address, Unreachable
from loadtest.libc import Ints
from loadtest.openloop import Arrivals, schedule

RATE_MAX = 400_000  # answers a second: what a closed loop has room for, then it ends early


@dataclass(frozen=True)
class Requests:
    """Whole requests back to back: `data` u8[bytes], request r from `starts`[r] to `starts`[r + 1].

    >>> requests = Requests.of([b"GET / HTTP/1.1", b"abc"])
    >>> len(requests), requests.starts.tolist()
    (2, [0, 14, 17])
    """

    data: Bytes
    starts: Ints

    @classmethod
    def of(cls, requests: Sequence[bytes]) -> "Requests":
        if not requests or not all(requests):
            raise ValueError("give at least one request, and none that is empty")
        starts = np.cumsum([0, *map(len, requests)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(requests), np.uint8).copy(), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True)
class Outcome:
    """What a run did. `latency_ns` has the 2xx answers in the order of their requests, `late_ns` (open loop) every
    request that came due: how late the driver saw it."""

    scheduled: int  # open loop and `once`: requests that were to be sent; closed loop: those that were
    statuses: Counter[int]
    lost: int  # the connection ended before the answer was whole
    misread: int  # an answer that is no HTTP, has no content-length or is longer than it says
    unanswered: int  # still out when the patience ended
    unsent: int
    reconnects: int
    dead_connections: int  # lost and not made again
    seconds: float  # from the start to the last answer; open loop: at least the schedule's
    latency_ns: Ints
    late_ns: Ints

    @property
    def answers(self) -> int:
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300)

    @property
    def errors(self) -> int:
        """Requests without a 2xx answer, for whatever reason."""
        return self.scheduled - self.answers

    @property
    def rate(self) -> float:
        """2xx answers a second."""
        return self.answers / self.seconds if self.seconds else 0.0

    def latency_us(self, percent: float) -> float:
        """The latency that so many percent of the 2xx answers do not exceed; NaN without any."""
        return _percentile_us(self.latency_ns, percent)

    def late_us(self, percent: float) -> float:
        """How late the driver was, likewise; NaN in a closed loop."""
        return _percentile_us(self.late_ns, percent)


def _percentile_us(values: Ints, percent: float) -> float:
    return float(np.percentile(values, percent)) / 1e3 if len(values) else float("nan")


class Load:
    """Connections to one server, for one run after another; open inside `with`. Raises Unreachable, Unsupported."""

    def __init__(self, url: str, connections: int = 32) -> None:
        libc.check()
        self.address = Address.of(url)
        if self.address.tls:
            raise ValueError(f"url {url!r}: this driver speaks no TLS; give an http address, or use loadtest.openloop")
        if connections < 1:
            raise ValueError("connections must be at least 1")
        self._sockaddr = libc.sockaddr(self.address.host, self.address.port)
        self._wires = np.zeros((connections, driver.FIELDS), np.int64)
        self._heads = np.zeros((connections, driver.HEAD_MAX), np.uint8)
        self._wires[:, driver.NUMBER] = driver.DEAD
        self._epoll = -1

    def __enter__(self) -> "Load":
        self._epoll = libc.epoll_create1(0)
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self._wires:
            self._close(wire)
        libc.close(self._epoll)
        self._epoll = -1

    def _close(self, wire: Ints) -> None:
        if wire[driver.NUMBER] != driver.DEAD:
            libc.close(int(wire[driver.FD]))
        wire[driver.NUMBER] = driver.DEAD

    def _connect(self) -> None:
        """Connections for those that are not there."""
        run = self._run(Requests.of([b"-"]), 0, np.zeros(0, np.int64))
        for c, wire in enumerate(self._wires):
            if wire[driver.NUMBER] >= 0:  # its answer never came
                self._close(wire)
            if wire[driver.NUMBER] == driver.DEAD and (why := driver.open_wire(self._epoll, run, c)):
                self.__exit__()
                raise Unreachable(f"no connection to {self.address.host}:{self.address.port}: {os.strerror(why)}")

    def closed(self, requests: Requests, seconds: float, patience_s: float = 10.0) -> Outcome:
        """Every connection sends the next request as soon as its last is answered, for so long; the answers that are
        still out then are waited for."""
        _check(seconds=seconds)
        found = self._go(requests, int(seconds * RATE_MAX) + 1, np.zeros(0, np.int64), seconds, patience_s)
        return replace(found, scheduled=found.scheduled - found.unsent, unsent=0)

    def once(self, requests: Requests, patience_s: float = 60.0) -> Outcome:
        """As `closed`, but every request once, however long that takes, at most `patience_s`."""
        _check(patience_s=patience_s)
        return self._go(requests, len(requests), np.zeros(0, np.int64), patience_s, 0.0)

    def open(
        self,
        requests: Requests,
        rate: float,
        seconds: float,
        *,
        arrivals: Arrivals = "poisson",
        seed: int = 0,
        patience_s: float = 10.0,
    ) -> Outcome:
        """Requests at the times of `loadtest.openloop.schedule`, `rate` a second for `seconds`."""
        due = (schedule(rate, seconds, arrivals, seed) * 1e9).astype(np.int64)
        if not len(due):
            raise ValueError(f"no request falls into {seconds:g} s at {rate:g}/s; ask for more of either")
        return self._go(requests, len(due), due, seconds, patience_s)

    def _run(self, requests: Requests, n: int, due: Ints) -> driver.Run:
        connections = len(self._wires)
        counts = np.zeros(driver.COUNTS, np.int64)
        counts[driver.RESTING] = counts[driver.LIVING] = connections
        return driver.Run(
            self._wires,
            self._heads,
            np.arange(connections),
            requests.data,
            requests.starts,
            due,
            np.full(n, -1, np.int64),
            np.full(n, -1, np.int64),
            np.zeros(1000, np.int64),
            counts,
            self._sockaddr,
        )

    def _go(self, requests: Requests, n: int, due: Ints, seconds: float, patience_s: float) -> Outcome:
        assert self._epoll >= 0, "a Load is used inside `with`"
        self._connect()
        run = self._run(requests, n, due)
        with libc.Punctual():
            driver.drive(self._epoll, run, int(seconds * 1e9), int(patience_s * 1e9))
        counts = run.counts
        return Outcome(
            scheduled=n,
            statuses=Counter({int(s): int(run.statuses[s]) for s in np.flatnonzero(run.statuses)}),
            lost=int(counts[driver.LOST]),
            misread=int(counts[driver.MISREAD]),
            unanswered=int(counts[driver.UNANSWERED]),
            unsent=n - int(counts[driver.ISSUED]),
            reconnects=int(counts[driver.RECONNECTS]),
            dead_connections=int(counts[driver.NOT_RECONNECTED]),
            seconds=max(seconds if len(due) else 0.0, counts[driver.LAST_NS] / 1e9),
            latency_ns=run.latency[run.latency >= 0],
            late_ns=run.late[run.late >= 0],
        )


def _check(**values: Any) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above zero")
