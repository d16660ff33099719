"""What a router says of itself to Prometheus; `server.metric_table` explains each metric."""

from collections.abc import Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from server.metric_table import METRICS
from server.router_rows import NOT_JSON
from server.schemas import RefusalReason

BATCH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PARTS = ("log", "store")


def _of(name: str) -> tuple[str, str, tuple[str, ...]]:
    about = METRICS[name]
    return about.name, about.says, about.labels


class RouterMetrics:
    """Counters of one router; `serve` shows them over HTTP. Counters begin at 0 for every label known."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.messages = Counter(*_of("croupier_router_messages_total"), registry=registry)
        self.accepted = Counter(*_of("croupier_router_accepted_total"), registry=registry)
        self.refused = Counter(*_of("croupier_router_refused_total"), registry=registry)
        self.dead_letters = Counter(*_of("croupier_router_dead_letters_total"), registry=registry)
        self.batch_seconds = Histogram(
            *_of("croupier_router_batch_seconds"),
            buckets=BATCH_S,
            registry=registry,
        )
        self.rebalances = Counter(*_of("croupier_router_rebalances_total"), registry=registry)
        self.lag = Gauge(
            *_of("croupier_router_lag_messages"),
            registry=registry,
        )
        self.up = Gauge(*_of("croupier_router_up"), registry=registry)
        for reason in (NOT_JSON, *get_args(RefusalReason)):
            self.refused.labels(reason)
        for part in PARTS:
            self.up.labels(part).set(0)
        self._partitions: set[int] = set()

    def lags(self, lag: Mapping[int, int]) -> None:
        """Takes the lag of the partitions that are ours now; others are forgotten."""
        for gone in self._partitions - lag.keys():
            self.lag.remove(str(gone))
        for partition, messages in lag.items():
            self.lag.labels(str(partition)).set(messages)
        self._partitions = set(lag)

    def serve(self, host: str, port: int) -> tuple[Any, int]:
        """(the HTTP server, its port); OSError where it cannot listen."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return server, server.server_port
