"""Rebuild: a shard's parameters made anew from its oldest snapshot and the log, in place of those that are stored.

    start:   the oldest automatic snapshot that can be read, or nothing where the log is whole
    learn:   the kept records from there to the store's head, or further
    seize:   an empty commit after the store's last: whoever learns the shard is refused, and loads it again
    replace: one commit after that which drops every table and writes it as it should be

Servers and learners may go on meanwhile. Seizing takes a moment only, so it succeeds beside a busy learner too; what
comes after is done before that learner has loaded the shard, and where it is not, all begins again from seizing, after
a pause by chance: two rebuilds of a shard would seize it from each other for ever.
Parameters that cannot be read at all (StoreCorrupt) are written over whole, their base and stream with them.
The newer automatic snapshots are compared on the way, and dropped where they are not what the log says: later replays
would begin at them. Those with a label are named, and left to their owner.
"""

import contextlib
import itertools
import random
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from streaming.control import GraphPut, Restore, from_json
from streaming.errors import (
    LayoutMismatch,
    NotFound,
    StaleCommit,
    StoreCorrupt,
    StoreUnavailable,
    StreamingError,
    Trimmed,
)
from streaming.learner import new_commit_id
from streaming.log import open_log, wall_clock
from streaming.place import (
    OpenPlace,
    Place,
    Progress,
    control_history,
    live,
    oldest_snapshot,
    open_place,
    silent,
    state_of,
)
from streaming.replay import TRIES, rows_that_differ
from streaming.shard import Shard
from streaming.state import LAYOUT, Op, Rows, State, decode, encode
from streaming.store import Commit, Manifest, SnapshotInfo, automatic, open_store

EMPTY = encode([])
SEIZES = 1000
RECORDS = 1000
PAUSE_S = (0.05, 0.25)
PAUSE_GROWS_MAX = 3  # times that the pause doubles


@dataclass(frozen=True)
class ShardRebuild:
    """One shard: from where to where; which stored tables differed before, with how many of their rows."""

    shard: int
    start: int
    stop: int
    snapshot: str | None
    records: int
    differed: dict[str, int]
    dropped: list[str]
    wrong_labels: list[str]
    damage: str
    """Why what was stored could not be read; "" where it could."""

    def lines(self) -> list[str]:
        source = f"snapshot {self.snapshot}" if self.snapshot else "the start of the log"
        found = f"{len(self.differed)} tables DIFFERED" if self.differed else "nothing had differed"
        found = "it was DAMAGED" if self.damage else found
        lines = [
            f"shard {self.shard}: rebuilt from {source}: {self.records:,} records, offsets {self.start:,} to "
            f"{self.stop:,}; {found}"
        ]
        lines += [f"  what was stored could not be read: {self.damage}"] if self.damage else []
        lines += [f"  {name}: {rows:,} rows differed" for name, rows in self.differed.items()]
        lines += [f"  snapshot {name} differed too and is dropped" for name in self.dropped]
        lines += [f"  snapshot {name} differs from the log: delete it, do not restore it" for name in self.wrong_labels]
        return lines


@dataclass(frozen=True)
class RebuildReport:
    """What `rebuild` did."""

    place: str
    shards: list[ShardRebuild] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [line for shard in self.shards for line in shard.lines()]
        return [*lines, f"The parameters in {self.place} are made anew. `croupier replay` checks them."]


def rebuild(place: Place, shards: Iterable[int] | None = None, progress: Progress = silent) -> RebuildReport:
    """Makes the parameters of these shards (None: all) anew; where the log is whole, also of a store that is empty.

    Raises the errors of `streaming.place.open_place`, ValueError for a shard that is not there, LayoutMismatch where
    the log no longer holds what follows the oldest snapshot, StoreUnavailable where nobody could tell how a commit
    ended: running it again is safe.
    """
    _make_store(place)
    with open_place(place) as opened:
        numbers = range(opened.log.shards) if shards is None else list(shards)
        for shard in numbers:
            if not 0 <= shard < opened.log.shards:
                raise ValueError(f"shard {shard}: there are 0 to {opened.log.shards - 1}")
        return RebuildReport(place.name, [_shard(opened, shard, progress) for shard in numbers])


