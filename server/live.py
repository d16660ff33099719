"""What the live page shows: figures of the host, and of the policy that somebody looks at.

    every COUNT_S, the agent's counter   --Pulse.look-->      a ring of samples a policy, for the page
    while somebody looks, once a second  --Pulse.snapshot-->  Live, as JSON (server.routes.live sends it on)

A sample is one row of f64: time_ms, then of each mode the items shown, then of each mode the sum of rewards, then the
decisions and the rewards counted. A ring of 300 rows takes 55 KB a policy.
"""

import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from server import shared
from server.inspect import top_arms
from server.live_figures import Live, PolicyLine, PolicyView, Quantiles
from server.replica import Replica
from server.schemas import Arm
from server.shared import HostFile
from streaming.contract import COLUMNS, OUTCOMES, SHOWN
from streaming.control import Policy
from streaming.token import MODES

SAMPLES = 300
ARMS_SHOWN = 50
SEGMENTS_SHOWN = 50
RECENT_S = 60.0
_COLUMNS = 3 + 2 * len(MODES)
_DECISIONS = slice(len(OUTCOMES), len(OUTCOMES) + len(MODES))  # those learned, in a row of outcomes/
_LOOK_SHARE = 50  # an answer about arms is used for so many times as long as it took to make
Floats = NDArray[np.float64]


class Pulse:
    """Samples of all policies and of the host, kept by the agent. The replica holds still during every call."""

    def __init__(self, host: HostFile, replica: Replica) -> None:
        self._host, self._replica = host, replica
        self._began = time.monotonic()
        self._rings: dict[int, deque[Floats]] = {}
        self._counts: deque[tuple[float, list[int], list[int]]] = deque(maxlen=SAMPLES)
        self._arms: dict[tuple[int, str], tuple[float, list[Arm], int]] = {}

    def look(self, now_ms: int) -> None:
        """Takes a sample of everything."""
        found = self._policies()
        for policy in found:
            self._rings.setdefault(policy.number, deque(maxlen=SAMPLES)).append(self._sample(policy, now_ms))
        for gone in self._rings.keys() - {entry.number for entry in self._replica.catalog.entries}:
            del self._rings[gone]
        self._counts.append((time.monotonic(), self._host.visible_counts(), self._latency()))

    def snapshot(self, name: str, segment: str, now_ms: int, ends: Sequence[int], sizes: tuple[int, int]) -> Live:
        """Everything of now; `policy` is null where there is none of that name."""
        host, replica = self._host, self._replica
        policies = self._policies()
        rows = [host.row(worker) for worker in range(host.rows)]
        since = host[shared.BEHIND_SINCE]
        before = next((each for each in self._counts if each[0] >= time.monotonic() - RECENT_S), None)
        visible, latency = host.visible_counts(), self._latency()
        if before is not None:
            visible = [now - then for now, then in zip(visible, before[1], strict=True)]
            latency = [now - then for now, then in zip(latency, before[2], strict=True)]
        chosen = next((policy for policy in policies if policy.name == name), None)
        return Live(
            now_ms, version("croupier"), time.monotonic() - self._began, MODES, host.parts(now_ms),
            len(host.live_rows(now_ms)),
            sum(host[place] for place in (shared.WORKER_RESTARTS, shared.AGENT_RESTARTS, shared.LEARNER_RESTARTS)),
            len(replica.shards),
            sum(max(0, end - shard.head) for end, shard in zip(ends, replica.shards, strict=True)),
            max(0, now_ms - since) / 1000 if since else 0.0,
            quantiles(shared.VISIBLE_S, visible[:-1]), quantiles(shared.LATENCY_S, latency[:-1]),
            sum(self._latency()[:-1]), sum(sum(row.refusals()) for row in rows), *sizes,
            [self._line(policy) for policy in policies],
            self._view(chosen, segment, now_ms) if chosen is not None else None,
        )  # fmt: skip

    def _policies(self) -> list[Policy]:
        return [policy for _, policy in self._replica.whole()]

    def _outcomes(self, policy: Policy) -> list[int]:
        """Of rewards and decisions, see `streaming.contract.COLUMNS`."""
        (row,) = self._replica.total(f"outcomes/{policy.number}", (1, len(COLUMNS)))
        return [int(count) for count in row]

    def _sample(self, policy: Policy, now_ms: int) -> Floats:
        row = np.empty(_COLUMNS)
        told, counts = self._replica.total(f"shown/{policy.number}", (len(MODES), len(SHOWN))), self._outcomes(policy)
        row[0], row[1 : 1 + len(MODES)], row[1 + len(MODES) : -2] = now_ms, told[:, 0], told[:, 2]
        row[-2], row[-1] = sum(counts[_DECISIONS]), sum(counts[: len(OUTCOMES)])
        return row

    def _latency(self) -> list[int]:
        """Of recommendations and feedback that were answered: counts per bucket, one beyond, then the sum."""
        rows = [self._host.row(worker) for worker in range(self._host.rows)]
        each = [row.latency(route, "2xx") for row in rows for route in ("/v1/recommend", "/v1/feedback")]
        return [sum(column) for column in zip(*each, strict=True)]

    def _line(self, policy: Policy) -> PolicyLine:
        table = self._replica.tables.get(policy.number)
        n = len(table.arrays["numbers"]) if policy.spec.is_diag and table is not None else 0
        items = n if policy.spec.is_diag else sum(not item.removed for item in policy.items)
        shown = self._replica.total(f"shown/{policy.number}", (len(MODES), len(SHOWN)))[:, 0].sum()
        return PolicyLine(
            policy.name, policy.spec.algorithm, items, int(shown), sum(self._outcomes(policy)[: len(OUTCOMES)])
        )

    def _view(self, policy: Policy, segment: str, now_ms: int) -> PolicyView:
        spec = policy.spec
        segments = [] if spec.is_diag else self._segments(policy)
        table = self._replica.tables.get(policy.number)
        n_clusters, dim = table.arrays["centroids"].shape if spec.is_diag and table is not None else (0, 0)
        arms, total = self._top(policy, segment, now_ms)
        ring = self._rings.get(policy.number, ())
        return PolicyView(
            policy.name, spec.algorithm, own_mode(policy), spec.reward.window_ms / 1000,
            spec.reward.default, dim, n_clusters, segment, segments,
            dict(zip(OUTCOMES, self._outcomes(policy), strict=False)),
            [row.tolist() for row in (*ring, self._sample(policy, now_ms))], arms, total,
        )  # fmt: skip

    def _segments(self, policy: Policy) -> list[str]:
        names: list[str] = []
        for shard in self._replica.shards:
            table = shard.state[f"bank_names/{policy.number}"][: SEGMENTS_SHOWN + 1, 0]
            names += [name.decode("utf-8", "replace") for name in table.tolist() if name]
        return sorted(set(names), key=lambda name: (name != "all", name))[:SEGMENTS_SHOWN]

    def _top(self, policy: Policy, segment: str, now_ms: int) -> tuple[list[Arm], int]:
        """The arms with the most plays. A large graph's are looked for less often than once a second."""
        now = time.monotonic()
        until, arms, total = self._arms.get((policy.number, segment), (0.0, [], 0))
        if now < until:
            return arms, total
        arms, total = top_arms(self._replica, policy, segment, ARMS_SHOWN, now_ms)
        self._arms = {key: known for key, known in self._arms.items() if known[0] > now}
        self._arms[policy.number, segment] = now + _LOOK_SHARE * (time.monotonic() - now), arms, total
        return arms, total


def own_mode(policy: Policy) -> str:
    """The mode of a request that names none."""
    if policy.spec.is_diag:
        return policy.spec.diag().mode
    return "thompson" if policy.spec.algorithm.startswith("thompson") else "explore"


def quantiles(bounds_s: Sequence[float], counts: Sequence[int]) -> Quantiles:
    """Upper bounds of the buckets that the median and the 99th percentile are in; beyond the last one, that one.

    >>> quantiles((0.001, 0.01), [3, 1, 0])
    Quantiles(p50=1.0, p99=10.0)
    """
    total = sum(counts)
    if total <= 0:
        return Quantiles(None, None)
    cumulated = np.cumsum(counts)
    found = [int(np.searchsorted(cumulated, share * total)) for share in (0.5, 0.99)]
    p50, p99 = (bounds_s[min(at, len(bounds_s) - 1)] * 1000 for at in found)
    return Quantiles(p50, p99)
