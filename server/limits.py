"""How much a caller may send: body size caps and a token bucket.

A bucket belongs to one key (or one client address where there are no keys) in one worker, so N workers let N times the
rate through. Buckets that are full again say nothing and are dropped, so memory is bounded by the callers of the last
`burst / rate` seconds, and by `CALLERS_MAX` beyond which the oldest go.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from server import errors

CALLERS_MAX = 100_000


class RateLimit:
    """`rate_per_s` requests a second for each caller, `burst` at once; rate 0 is no limit.

    >>> clock = iter([0.0, 0.0, 0.0, 1.0]).__next__
    >>> limit = RateLimit(1.0, 2.0, clock)
    >>> [limit.wait_s("a") for _ in range(4)]
    [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(self, rate_per_s: float, burst: float, clock_s: Callable[[], float]) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.clock_s = clock_s
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> tokens, at time; oldest first

    def wait_s(self, caller: str) -> float:
        """Takes a token and returns 0, or takes none and returns the seconds until there is one."""
        if self.rate_per_s == 0:
            return 0.0
        now = self.clock_s()
        tokens, at = self.buckets.pop(caller, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) * self.rate_per_s)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self.rate_per_s
        self.buckets[caller] = (tokens - 1 if wait == 0 else tokens, now)
        self._forget(now)
        return wait

    def _forget(self, now: float) -> None:
        """Drops the two oldest buckets if they are full again: more than one for each that is made."""
        for _ in range(2):
            caller, (tokens, at) = next(iter(self.buckets.items()))
            full = tokens + (now - at) * self.rate_per_s >= self.burst
            if len(self.buckets) > 1 and (full or len(self.buckets) > CALLERS_MAX):
                del self.buckets[caller]

    def check(self, caller: str) -> None:
        wait = self.wait_s(caller)
        if wait > 0:
            raise errors.too_many_requests(max(1, math.ceil(wait)))


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, or a 413 problem as soon as it is known to be larger, also without Content-Length."""
    length = request.headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > limit_bytes:
        raise errors.too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit_bytes:
                raise errors.too_large(limit_bytes)
            chunks.append(chunk)
    except ClientDisconnect:  # nobody reads this answer, but it is counted
        raise errors.Problem(400, "Incomplete body", "The connection ended before the body did.") from None
    return b"".join(chunks)
