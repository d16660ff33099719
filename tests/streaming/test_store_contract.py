"""What every parameter store does, whatever its medium. Another adapter joins by an entry in MEDIA."""

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from streaming.errors import LayoutMismatch, NotFound, StaleCommit
from streaming.store import HOUR_MS, NOTHING, Commit, Image, Manifest, ParameterStore
from streaming.store.memory import MemoryStore
from streaming.store.redis import RedisStore
from streaming.store.sqlite import SqliteStore
from tests.streaming.test_log_contract import SetClock

MANIFEST = Manifest(id="store", log_id="log", shards=3, layout=1)


class Medium:
    """A place that holds one store; opening it twice gives two handles on the same contents."""

    def __init__(self, opener: Callable[[Callable[[], int]], ParameterStore]) -> None:
        self.clock = SetClock()
        self._opener = opener
        self._opened: list[ParameterStore] = []

    def open(self) -> ParameterStore:
        store = self._opener(self.clock)
        self._opened.append(store)
        return store

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


def memory(_: Path) -> Medium:
    kept: list[MemoryStore] = []

    def opener(clock: Callable[[], int]) -> ParameterStore:
        if not kept:
            kept.append(MemoryStore(clock))
        return kept[0]

    return Medium(opener)


def sqlite(folder: Path) -> Medium:
    return Medium(lambda clock: SqliteStore(str(folder / "store.sqlite"), clock))


MEDIA = {"memory": memory, "sqlite": sqlite}
SERVERS = ("redis_single", "redis_cluster")


def redis_url(server) -> str:
    """A store of its own on a server that others use too."""
    return f"{server.url}/{secrets.token_hex(8)}"


@pytest.fixture(params=[*MEDIA, *(pytest.param(name, marks=pytest.mark.xdist_group("parts")) for name in SERVERS)])
def medium(request, tmp_path):
    if request.param in SERVERS:
        url = redis_url(request.getfixturevalue(request.param))
        medium = Medium(lambda clock: RedisStore(url, clock))
    else:
        medium = MEDIA[request.param](tmp_path)
    yield medium
    medium.close()


@pytest.fixture
def store(medium):
    store = medium.open()
    store.create(MANIFEST)
    return store


def commit_id(n: int) -> bytes:
    return n.to_bytes(16, "big")


def step(n: int) -> Commit:
    """The n-th commit of a shard, from 1."""
    return Commit(
        commit_id(n), commit_id(n - 1), head=10 * n, log_time_ms=100 * n, first_time_ms=100 * n - 50, delta=b"d%d" % n
    )


def steps(first: int, last: int) -> list[Commit]:
    return [step(n) for n in range(first, last + 1)]


def fill(store: ParameterStore, shard: int, last: int) -> None:
    for commit in steps(1, last):
        store.commit(shard, commit)


def test_a_new_store_has_no_manifest_and_no_shards(medium):
    store = medium.open()
    assert store.manifest() is None
    for call in (store.load, store.last, store.snapshot, store.snapshots):
        with pytest.raises(ValueError, match="shard"):
            call(0)


def test_the_manifest_is_written_once(medium, store):
    assert store.manifest() == MANIFEST
    store.create(MANIFEST)
    for other in ({"log_id": "another"}, {"shards": 4}, {"id": "other"}, {"layout": 2}):
        with pytest.raises(LayoutMismatch, match=r"folder|new store"):
            store.create(msgspec.structs.replace(MANIFEST, **other))
    medium.close()
    assert medium.open().manifest() == MANIFEST


def test_an_empty_shard_is_nothing_at_head_0(store):
    assert store.load(2) == Image(NOTHING, 0, {}, [])
    assert store.last(2) == (NOTHING, 0)
    assert store.changes(2, NOTHING) == []
    assert store.load(2).last == (NOTHING, 0)


def test_commits_chain_and_are_read_back_in_order(medium, store):
    fill(store, 1, 5)
    for handle in (store, medium.open()):
        assert handle.load(1) == Image(NOTHING, 0, {}, steps(1, 5))
        assert handle.load(1).last == handle.last(1) == (commit_id(5), 50)
        assert handle.last(0) == (NOTHING, 0)
    medium.close()
    assert medium.open().load(1).deltas == steps(1, 5)


def test_a_commit_that_does_not_follow_is_refused_and_changes_nothing(store):
    fill(store, 0, 2)
    for stale in (step(1), step(4), msgspec.structs.replace(step(3), after=NOTHING)):
        with pytest.raises(StaleCommit, match=r"shard 0.*load the shard again") as caught:
            store.commit(0, stale)
        assert (caught.value.expected, caught.value.last) == (stale.after, commit_id(2))
    assert store.load(0).deltas == steps(1, 2)
    store.commit(0, step(3))
    assert store.last(0) == (commit_id(3), 30)


