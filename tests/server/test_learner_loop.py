"""The loop around a process's learners: shards come and go, others commit in between, log and store go away."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from server import learner_loop
from server.learner_loop import LearnerLoop
from server.learner_metrics import LearnerMetrics
from streaming import events, token
from streaming.control import PolicyPut, PolicySpec, SnapshotDrop, SnapshotTake, snapshot_label, to_json
from streaming.errors import LayoutMismatch, LogUnavailable, NotFound, StaleCommit, StoreCorrupt, StoreUnavailable
from streaming.learner import Learner
from streaming.log import CONTROL
from streaming.log.memory import MemoryLog
from streaming.place import state_of
from streaming.shard import Shard
from streaming.state import State
from streaming.store import Manifest, automatic
from streaming.store.memory import MemoryStore


class Group:
    """A membership in hand: each process gets what `give` said last."""

    def __init__(self, *shards: int) -> None:
        self.rebalances, self.asked, self.closed = 0, 0, False
        self.now = frozenset(shards)

    def give(self, *shards: int) -> None:
        self.now = frozenset(shards)
        self.rebalances += 1

    def shards(self) -> frozenset[int]:
        self.asked += 1
        return self.now

    def close(self) -> None:
        self.closed = True


class World:
    def __init__(self, shards: int = 4) -> None:
        self.clock_ms = 1_700_000_000_000
        self.log = MemoryLog(shards, lambda: self.clock_ms, id="log")
        self.store = MemoryStore(lambda: self.clock_ms)
        self.store.create(Manifest("store", "log", shards, 1))
        self.n = 0
        self.sent = 0
        self.loops: list[tuple[LearnerLoop, threading.Thread]] = []
        self.errors: list[BaseException] = []
        self.control(PolicyPut("titles", PolicySpec("thompson-beta"), ["a", "b"]))

    def control(self, record) -> None:
        self.n += 1
        frame = events.control_frame(self.n, to_json(record))
        self.log.append([(partition, frame) for partition in range(CONTROL, self.log.shards)])

    def decide(self, shard: int, times: int = 1) -> None:
        for _ in range(times):
            self.clock_ms += 1
            context = token.Context(
                token.ARMS, 1, 1 << 32 | self.sent, self.clock_ms, 60_000, 0.0, 0, 0, True,
                np.array([0], np.uint32), np.array([0.5], np.float16),
            )  # fmt: skip
            self.log.append([(shard, events.frame([events.decision(token.encode(context), self.sent)]))])
            self.sent += 1

    def start(self, group: Group | None = None, store=None, log=None, **settings) -> LearnerLoop:
        loop = LearnerLoop(log or self.log, store or self.store, membership=group, finish_s=1.0, **settings)

        def run() -> None:
            try:
                loop.run()
            except Exception as error:
                self.errors.append(error)

        thread = threading.Thread(target=run)
        self.loops.append((loop, thread))
        thread.start()
        return loop

    def stop(self) -> None:
        for loop, thread in self.loops:
            loop.stop.set()
            thread.join(10.0)
            assert not thread.is_alive()

    def learned(self, *shards: int) -> bool:
        return all(self.store.last(s)[1] == self.log.bounds(s)[1] for s in shards or range(self.log.shards))

    def check(self, *shards: int) -> None:
        """What is stored is a plain replay of each shard."""
        for shard in shards or range(self.log.shards):
            machine = Shard(shard, self.log.shards, State(), self.store.get_blob)
            machine.step(self.log.read(shard, 0, 10**6, 1 << 40))
            assert machine.state.equal(state_of(self.store.load(shard))) == []


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.stop()


def soon(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_shards_come_and_go_while_it_runs(world: World) -> None:
    one, two = Group(0, 1, 2, 3), Group()
    first = world.start(one)
    soon(world.learned)
    second = world.start(two)
    for step in range(6):
        one.give(*range(step % 4))
        two.give(*range(step % 4, 4))
        for shard in range(4):
            world.decide(shard, 5)
        soon(world.learned)
    soon(lambda: [each.number for each in first.learners] == [0] and len(second.learners) == 3)
    assert first.rebalances == 6
    world.stop()
    assert world.errors == []
    world.check()


class Between:
    """A store or log before whose calls something may happen."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.before: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str):
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            self.before.get(name, lambda: None)()
            return value(*args, **kwargs)

        return call


