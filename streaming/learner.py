"""The learner of one shard: reads the log from where the store's parameters end, learns, commits, again.

    load: base image + commits after it -> Shard     (what the store says is the truth, position included)
    poll: log.read(head) -> Shard.step -> one chained commit of everything that changed

A commit that was refused means that another learner has this shard: this one drops its state and loads again. A commit
whose fate is unknown is tried again as it is; its id makes the second try harmless.
"""

import secrets
from collections.abc import Callable

from streaming.errors import LayoutMismatch, StaleCommit, Trimmed
from streaming.log import EventLog
from streaming.shard import Shard
from streaming.state import LAYOUT, State
from streaming.store import NOTHING, Commit, ParameterStore, SnapshotInfo, automatic

FOLD_BYTES = 8 << 20
FOLD_COMMITS = 1000


def new_commit_id() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)


class Learner:
    """One shard's learner. `log` and `store` are passed in, and so is where commit ids come from.

    `open` raises LayoutMismatch where log and store do not belong together, Trimmed where the log no longer holds what
    the parameters miss. After StoreUnavailable or LogUnavailable from `poll`, call it again later: nothing is lost.
    """

    def __init__(
        self,
        shard: int,
        log: EventLog,
        store: ParameterStore,
        commit_id: Callable[[], bytes] = new_commit_id,
    ) -> None:
        self.number = shard
        self.log = log
        self.store = store
        self.head = 0
        self.reloads = 0
        self._commit_id = commit_id
        self._last = b""
        self._pending: Commit | None = None
        self._unfolded_bytes = 0
        self._unfolded = 0
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
        self.shard, self._pending = None, None
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
            raise Trimmed(self.number, head, start)
        self.shard = Shard(self.number, self.log.shards, state, self.store.get_blob)
        self._last, self.head = commit_id, head
        self._unfolded = len(image.deltas)
        self._unfolded_bytes = sum(len(commit.delta) for commit in image.deltas)

    def poll(self, max_records: int = 1000, max_bytes: int = 8 << 20) -> int:
        """Learns the next records and commits; returns how many there were, 0 at the end of the log."""
        if self.shard is None:
            self.open()
        assert self.shard is not None
        if self._pending is not None:
            self._commit(self._pending)
        records = self.log.read(self.number, self.head, max_records, max_bytes)
        if not records:
            return 0
        # Until the commit is made the state runs ahead of the store: an exception in between must not be survived.
        shard, self.shard = self.shard, None
        shard.step(records)
        delta = shard.state.take_delta()
        self.shard = shard
        self._pending = Commit(
            self._commit_id(), self._last, records[-1].offset + 1, shard.log_time_ms, records[0].time_ms, delta
        )
        self._commit(self._pending)
        return len(records)

    def _commit(self, commit: Commit) -> None:
        try:
            self.store.commit(self.number, commit)
        except StaleCommit:
            self.shard, self._pending = None, None
            self.reloads += 1
            raise
        self._last, self.head, self._pending = commit.id, commit.head, None
        self._unfolded += 1
        self._unfolded_bytes += len(commit.delta)

    @property
    def wants_fold(self) -> bool:
        """Whether enough was committed since the last fold to make a load slow."""
        return self._unfolded >= FOLD_COMMITS or self._unfolded_bytes >= FOLD_BYTES

    def fold(self) -> None:
        """Makes the present state the store's base image; only parts that changed are written."""
        assert self.shard is not None
        if self._pending is not None:
            self._commit(self._pending)
        if self._last == NOTHING:
            return
        shard, self.shard = self.shard, None  # what take_parts gives is given once: a failure must reload
        parts, gone = shard.state.take_parts()
        self.store.fold(self.number, self._last, parts, gone)
        self.shard = shard
        self._unfolded = self._unfolded_bytes = 0

    def snapshot(self, keep: int = 2) -> SnapshotInfo | None:
        """A durable snapshot of the present state; the oldest beyond `keep` are dropped. None before any commit."""
        if self.shard is None or self._last == NOTHING:
            return None
        self.fold()
        info = self.store.snapshot(self.number)
        for old in automatic(self.store, self.number)[:-keep]:
            self.store.drop_snapshot(old.name)
        return info


def trim(log: EventLog, store: ParameterStore) -> None:
    """Forgets the records that the oldest kept snapshot of their shard includes. A shard without one is left alone."""
    for shard in range(log.shards):
        snapshots = automatic(store, shard)
        if snapshots:
            log.trim(shard, snapshots[0].head)
