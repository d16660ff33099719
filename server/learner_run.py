"""A learner process from its URLs: opens everything, waiting for what is away, learns, and leaves the group."""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from server.learner_loop import LearnerLoop
from server.learner_metrics import LearnerMetrics
from server.settings import Settings
from server.waiting import Stopping, belong, until_there
from streaming.log import open_log
from streaming.place import Place
from streaming.store import open_store
from streaming.urls import mask

log = logging.getLogger(__name__)
T = TypeVar("T")
FINISH_S = 3.0


class WrongUrl(ValueError):
    """A URL that cannot be; the sentence says what is wrong with it."""


def run(place: Place, settings: Settings, host: str, port: int, session_s: float | None, stop: threading.Event) -> None:
    """Learns until `stop`. Raises WrongUrl, OSError, and StreamingError or UnknownRecord where waiting is in vain."""
    from streaming.log.kafka_group import Membership

    metrics = LearnerMetrics()
    with contextlib.ExitStack() as stack:
        server, bound = metrics.serve(host, port)
        stack.callback(_end, server)
        log.info("metrics on http://%s:%d/metrics", host, bound)
        try:
            event_log = _wait(lambda: open_log(place.log), stop)
            stack.callback(event_log.close)
            store = _wait(lambda: open_store(place.store), stop)
            stack.callback(store.close)
            _wait(lambda: belong(place, event_log, store), stop)
        except Stopping:
            return
        _warm()
        if stop.is_set():
            return
        membership = Membership(grouped(place.log, session_s))
        stack.callback(membership.close)
        loop = metrics.loop = LearnerLoop(
            event_log,
            store,
            None,
            settings.learner_poll_ms / 1000,
            settings.snapshot_interval_s,
            settings.keep_snapshots,
            FINISH_S,
            membership=membership,
            trims=True,
        )
        loop.stop = stop
        watching = metrics.watch(event_log, stop)
        log.info("learning from %s into %s", mask(place.log), mask(place.store))
        loop.run()
        stop.set()
        watching.join(5.0)


def grouped(url: str, session_s: float | None) -> str:
    """The log's URL with the group's session timeout.

    >>> grouped("kafka://h1:9092/shop", 10)
    'kafka://h1:9092/shop?session_timeout_ms=10000'
    """
    if session_s is None:
        return url
    return f"{url}{'&' if '?' in url else '?'}session_timeout_ms={round(1000 * session_s)}"


def _warm() -> None:
    """Compiles the usual kernels, or loads them from their cache, before shards are asked for."""
    from server.warm import warm_up

    warm_up()


def _wait(what: Callable[[], T], stop: threading.Event) -> T:
    """What it returns, once log and store are there. Raises Stopping."""
    try:
        return until_there("the learner", what, stop)
    except ValueError as error:
        raise WrongUrl(f"{error}.") from None


def _end(server: Any) -> None:
    server.shutdown()
    server.server_close()
