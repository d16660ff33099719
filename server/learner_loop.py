"""The loop around the learners of all shards: read, learn, commit; fold and take snapshots now and then.

It is one thread of a process of its own (`server.children`), or of the server's when that is all there is.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from server.shared import LEARNER_BEAT, LEARNER_PID, HostFile
from streaming.errors import LogUnavailable, StaleCommit, StoreUnavailable
from streaming.learner import Learner
from streaming.log import Clock, EventLog, wall_clock
from streaming.store import ParameterStore

log = logging.getLogger(__name__)
RETRY_S = 0.2
RECORDS_MAX = 1000


class LearnerLoop:
    """`run` until `stop` is set; then what is in the log by now is learned, for at most `finish_s`, and it ends."""

    def __init__(
        self,
        event_log: EventLog,
        store: ParameterStore,
        host: HostFile,
        poll_s: float = 0.002,
        snapshot_interval_s: float = 300.0,
        keep_snapshots: int = 2,
        finish_s: float = 5.0,
        clock: Clock = wall_clock,
    ) -> None:
        self._host = host
        self._poll_s, self._interval_s, self._keep = poll_s, snapshot_interval_s, keep_snapshots
        self._finish_s = finish_s
        self._clock = clock
        self.stop = threading.Event()
        self.learners = [Learner(shard, event_log, store) for shard in range(event_log.shards)]
        self._away = False

    def run(self) -> None:
        """Raises what trying again does not help against: a foreign log, another release's record, our mistake."""
        self._host[LEARNER_PID] = os.getpid()
        next_snapshot = time.monotonic() + self._interval_s
        finish_by: float | None = None
        while finish_by is None or time.monotonic() < finish_by:
            if self.stop.is_set() and finish_by is None:
                finish_by = time.monotonic() + self._finish_s
            self._host[LEARNER_BEAT] = self._clock()
            found = sum(self._try(learner, self._turn) for learner in self.learners)
            if time.monotonic() >= next_snapshot:
                next_snapshot = time.monotonic() + self._interval_s
                for learner in self.learners:
                    self._try(learner, self._snapshot)
            if not found and finish_by is not None:
                break
            if found < RECORDS_MAX:  # a commit for each small record would cost more than what it holds
                self.stop.wait(self._poll_s)
        self._host[LEARNER_PID] = 0

    def _turn(self, learner: Learner) -> int:
        found = learner.poll(RECORDS_MAX)
        if learner.wants_fold and learner.shard is not None:
            learner.fold()
        return found

    def _snapshot(self, learner: Learner) -> int:
        learner.snapshot(self._keep)
        return 0

    def _try(self, learner: Learner, what: Callable[[Learner], int]) -> int:
        try:
            found = what(learner)
        except StaleCommit as error:
            log.warning("%s", error)
            return 0
        except (LogUnavailable, StoreUnavailable) as error:
            if not self._away:
                log.warning("the learner waits: %s", error)
            self._away = True
            self.stop.wait(RETRY_S)
            return 0
        if self._away:
            self._away = False
            log.warning("the learner goes on")
        return found
