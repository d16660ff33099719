"""A router process from its URLs: opens everything, waiting for what is away, and closes it again."""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from server.router import Router
from server.router_kafka import DeadLetters, RewardsTopic
from server.router_metrics import RouterMetrics
from server.router_view import KnownPolicies
from server.waiting import Stopping, belong, until_there
from streaming.log import open_log
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import parse_kafka_url
from streaming.place import Place
from streaming.store import open_store

log = logging.getLogger(__name__)
T = TypeVar("T")


def run(log_url: str, store_url: str, host: str, port: int, stop: threading.Event) -> None:
    """Routes until `stop`. Raises ValueError (a URL), OSError (the port), StreamingError where waiting is vain."""
    at = parse_kafka_url(log_url)
    metrics = RouterMetrics()
    with contextlib.ExitStack() as stack:
        server, bound = metrics.serve(host, port)
        stack.callback(_end, server)
        log.info("metrics on http://%s:%d/metrics", host, bound)
        try:
            event_log = _wait(lambda: open_log(log_url, write=True), stop, metrics, "log")
            stack.callback(event_log.close)
            store = _wait(lambda: open_store(store_url), stop, metrics, "store")
            stack.callback(store.close)
            _wait(lambda: belong(Place(log_url, store_url), event_log, store), stop, metrics, "store")
            _wait(lambda: open_public_topics(at, event_log.shards), stop, metrics, "log")
            source = _wait(lambda: RewardsTopic(at), stop, metrics, "log")
        except Stopping:
            return
        stack.callback(source.close)
        letters = DeadLetters(at)
        stack.callback(letters.close)
        log.info("routing %s to %s", at.rewards, at.shown)
        Router(event_log, KnownPolicies(store, event_log), source, letters, metrics, stop).run()


def _wait(what: Callable[[], T], stop: threading.Event, metrics: RouterMetrics, part: str) -> T:
    """What it returns, once log and store are there. Raises Stopping."""
    made = until_there("the router", what, stop)
    metrics.up.labels(part).set(1)
    return made


def _end(server: Any) -> None:
    server.shutdown()
    server.server_close()
