"""Open-loop latency: requests leave at times drawn beforehand, and latency counts from those times.

A closed loop that waits for slow answers asks less often exactly while the server is slow, and so hides it
(coordinated omission). Here the schedule is fixed by a seed; a request that finds all connections busy waits in
line, and its waiting is part of its latency.

Data: `due` f64[n], seconds after the start, ascending; `waiting`, request numbers whose time has come while no
connection was free; `idle`, free connections, the one that rested longest first, so all of them (and all workers
behind them) are used. Latencies go into an HDR histogram in microseconds, three digits, up to one minute.
"""

import array
import asyncio
import ctypes
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram

from loadtest.client import Address, Answer, Unreachable, Wire

LONGEST_US = 60_000_000
QUANTILES = (50.0, 90.0, 99.0, 99.9)

Arrivals = Literal["poisson", "constant"]


def schedule(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Due times in seconds from the start, ascending, all below `seconds`.

    >>> schedule(4, 1, "constant", 0).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    if not rate > 0 or not seconds > 0:
        raise ValueError("rate and seconds must be above zero")
    if arrivals == "constant":
        return np.arange(round(rate * seconds)) / rate
    rng = np.random.default_rng(seed)
    n = int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 10)  # six standard deviations: enough but for a miracle
    due = np.cumsum(rng.exponential(1 / rate, n))
    return due[due < seconds]


def histogram() -> Any:
    return HdrHistogram(1, LONGEST_US, 3)


def record(into: Any, seconds: np.ndarray[Any, Any]) -> None:
    """Add latencies, given in seconds; equal microseconds are added in one call."""
    us = np.clip(np.rint(np.asarray(seconds) * 1e6), 1, LONGEST_US).astype(np.int64)
    for value, count in zip(*np.unique(us, return_counts=True), strict=True):
        into.record_value(int(value), int(count))


