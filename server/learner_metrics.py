"""What a learner process says of itself to Prometheus; docs/operations.md says what to do about each.

Made at each scrape from what the loop counts anyway. Where the log ends is asked by a thread of its own, once a second,
so that neither the loop nor a scrape waits for brokers that are away.
"""

import contextlib
import threading
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from server.learner_loop import LearnerLoop
from streaming.errors import StreamingError
from streaming.learner import COMMIT_S
from streaming.log import EventLog

SAMPLE_S = 1.0


class LearnerMetrics(Collector):
    """`loop` is None until log and store are there: until then both are away, and nothing else is known."""

    def __init__(self) -> None:
        self.loop: LearnerLoop | None = None
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        self._ends: list[int] = []

    def serve(self, host: str, port: int) -> tuple[Any, int]:
        """(the HTTP server, its port); OSError where it cannot listen."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return server, server.server_port

    def watch(self, log: EventLog, stop: threading.Event) -> threading.Thread:
        """Begins to ask where the log ends, until `stop`."""

        def ask() -> None:
            while not stop.wait(SAMPLE_S):
                with contextlib.suppress(StreamingError):
                    self._ends = log.ends()

        thread = threading.Thread(target=ask, name="ends", daemon=True)
        thread.start()
        return thread

    def collect(self) -> Iterable[Metric]:
        loop = self.loop
        up = GaugeMetricFamily("croupier_learner_up", "1 where a part is there, 0 while it is away.", labels=("part",))
        for part in ("log", "store"):
            up.add_metric((part,), int(loop is not None and part not in loop.away))
        yield up
        if loop is None:
            return
        learners, counts, ends = loop.learners, loop.counts, self._ends
        yield GaugeMetricFamily("croupier_learner_shards", "Shards that this process learns.", value=len(learners))
        yield GaugeMetricFamily(
            "croupier_learner_shards_stopped", "Shards of ours that cannot be learned.", value=len(loop.stopped)
        )
        behind = GaugeMetricFamily(
            "croupier_learner_behind_records", "Records of a shard of ours not learned yet.", labels=("shard",)
        )
        for learner in learners:
            if learner.number < len(ends):
                behind.add_metric((str(learner.number),), max(0, ends[learner.number] - learner.head))
        yield behind
        for name, help, value in (
            ("croupier_learner_rebalances", "Changes in how shards are shared out.", loop.rebalances),
            ("croupier_learner_records", "Log records learned.", counts.records),
            ("croupier_learner_events", "Decisions and rewards in them.", counts.events),
            ("croupier_learner_refused_commits", "Commits refused: another learner had the shard.", counts.refused),
            ("croupier_learner_loads", "Shards loaded from the store.", counts.loads),
            ("croupier_learner_folds", "Commit streams folded into a shard's base image.", counts.folds),
            ("croupier_learner_snapshots", "Durable snapshots taken.", counts.snapshots),
        ):
            yield CounterMetricFamily(name, help, value=value)
        commits = HistogramMetricFamily("croupier_learner_commit_seconds", "Time the store takes for a commit.")
        total, buckets = 0, []
        for bound, count in zip((*(f"{b:g}" for b in COMMIT_S), "+Inf"), counts.commits, strict=True):
            total += count
            buckets.append((bound, float(total)))
        commits.add_metric((), buckets, counts.commit_s)
        yield commits
