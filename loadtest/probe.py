"""How long after its acknowledgement a reward shows in the next choice, measured from outside.

A policy of its own, `freshness-probe`: Diag-LinUCB with C clusters and one item, hence C edges that know nothing of
each other, and no default reward, so that an edge's mean moves when a reward is learned and never else. One
measurement uses one edge:

    recommend for cluster c, mode exploit      -> decision id, score before
    feedback, reward 1                         -> 202 at t0
    recommend for cluster c on every connection, again and again, until the score is another; t1 = the last one's answer

The freshness is t1 - t0: it includes the polls' pause and an answer's way, so it is never too small. The
connections are spread over the workers by the kernel; a worker that none of them reaches is not measured.
"""

import asyncio
import io
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from loadtest.client import Address, Connection, Lost, Unreachable
from loadtest.ledger import Ledger
from loadtest.openloop import QUANTILES, histogram, record
from loadtest.users import set_up
from loadtest.worlds import World

POLICY = "freshness-probe"
CLUSTERS = 4096


def world(window_s: float) -> World:
    """C clusters without centroids (dim 0), each with an edge to the only item; nobody clicks."""
    graph = io.BytesIO()
    np.savez(
        graph,
        centroids=np.zeros((CLUSTERS, 0), dtype=np.float32),
        indptr=np.arange(CLUSTERS + 1, dtype=np.int64),
        items=np.zeros(CLUSTERS, dtype=np.uint32),
        ids=np.array(["probe"]),
    )
    contract = {"window": f"{window_s:g}s", "default": None, "aggregation": "first"}
    return World(
        policy=POLICY,
        spec={"algorithm": "diag-linucb", "clusters_per_user": 1, "fresh": "prior", "reward": contract},
        ids=("probe",),
        users=(b'{"clusters":[0],"weights":[1]}',),
        rates=np.zeros((1, 1)),
        window_s=window_s,
        graph=graph.getvalue(),
    )


@dataclass
class Freshness:
    """What the probe found, in seconds; `never` counts rewards not seen within the patience."""

    seconds: list[float] = field(default_factory=list)
    never: int = 0
    failed: int = 0  # measurements that an error of the server ended

    def to_dict(self) -> dict[str, Any]:
        h = histogram()
        record(h, np.array(self.seconds))
        found = {f"p{q:g}": float(h.get_value_at_percentile(q)) / 1000 for q in QUANTILES} if self.seconds else {}
        longest = {"max": max(self.seconds) * 1000} if self.seconds else {}
        return {
            "measurements": len(self.seconds),
            "never_seen": self.never,
            "failed": self.failed,
            "acknowledged_to_visible_ms": found | longest,
        }


class Probe:
    """Measures freshness on `connections` connections, one reward at a time."""

    def __init__(
        self,
        url: str,
        *,
        connections: int = 8,
        window_s: float = 60.0,
        poll_s: float = 0.002,
        patience_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url, self.headers = url, headers
        self.connections = [Connection(Address.of(url), headers) for _ in range(connections)]
        self.window_s, self.poll_s, self.patience_s = window_s, poll_s, patience_s
        self.found = Freshness()
        self.ledger = Ledger()  # the probe's own rewards, for the books
        self._edges = itertools.cycle(range(CLUSTERS))

    async def set_up(self) -> None:
        """Create the probe's policy; raises SetupRefused with the server's words."""
        await set_up(self.url, world(self.window_s), self.headers)
        for connection in self.connections:
            while await self._ask(connection, 0) is None:  # a worker that does not show it yet
                await asyncio.sleep(0.05)

    async def run(self, seconds: float | None, every_s: float = 0.25) -> Freshness:
        """One measurement each `every_s` (or as soon as the last is over) for `seconds`; None: until cancelled."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            due = time.monotonic() + every_s
            try:
                await self.measure()
            except Unreachable:
                self.found.failed += 1
                await asyncio.sleep(0.2)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        return self.found

    async def measure(self) -> float | None:
        """Seconds from a reward's acknowledgement until every connection shows it; None when it was not to be had."""
        edge = next(self._edges)
        before = await self._ask(self.connections[0], edge)
        if before is None:
            self.found.failed += 1
            return None
        decision_id, score = before
        body = msgspec.json.encode({"decision_id": decision_id, "item": "probe", "reward": 1})
        try:
            answer = await self.connections[0].request("POST", "/v1/feedback", body)
        except (Lost, asyncio.CancelledError):
            self.ledger.uncertain["applied"] += 1
            raise
        acknowledged = time.monotonic()
        if answer.status != 202:
            self.found.failed += 1
            return None
        self.ledger.expected["applied"] += 1
        shown = await asyncio.gather(*(self._until_moved(c, edge, score, acknowledged) for c in self.connections))
        latest = None if None in shown else max(at for at in shown if at is not None)
        if latest is None:
            self.found.never += 1
            return None
        self.found.seconds.append(max(0.0, latest - acknowledged))
        return self.found.seconds[-1]

    async def _until_moved(self, connection: Connection, edge: int, score: float, since: float) -> float | None:
        """When the answer came that shows another score; None after the patience."""
        while time.monotonic() < since + self.patience_s:
            now = await self._ask(connection, edge)
            if now is not None and now[1] != score:
                return time.monotonic()
            await asyncio.sleep(self.poll_s)
        return None

    async def _ask(self, connection: Connection, edge: int) -> tuple[str, float] | None:
        body = b'{"policy":"%b","user":{"clusters":[%d],"weights":[1]},"k":1,"mode":"exploit"}'
        answer = await connection.request("POST", "/v1/recommend", body % (POLICY.encode(), edge))
        if answer.status != 200:
            return None
        decision: Any = answer.json()
        return decision["decision_id"], decision["items"][0]["score"]

    def keep(self, connections: list[Connection]) -> None:
        """Ask on these connections only; the others are closed."""
        assert connections
        for connection in self.connections:
            if connection not in connections:
                connection.close()
        self.connections = connections

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
