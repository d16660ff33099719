"""The learner of one shard: reads the log from where the store's parameters end, learns, commits, again.

    load: base image + commits after it -> Shard     (what the store says is the truth, position included)
    poll: log.read(head) -> Shard.step -> one chained commit of everything that changed

A commit that was refused means that another learner has this shard: this one drops its state and loads again. A commit
whose fate is unknown is tried again as it is; its id makes the second try harmless. A store that failed over may have
lost the newest commits, so a learner without new records looks now and then whether its last commit is still there.
"""

import bisect
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable

from streaming import events
from streaming.control import label_of, snapshot_label
from streaming.counts import COMMIT_S, Counts
from streaming.errors import LayoutMismatch, StaleCommit, Trimmed
from streaming.log import CONTROL, EventLog
from streaming.shard import Shard
from streaming.state import LAYOUT, State
from streaming.store import NOTHING, Commit, ParameterStore, SnapshotInfo, automatic

logger = logging.getLogger(__name__)
FOLD_BYTES = 8 << 20
FOLD_COMMITS = 1000
LOOK_S = 1.0
"""How long a learner without new records takes it that the store still ends where it committed."""
LABEL_MS = 60_000
"""How long after the record that asks for it, in log time, a labelled snapshot is still of that moment."""


def new_commit_id() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)


