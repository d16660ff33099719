"""Prometheus metrics of all processes of this host, made at each scrape from counters that are kept anyway.

    workers' rows, the host file (server.shared)    requests, decisions, refusals, freshness, processes
    the replica (server.replica)                    outcomes and what was learned: server.learned_metrics
    Figures                                         what a thread of the agent looked at last: a scrape asks nobody

What each metric says stands in `server.metric_table`. A policy that is gone, or a route that is none, is counted as
`unknown`. Counters begin at 0 for every label known.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from server import shared
from server.learned_metrics import Learned
from server.learner_metrics import learner_families
from server.metric_table import buckets, family
from server.plays import Plays
from server.replica import Replica
from server.shared import HostFile
from streaming.token import MODES

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Figures:
    """What was last seen of log, store, disk and plays: a scrape asks none of them. `ends` are the shards'."""

    ends: list[int]
    log_bytes: int = 0
    store_bytes: int = 0
    shared_bytes: int = 0
    disk_free_bytes: int = 0
    disk_bytes: int = 0
    plays: Plays = field(default_factory=Plays)


def render(host: HostFile, replica: Replica, figures: Figures, now_ms: int) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(host, replica, figures, now_ms))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, host: HostFile, replica: Replica, figures: Figures, now_ms: int) -> None:
        self._host, self._replica, self._figures, self._now_ms = host, replica, figures, now_ms
        self._rows = [host.row(worker) for worker in range(host.rows)]
        self._names = {entry.number: entry.name for entry in replica.catalog.entries}

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._decisions()
        yield from self._freshness()
        yield from Learned(self._replica, self._figures.plays, self._now_ms).collect()
        yield from self._sizes()
        yield from self._processes()
        if not self._host[shared.APART]:
            counts, stopped = self._host.learned_counts()
            yield from learner_families(counts, stopped, dict(enumerate(self._behind())))

    def _requests(self) -> Iterator[Metric]:
        requests = family("croupier_request_seconds")
        for route in shared.ROUTES:
            for outcome in shared.OUTCOMES:
                counts = _sum(row.latency(route, outcome) for row in self._rows)
                requests.add_metric((route, outcome), buckets(shared.LATENCY_S, counts[:-1]), counts[-1] / 1e6)
        yield requests
        yield family("croupier_hot_requests_total", sum(row[shared.HOT] for row in self._rows))
        refusals = family("croupier_refusals_total")
        for reason, count in zip(shared.REASONS, _sum(row.refusals() for row in self._rows), strict=True):
            refusals.add_metric((reason,), count)
        yield refusals

    def _decisions(self) -> Iterator[Metric]:
        decisions = family("croupier_decisions_total")
        counted = {number: [0] * len(MODES) for number in (0, *self._names)}
        for row in self._rows:
            for number, counts in row.decisions().items():
                into = counted[number if number in counted else 0]
                for mode, count in enumerate(counts):
                    into[mode] += count
        for number, counts in counted.items():
            for name, count in zip(MODES, counts, strict=True):
                decisions.add_metric((self._names.get(number, "unknown"), name), count)
        yield decisions
        yield family("croupier_decisions_dropped_total", sum(row[shared.DROPPED] for row in self._rows))

    def _behind(self) -> list[int]:
        return [max(0, end - shard.head) for end, shard in zip(self._figures.ends, self._replica.shards, strict=True)]

    def _freshness(self) -> Iterator[Metric]:
        counts = self._host.visible_counts()
        visible = family("croupier_visible_seconds")
        visible.add_metric((), buckets(shared.VISIBLE_S, counts[:-1]), counts[-1] / 1e6)
        yield visible
        lag, stale = family("croupier_learner_lag_records"), family("croupier_replica_staleness_seconds")
        for number, (shard, behind) in enumerate(zip(self._replica.shards, self._behind(), strict=True)):
            age = (self._now_ms - shard.log_time_ms) / 1000 if behind and shard.log_time_ms else 0.0
            lag.add_metric((str(number),), behind)
            stale.add_metric((str(number),), max(0.0, age))
        yield lag
        yield stale
        since = self._host[shared.BEHIND_SINCE]
        yield family("croupier_learner_lag_seconds", max(0, self._now_ms - since) / 1000 if since else 0.0)
        yield family("croupier_replica_reloads_total", self._replica.reloads)

    def _sizes(self) -> Iterator[Metric]:
        for name in ("log_bytes", "store_bytes", "shared_bytes", "disk_free_bytes", "disk_bytes"):
            yield family(f"croupier_{name}", getattr(self._figures, name))
        memory = family("croupier_memory_bytes")
        pids_of = {
            "worker": [row[shared.PID] for row in self._rows],
            "agent": [self._host[shared.AGENT_PID]],
            "learner": [self._host[shared.LEARNER_PID]],
        }
        for process, pids in pids_of.items():
            memory.add_metric((process,), sum(map(private_bytes, filter(None, pids))))
        yield memory

    def _processes(self) -> Iterator[Metric]:
        restarts = family("croupier_restarts_total")
        places = {
            "worker": shared.WORKER_RESTARTS, "agent": shared.AGENT_RESTARTS, "learner": shared.LEARNER_RESTARTS
        }  # fmt: skip
        for process, place in places.items():
            restarts.add_metric((process,), self._host[place])
        yield restarts
        yield family("croupier_workers", len(self._host.live_rows(self._now_ms)))
        up = family("croupier_up")
        for part, there in self._host.parts(self._now_ms).items():
            up.add_metric((part,), int(there))
        yield up


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with no other; 0 where it is gone.

    >>> private_bytes(os.getpid()) > 1 << 20
    True
    """
    try:
        resident, common = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(common)) * _PAGE


def _sum(rows: Iterable[Sequence[int]]) -> list[int]:
    return [sum(each) for each in zip(*rows, strict=True)]
