"""What a router says of itself to Prometheus; docs/router.md explains each metric."""

from collections.abc import Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from server.router_rows import NOT_JSON
from server.schemas import RefusalReason

BATCH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PARTS = ("log", "store")


class RouterMetrics:
    """Counters of one router; `serve` shows them over HTTP. Counters begin at 0 for every label known."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.messages = Counter(
            "croupier_router_messages_total", "Messages read from the rewards topic.", registry=registry
        )
        self.accepted = Counter(
            "croupier_router_accepted_total", "Rewards appended to the event log.", registry=registry
        )
        self.refused = Counter(
            "croupier_router_refused_total", "Rewards or messages refused, by reason.", ["reason"], registry=registry
        )
        self.dead_letters = Counter(
            "croupier_router_dead_letters_total", "Letters written to the dead-letter topic.", registry=registry
        )
        self.batch_seconds = Histogram(
            "croupier_router_batch_seconds",
            "From the poll that brought messages until they were durable.",
            buckets=BATCH_S,
            registry=registry,
        )
        self.rebalances = Counter(
            "croupier_router_rebalances_total", "Assignments of partitions to this router.", registry=registry
        )
        self.lag = Gauge(
            "croupier_router_lag_messages",
            "Messages behind the end of the rewards topic, of the partitions that this router has.",
            ["partition"],
            registry=registry,
        )
        self.up = Gauge(
            "croupier_router_up", "1 where a part is there, 0 while it is away.", ["part"], registry=registry
        )
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