def _make_store(place: Place) -> None:
    """Makes the store of a log that has lost it: what the log says from its start is then all there is to learn.

    Raises LayoutMismatch where that is not all.
    """
    if place.folder is not None and not Path(place.log).exists():
        return  # `open_place` says so
    with contextlib.ExitStack() as stack:
        log = open_log(place.log)
        stack.callback(log.close)
        store = open_store(place.store)
        stack.callback(store.close)
        if store.manifest() is not None or not any(log.ends()):
            return
        backup = "restore the store from a backup, or `croupier import` an export under a new name"
        for shard in range(log.shards):
            if start := log.bounds(shard)[0]:
                raise LayoutMismatch(
                    f"the store in {place.name} is empty, and the log of shard {shard} starts at offset {start:,}, "
                    f"behind snapshots that went with the store: {backup}"
                )
        for _, text, _ in live(control_history(log)):
            record = from_json(text)
            if isinstance(record, GraphPut | Restore):
                what = "graph" if isinstance(record, GraphPut) else "restored parameters"
                raise LayoutMismatch(
                    f"the store in {place.name} is empty, and held the {what} of policy {record.policy!r}, which the "
                    f"log only names: {backup}"
                )
        store.create(Manifest(secrets.token_hex(8), log.id, log.shards, LAYOUT))


def _shard(opened: OpenPlace, shard: int, progress: Progress) -> ShardRebuild:
    damaged: list[SnapshotInfo] = []
    for attempt in itertools.count(1):
        snapshot = oldest_snapshot(opened, shard, damaged)
        try:
            try:
                work = _Rebuild(opened, shard, snapshot, progress, damaged)
            except StoreCorrupt:
                if snapshot is None:
                    raise
                damaged.append(snapshot)
                if oldest_snapshot(opened, shard, damaged) is None and opened.log.bounds(shard)[0] > 0:
                    raise
                continue
            return work.run()
        except (NotFound, Trimmed) as error:  # a learner took a newer snapshot, and this one is gone
            if attempt >= TRIES + len(damaged) or oldest_snapshot(opened, shard, damaged) == snapshot:
                raise LayoutMismatch(
                    f"shard {shard}: the log in {opened.place.name} no longer holds what follows its oldest snapshot "
                    f"({error}): restore log and store together from one backup"
                ) from error
    raise AssertionError


