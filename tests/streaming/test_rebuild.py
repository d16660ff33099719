"""Rebuild on a real data folder: what was wrong becomes what the log says, beside learners that go on."""

import contextlib
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis

from server.cli import cli
from server.learner_loop import LearnerLoop
from streaming import events
from streaming.control import SnapshotTake
from streaming.errors import LayoutMismatch, StoreCorrupt
from streaming.learner import Learner
from streaming.log import open_log
from streaming.place import Place, state_of
from streaming.rebuild import EMPTY, rebuild
from streaming.replay import replay
from streaming.state import State
from streaming.store import Commit, Manifest, automatic, open_store
from streaming.store.sqlite import SqliteStore
from tests.parts.redis import Single
from tests.streaming.world import World


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path / "data")
    world.run()
    world.learn()
    yield world
    world.close()


def spoil(store, shard: int, table: str = "edges/2", row: int = 1) -> None:
    """One bit of a stored parameter becomes another; a table and a row too many come into being."""
    image = store.load(shard)
    state = State()
    state.load(image.parts.values(), [commit.delta for commit in image.deltas])
    raw = state[table].view(np.uint64)
    raw[row, 1] ^= 1
    state.changed(table, np.array([row]))
    state.write("edges/99", np.ones((70_000, 2)))
    last, head = image.last
    store.commit(shard, Commit(b"spoiled" + bytes(9), last, head, 0, 0, state.take_delta()))


def test_what_differed_is_said_and_is_right_afterwards(world: World) -> None:
    world.snapshot(keep=1)
    world.run()
    world.learn()
    before = world.states()
    spoil(world.store, 0)
    world.learners[0].open()
    world.run()
    world.learn()  # learns on what is wrong, and folds it into the base
    world.learners[0].fold()
    assert not replay(world.place).equal
    report = rebuild(world.place)
    assert report.shards[0].differed == {"edges/2": 1, "edges/99": 70_000}
    assert report.shards[1].differed == {}
    assert report.shards[0].snapshot is not None
    assert "DIFFERED" in "\n".join(report.lines())
    assert replay(world.place).equal
    assert before[0].equal(world.states()[0])  # more was learned since
    for learner in world.learners:
        learner.open()
        learner.fold()  # nothing of the table that was dropped is left in the base
        assert not any(name.startswith("edges/99") for name in learner.store.load(learner.number).parts)
    world.run()
    world.learn()
    assert replay(world.place).equal


def test_one_shard_from_a_log_that_is_whole_and_nothing_to_say(world: World) -> None:
    last = world.store.lasts()
    report = rebuild(world.place, [1])
    assert [(each.shard, each.start, each.snapshot, each.differed) for each in report.shards] == [(1, 0, None, {})]
    assert world.store.last(0) == last[0]
    assert world.store.last(1)[0] != last[1][0]
    assert replay(world.place).equal
    with pytest.raises(ValueError, match="shard 7: there are 0 to 1"):
        rebuild(world.place, [7])


def test_the_command(world: World) -> None:
    spoil(world.store, 0)
    done = CliRunner().invoke(cli, ["rebuild", "--data", str(world.data), "--shard", "0"])
    assert done.exit_code == 0, done.output
    assert "shard 0: rebuilt from the start of the log" in done.output
    assert "edges/2: 1 rows differed" in done.output
    assert replay(world.place).equal
    refused = CliRunner().invoke(cli, ["rebuild", "--data", str(world.data), "--shard", "9"])
    assert refused.exit_code == 2
    assert "there are 0 to 1" in refused.stderr


def test_it_goes_beyond_a_store_that_no_learner_has_kept_up(world: World) -> None:
    world.run()
    rebuild(world.place)
    assert [head for _, head in world.store.lasts()] == world.log.ends()[:-1]
    assert replay(world.place).equal


