"""Replay: do the store's parameters equal what the kept log makes of the oldest kept snapshot, bit for bit?

    oldest snapshot (or nothing, where the log is whole) -> the kept records, in other batches -> equal to the store?

This is the proof that recovery works and that nothing but the log has taught: a crash, a second learner, a store that
failed over, must all have left no trace.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from streaming.contract import COLUMNS
from streaming.errors import LayoutMismatch, LogUnavailable, NotFound, Trimmed
from streaming.log import Clock, wall_clock
from streaming.place import OpenPlace, Place, Progress, oldest_snapshot, open_place, silent, state_of
from streaming.shard import Shard
from streaming.state import State
from streaming.store import SnapshotInfo

BATCHES = (257, 1, 1021, 13)
"""Records a step, in turn: sizes that no learner uses, one of them a single record."""
TRIES = 5  # a running server may drop the snapshot, or trim the log, while it is being read


@dataclass(frozen=True)
class ShardReplay:
    """One shard: from where to where, how much, and which tables differ, with how many of their rows."""

    shard: int
    start: int
    stop: int
    snapshot: str | None
    records: int
    outcomes: dict[str, int]
    differing: dict[str, int]

    @property
    def equal(self) -> bool:
        return not self.differing

    def lines(self) -> list[str]:
        source = f"snapshot {self.snapshot}" if self.snapshot else "the start of the log"
        counted = ", ".join(f"{name} {n:,}" for name, n in self.outcomes.items() if n) or "no events"
        lines = [
            f"shard {self.shard}: {self.records:,} records, offsets {self.start:,} to {self.stop:,}, from {source}: "
            + ("equal, bit for bit" if self.equal else f"{len(self.differing)} tables DIFFER"),
            f"  {counted}",
        ]
        lines += [f"  {name}: {rows:,} rows differ" for name, rows in self.differing.items()]
        return lines


@dataclass(frozen=True)
class ReplayReport:
    """What `replay` found."""

    name: str
    shards: list[ShardReplay] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return all(shard.equal for shard in self.shards)

    def lines(self) -> list[str]:
        lines = [line for shard in self.shards for line in shard.lines()]
        if self.equal:
            return [*lines, f"The parameters in {self.name} are what their log says, bit for bit."]
        return [
            *lines,
            f"The parameters in {self.name} are NOT what their log says. The same release on the same kind of CPU must "
            "give the same bits: if either changed since the oldest snapshot, run this again once newer snapshots have "
            "replaced it. Otherwise keep a copy of log and store as they are now, and report it.",
        ]


def replay(place: Place, progress: Progress = silent, clock: Clock = wall_clock) -> ReplayReport:
    """Replays the kept log of a place and compares. Only reads; servers and learners may be running on it.

    Raises the errors of `streaming.place.open_place`, and LayoutMismatch where the log does not reach the head.
    """
    with open_place(place, clock) as opened:
        return ReplayReport(place.name, [_shard(opened, shard, progress) for shard in range(opened.log.shards)])


def _shard(opened: OpenPlace, shard: int, progress: Progress) -> ShardReplay:
    for attempt in itertools.count(1):
        snapshot = oldest_snapshot(opened, shard)
        try:
            return _from(opened, shard, snapshot, progress)
        except (NotFound, Trimmed) as error:
            same = not isinstance(error, NotFound) and oldest_snapshot(opened, shard) == snapshot
            if attempt == TRIES or same:
                raise LayoutMismatch(
                    f"shard {shard}: the log in {opened.place.name} no longer holds what follows its oldest "
                    f"snapshot ({error}): {opened.place.together}"
                ) from error
    raise AssertionError


def _from(opened: OpenPlace, shard: int, snapshot: SnapshotInfo | None, progress: Progress) -> ShardReplay:
    state, start = State(), 0
    if snapshot is not None:
        image = opened.store.load_snapshot(snapshot.name)
        state, start = state_of(image), image.head
    image = opened.store.load(shard)
    stored, (_, stop) = state_of(image), image.last
    _, end = opened.log.bounds(shard)
    if stop > end:
        raise LayoutMismatch(
            f"shard {shard}: the parameters include the log up to offset {stop}, but the log ends at {end}: the log "
            f"was shortened or replaced; {opened.place.together}"
        )
    before = _outcomes(state)
    machine = Shard(shard, opened.log.shards, state, opened.store.get_blob)
    machine.state.take_delta()
    at, records = start, 0
    sizes = itertools.cycle(BATCHES)
    while at < stop:
        batch = [record for record in opened.log.read(shard, at, next(sizes)) if record.offset < stop]
        if not batch:
            raise LogUnavailable(f"shard {shard}: nothing can be read at offset {at:,} of {end:,}: try again")
        machine.step(batch)
        machine.state.take_delta()
        at, records = batch[-1].offset + 1, records + len(batch)
        progress(f"shard {shard}", at - start, stop - start)
    after = _outcomes(machine.state)
    outcomes = {name: after[name] - before[name] for name in COLUMNS}
    differing = {name: rows_that_differ(machine.state, stored, name) for name in machine.state.equal(stored)}
    if stop == 0 and not image.parts and not image.deltas:
        differing = {}  # nothing was learned yet: the store has no tables at all
    return ShardReplay(shard, start, stop, snapshot.name if snapshot else None, records, outcomes, differing)


def _outcomes(state: State) -> dict[str, int]:
    """Outcomes of all policies together; what policies took with them was added to those that exist no longer."""
    total = dict.fromkeys(COLUMNS, 0)
    for name in state.tables:
        if name.startswith("outcomes/"):
            for column, n in zip(COLUMNS, state[name][0].tolist(), strict=True):
                total[column] += n
    return total


def rows_that_differ(mine: State, theirs: State, name: str) -> int:
    """How many rows of a table differ; all of them where only one side has it, or the shapes differ."""
    if name not in mine or name not in theirs:
        return len((mine if name in mine else theirs)[name])
    a, b = mine[name], theirs[name]
    if a.dtype != b.dtype or a.shape[1] != b.shape[1]:
        return max(len(a), len(b))
    n = min(len(a), len(b))
    raw = [np.ascontiguousarray(each[:n]).view(np.uint8).reshape(n, -1) for each in (a, b)]
    return max(len(a), len(b)) - int((raw[0] == raw[1]).all(axis=1).sum())
