"""Starting while the event log or the parameter store is away: it waits, says what for, and goes on by itself."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from streaming.errors import LogUnavailable, StoreUnavailable
from streaming.log import EventLog
from streaming.place import Place, checked_manifest
from streaming.store import ParameterStore
from streaming.urls import mask

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_S = 0.5
SAY_AGAIN_S = 15.0


class Stopping(Exception):
    """Told to end while log or store is away."""


def until_there(who: str, what: Callable[[], T], stop: threading.Event) -> T:
    """What `what` returns, once log and store are there; other errors than that they are away pass. Raises Stopping."""
    said, again_at = "", 0.0
    while not stop.is_set():
        try:
            return what()
        except (LogUnavailable, StoreUnavailable) as error:
            if str(error) != said or time.monotonic() >= again_at:
                said, again_at = str(error), time.monotonic() + SAY_AGAIN_S
                log.warning("%s waits: %s", who, said)
            stop.wait(RETRY_S)
    raise Stopping


def belong(place: Place, event_log: EventLog, store: ParameterStore) -> None:
    """Raises StoreUnavailable before a server has made the store, LayoutMismatch where it is not that of this log."""
    ends = event_log.ends()  # before the manifest: who makes a store appends to the log after that
    if not any(ends) and store.manifest() is None:
        raise StoreUnavailable(f"the store {mask(place.store)} is empty: `croupier serve {place.options}` makes it")
    checked_manifest(place, event_log, store)
