"""What a learner process says of itself to Prometheus; `server.metric_table` says what to do about each.

Made at each scrape from what the loop counts anyway. Where the log ends is asked by a thread of its own, once a second,
so that neither the loop nor a scrape waits for brokers that are away.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.metric_table import buckets, family
from streaming.counts import COMMIT_S, Counts
from streaming.errors import StreamingError
from streaming.log import EventLog

if TYPE_CHECKING:
    from server.learner_loop import LearnerLoop

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
        up = family("croupier_learner_up")
        for part in ("log", "store"):
            up.add_metric((part,), int(loop is not None and part not in loop.away))
        yield up
        if loop is None:
            return
        learners, ends = loop.learners, self._ends
        yield family("croupier_learner_shards", len(learners))
        yield family("croupier_learner_rebalances_total", loop.rebalances)
        heads = {learner.number: learner.head for learner in learners if learner.number < len(ends)}
        behind = {number: max(0, ends[number] - head) for number, head in heads.items()}
        yield from learner_families(loop.counts, len(loop.stopped), behind)


def learner_families(counts: Counts, stopped: int, behind: Mapping[int, int]) -> Iterator[Metric]:
    """What every learner shows, whether it is a server's own or runs apart. `behind`: records by shard."""
    yield family("croupier_learner_shards_stopped", stopped)
    records = family("croupier_learner_behind_records")
    for number, count in behind.items():
        records.add_metric((str(number),), count)
    yield records
    yield family("croupier_learner_records_total", counts.records)
    yield family("croupier_learner_events_total", counts.events)
    commits = family("croupier_learner_commit_seconds")
    commits.add_metric((), buckets(COMMIT_S, counts.commits), counts.commit_s)
    yield commits
    yield family("croupier_learner_refused_commits_total", counts.refused)
    yield family("croupier_learner_loads_total", counts.loads)
    yield family("croupier_learner_folds_total", counts.folds)
    yield family("croupier_learner_snapshots_total", counts.snapshots)