def test_later_snapshots_that_are_wrong_go_and_those_with_a_label_are_named(world: World) -> None:
    world.snapshot()
    right = automatic(world.store, 0)[0].name
    spoil(world.store, 0)
    world.control(SnapshotTake("mine"))
    for learner in world.learners:
        learner.open()
    world.run()
    world.learn()
    world.snapshot()
    for learner in world.learners:
        learner.sync_labels()
    wrong = automatic(world.store, 0)[1].name
    world.run()
    world.learn()
    (shard, other) = rebuild(world.place).shards
    assert shard.dropped == [wrong]
    assert len(shard.wrong_labels) == 1
    assert "-mine@" in shard.wrong_labels[0]
    assert (other.dropped, other.wrong_labels) == ([], [])
    assert [info.name for info in automatic(world.store, 0)] == [right]
    assert replay(world.place).equal


def test_it_refuses_a_log_that_was_trimmed_too_far(world: World) -> None:
    world.snapshot(keep=1)
    world.run()
    world.learn()
    world.log.trim(0, automatic(world.store, 0)[0].head + 2)
    with pytest.raises(LayoutMismatch, match=r"shard 0: the log .* no longer holds"):
        rebuild(world.place)


def test_a_snapshot_that_the_log_was_trimmed_behind_is_passed_over(world: World) -> None:
    """A learner that slept takes one, or a failover brings it back, when newer ones have let the log be trimmed."""
    for _ in range(3):
        world.run()
        world.learn()
        world.snapshot(keep=3)
    gone, first, *_ = (info.name for info in automatic(world.store, 0))
    world.log.trim(0, automatic(world.store, 0)[1].head)
    spoil(world.store, 0)
    assert [shard.equal for shard in replay(world.place).shards] == [False, True]
    report = rebuild(world.place).shards[0]
    assert (report.snapshot, report.dropped) == (first, [])
    assert gone not in [info.name for info in automatic(world.store, 0)]
    assert replay(world.place).equal


def damage(world: World, which: int) -> str:
    """Makes what only this automatic snapshot of shard 0 holds unreadable; its name."""
    name = automatic(world.store, 0)[which].name
    with contextlib.closing(sqlite3.connect(world.place.store)) as con, con:
        con.execute("UPDATE chunks SET data = x'00' WHERE chunk IN (SELECT chunk FROM snapshot_parts WHERE name = ?) "
                    "AND chunk NOT IN (SELECT chunk FROM snapshot_parts WHERE name != ?) "
                    "AND chunk NOT IN (SELECT chunk FROM base)", (name, name))  # fmt: skip
    with pytest.raises(StoreCorrupt):
        world.store.load_snapshot(name)
    return name


def test_the_next_snapshot_is_taken_where_the_oldest_is_damaged(world: World) -> None:
    for _ in range(3):
        world.run()
        world.learn()
        world.snapshot(keep=3)
    world.run()
    world.learn()
    names = [info.name for info in automatic(world.store, 0)]
    spoil(world.store, 0)
    assert damage(world, 0) == names[0]
    report = rebuild(world.place, [0]).shards[0]
    assert (report.snapshot, report.dropped) == (names[1], [names[0]])
    assert report.differed == {"edges/2": 1, "edges/99": 70_000}
    assert [info.name for info in automatic(world.store, 0)] == names[1:]
    assert replay(world.place).equal
    for info in automatic(world.store, 0)[1:]:
        world.store.drop_snapshot(info.name)
    damage(world, 0)
    assert world.log.bounds(0)[0] > 0
    with pytest.raises(StoreCorrupt):  # there is no other, and the log is not whole
        rebuild(world.place, [0])


def test_after_a_refused_replace_it_pauses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr("streaming.rebuild.time.sleep", paused.append)
    commit, refused = SqliteStore.commit, 0

    def duel(store, shard, made):
        nonlocal refused
        if len(made.delta) > len(EMPTY) and refused < 6:  # another rebuild has seized the shard
            refused += 1
            last, head = store.last(shard)
            commit(store, shard, Commit(bytes([refused]) * 16, last, head, 0, 0, EMPTY))
        commit(store, shard, made)

    monkeypatch.setattr(SqliteStore, "commit", duel)
    rebuild(world.place, [0])
    assert len(paused) == refused == 6
    assert all(0.05 * 2 ** min(n, 3) <= each <= 0.25 * 2 ** min(n, 3) for n, each in enumerate(paused))
    assert len(set(paused)) == 6
    assert replay(world.place).equal


def emptied(world: World) -> None:
    """The store is gone, as after a FLUSHALL; the log is what it was."""
    world.close()
    for file in world.data.glob("store.sqlite*"):
        file.unlink()


