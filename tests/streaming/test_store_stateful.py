"""Random operations on a store and on the memory store, its model: both must show the same at every step."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from streaming.errors import NotFound, StaleCommit
from streaming.store import NOTHING, Commit, Manifest
from streaming.store.memory import MemoryStore
from streaming.store.redis import RedisStore
from streaming.store.sqlite import SqliteStore
from tests.streaming.redis_tools import keys_of, left_behind
from tests.streaming.test_store_contract import SERVERS, redis_url

SHARDS = 2
shards = st.integers(0, SHARDS - 1)
data = st.one_of(st.binary(max_size=20), st.integers(0, 20_000).map(bytes))
parts = st.dictionaries(st.sampled_from("abcd"), data, max_size=3)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now_ms = 0
        self.model = MemoryStore(lambda: self.now_ms)
        self.store = self.opened()
        self.follower = self.opened()
        self.ids = [NOTHING]
        self.blobs = []
        self.both(lambda s: s.create(Manifest("store", "log", SHARDS, 1)))

    def opened(self):
        """Another handle on the store under test."""
        raise NotImplementedError

    def both(self, call):
        """The result or error of the call, which is the same for both."""
        results = []
        for store in (self.store, self.model):
            try:
                results.append(call(store))
            except (StaleCommit, NotFound) as error:
                results.append((type(error), getattr(error, "last", None)))
        assert results[0] == results[1]
        return results[1]

    @rule(shard=shards, delta=data, follows=st.sampled_from([1, 1, 1, 1, 0, 2]))
    def commit(self, shard, delta, follows):
        """Mostly the next commit; now and then a stale one, which follows another."""
        new = len(self.ids).to_bytes(16, "big")
        last, head = self.model.last(shard)
        after = last if follows == 1 else self.ids[-min(follows, len(self.ids))]
        self.ids.append(new)
        self.both(lambda s: s.commit(shard, Commit(new, after, head + 3, head * 10, head * 9, delta)))

    @rule(shard=shards)
    def commit_again(self, shard):
        stream = self.model.load(shard).deltas
        if stream:
            self.both(lambda s: s.commit(shard, stream[-1]))

    @rule(shard=shards, parts=parts, drop=st.sets(st.sampled_from("abcd")), keep=st.integers(0, 4), stale=st.booleans())
    def fold(self, shard, parts, drop, keep, stale):
        commit_id = self.ids[-1] if stale else self.model.last(shard)[0]
        self.both(lambda s: s.fold(shard, commit_id, parts, drop, keep))

    @rule(shard=shards, back=st.integers(1, 12))
    def changes(self, shard, back):
        after = self.ids[-min(back, len(self.ids))]
        assert self.follower.changes(shard, after) == self.both(lambda s: s.changes(shard, after))

    @rule(shard=shards)
    def snapshot(self, shard):
        info = self.both(lambda s: s.snapshot(shard))
        self.both(lambda s: s.load_snapshot(info.name))

    @rule(shard=shards, which=st.integers(0, 3), drop=st.booleans())
    def use_snapshot(self, shard, which, drop):
        infos = self.model.snapshots(shard)
        name = infos[which].name if which < len(infos) else f"{shard}-{which}-none"
        self.both(lambda s: s.load_snapshot(name))
        if drop:
            self.both(lambda s: s.drop_snapshot(name))

    @rule(data=data, later_ms=st.integers(0, 5))
    def put_blob(self, data, later_ms):
        self.now_ms += later_ms
        self.blobs.append(self.both(lambda s: s.put_blob(data)))

    @rule(keep=st.sets(st.integers(0, 5)), age_ms=st.integers(-1, 10))
    def drop_blobs(self, keep, age_ms):
        kept = {self.blobs[n] for n in keep if n < len(self.blobs)}
        self.both(lambda s: s.drop_blobs(kept, self.now_ms - age_ms))
        for name in self.blobs:
            self.both(lambda s, name=name: s.get_blob(name))

    @rule()
    def reopen(self):
        self.store.close()
        self.store = self.opened()

    @rule()
    def reopen_all(self):
        self.follower.close()
        self.reopen()
        self.follower = self.opened()

    @invariant()
    def they_agree(self):
        for shard in range(SHARDS):
            image = self.both(lambda s, shard=shard: s.load(shard))
            assert self.follower.load(shard) == image
            assert self.both(lambda s, shard=shard: s.last(shard)) == image.last == self.follower.last(shard)
            self.both(lambda s, shard=shard: s.snapshots(shard))
            for info in self.model.snapshots(shard):
                assert self.follower.load_snapshot(info.name) == self.model.load_snapshot(info.name)

    def teardown(self):
        self.follower.close()
        self.store.close()


class SqliteMachine(StoreMachine):
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        super().__init__()

    def opened(self):
        return SqliteStore(str(Path(self.folder.name) / "store.sqlite"), lambda: self.now_ms)

    @invariant()
    def no_chunk_is_left_behind(self):
        with self.store._file.reading() as con:
            (named,) = con.execute(
                "SELECT count(*) FROM (SELECT chunk FROM base UNION SELECT chunk FROM snapshot_parts)"
            ).fetchone()
            assert con.execute("SELECT count(*) FROM chunks").fetchone() == (named,)

    def teardown(self):
        super().teardown()
        self.folder.cleanup()


TestSqlite = SqliteMachine.TestCase
TestSqlite.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.xdist_group("parts")
@pytest.mark.parametrize("server", SERVERS)
def test_redis(request, server):
    servers = request.getfixturevalue(server)

    class RedisMachine(StoreMachine):
        def __init__(self):
            self.url = redis_url(servers)
            super().__init__()

        def opened(self):
            return RedisStore(self.url, lambda: self.now_ms)

        def teardown(self):
            assert left_behind(servers, self.url) == set()
            super().teardown()
            for node, key in keys_of(servers, self.url):
                node.unlink(key)

    examples = 15 if server == "redis_single" else 4  # a cluster's handles are slower, and every step opens some
    run_state_machine_as_test(
        RedisMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )
