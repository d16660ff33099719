"""Prometheus metrics of all processes of this host, made at each scrape from counters that are kept anyway.

| metric | labels | from |
|---|---|---|
| `croupier_request_seconds` (histogram) | route, outcome | workers' rows |
| `croupier_decisions_total` | policy, mode | workers' rows |
| `croupier_refusals_total` | reason | workers' rows: rewards refused before the log |
| `croupier_decisions_dropped_total` | | workers' rows: the agent was away for too long |
| `croupier_decisions_lost_total` | | store: gaps in the numbers of decisions |
| `croupier_reward_outcomes_total` | policy, outcome | store |
| `croupier_visible_seconds` (histogram) | | from the append of a commit's oldest record to every worker seeing it |
| `croupier_learner_lag_records` | shard | log end, as of 0.2 s ago - position of this host's replica |
| `croupier_learner_lag_seconds` | | age of the oldest record not learned |
| `croupier_replica_staleness_seconds` | shard | age of the newest applied commit's log time; 0 when nothing waits |
| `croupier_replica_reloads_total` | | the agent's process |
| `croupier_log_bytes`, `croupier_store_bytes` | | files |
| `croupier_banks` | policy | store |
| `croupier_bank_balance`, `croupier_bank_borrowed` | policy | sums over banks: of V; of what classic ones borrowed |
| `croupier_arms_entropy` | policy | nats: of the banks' chances (mean), or of the plays of a graph's items |
| `croupier_distinct_items_shown` | policy | items with at least one play |
| `croupier_restarts_total` | process | supervisor |
| `croupier_workers` | | workers that are alive |
| `croupier_up` | part | log, store, agent, and the learner where it is this server's: 1 there, 0 away |

A policy that is gone, or a route that is none, is counted as `unknown`. Counters begin at 0 for every label known.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from server import shared
from server.replica import Replica
from server.shared import HostFile
from streaming.contract import DECISIONS, OUTCOMES
from streaming.control import Policy
from streaming.token import MODES

_LOST = len(OUTCOMES) + DECISIONS.index("decisions_lost")
_BANKS_MAX = 100  # banks of one policy that are looked at for its entropy
_V, _BORROWED = 0, 8  # places in the header of a banker's state (bandits.banker, bandits.banker_classic)
SILENT_MS = 3_000


@dataclass
class Figures:
    """What was last seen of log and store: a scrape asks neither. `ends` are the shards'."""

    ends: list[int]
    log_bytes: int = 0
    store_bytes: int = 0