class Alarm:
    """A timerfd: wakes the loop within some 50 us of a time. The loop's own timers round up to whole milliseconds,
    which would be added to every latency."""

    _libc = ctypes.CDLL(None, use_errno=True)
    _ABSOLUTE = 1

    class _Spec(ctypes.Structure):
        _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")]

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop, self._wake = loop, wake
        loop.add_reader(self._fd, self._ring)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._wake()

    def set(self, at: float) -> None:
        """Wake at `at`, in seconds of time.monotonic()."""
        whole = int(at)
        spec = self._Spec(0, 0, whole, max(1, int((at - whole) * 1e9)))
        if self._libc.timerfd_settime(self._fd, self._ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


@dataclass
class Result:
    """What one run found. Latencies are those of 2xx answers; everything else is counted, not timed."""

    rate: float
    connections: int
    arrivals: str
    scheduled: int
    seconds: float = 0.0
    sent: int = 0
    lost: int = 0  # the connection closed before the answer
    unanswered: int = 0  # still out when the patience ended
    unsent: int = 0  # in line when the patience ended
    skipped: int = 0  # there was nothing to send
    reconnects: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    latency: Any = field(default_factory=histogram)  # from the scheduled time
    generator_late: Any = field(default_factory=histogram)  # how late the alarm itself woke us

    @property
    def answered(self) -> int:
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300)

    @property
    def errors(self) -> int:
        """Requests without a 2xx answer so far, for whatever reason."""
        without = self.lost + self.unanswered + self.unsent + self.skipped
        return sum(self.statuses.values()) - self.answered + without

    @property
    def achieved_rate(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    def quantile_ms(self, q: float) -> float:
        return float(self.latency.get_value_at_percentile(q)) / 1000 if self.answered else float("nan")

    @property
    def max_ms(self) -> float:
        return float(self.latency.get_max_value()) / 1000 if self.answered else float("nan")

    def to_dict(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "connections": self.connections,
            "arrivals": self.arrivals,
            "scheduled": self.scheduled,
            "answered_2xx": self.answered,
            "achieved_rate": round(self.achieved_rate, 1),
            "errors": self.errors,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "lost": self.lost,
            "unanswered": self.unanswered,
            "unsent": self.unsent,
            "skipped": self.skipped,
            "reconnects": self.reconnects,
            "latency_ms": {f"p{q:g}": self.quantile_ms(q) for q in QUANTILES} | {"max": self.max_ms},
            "generator_late_ms": {
                "p50": float(self.generator_late.get_value_at_percentile(50)) / 1000,
                "p99": float(self.generator_late.get_value_at_percentile(99)) / 1000,
            },
        }

    def text(self) -> str:
        d = self.to_dict()
        latency = "  ".join(f"{name} {ms:.3f}" for name, ms in d["latency_ms"].items())
        statuses = ", ".join(f"{status}: {n:,}" for status, n in d["statuses"].items()) or "none"
        return "\n".join(
            [
                f"rate       {self.achieved_rate:,.0f}/s answered with 2xx, {self.rate:,.0f}/s wanted "
                f"({self.arrivals}, {self.connections} connections, {self.seconds:.1f} s)",
                f"latency ms {latency}   (from the scheduled time)",
                f"errors     {self.errors:,} of {self.scheduled:,}   statuses {statuses}; lost {self.lost}, "
                f"unanswered {self.unanswered}, never sent {self.unsent + self.skipped}, reconnects {self.reconnects}",
                f"generator  woke {d['generator_late_ms']['p50']:.3f} ms late at p50, "
                f"{d['generator_late_ms']['p99']:.3f} at p99 (part of the latencies above)",
            ]
        )


class _Run:
    """One run: the schedule, the connections, and the requests between them."""

    start: float  # time.monotonic() at which the schedule begins
    alarm: Alarm

    def __init__(
        self, address: Address, due: np.ndarray[Any, Any], request: Callable[[int], bytes | None], r: Result
    ) -> None:
        self.address, self.request, self.result = address, request, r
        self.on_answer: Callable[[int, Answer], None] | None = None
        self.due = due
        self.times = due.tolist()
        self.next = 0
        self.waiting: deque[int] = deque()
        self.idle: deque[Wire] = deque()
        self.wires: set[Wire] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.latencies = array.array("d")
        self.lateness = array.array("d")
        self.out = 0
        self.ended = False
        self.done = asyncio.Event()

    def wake(self) -> None:
        """Send or queue whatever is due; called by the alarm."""
        now = time.monotonic() - self.start
        if self.next < len(self.times):
            self.lateness.append(now - self.times[self.next])
        while self.next < len(self.times) and self.times[self.next] <= now:
            self.waiting.append(self.next)
            self.next += 1
        self.match()
        if self.next < len(self.times):
            self.alarm.set(self.start + self.times[self.next])
        else:
            self.check()

    def match(self) -> None:
        """Send what is due on the connections that are free."""
        while self.waiting and self.idle:
            number = self.waiting.popleft()
            data = self.request(number)
            if data is None:
                self.result.skipped += 1
                continue
            self.out += 1
            self.result.sent += 1
            self.idle.popleft().send(data, number)

    def answered(self, wire: Wire, answer: Answer) -> None:
        number, wire.tag = wire.tag, -1
        if number < 0:
            return  # nobody asked: a server's goodbye (408)
        self.out -= 1
        self.result.statuses[answer.status] += 1
        if 200 <= answer.status < 300:
            self.latencies.append(time.monotonic() - self.start - self.times[number])
        if self.on_answer is not None:
            self.on_answer(number, answer)
        if wire.open:
            self.idle.append(wire)
            self.match()
        self.check()

    def lost(self, wire: Wire) -> None:
        self.wires.discard(wire)
        if self.ended:
            return  # closed by us; what was out is counted as unanswered
        if wire.tag >= 0:
            wire.tag = -1
            self.out -= 1
            self.result.lost += 1
        elif wire in self.idle:
            self.idle.remove(wire)
        self.result.reconnects += 1
        task = asyncio.get_running_loop().create_task(self.reconnect())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.check()

    async def connect(self) -> None:
        wire = await self.address.connect(lambda: Wire(self.answered, self.lost))
        self.wires.add(wire)
        self.idle.append(wire)
        self.match()

    async def reconnect(self) -> None:
        while not self.ended:
            try:
                return await self.connect()
            except Unreachable:
                await asyncio.sleep(0.1)

    def check(self) -> None:
        if self.next == len(self.times) and not self.waiting and not self.out:
            self.done.set()

    def fold(self) -> None:
        for into, values in ((self.result.latency, self.latencies), (self.result.generator_late, self.lateness)):
            if values:
                record(into, np.frombuffer(values, dtype=np.float64).copy())
                del values[:]


async def drive(
    url: str,
    request: Callable[[int], bytes | None],
    *,
    rate: float,
    seconds: float,
    connections: int = 1,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    patience_s: float = 10.0,
    on_answer: Callable[[int, Answer], None] | None = None,
    progress: Callable[[Result, float], None] | None = None,
) -> Result:
    """Send `request(number)` (whole request bytes, see `Address.request`) at the scheduled times; wait for the answers.

    A request that is None is skipped and counted: there was nothing to send, such as no decision to reward.

    `on_answer(number, answer)` sees every answer; `progress(result, elapsed_s)` is called once a second.
    Raises `Unreachable` when no connection can be made at the start.
    """
    address = Address.of(url)
    due = schedule(rate, seconds, arrivals, seed)
    result = Result(rate=rate, connections=connections, arrivals=arrivals, scheduled=len(due))
    run = _Run(address, due, request, result)
    run.on_answer = on_answer
    for _ in range(connections):
        await run.connect()
    run.alarm = Alarm(asyncio.get_running_loop(), run.wake)
    try:
        run.start = time.monotonic() + 0.01
        run.alarm.set(run.start + (run.times[0] if run.times else 0.0))
        give_up = run.start + seconds + patience_s
        while not run.done.is_set() and time.monotonic() < give_up:
            try:
                await asyncio.wait_for(run.done.wait(), min(1.0, max(0.001, give_up - time.monotonic())))
            except TimeoutError:
                run.fold()
                if progress is not None:
                    progress(result, time.monotonic() - run.start)
        # The rate is over the schedule, or longer when the answers came later than it ended.
        result.seconds = max(seconds, time.monotonic() - run.start)
    finally:
        run.ended = True
        run.alarm.close()
        for wire in list(run.wires):
            wire.close()
        for task in list(run.tasks):
            task.cancel()
        run.fold()
    result.unanswered = run.out
    result.unsent = len(run.waiting) + len(run.times) - run.next
    await asyncio.sleep(0)  # let the transports close
    return result


def bodies_of(text: bytes) -> list[bytes]:
    """The request bodies of a file: one JSON value, or one on each line.

    >>> bodies_of(b'{"k": 1}'), bodies_of(b'[1]\\n[2]\\n')
    ([b'{"k": 1}'], [b'[1]', b'[2]'])
    """
    try:
        msgspec.json.decode(text)
        return [text.strip()]
    except msgspec.DecodeError:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("the body file is empty: put one JSON body in it, or one on each line")
    for i, line in enumerate(lines, 1):
        try:
            msgspec.json.decode(line)
        except msgspec.DecodeError as e:
            raise ValueError(f"line {i} of the body file is not JSON ({e}): give one JSON body a line") from None
    return lines


def cycle(url: str, path: str, bodies: list[bytes], headers: Mapping[str, str] | None = None) -> Callable[[int], bytes]:
    """Requests that POST the bodies one after another, and again from the first."""
    requests = [Address.of(url).request("POST", path, body, headers) for body in bodies]
    n = len(requests)
    return lambda number: requests[number % n]
