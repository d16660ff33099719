"""The learner's loop: where it starts, when it refuses, and what a failing store does to it."""

import copy
from zlib import crc32

import numpy as np
import pytest

from streaming import events
from streaming import learner as module
from streaming.control import KeyAdd, to_json
from streaming.errors import LayoutMismatch, LogUnavailable, NotFound, StaleCommit, StoreUnavailable, Trimmed
from streaming.learner import FOLD_COMMITS, Learner, trim
from streaming.log.memory import MemoryLog
from streaming.place import state_of
from streaming.shard import UnknownRecord
from streaming.store import NOTHING, Manifest
from streaming.store.memory import MemoryStore
from tests.streaming.machines import FILMS, Machine


class Failing:
    """A log or store whose next calls of some methods fail, before or after they are done."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.failures: dict[str, list[str]] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            self.calls.append(name)
            fate = self.failures.get(name, [])
            how = fate.pop(0) if fate else ""
            error = LogUnavailable("away") if name == "read" else StoreUnavailable("away")
            if how == "before":
                raise error
            result = value(*args, **kwargs)
            if how == "after":
                raise error
            return result

        return call


class World:
    """A log that holds what a machine was given, and a store that has not read it."""

    def __init__(self) -> None:
        self.machine = Machine(half_life_s=1.0)  # so that accumulators are rebased, of untouched edges too
        self.store = MemoryStore(lambda: 0)
        self.machine.blobs = {"g": self.machine.blobs["g"]}
        for i in range(6):
            self.machine.now_ms += 9_000
            payload = self.machine.decision(items=(3 - i % 4,))
            self.machine.answer(payload, 0, 1.0)
        self.log = MemoryLog(1, lambda: self.machine.now_ms, id="log")
        self.store.create(Manifest("store", "log", 1, 1))
        self.store.get_blob = self.machine.blobs.__getitem__  # type: ignore[method-assign]
        for record in self.machine.records:
            self.machine.now_ms = record.time_ms
            self.log.append([(0, record.data)])

    def learner(self, store=None, log=None) -> Learner:
        return Learner(0, log or self.log, store or self.store)

    def stored(self):
        return state_of(self.store.load(0))

    def drain(self, learner: Learner, step: int = 4) -> None:
        while learner.poll(step):
            pass


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_stored_is_what_the_machine_has_from_the_first_commit_on(world: World) -> None:
    learner = world.learner()
    assert learner.poll(1) == 1
    assert world.stored().equal(learner.shard.state) == []
    world.drain(learner)
    assert world.stored().equal(world.machine.state) == []
    assert world.store.last(0)[1] == len(world.machine.records) == learner.head
    assert learner.poll() == 0


def test_commits_are_chained_and_carry_times(world: World) -> None:
    world.drain(world.learner())
    commits = world.store.changes(0, NOTHING)
    assert [commit.after for commit in commits] == [NOTHING, *(commit.id for commit in commits[:-1])]
    assert [commit.head for commit in commits] == [4, 8, 12, 15]
    times = [record.time_ms for record in world.machine.records]
    assert [commit.first_time_ms for commit in commits] == [times[0], times[4], times[8], times[12]]
    assert [commit.log_time_ms for commit in commits] == [times[3], times[7], times[11], times[14]]


def test_it_refuses_log_and_store_that_do_not_belong_together(world: World) -> None:
    with pytest.raises(LayoutMismatch, match="start the server once"):
        world.learner(store=MemoryStore(lambda: 0)).open()
    with pytest.raises(LayoutMismatch, match="put the log and the store of one data folder together"):
        world.learner(log=MemoryLog(1, lambda: 0, id="another")).open()
    with pytest.raises(LayoutMismatch, match="1 shards, but this log is log with 2"):
        world.learner(log=MemoryLog(2, lambda: 0, id="log")).open()
    later = MemoryStore(lambda: 0)
    later.create(Manifest("store", "log", 1, 2))
    with pytest.raises(LayoutMismatch, match="has layout 2"):
        world.learner(store=later).open()


def test_it_refuses_a_log_that_was_shortened_or_trimmed_beyond_its_head(world: World) -> None:
    learner = world.learner()
    learner.poll(5)
    short = MemoryLog(1, lambda: 0, id="log")
    short.append([(0, b"x")] * 4)
    with pytest.raises(LayoutMismatch, match="up to offset 5, but the log ends at 4"):
        world.learner(log=short).open()
    world.log.trim(0, 5)
    world.learner().open()
    world.log.trim(0, 6)
    with pytest.raises(Trimmed):
        world.learner().open()
    with pytest.raises(Trimmed):
        learner.poll()


def test_an_unknown_record_stops_it_and_nothing_is_committed(world: World) -> None:
    learner = world.learner()
    world.drain(learner)
    before = world.store.last(0)
    future = bytearray(events.control_frame(99, b"{}"))
    future[4] = 2
    future[12:16] = crc32(bytes(future[:12]) + bytes(future[16:])).to_bytes(4, "little")
    for data in (bytes(future), events.control_frame(world.machine.n + 1, b'{"type":"restore"}')):
        log = MemoryLog(1, lambda: 0, id="log")
        log.append([(0, record.data) for record in world.machine.records])
        log.append([(0, events.frame([])), (0, data)])
        stopped = world.learner(log=log)
        for _ in range(2):
            with pytest.raises(UnknownRecord, match="another release"):
                stopped.poll()
        assert world.store.last(0) == before


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_commit_whose_fate_is_unknown_is_sent_again_and_counts_once(world: World, how: str) -> None:
    store = Failing(world.store)
    learner = world.learner(store=store)
    learner.poll(5)
    store.failures["commit"] = [how, how]
    with pytest.raises(StoreUnavailable):
        learner.poll(5)
    with pytest.raises(StoreUnavailable):
        learner.poll(5)
    world.drain(learner)
    assert world.stored().equal(world.machine.state) == []
    ids = [commit.id for commit in world.store.changes(0, NOTHING)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("what", ["fold", "snapshot"])
def test_a_fold_or_snapshot_after_a_failed_commit_sends_that_first(world: World, what: str) -> None:
    store = Failing(world.store)
    learner = world.learner(store=store)
    learner.poll(5)
    store.failures["commit"] = ["before"]
    with pytest.raises(StoreUnavailable):
        learner.poll(5)
    getattr(learner, what)()
    assert world.store.load(0).head == 10
    world.drain(learner)
    assert world.stored().equal(world.machine.state) == []


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("call", ["load", "fold", "snapshot", "read"])
def test_a_store_or_log_that_was_away_loses_nothing(world: World, call: str, how: str) -> None:
    store, log = Failing(world.store), Failing(world.log)
    learner = world.learner(store, log)
    (log if call == "read" else store).failures[call] = [how] * 3
    done = False
    for _ in range(40):
        try:
            if not learner.poll(3):
                learner.snapshot()
                done = True
                break
            learner.fold()
        except (StoreUnavailable, LogUnavailable):
            continue
    assert done
    assert world.stored().equal(world.machine.state) == []
    assert not world.store.load(0).deltas


def test_a_zombie_is_refused_and_loads_again(world: World) -> None:
    zombie, other = world.learner(), world.learner()
    zombie.poll(3)
    other.poll(6)
    with pytest.raises(StaleCommit):
        zombie.poll(2)
    assert zombie.reloads == 1
    world.drain(zombie)
    with pytest.raises(StaleCommit):
        other.fold()
    assert world.stored().equal(world.machine.state) == []


def test_commits_that_the_store_lost_are_made_again_though_no_record_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    learner = world.learner()
    learner.poll(4)
    early = copy.deepcopy(world.store._shards)
    world.drain(learner)
    right = world.stored()
    world.store._shards = early  # as after a failover to a replica that lagged
    with pytest.raises(StaleCommit):
        learner.poll()
    world.drain(learner)
    assert world.store.last(0)[1] == world.log.bounds(0)[1]
    assert world.stored().equal(right) == []


def test_fold_makes_loads_short_and_snapshots_are_kept_as_asked(world: World) -> None:
    learner = world.learner()
    learner.open()
    assert learner.snapshot() is None
    learner.fold()
    heads = []
    while learner.poll(3):
        heads.append(learner.snapshot(keep=2).head)
    assert not world.store.load(0).deltas
    assert [info.head for info in world.store.snapshots(0)] == heads[-2:]
    assert state_of(world.store.load_snapshot(world.store.snapshots(0)[-1].name)).equal(world.machine.state) == []
    trim(world.log, world.store)
    assert world.log.bounds(0)[0] == heads[-2]
    with pytest.raises(NotFound):
        world.store.load_snapshot("0-3-00")
    again = world.learner()
    again.open()
    assert again.shard.state.equal(world.machine.state) == []


def test_it_asks_for_a_fold_after_many_commits_and_counts_them_again_after_a_load(world: World) -> None:
    learner = world.learner()
    world.drain(learner)
    empty = events.frame([])
    for _ in range(FOLD_COMMITS - 4):
        world.log.append([(0, empty)])
    assert not learner.wants_fold
    world.drain(learner, 1)
    assert learner.wants_fold
    again = world.learner()
    again.open()
    assert again.wants_fold
    again.fold()
    assert not again.wants_fold


def test_a_fold_leaves_followers_as_many_commits_as_its_bytes_allow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = world.learner()
    world.drain(learner, 1)
    commits = world.store.changes(0, NOTHING)
    sizes = [len(commit.delta) for commit in commits]
    monkeypatch.setattr(module, "FOLD_BYTES", sum(sizes[-3:]))
    learner.fold()
    assert world.store.changes(0, commits[-4].id) == commits[-3:]
    assert world.store.changes(0, commits[-5].id) is None
    world.log.append([(0, events.frame([]))])
    again = world.learner()
    world.drain(again)
    monkeypatch.setattr(module, "FOLD_BYTES", 1)  # one that is larger by itself: followers load the shard
    again.fold()
    assert world.store.changes(0, commits[-1].id) is None
    assert world.store.last(0) == (again._last, again.head)


def test_trim_leaves_a_shard_without_snapshots_alone(world: World) -> None:
    world.drain(world.learner())
    trim(world.log, world.store)
    assert world.log.bounds(0)[0] == 0


def test_only_what_changed_is_written(world: World) -> None:
    learner = world.learner()
    world.drain(learner)
    learner.fold()
    world.log.append([(0, events.control_frame(world.machine.n + 1, to_json(KeyAdd(1, "00", 0))))])
    learner.poll()
    parts, _ = learner.shard.state.take_parts()
    assert {name.partition("#")[0] for name in parts} == {"control"}
    assert f"edges/{FILMS}" in learner.shard.state
    assert np.any(learner.shard.state[f"edges/{FILMS}"])