class Learner:
    """One shard's learner. `log` and `store` are passed in, and so is where commit ids come from.

    `open` raises LayoutMismatch where log and store do not belong together, Trimmed where the log no longer holds what
    the parameters miss. After StoreUnavailable or LogUnavailable from `poll`, call it again later: nothing is lost.
    `fold_at` scales when a fold is due, so that the learners of one process do not all fold at once.
    """

    def __init__(
        self,
        shard: int,
        log: EventLog,
        store: ParameterStore,
        commit_id: Callable[[], bytes] = new_commit_id,
        counts: Counts | None = None,
        fold_at: float = 1.0,
    ) -> None:
        self.number = shard
        self.log = log
        self.store = store
        self.head = 0
        self.reloads = 0
        self.counts = counts or Counts()
        self._commit_id = commit_id
        self._fold_at = fold_at
        self._last = b""
        self._seen_at = 0.0  # time.monotonic() when the store ended at `_last`
        self._base = b""  # the commit that the store's base is as of
        self._pending: Commit | None = None
        self._unfolded_bytes = 0
        self._unfolded = 0
        self._sizes: deque[int] = deque(maxlen=FOLD_COMMITS)  # of the newest commits: what a fold may keep of them
        self._labelled: dict[str, int] | None = None  # the labels whose snapshots are known to be right
        self._opened_at = 0  # the last control record that was applied when the shard was loaded
        self._there: set[str] = set()  # labelled snapshots that the store has held since
        self._lost: set[str] = set()  # those of which it was said that they are lost
        self.shard: Shard | None = None

    def open(self) -> None:
        """Loads the shard from the store and checks that the log goes on from there."""
        manifest = self.store.manifest()
        if manifest is None:
            raise LayoutMismatch("the store is empty: start the server once, it creates log and store together")
        if manifest.log_id != self.log.id or manifest.shards != self.log.shards:
            raise LayoutMismatch(
                f"the store belongs to log {manifest.log_id} with {manifest.shards} shards, but this log is "
                f"{self.log.id} with {self.log.shards}: put the log and the store of one data folder together again"
            )
        if manifest.layout != LAYOUT:
            raise LayoutMismatch(
                f"the store has layout {manifest.layout}, this release reads layout {LAYOUT}: use the release that "
                "wrote it, `croupier export` there and `croupier import` here"
            )
        self.drop()
        image = self.store.load(self.number)
        state = State()
        state.load(image.parts.values(), [commit.delta for commit in image.deltas])
        commit_id, head = image.last
        start, end = self.log.bounds(self.number)
        if head > end:
            raise LayoutMismatch(
                f"shard {self.number}: the parameters include the log up to offset {head}, but the log ends at {end}: "
                "the log was shortened or replaced; restore the log, or start a new data folder with `croupier import`"
            )
        if head < start:
            self._last = commit_id
            self._follow()
            raise Trimmed(self.number, head, start)
        self.shard = Shard(self.number, self.log.shards, state, self.store.get_blob)
        self.counts.loads += 1
        self._opened_at = self.shard.control.applied
        self._base, self._last, self.head = image.commit_id, commit_id, head
        self._seen_at = time.monotonic()
        self._unfolded = len(image.deltas)
        sizes = [len(commit.delta) for commit in image.deltas]
        self._unfolded_bytes = sum(sizes)
        self._sizes = deque(sizes, maxlen=FOLD_COMMITS)

    def poll(self, max_records: int = 1000, max_bytes: int = 8 << 20) -> int:
        """Learns the next records and commits; returns how many there were, 0 at the end of the log."""
        if self.shard is None:
            self.open()
        assert self.shard is not None
        if self._pending is not None:
            self._commit(self._pending)
        try:
            records = self.log.read(self.number, self.head, max_records, max_bytes)
        except Trimmed:
            self._follow()
            raise
        if not records:
            if time.monotonic() - self._seen_at >= LOOK_S:
                self._follow()
            return 0
        # Until the commit is made the state runs ahead of the store: an exception in between must not be survived.
        shard, self.shard = self.shard, None
        n_events = shard.step(records)
        delta = shard.state.take_delta()
        self.shard = shard
        self._pending = Commit(
            self._commit_id(), self._last, records[-1].offset + 1, shard.log_time_ms, records[0].time_ms, delta
        )
        self._commit(self._pending)
        self.counts.records += len(records)
        self.counts.events += n_events
        return len(records)

    def _commit(self, commit: Commit) -> None:
        began = time.perf_counter()
        try:
            self.store.commit(self.number, commit)
        except StaleCommit:
            self._refused()
            raise
        took = time.perf_counter() - began
        self._seen_at = time.monotonic()
        self.counts.commits[bisect.bisect_left(COMMIT_S, took)] += 1
        self.counts.commit_s += took
        self._last, self.head, self._pending = commit.id, commit.head, None
        self._unfolded += 1
        self._unfolded_bytes += len(commit.delta)
        self._sizes.append(len(commit.delta))

    def _follow(self) -> None:
        """Raises StaleCommit where the store ends elsewhere: another learner went on, or a failover lost commits."""
        last, _ = self.store.last(self.number)
        if last != self._last:
            self._refused()
            raise StaleCommit(self.number, self._last, last)
        self._seen_at = time.monotonic()

    def _refused(self) -> None:
        self.drop()
        self.reloads += 1
        self.counts.refused += 1

    def drop(self) -> None:
        """Forgets the shard's state; `poll` loads it again."""
        self.shard, self._pending, self._labelled = None, None, None
        self._there.clear()

    @property
    def wants_fold(self) -> bool:
        """Whether enough was committed since the last fold to make a load slow."""
        enough = self._unfolded >= self._fold_at * FOLD_COMMITS or self._unfolded_bytes >= self._fold_at * FOLD_BYTES
        return enough and self.shard is not None

    def fold(self) -> None:
        """Makes the present state the store's base image; only parts that changed are written.

        Followers are left the newest commits, as many as FOLD_COMMITS and FOLD_BYTES both allow.
        """
        assert self.shard is not None
        if self._pending is not None:
            self._commit(self._pending)
        if self._unfolded == 0:
            return
        shard, self.shard = self.shard, None  # what take_parts gives is given once: a failure must reload
        parts, gone = shard.state.take_parts()
        try:
            self.store.fold(self.number, self._last, parts, gone, self._keep(), self._base)
        except StaleCommit:
            self._refused()
            raise
        self.shard, self._base = shard, self._last
        self.counts.folds += 1
        self._unfolded = self._unfolded_bytes = 0

    def _keep(self) -> int:
        room = FOLD_BYTES
        for kept, size in enumerate(reversed(self._sizes)):
            room -= size
            if room < 0:
                return kept
        return len(self._sizes)

    def snapshot(self, keep: int = 2) -> SnapshotInfo | None:
        """A durable snapshot of the present state; the oldest beyond `keep` are dropped. None before any commit."""
        if self.shard is None:
            return None
        self.fold()
        if self._last == NOTHING:
            return None
        kept = automatic(self.store, self.number)
        if not kept or kept[-1].commit_id != self._last:
            kept.append(self.store.snapshot(self.number))
            self.counts.snapshots += 1
        for old in kept[:-keep]:
            self.store.drop_snapshot(old.name)
        return kept[-1]

    @property
    def wants_labels(self) -> bool:
        """Whether control records name other snapshots than the store is known to hold."""
        return self.shard is not None and self._labelled != self.shard.control.labels

    def sync_labels(self) -> None:
        """Makes the labelled snapshots that are missing, drops those that control names no longer.

        Those of control records that this learner has not come to are left alone: another may have. One that is
        missing though it was to be made long ago is lost: the state of that moment is gone, and today's is another.
        """
        assert self.shard is not None
        if self._pending is not None:
            self._commit(self._pending)
        labels, applied = dict(self.shard.control.labels), self.shard.control.applied
        wanted = {snapshot_label(label, n) for label, n in labels.items()}
        there = {info.label: info.name for info in self.store.snapshots(self.number) if info.label}
        for label in sorted(wanted - there.keys()):
            if not self._may_make(label):
                continue
            self.fold()
            self.store.snapshot(self.number, label)
            self.counts.snapshots += 1
            self._there.add(label)
        for label in there.keys() - wanted:
            if label_of(label)[1] <= applied:
                self.store.drop_snapshot(there[label])
        self._there |= wanted & there.keys()
        self._labelled = labels

    def _may_make(self, stored: str) -> bool:
        """Whether the present state is still the one that a labelled snapshot is to hold."""
        label, n = label_of(stored)
        if n > self._opened_at and stored not in self._there:
            return True
        if stored in self._lost:
            return False
        assert self.shard is not None
        asked_ms = self._control_ms(n)
        if asked_ms is not None and self.shard.log_time_ms - asked_ms <= LABEL_MS:
            return True
        self._lost.add(stored)
        logger.warning(
            "shard %d: its copy of snapshot %r is lost (did the store fail over?), and is not made again from what "
            "was learned since: delete the snapshot and take another",
            self.number,
            label,
        )
        return False

    def _control_ms(self, n: int) -> int | None:
        """The log time of control record n; None where there is none."""
        at = 0
        while records := self.log.read(CONTROL, at):
            for record in records:
                control = events.control_of(record.data)
                if control is not None and control[0] == n:
                    return record.time_ms
            at = records[-1].offset + 1
        return None


def trim(log: EventLog, store: ParameterStore, shards: Iterable[int] | None = None) -> None:
    """Forgets the records that the oldest automatic snapshot of their shard includes. A shard without one is left."""
    for shard in range(log.shards) if shards is None else shards:
        snapshots = automatic(store, shard)
        if snapshots:
            log.trim(shard, snapshots[0].head)
