"""The loop around the learners of a process's shards: read, learn, commit; fold and take snapshots now and then.

    membership: which shards are ours now --> a learner for each, opened on gain, dropped on loss
    round:      each learner's next records, at most BYTES_MAX of them, so that no shard waits for a busy one
    upkeep:     one fold, snapshot or trim in a round, each shard's at times of its own

It is one thread of a process of its own (`server.children`, `server.commands.learner`), or of the server's when that is
all there is. A shard that was lost with a commit under way is simply dropped: the store takes the commit or refuses it.
One that cannot be learned (damaged, trimmed too far, of another release) is stopped by itself: if the process ended,
whoever had it next would end as well.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from server.retention import drop_graphs, trim
from server.shared import LEARNER_BEAT, LEARNER_PID, HostFile
from streaming.control import ControlState
from streaming.counts import Counts
from streaming.errors import LogUnavailable, StaleCommit, StoreUnavailable, StreamingError
from streaming.learner import Learner
from streaming.log import Clock, EventLog, wall_clock
from streaming.shard import UnknownRecord
from streaming.store import ParameterStore

log = logging.getLogger(__name__)
RETRY_S = 0.2
REFUSED_S = (0.05, 1.0)  # after a refused commit: twice as long each time, so that two that both believe do not duel
STOPPED_S = 60.0  # between two tries of a shard that is stopped
REMIND_S = 300.0  # between two times that it is said to be
RECORDS_MAX = 1000
BYTES_MAX = 1 << 20
ASK_S = 0.02
IDLE_S = 0.02
IDLE_SHARE = 4  # an idle round is followed by a pause so many times as long: with many shards, looking costs too
GATHER_S = 0.008  # at most, after a small round: while commits come back to back, records gather for the next one,
GATHER_SHARE = 8  # so many times as long as the round took
SMALL = 1000  # events of a round
GRAPHS_S = 600.0


class Membership(Protocol):
    """Which shards this process learns. `shards` may raise LogUnavailable; then they stay as they were."""

    @property
    def rebalances(self) -> int: ...
    def shards(self) -> frozenset[int]: ...
    def close(self) -> None: ...


class Everything:
    """The membership of the only learner there is."""

    rebalances = 0

    def __init__(self, shards: int) -> None:
        self._shards = frozenset(range(shards))

    def shards(self) -> frozenset[int]:
        return self._shards

    def close(self) -> None:
        pass


class _Slot:
    """A shard that is ours: its learner, and when (time.monotonic) something of it is due."""

    def __init__(self, learner: Learner, now: float, interval_s: float) -> None:
        self.learner = learner
        self.away = ""  # "log" or "store", where the last try failed for that
        self.stopped = False  # what it met does not go away by trying again
        self.remind_at = 0.0
        self.not_before = 0.0
        self.refused_s = REFUSED_S[0]
        self.snapshot_at = now + interval_s * random.random()
        self.may_trim = True  # there may be a snapshot that the log was not trimmed behind


class LearnerLoop:
    """`run` until `stop` is set; then what is in the log by now is learned, for at most `finish_s`, and it ends.

    `trims`: this process also trims the log of its shards behind their snapshots, and who has shard 0 drops graphs.
    """

    def __init__(
        self,
        event_log: EventLog,
        store: ParameterStore,
        host: HostFile | None = None,
        poll_s: float = 0.002,
        snapshot_interval_s: float = 300.0,
        keep_snapshots: int = 2,
        finish_s: float = 5.0,
        clock: Clock = wall_clock,
        *,
        membership: Membership | None = None,
        trims: bool = False,
    ) -> None:
        self._log, self._store, self._host = event_log, store, host
        self._poll_s, self._interval_s, self._keep = poll_s, snapshot_interval_s, keep_snapshots
        self._finish_s = finish_s
        self._clock = clock
        self._trims = trims
        self._membership = membership or Everything(event_log.shards)
        self._slots: dict[int, _Slot] = {}
        self._ask_at = 0.0
        self._graphs_at = time.monotonic() + GRAPHS_S * random.random()
        self._controls: dict[str, ControlState] = {}
        self.stop = threading.Event()
        self.counts = Counts()
        self._group_away = False
        self._waits = False

    @property
    def learners(self) -> list[Learner]:
        """The learners of the shards that are ours, by shard."""
        return [slot.learner for _, slot in sorted(self._slots.copy().items())]

    @property
    def away(self) -> set[str]:
        """What one of our shards waits for: of "log" and "store"."""
        parts = {slot.away for slot in self._slots.copy().values() if slot.away}
        return parts | {"log"} if self._group_away else parts

    @property
    def stopped(self) -> list[int]:
        """Those of our shards that are not learned, because of what somebody has to mend."""
        return [number for number, slot in sorted(self._slots.copy().items()) if slot.stopped]

    @property
    def rebalances(self) -> int:
        return self._membership.rebalances

    def run(self) -> None:
        """Raises our own mistakes only. What one shard meets that trying again does not mend stops that shard."""
        if self._host is not None:
            self._host[LEARNER_PID] = os.getpid()
        finish_by: float | None = None
        while finish_by is None or time.monotonic() < finish_by:
            if self.stop.is_set() and finish_by is None:
                finish_by = time.monotonic() + self._finish_s
            if self._host is not None:
                self._host[LEARNER_BEAT] = self._clock()
                self._host.learned(self.counts, len(self.stopped))
            began, events = time.monotonic(), self.counts.events
            self._own(began)
            found = self._round()
            took, events = time.monotonic() - began, self.counts.events - events
            self._upkeep()
            if not found and finish_by is not None and not self._unloaded():
                break
            if found < RECORDS_MAX:
                self.stop.wait(self._pause(found, events, took))
        if self._host is not None:
            self._host[LEARNER_PID] = 0

    def _pause(self, records: int, events: int, took_s: float) -> float:
        """Seconds after a round: a commit for each small record would cost more than what it holds."""
        if records and events >= SMALL:
            return self._poll_s
        most, share = (GATHER_S, GATHER_SHARE) if records else (IDLE_S, IDLE_SHARE)
        return max(self._poll_s, min(most, share * took_s))

    def _own(self, now: float) -> None:
        """Asks which shards are ours, now and then and after every refused commit."""
        if now < self._ask_at:
            return
        self._ask_at = now + ASK_S
        try:
            ours = self._membership.shards()
        except LogUnavailable as error:
            self._group_away = True
            self._say(error)
            return
        self._group_away = False
        for shard in self._slots.keys() - ours:
            del self._slots[shard]
        for shard in sorted(ours - self._slots.keys()):
            fold_at = random.uniform(0.7, 1.0)
            learner = Learner(shard, self._log, self._store, counts=self.counts, fold_at=fold_at)
            self._slots[shard] = _Slot(learner, now, self._interval_s)

    def _round(self) -> int:
        found = 0
        for slot in list(self._slots.values()):
            found += self._try(slot, _poll)
            if slot.learner.wants_labels:
                self._try(slot, Learner.sync_labels)
        return found

    def _unloaded(self) -> bool:
        """Whether a shard of ours is to be loaded, after a refused commit: what the log has for it is not learned."""
        slots = self._slots.values()
        return any(slot.learner.shard is None and not slot.away and not slot.stopped for slot in slots)

    def _upkeep(self) -> None:
        """What is due, of one shard: all of them at once would be a pause for each."""
        now = time.monotonic()
        for slot in self._slots.values():
            if slot.learner.wants_fold:
                self._try(slot, Learner.fold)
                break
            if now >= slot.snapshot_at and slot.learner.shard is not None:
                slot.snapshot_at = now + self._interval_s * random.uniform(0.9, 1.1)
                self._try(slot, self._snapshot)
                break
            if self._trims and slot.may_trim and now >= slot.not_before:
                self._try(slot, self._trim)
                break
        if self._trims and 0 in self._slots and now >= self._graphs_at:
            self._graphs_at = now + GRAPHS_S
            self._try(self._slots[0], self._drop_graphs)

    def _snapshot(self, learner: Learner) -> None:
        learner.snapshot(self._keep)
        self._slots[learner.number].may_trim = True
        learner.sync_labels()  # what a dying predecessor left of labels that control names no longer

    def _trim(self, learner: Learner) -> None:
        # Once a snapshot: a broker that refuses must not hold up learning again and again.
        self._slots[learner.number].may_trim = False
        trim(self._log, self._store, [learner.number])

    def _drop_graphs(self, learner: Learner) -> None:
        del learner
        try:
            drop_graphs(self._log, self._store, self._clock, known=self._controls)
        except (LogUnavailable, StoreUnavailable):
            raise
        except StreamingError as error:  # of any shard's snapshot: it is no reason to stop ours
            log.error("no graph is dropped: %s", error)

    def _try(self, slot: _Slot, what: Callable[[Learner], int | None]) -> int:
        if time.monotonic() < slot.not_before:
            return 0
        try:
            found = what(slot.learner) or 0
        except StaleCommit as error:
            log.warning("%s", error)
            self._ask_at = 0.0
            slot.not_before = time.monotonic() + slot.refused_s * random.uniform(0.5, 1.0)
            slot.refused_s = min(REFUSED_S[1], 2 * slot.refused_s)
            return 0
        except (LogUnavailable, StoreUnavailable) as error:
            slot.away = "log" if isinstance(error, LogUnavailable) else "store"
            slot.not_before = time.monotonic() + RETRY_S * random.uniform(0.5, 1.0)
            self._say(error)
            return 0
        except (StreamingError, UnknownRecord) as error:
            self._stop_shard(slot, error)
            return 0
        slot.away = ""
        if slot.stopped and slot.learner.shard is not None:
            log.warning("shard %d goes on", slot.learner.number)
            slot.stopped, slot.remind_at = False, 0.0
        if self._waits and not self.away:
            self._waits = False
            log.warning("the learner goes on")
        if found:
            slot.refused_s = REFUSED_S[0]
        return found

    def _stop_shard(self, slot: _Slot, error: Exception) -> None:
        now = time.monotonic()
        slot.learner.drop()
        slot.away, slot.stopped, slot.not_before = "", True, now + STOPPED_S
        if now >= slot.remind_at:
            slot.remind_at = now + REMIND_S
            log.error("shard %d is stopped, the others go on: %s", slot.learner.number, error)

    def _say(self, error: Exception) -> None:
        if not self._waits:
            log.warning("the learner waits: %s", error)
        self._waits = True


def _poll(learner: Learner) -> int:
    return learner.poll(RECORDS_MAX, BYTES_MAX)