def test_after_a_refused_commit_the_membership_is_asked_before_the_shard_is_loaded_again(world: World) -> None:
    group, store = Group(0), Between(world.store)
    loop = world.start(group, store)
    soon(lambda: world.learned(0))
    other = Learner(0, world.log, world.store)

    def overtake() -> None:
        store.before.clear()
        while other.poll():
            pass
        group.give()

    store.before["commit"] = overtake
    world.decide(0)
    soon(lambda: loop.counts.refused == 1 and not loop.learners)
    assert loop.counts.loads == 1
    group.give(0)
    world.decide(0)
    soon(lambda: world.learned(0))
    assert loop.counts.loads == 2
    world.check(0)


def test_what_a_refused_commit_held_is_learned_before_it_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_loop, "REFUSED_S", (0.0, 0.0))
    store = Between(world.store)
    loop = world.start(Group(0), store=store)
    soon(lambda: world.learned(0))

    def another() -> None:
        store.before.clear()
        Learner(0, world.log, world.store).poll(1)
        loop.stop.set()

    store.before["commit"] = another
    world.log.append([(0, events.frame([]))] * 5)
    world.stop()
    assert loop.counts.refused == 1
    assert world.learned(0)
    assert world.errors == []


def test_a_learner_that_slept_while_the_log_was_trimmed_loads_what_another_committed(world: World) -> None:
    asleep, store = threading.Event(), Between(world.log)
    loop = world.start(Group(0), log=store)
    soon(lambda: world.learned(0))
    store.before["read"] = lambda: asleep.wait(10.0) and None
    world.decide(0, 3)
    other = Learner(0, world.log, world.store)
    while other.poll():
        pass
    other.snapshot()
    world.log.trim(0, 4)
    asleep.set()
    soon(lambda: loop.counts.loads == 2)
    world.decide(0)
    soon(lambda: world.learned(0))
    assert world.errors == []


def test_log_and_store_that_go_away_are_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    log, store = Between(world.log), Between(world.store)
    loop = world.start(log=log, store=store)
    soon(world.learned)

    def away(error: Exception) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    for part, one, error in (("log", log, LogUnavailable("no log")), ("store", store, StoreUnavailable("no store"))):
        one.before["read" if part == "log" else "commit"] = away(error)
        world.decide(1)
        soon(lambda part=part: loop.away == {part})
        time.sleep(0.5)
        one.before.clear()
        world.decide(2)
        soon(world.learned)
        soon(lambda: not loop.away)
    world.stop()
    said = [record.message for record in caplog.records]
    assert said == [
        "the learner waits: no log",
        "the learner goes on",
        "the learner waits: no store",
        "the learner goes on",
    ]
    world.check()


def stopped_in_metrics(loop: LearnerLoop) -> float:
    metrics = LearnerMetrics()
    metrics.loop = loop
    value = metrics.registry.get_sample_value("croupier_learner_shards_stopped")
    assert value is not None
    return value