class _Rebuild:
    """The rebuilding of one shard from one snapshot."""

    def __init__(
        self,
        opened: OpenPlace,
        shard: int,
        snapshot: SnapshotInfo | None,
        progress: Progress,
        damaged: list[SnapshotInfo],
    ) -> None:
        self.log, self.store, self.shard, self.snapshot = opened.log, opened.store, shard, snapshot
        self.progress, self.damaged = progress, damaged
        state, self.start = State(), 0
        if snapshot is not None:
            image = self.store.load_snapshot(snapshot.name)
            state, self.start = state_of(image), image.head
        self.machine = Shard(shard, self.log.shards, state, self.store.get_blob)
        self.at, self.records = self.start, 0
        self.end = self.log.bounds(shard)[1]
        self.damage = ""
        self.names: set[str] = set()  # tables that the store has, or had since we look

    def run(self) -> ShardRebuild:
        stored, (last, stop) = self._stored()
        right, wrong = self._snapshots(stop)
        wrong += [info for info in self.damaged if info not in wrong]
        self._advance(stop, exactly=True)
        differed: dict[str, int] = {}
        if stored.tables and stop >= self.start:  # else it lost its newest commits, or has learned nothing yet
            differed = {name: rows_that_differ(self.state, stored, name) for name in self.state.equal(stored)}
        self.names |= set(stored.tables)
        del stored
        self._advance(self.log.bounds(self.shard)[1])
        self._replace(last)
        dropped = self._drop(right, wrong)
        labels = [info.name for info in wrong if info.label]
        name = self.snapshot.name if self.snapshot is not None else None
        return ShardRebuild(self.shard, self.start, self.at, name, self.records, differed, dropped, labels, self.damage)

    def _stored(self) -> tuple[State, tuple[bytes, int]]:
        """What the store has, and its last commit's id and head."""
        try:
            image = self.store.load(self.shard)
        except StoreCorrupt as error:
            self.damage = str(error)
            return State(), self.store.last(self.shard)
        return state_of(image), image.last

    @property
    def state(self) -> State:
        return self.machine.state

    def _snapshots(self, stop: int) -> tuple[list[SnapshotInfo], list[SnapshotInfo]]:
        """The other snapshots up to `stop`, compared on the way: those that are right, those that are wrong."""
        right: list[SnapshotInfo] = []
        wrong: list[SnapshotInfo] = []
        for info in self.store.snapshots(self.shard):
            if self.snapshot is not None and info.name == self.snapshot.name:
                right.append(info)
            elif self.start <= info.head <= stop:
                self._advance(info.head, exactly=True)
                try:
                    copy = state_of(self.store.load_snapshot(info.name))
                except NotFound:  # a learner dropped it meanwhile
                    continue
                except StoreCorrupt:
                    copy = State()
                (wrong if self.state.equal(copy) else right).append(info)
        return right, wrong

    def _advance(self, stop: int, exactly: bool = False) -> None:
        """Learns the records up to offset `stop`; and more of the last read, unless `exactly`."""
        while self.at < stop:
            records = self.log.read(self.shard, self.at, RECORDS)
            if exactly:
                records = [record for record in records if record.offset < stop]
            if not records:
                if self.log.bounds(self.shard)[1] < stop:
                    raise LayoutMismatch(
                        f"shard {self.shard}: the parameters include the log up to offset {stop}, but the log ends at "
                        f"{self.at}: it was shortened or replaced; restore log and store together from one backup"
                    )
                break
            self.machine.step(records)
            self.names |= {op.name for op, _, _ in decode(self.state.take_delta())}
            self.at, self.records = records[-1].offset + 1, self.records + len(records)
            self.progress(f"shard {self.shard}", self.at - self.start, max(self.end, self.at) - self.start)

    def _replace(self, known: bytes) -> None:
        """Commits what the log says; `known` is the commit as of which `names` are the store's tables."""
        refused = 0
        for _ in range(SEIZES):
            last, head = self.store.last(self.shard)
            seize = Commit(new_commit_id(), last, head, self.machine.log_time_ms, wall_clock(), EMPTY)
            try:
                self._commit(seize)
            except StaleCommit:
                continue
            between = [] if self.damage else self.store.changes(self.shard, known)
            if between is None:  # so many commits that they are not kept: what tables there are, only a load can say
                image = self.store.load(self.shard)
                self.names |= set(state_of(image).tables)
                known = image.last[0]
            else:
                self.names |= {op.name for commit in between for op, _, _ in decode(commit.delta)}
                known = seize.id
            self._advance(head)
            log_time_ms, everything = self.machine.log_time_ms, self._everything()
            done = Commit(new_commit_id(), seize.id, self.at, log_time_ms, wall_clock(), everything)
            try:
                self._commit(done)
                if self.damage:
                    parts = State()
                    parts.apply(everything)
                    self.store.fold(self.shard, done.id, parts.take_parts()[0], keep=0, whole=True)
            except StaleCommit:
                time.sleep(random.uniform(*PAUSE_S) * 2 ** min(refused, PAUSE_GROWS_MAX))
                refused += 1
                continue
            return
        raise StreamingError(f"shard {self.shard}: its learners commit too fast for a rebuild: stop them meanwhile")

    def _commit(self, commit: Commit) -> None:
        """Tries again where nobody could tell how it ended; the commit's id makes that harmless."""
        for attempt in itertools.count(1):
            try:
                return self.store.commit(self.shard, commit)
            except StoreUnavailable:
                if attempt == TRIES:
                    raise
                time.sleep(0.2 * attempt)

    def _everything(self) -> bytes:
        """A delta that drops all tables there may be and writes those there should be."""
        tables = self.state.tables
        drops = sorted(self.names | tables.keys())
        ops: list[tuple[Op, None, Rows | None]] = [(Op(name, "", 0, 0, 0, 0), None, None) for name in drops]
        for name, table in tables.items():
            op = Op(name, table.data.dtype.str, table.data.shape[1], table.size, 0, table.size)
            ops.append((op, None, table.rows))
        return encode(list(ops))

    def _drop(self, right: list[SnapshotInfo], wrong: list[SnapshotInfo]) -> list[str]:
        """Drops the automatic snapshots that are wrong, or were taken while we worked; one that is right must stay."""
        there = automatic(self.store, self.shard)
        known = {info.name for info in right}
        if not known & {info.name for info in there} and self.log.bounds(self.shard)[0] > 0:
            return []
        doubtful = [info for info in there if info.name not in known and info.head < self.at]
        for info in doubtful:
            self.store.drop_snapshot(info.name)
        return [info.name for info in doubtful if info in wrong]