def test_a_store_that_is_gone_is_made_anew_from_a_whole_log(tmp_path: Path) -> None:
    world = World(tmp_path / "data", with_graph=False)
    world.run()
    world.learn()
    before = world.states()
    emptied(world)
    report = rebuild(world.place)
    assert [(shard.start, shard.snapshot, shard.differed) for shard in report.shards] == [(0, None, {})] * 2
    assert replay(world.place).equal
    with contextlib.closing(open_store(world.place.store)) as store:
        assert all(before[shard].equal(state_of(store.load(shard))) == [] for shard in range(2))
    assert rebuild(world.place).shards[0].differed == {}


def test_a_store_that_is_gone_and_held_more_than_the_log_says_is_not_made(world: World) -> None:
    emptied(world)
    with pytest.raises(LayoutMismatch, match=r"held the graph of policy 'films', which the log only names: restore"):
        rebuild(world.place)
    assert open_store(world.place.store).manifest() is None


def test_a_store_that_is_gone_beside_a_trimmed_log_is_not_made(world: World) -> None:
    world.snapshot()
    world.run()
    world.learn()
    world.snapshot(keep=1)
    emptied(world)
    with pytest.raises(LayoutMismatch, match=r"shard 0 starts at offset .* behind snapshots that went with the store"):
        rebuild(world.place)


@pytest.mark.parametrize("what", ["part", "commits"])
def test_what_cannot_be_read_is_written_over_whole(tmp_path: Path, redis_single: Single, what: str) -> None:
    world = World(Place(str(tmp_path / "log.sqlite"), f"{redis_single.url}/damaged-{what}"))
    for _ in range(2):
        world.run()
        world.learn()
        world.snapshot()
    world.run()
    world.learn()
    snapshots = automatic(world.store, 0)
    tag = f"{{damaged-{what}:0}}"
    with Redis.from_url(redis_single.url) as client:
        if what == "part":
            data = client.get(f"{tag}:part:edges/2#0")
            client.set(f"{tag}:part:edges/2#0", data[:-1] + bytes([data[-1] ^ 1]))
            client.hset(f"{tag}:parts", "edges/98#0", 5)  # named, but not there
        else:
            client.delete(f"{tag}:stream")
    with pytest.raises(StoreCorrupt, match="croupier rebuild"):
        world.store.load(0)
    damaged, sound = rebuild(world.place).shards
    assert "DAMAGED" in damaged.lines()[0]
    assert "croupier rebuild" in damaged.damage
    assert (damaged.snapshot, damaged.dropped, sound.damage) == (snapshots[0].name, [], "")
    assert automatic(world.store, 0) == snapshots
    world.run()
    world.learners = [Learner(shard, world.log, world.store) for shard in range(2)]
    world.learn()
    assert replay(world.place).equal
    world.close()


def test_beside_a_busy_learner_of_a_large_shard(tmp_path: Path) -> None:
    """A million edges, a learner that commits all the time and takes snapshots, and one bit that is wrong."""
    data = tmp_path / "data"
    data.mkdir()
    place = Place.of_folder(data)
    log, store = open_log(place.log, 1, write=True), open_store(place.store)
    store.create(Manifest("s", log.id, 1, 1))
    log.append([(0, events.frame([]))])
    first = Learner(0, log, store)
    first.poll()
    assert first.shard is not None
    first.shard.state.write("edges/2", np.random.default_rng(1).random((1_000_000, 2)))
    log.append([(0, events.frame([]))])
    first.poll()
    first.snapshot()
    spoil(store, 0, row=777_777)
    loop = LearnerLoop(log, store, snapshot_interval_s=1e6)
    running = threading.Thread(target=loop.run)
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.001):
            log.append([(0, events.frame([]))])

    writing = threading.Thread(target=write)
    running.start()
    writing.start()
    try:
        report = rebuild(place)
    finally:
        stop.set()
        writing.join()
        loop.stop.set()
        running.join()
    assert report.shards[0].differed == {"edges/2": 1, "edges/99": 70_000}
    assert loop.counts.refused > 0
    assert store.last(0)[1] == log.ends()[0]
    assert replay(place).equal
    log.close()
    store.close()