def errors_said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("error", [StoreCorrupt("bits"), NotFound("no blob"), LayoutMismatch("another log")])
def test_a_shard_that_cannot_be_loaded_stops_alone_until_it_is_mended(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(learner_loop, "STOPPED_S", 0.2)
    asked: list[float] = []
    broken = [True]

    def load(shard: int):
        if shard == 2 and broken:
            asked.append(time.monotonic())
            raise error
        return MemoryStore.load(world.store, shard)

    monkeypatch.setattr(world.store, "load", load)
    loop = world.start()
    soon(lambda: world.learned(0, 1, 3) and loop.stopped == [2])
    assert stopped_in_metrics(loop) == 1
    world.decide(0)
    soon(lambda: world.learned(0) and len(asked) >= 4)
    assert min(np.diff(asked)) >= 0.2
    assert errors_said(caplog) == [f"shard 2 is stopped, the others go on: {error}"]
    loop._slots[2].remind_at = 0.0  # it is some minutes later
    soon(lambda: len(errors_said(caplog)) == 2)
    broken.clear()
    world.decide(2)
    soon(world.learned)
    soon(lambda: not loop.stopped)
    assert stopped_in_metrics(loop) == 0
    assert caplog.records[-1].message == "shard 2 goes on"
    world.stop()
    assert world.errors == []
    world.check()


@pytest.mark.parametrize("what", ["trimmed", "unknown"])
def test_a_log_that_one_shard_cannot_go_on_with_stops_that_shard(
    world: World, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    group = Group(0, 1, 2, 3)
    loop = world.start(group)
    soon(world.learned)
    group.give(0, 1, 3)
    soon(lambda: len(loop.learners) == 3)
    if what == "trimmed":
        world.decide(2, 3)
        world.log.trim(2, 3)
    else:
        world.log.append([(2, events.control_frame(world.n + 1, b'{"type":"of-tomorrow"}'))])
    group.give(0, 1, 2, 3)
    soon(lambda: loop.stopped == [2])
    group.give(0, 1, 3)
    soon(lambda: not loop.stopped)
    group.give(0, 1, 2, 3)  # gained anew: tried at once
    soon(lambda: loop.stopped == [2])
    world.decide(0)
    soon(lambda: world.learned(0, 1, 3))
    said = errors_said(caplog)
    assert len(said) == 2
    assert ("was trimmed" if what == "trimmed" else "of another release") in said[0]
    began = time.monotonic()
    world.stop()
    assert time.monotonic() - began < 0.9  # what is stopped is not waited for
    assert world.errors == []
    world.check(0, 1, 3)


def test_our_own_mistakes_end_it(world: World) -> None:
    store = Between(world.store)

    def mistake() -> None:
        raise AssertionError

    store.before["load"] = mistake
    world.start(store=store)
    soon(lambda: bool(world.errors))
    assert isinstance(world.errors[0], AssertionError)


def test_a_snapshot_of_any_shard_that_cannot_be_read_does_not_stop_shard_0(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learner_loop, "GRAPHS_S", 0.05)
    store = Between(world.store)

    def damaged() -> None:
        raise StoreCorrupt("bits")

    store.before["load_snapshot"] = damaged
    loop = world.start(store=store, trims=True, snapshot_interval_s=0.05)
    soon(lambda: "no graph is dropped: bits" in errors_said(caplog))
    world.decide(0)
    soon(world.learned)
    assert loop.stopped == []


def test_a_busy_shard_does_not_hold_up_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_loop, "BYTES_MAX", 2000)
    world.decide(0, 400)
    world.decide(3)
    behind: list[int] = []
    store = Between(world.store)
    store.before["commit"] = lambda: behind.append(world.store.last(0)[1]) if not world.learned(3) else None
    world.start(store=store)
    soon(world.learned)
    assert max(behind) < 100


def test_snapshots_are_taken_and_the_log_trimmed_behind_the_oldest_of_ones_own(world: World) -> None:
    group = Group(0, 1)
    world.start(group, snapshot_interval_s=0.05, trims=True)
    for _ in range(6):
        world.decide(0, 3)
        world.decide(2, 3)
        soon(lambda: world.learned(0) and automatic(world.store, 0)[-1:] != [])
        head = world.log.bounds(0)[1]
        soon(lambda head=head: automatic(world.store, 0)[-1].head == head)
    soon(lambda: world.log.bounds(0)[0] == automatic(world.store, 0)[0].head > 0)
    assert len(automatic(world.store, 0)) == 2
    assert automatic(world.store, 1)
    assert not automatic(world.store, 2)
    assert world.log.bounds(2)[0] == 0


def test_a_log_that_cannot_be_trimmed_is_asked_once_a_snapshot(world: World) -> None:
    asked: list[float] = []

    def refuse() -> None:
        asked.append(time.monotonic())
        raise LogUnavailable("the user may not delete records")

    log = Between(world.log)
    log.before["trim"] = refuse
    world.decide(0)
    loop = world.start(Group(0), log=log, snapshot_interval_s=0.5, trims=True)
    soon(lambda: loop.counts.snapshots > 0 and bool(asked))
    world.decide(0)
    soon(lambda: world.learned(0))
    time.sleep(1.5)
    assert len(asked) <= 6
    soon(lambda: not loop.away)
    assert world.errors == []


def test_an_idle_shard_is_not_copied_again(world: World) -> None:
    loop = world.start(snapshot_interval_s=0.02)
    soon(lambda: all(automatic(world.store, shard) for shard in range(4)))
    taken = loop.counts.snapshots
    time.sleep(0.3)
    assert loop.counts.snapshots == taken == 4


def test_labelled_snapshots_are_made_and_dropped_as_control_says(world: World) -> None:
    world.start(keep_snapshots=1, snapshot_interval_s=0.1)
    world.control(SnapshotTake("one"))
    world.control(SnapshotTake("two"))

    def labels() -> list[set[str]]:
        return [{info.label for info in world.store.snapshots(shard) if info.label} for shard in range(4)]

    both = {snapshot_label("one", 2), snapshot_label("two", 3)}
    soon(lambda: labels() == [both] * 4)
    world.control(SnapshotDrop("one"))
    world.control(SnapshotTake("one"))
    soon(lambda: labels() == [{snapshot_label("two", 3), snapshot_label("one", 5)}] * 4)
    world.stop()
    world.control(SnapshotDrop("two"))  # nobody runs; a zombie that has not read this leaves what it does not know
    zombie = Learner(0, world.log, world.store)
    zombie.open()
    world.store.fold(0, world.store.last(0)[0], {})
    world.store.snapshot(0, snapshot_label("later", 99))
    zombie.sync_labels()
    assert labels()[0] == {snapshot_label("two", 3), snapshot_label("one", 5), snapshot_label("later", 99)}


def test_a_labelled_copy_that_was_lost_is_not_made_again_from_what_was_learned_since(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.control(SnapshotTake("kept"))

    def lose(shard: int) -> None:
        (copy,) = (info for info in world.store.snapshots(shard) if info.label)
        world.store.drop_snapshot(copy.name)

    def synced(learner: Learner) -> list[str]:
        while learner.poll():
            pass
        learner.sync_labels()
        return [info.label for info in world.store.snapshots(learner.number) if info.label]

    kept = [snapshot_label("kept", 2)]
    learner = Learner(0, world.log, world.store)
    assert synced(learner) == kept
    lose(0)
    world.clock_ms += 59_000
    world.decide(0)
    assert synced(Learner(0, world.log, world.store)) == kept  # it is of that minute still
    world.decide(0)
    with pytest.raises(StaleCommit):
        learner.poll()
    assert synced(learner) == kept
    lose(0)
    world.clock_ms += 2_000
    world.decide(0)
    assert synced(learner) == synced(learner) == []
    assert len(caplog.records) == 1
    assert "shard 0: its copy of snapshot 'kept' is lost" in caplog.text
    assert synced(Learner(0, world.log, world.store)) == []

    world.decide(1)
    late = Learner(1, world.log, world.store)
    assert synced(late) == kept  # it comes to the record now, however late
    lose(1)
    assert synced(late) == []  # and has had it


def test_small_rounds_are_followed_by_a_pause_as_long_as_they_are_worth(world: World) -> None:
    loop = LearnerLoop(world.log, world.store, poll_s=0.002)
    assert loop._pause(0, 0, 0.0001) == 0.002
    assert loop._pause(0, 0, 1.0) == 0.02
    assert loop._pause(1, 1, 0.0001) == 0.002
    assert loop._pause(1, 24, 0.0005) == 0.004
    assert loop._pause(24, 24, 0.5) == 0.008
    assert loop._pause(3, 5000, 0.5) == 0.002, "a round that was worth it"
    assert LearnerLoop(world.log, world.store, poll_s=1.0)._pause(1, 1, 0.5) == 1.0, "the setting is the least"


def test_records_that_come_one_by_one_share_commits(world: World) -> None:
    loop = world.start(Group(0))
    soon(lambda: world.learned(0))
    before = loop.counts.records, sum(loop.counts.commits)
    for _ in range(300):
        world.decide(0)
        time.sleep(0.0005)
    soon(lambda: world.learned(0))
    assert loop.counts.records - before[0] == 300
    assert sum(loop.counts.commits) - before[1] < 200
    world.check(0)