def render(host: HostFile, replica: Replica, figures: Figures, now_ms: int) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(host, replica, figures, now_ms))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, host: HostFile, replica: Replica, figures: Figures, now_ms: int) -> None:
        self._host, self._replica, self._figures, self._now_ms = host, replica, figures, now_ms
        self._rows = [host.row(worker) for worker in range(host.rows)]
        entries = replica.catalog.entries
        found = [(entry.name, replica.policy(entry.name)) for entry in entries]
        self._names = {entry.number: entry.name for entry in entries}
        self._policies = [(name, policy) for name, policy in found if policy is not None]

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._decisions()
        yield from self._outcomes()
        yield from self._freshness()
        yield from self._learned()
        yield from self._processes()

    def _requests(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "croupier_request_seconds", "Time to answer, by route and outcome.", labels=("route", "outcome")
        )
        for route in shared.ROUTES:
            for outcome in shared.OUTCOMES:
                counts = _sum(row.latency(route, outcome) for row in self._rows)
                family.add_metric((route, outcome), _buckets(shared.LATENCY_S, counts[:-1]), counts[-1] / 1e6)
        yield family
        refusals = CounterMetricFamily(
            "croupier_refusals", "Rewards refused before the log, by reason.", labels=("reason",)
        )
        for reason, count in zip(shared.REASONS, _sum(row.refusals() for row in self._rows), strict=True):
            refusals.add_metric((reason,), count)
        yield refusals

    def _decisions(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "croupier_decisions", "Decisions answered, by policy and mode.", labels=("policy", "mode")
        )
        counted = {number: [0] * len(MODES) for number in (0, *self._names)}
        for row in self._rows:
            for number, counts in row.decisions().items():
                into = counted[number if number in counted else 0]
                for mode, count in enumerate(counts):
                    into[mode] += count
        for number, counts in counted.items():
            for name, count in zip(MODES, counts, strict=True):
                family.add_metric((self._names.get(number, "unknown"), name), count)
        yield family
        dropped = sum(row[shared.DROPPED] for row in self._rows)
        yield CounterMetricFamily(
            "croupier_decisions_dropped", "Decisions dropped because the agent was away for too long.", value=dropped
        )

    def _outcomes(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "croupier_reward_outcomes", "What became of the rewards in the log.", labels=("policy", "outcome")
        )
        lost = 0
        for number in (0, *self._names):
            counts = np.zeros(len(OUTCOMES) + len(DECISIONS), np.int64)
            for shard in self._replica.shards:
                if f"outcomes/{number}" in shard.state:
                    counts += np.asarray(shard.state[f"outcomes/{number}"][0], np.int64)
            lost += int(counts[_LOST])
            for outcome, count in zip(OUTCOMES, counts.tolist(), strict=False):
                family.add_metric((self._names.get(number, "unknown"), outcome), count)
        yield family
        yield CounterMetricFamily(
            "croupier_decisions_lost", "Decisions that never came to the log: gaps in their numbers.", value=lost
        )

    def _freshness(self) -> Iterator[Metric]:
        counts = self._host.visible_counts()
        visible = HistogramMetricFamily(
            "croupier_visible_seconds", "From the durable append of a reward to every worker's next choice."
        )
        visible.add_metric((), _buckets(shared.VISIBLE_S, counts[:-1]), counts[-1] / 1e6)
        yield visible
        lag = GaugeMetricFamily("croupier_learner_lag_records", "Log records not learned yet.", labels=("shard",))
        stale = GaugeMetricFamily(
            "croupier_replica_staleness_seconds",
            "Age of the newest applied commit while more waits.",
            labels=("shard",),
        )
        for number, shard in enumerate(self._replica.shards):
            behind = max(0, self._figures.ends[number] - shard.head)
            age = (self._now_ms - shard.log_time_ms) / 1000 if behind and shard.log_time_ms else 0.0
            lag.add_metric((str(number),), behind)
            stale.add_metric((str(number),), max(0.0, age))
        yield lag
        yield stale
        since = self._host[shared.BEHIND_SINCE]
        yield GaugeMetricFamily(
            "croupier_learner_lag_seconds",
            "Age of the oldest record not learned yet.",
            value=max(0, self._now_ms - since) / 1000 if since else 0.0,
        )
        yield CounterMetricFamily(
            "croupier_replica_reloads", "Shards read anew because the feed did not join.", value=self._replica.reloads
        )
        yield GaugeMetricFamily("croupier_log_bytes", "Size of the event log.", value=self._figures.log_bytes)
        yield GaugeMetricFamily("croupier_store_bytes", "Size of the parameter store.", value=self._figures.store_bytes)

    def _learned(self) -> Iterator[Metric]:
        banks = GaugeMetricFamily("croupier_banks", "Banks, the shared one included.", labels=("policy",))
        balance = GaugeMetricFamily("croupier_bank_balance", "Sum of the banks' V.", labels=("policy",))
        borrowed = GaugeMetricFamily(
            "croupier_bank_borrowed", "Sum of what banks of the classic rule have borrowed.", labels=("policy",)
        )
        entropy = GaugeMetricFamily("croupier_arms_entropy", "Entropy of what is shown, nats.", labels=("policy",))
        shown = GaugeMetricFamily("croupier_distinct_items_shown", "Items played at least once.", labels=("policy",))
        for name, policy in self._policies:
            if policy.spec.is_diag:
                plays = self._plays(policy)
                entropy.add_metric((name,), _entropy(plays))
            else:
                table = self._banks(policy)
                plays = self._bank_plays(policy, table)
                banks.add_metric((name,), len(table))
                if policy.spec.algorithm == "banker":
                    balance.add_metric((name,), float(table[:, _V].sum()))
                    classic = policy.spec.parameters.get("rule") == "classic"
                    borrowed.add_metric((name,), float(table[:, _BORROWED].sum()) if classic else 0.0)
                entropy.add_metric((name,), self._bank_entropy(policy, table))
            shown.add_metric((name,), int(np.count_nonzero(plays)))
        yield from (banks, balance, borrowed, entropy, shown)

    def _plays(self, policy: Policy) -> NDArray[np.float64]:
        tables = [shard.state for shard in self._replica.shards if f"items/{policy.number}" in shard.state]
        return np.sum([state[f"items/{policy.number}"][:, 0] for state in tables], axis=0) if tables else np.zeros(1)

    def _banks(self, policy: Policy) -> NDArray[np.float64]:
        return np.concatenate([shard.state[f"banks/{policy.number}"] for shard in self._replica.shards])

    def _bank_plays(self, policy: Policy, table: NDArray[np.float64]) -> NDArray[np.float64]:
        kind, n = policy.spec.arm_policy(), len(policy.items)
        rows = table[:, kind.header : kind.header + kind.columns * n].reshape(len(table), n, kind.columns)
        plays: NDArray[np.float64] = rows[:, :, 0].sum(axis=0)
        return plays

    def _bank_entropy(self, policy: Policy, table: NDArray[np.float64]) -> float:
        kind = policy.spec.arm_policy()
        active = np.array([not (item.removed or item.paused) for item in policy.items])
        chances = [kind.probabilities(bank, active, self._now_ms) for bank in table[:_BANKS_MAX]]
        known = [_entropy(each) for each in chances if np.isfinite(each).all()]
        return float(np.mean(known)) if known else float("nan")

    def _processes(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily("croupier_restarts", "Processes started again.", labels=("process",))
        places = {
            "worker": shared.WORKER_RESTARTS, "agent": shared.AGENT_RESTARTS, "learner": shared.LEARNER_RESTARTS
        }  # fmt: skip
        for process, place in places.items():
            restarts.add_metric((process,), self._host[place])
        yield restarts
        live = sum(1 for row in self._rows if row[shared.PID] and self._now_ms - row[shared.BEAT] < SILENT_MS)
        yield GaugeMetricFamily("croupier_workers", "Workers that are alive.", value=live)
        up = GaugeMetricFamily("croupier_up", "1 where a part is there, 0 where it is away.", labels=("part",))
        parts = {
            "log": self._host[shared.LOG] != shared.AWAY,
            "store": self._host[shared.STORE] != shared.AWAY,
            "agent": True,
        }
        if not self._host[shared.APART]:
            parts["learner"] = self._now_ms - self._host[shared.LEARNER_BEAT] < SILENT_MS
        for part, there in parts.items():
            up.add_metric((part,), int(there))
        yield up


def _sum(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(each) for each in zip(*rows, strict=True)]


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative buckets, as the text format has them."""
    total, buckets = 0, []
    for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _entropy(weights: NDArray[np.float64]) -> float:
    """Entropy of weights after division by their sum, in nats; 0 where there are none."""
    total = weights.sum()
    if not total > 0:
        return 0.0
    p = weights[weights > 0] / total
    return float(-(p * np.log(p)).sum())