def test_the_same_commit_again_succeeds_and_is_there_once(store):
    fill(store, 0, 3)
    store.commit(0, step(3))
    assert store.load(0).deltas == steps(1, 3)
    store.fold(0, commit_id(3), {"a": b"1"}, keep=0)
    store.commit(0, step(3))
    assert store.load(0) == Image(commit_id(3), 30, {"a": b"1"}, [])


def test_a_zombie_is_refused_once_another_has_committed(medium, store):
    zombie, successor = store, medium.open()
    fill(zombie, 0, 1)
    successor.commit(0, step(2))
    with pytest.raises(StaleCommit):
        zombie.commit(0, msgspec.structs.replace(step(2), id=b"z" * 16))
    assert zombie.last(0) == (commit_id(2), 20)


def test_shards_do_not_see_each_other(store):
    for shard in range(3):
        fill(store, shard, shard + 1)  # the same ids in every shard
    store.fold(1, commit_id(2), {"a": b"1"}, keep=0)
    assert [store.last(shard)[1] for shard in range(3)] == [10, 20, 30]
    assert store.changes(0, NOTHING) == steps(1, 1)
    assert store.changes(1, NOTHING) is None
    assert store.changes(2, NOTHING) == steps(1, 3)
    assert store.load(2).parts == {}


def test_changes_are_those_after_the_id_or_none_where_the_chain_does_not_join(store):
    fill(store, 0, 5)
    assert store.changes(0, NOTHING) == steps(1, 5)
    assert store.changes(0, commit_id(3)) == steps(4, 5)
    assert store.changes(0, commit_id(5)) == []
    assert store.changes(0, b"?" * 16) is None


def test_a_fold_moves_the_base_and_keeps_some_commits_for_followers(medium, store):
    fill(store, 0, 6)
    store.fold(0, commit_id(6), {"a": b"aaa", "b": b"bbb"}, keep=2)
    assert store.load(0) == Image(commit_id(6), 60, {"a": b"aaa", "b": b"bbb"}, [])
    assert store.changes(0, commit_id(4)) == steps(5, 6)
    assert store.changes(0, commit_id(3)) is None
    assert store.changes(0, commit_id(6)) == []
    store.commit(0, step(7))
    assert store.load(0) == Image(commit_id(6), 60, {"a": b"aaa", "b": b"bbb"}, [step(7)])
    assert store.changes(0, commit_id(4)) == steps(5, 7)
    store.fold(0, commit_id(7), {"b": b"new", "c": b""}, drop=["a", "never there"])
    medium.close()
    assert medium.open().load(0) == Image(commit_id(7), 70, {"b": b"new", "c": b""}, [])


def test_a_follower_joins_after_a_fold_that_kept_nothing(store):
    fill(store, 0, 2)
    store.fold(0, commit_id(2), {}, keep=0)
    assert store.changes(0, commit_id(2)) == []
    store.commit(0, step(3))
    assert store.changes(0, commit_id(2)) == [step(3)]


def test_a_fold_of_another_state_than_the_last_is_refused(store):
    fill(store, 0, 2)
    with pytest.raises(StaleCommit):
        store.fold(0, commit_id(1), {"a": b"1"})
    assert store.load(0) == Image(NOTHING, 0, {}, steps(1, 2))


def test_a_fold_on_another_base_than_the_store_s_is_refused(store):
    fill(store, 0, 2)
    store.fold(0, commit_id(2), {"a": b"1"}, base=NOTHING)
    store.commit(0, step(3))
    with pytest.raises(StaleCommit) as caught:
        store.fold(0, commit_id(3), {"b": b"2"}, base=commit_id(1))
    assert (caught.value.expected, caught.value.last) == (commit_id(1), commit_id(2))
    assert store.load(0).commit_id == commit_id(2)
    store.fold(0, commit_id(3), {"b": b"2"}, base=commit_id(2))
    assert store.load(0) == Image(commit_id(3), 30, {"a": b"1", "b": b"2"}, [])


def test_a_whole_fold_leaves_nothing_else(store):
    fill(store, 0, 2)
    store.fold(0, commit_id(2), {"a": b"1", "b": b"2"})
    store.commit(0, step(3))
    store.fold(0, commit_id(3), {"b": b"3", "c": b"4"}, keep=0, whole=True)
    assert store.load(0) == Image(commit_id(3), 30, {"b": b"3", "c": b"4"}, [])
    assert store.snapshot(0).size_bytes == 2


def test_a_fold_that_another_has_made_is_refused_and_leaves_the_shard_whole(store):
    fill(store, 0, 2)
    store.fold(0, commit_id(2), {"a": b"1"}, base=NOTHING)
    with pytest.raises(StaleCommit):  # of one that slept meanwhile: the same parts, since the last commit is the same
        store.fold(0, commit_id(2), {"a": b"1"}, base=NOTHING)
    assert store.load(0) == Image(commit_id(2), 20, {"a": b"1"}, [])
    assert store.snapshot(0).head == 20


def test_a_shard_without_commits_can_be_folded(store):
    store.fold(0, NOTHING, {"a": b"1"})
    assert store.load(0) == Image(NOTHING, 0, {"a": b"1"}, [])
    assert store.snapshot(0).head == 0
    store.commit(0, step(1))
    assert store.changes(0, NOTHING) == [step(1)]


def test_a_snapshot_stays_as_it_was(medium, store):
    fill(store, 0, 2)
    store.fold(0, commit_id(2), {"a": b"old", "b": b"same"})
    first = store.snapshot(0)
    assert (first.head, first.commit_id, first.time_ms, first.size_bytes) == (20, commit_id(2), 200, 7)
    store.commit(0, step(3))
    store.fold(0, commit_id(3), {"a": b"new"}, drop=[])
    second = store.snapshot(0)
    store.commit(0, step(4))
    store.fold(0, commit_id(4), {"a": b"newest"}, drop=["b"])
    medium.close()
    store = medium.open()
    assert store.snapshots(0) == [first, second]
    assert store.snapshots(1) == []
    assert store.load_snapshot(first.name) == Image(commit_id(2), 20, {"a": b"old", "b": b"same"}, [])
    assert store.load_snapshot(second.name) == Image(commit_id(3), 30, {"a": b"new", "b": b"same"}, [])
    store.drop_snapshot(first.name)
    store.drop_snapshot(first.name)
    assert store.snapshots(0) == [second]
    with pytest.raises(NotFound, match=f"no snapshot {first.name}"):
        store.load_snapshot(first.name)
    assert store.load_snapshot(second.name).parts == {"a": b"new", "b": b"same"}
    assert store.load(0).parts == {"a": b"newest"}


def test_a_snapshot_taken_twice_is_one(store):
    fill(store, 0, 1)
    store.fold(0, commit_id(1), {"a": b"1"})
    assert store.snapshot(0) == store.snapshot(0)
    assert len(store.snapshots(0)) == 1
    store.drop_snapshot(store.snapshots(0)[0].name)
    assert store.load(0).parts == {"a": b"1"}


def test_blobs_are_found_by_their_hash(medium, store):
    data = bytes(range(256)) * 1_000
    name = store.put_blob(data)
    assert name == hashlib.blake2b(data, digest_size=32).hexdigest()
    assert store.put_blob(data) == name
    assert store.put_blob(b"") != name
    medium.close()
    store = medium.open()
    assert store.get_blob(name) == data
    with pytest.raises(NotFound, match=f"no blob {'0' * 64}: upload it again"):
        store.get_blob("0" * 64)


def test_blobs_not_kept_go_once_they_are_old(medium, store):
    old, kept = store.put_blob(b"old"), store.put_blob(b"kept")
    medium.clock.now_ms += HOUR_MS
    before_ms = medium.clock.now_ms
    fresh = store.put_blob(b"fresh")
    medium.clock.now_ms += 2 * HOUR_MS  # however long the caller took to find out what to keep
    store.drop_blobs({kept}, before_ms)
    assert (store.get_blob(kept), store.get_blob(fresh)) == (b"kept", b"fresh")
    with pytest.raises(NotFound):
        store.get_blob(old)
    store.put_blob(b"fresh")  # put again: young again
    store.drop_blobs(set(), medium.clock.now_ms)
    assert store.get_blob(fresh) == b"fresh"
    store.drop_blobs(set(), medium.clock.now_ms + 1)
    with pytest.raises(NotFound):
        store.get_blob(fresh)


@pytest.mark.parametrize("shard", [-1, 3])
def test_an_unknown_shard_is_refused(store, shard):
    for call in (
        store.load,
        store.last,
        store.snapshot,
        store.snapshots,
        lambda s: store.commit(s, step(1)),
        lambda s: store.changes(s, NOTHING),
        lambda s: store.fold(s, NOTHING, {}),
    ):
        with pytest.raises(ValueError, match=f"shard {shard}"):
            call(shard)


def test_size_grows_with_what_is_kept(store):
    before = store.size_bytes()
    store.put_blob(bytes(1_000_000))
    assert store.size_bytes() >= before + 1_000_000
