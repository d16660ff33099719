"""The Redis store as a server: refused, away, out of memory, damaged, folded while read, cut off, failed over."""

import itertools
import os
import threading
import time
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from streaming.errors import LayoutMismatch, NotFound, StaleCommit, StoreCorrupt, StoreUnavailable
from streaming.learner import Learner
from streaming.state import State
from streaming.store import HOUR_MS, NOTHING, Commit, Manifest, open_store
from streaming.store import redis as redis_store
from streaming.store.redis import RedisStore
from streaming.store.redis_keys import Keys
from streaming.store.redis_url import parse
from tests.parts.host import wait_for
from tests.parts.redis import Cluster, Single, view
from tests.streaming.redis_tools import keys_of, left_behind, raw
from tests.streaming.simulation import Simulation
from tests.streaming.test_store_contract import MANIFEST, SERVERS, commit_id, fill, redis_url, step, steps

pytestmark = pytest.mark.xdist_group("parts")
SECRET = "s3cret-word"


@pytest.fixture
def url(redis_single):
    return redis_url(redis_single)


@pytest.fixture
def store(url):
    store = RedisStore(url)
    store.create(MANIFEST)
    yield store
    store.close()


@pytest.fixture(params=SERVERS)
def server(request):
    return request.getfixturevalue(request.param)


def tag(url: str, shard: int = 0) -> str:
    return Keys(parse(url).name).shard(shard).tag


class World:
    """A state that changes at random, commit by commit, in a store; and what it was at each of them."""

    def __init__(self, store, seed: int, rows: int = 5000) -> None:
        self.store, self.rng, self.rows = store, np.random.default_rng(seed), rows
        self.state, self.at = State(), {}
        self.last, self.base, self.head = NOTHING, NOTHING, 0
        self.remember()

    @classmethod
    def loaded(cls, other: "World", store) -> "World":
        """Another learner that takes over."""
        world = cls(store, int(other.rng.integers(2**32)), other.rows)
        image = store.load(0)
        world.state = state_of(image)
        (world.last, world.head), world.base, world.at = image.last, image.commit_id, other.at
        return world

    def remember(self) -> None:
        self.at[self.last] = {name: self.state[name].tobytes() for name in self.state.tables}

    def change(self) -> None:
        rng, state = self.rng, self.state
        name = f"t{rng.integers(3)}"
        kind = rng.random()
        if name not in state or kind < 0.1:
            state.write(name, rng.random((int(rng.integers(1, self.rows)), 2)))
        elif kind < 0.2:
            state.drop(name)
        elif kind < 0.5:
            state.append(name, rng.random((int(rng.integers(1, self.rows)), 2)))
        else:
            index = np.unique(rng.integers(0, len(state[name]), 20))
            state.put(name, index, rng.random((len(index), 2)))

    def commit(self) -> None:
        for _ in range(int(self.rng.integers(1, 4))):
            self.change()
        self.head += 1
        new = self.rng.bytes(16)
        commit = Commit(new, self.last, self.head, self.head, self.head, self.state.take_delta())
        self.last = new
        self.remember()
        self.store.commit(0, commit)

    def fold(self, keep: int = 3) -> None:
        parts, gone = self.state.take_parts()
        self.store.fold(0, self.last, parts, gone, keep, self.base)
        self.base = self.last

    def same(self, image) -> None:
        """The image is what the state was at its last commit."""
        state = state_of(image)
        assert {name: state[name].tobytes() for name in state.tables} == self.at[image.last[0]]


def state_of(image) -> State:
    state = State()
    state.load(image.parts.values(), [commit.delta for commit in image.deltas])
    return state


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of one or two parts, parts of a thousand rows: many commands even for a small shard."""
    monkeypatch.setattr("streaming.state.CHUNK", 1000)
    for module in ("redis", "redis_read"):
        monkeypatch.setattr(f"streaming.store.{module}.PIECE_BYTES", 20_000)


# ------------------------------------------------------------------------------------------------ names and refusals


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://", "redis://.user:password@.host"),
        (f"redis://u:{SECRET}@h:port", "host:port"),
        (f"redis://{SECRET}:pa@h:1:2", "host:port"),
        (f"redis://u:{SECRET}/x@h:1/a", "%2F"),
        (f"redis://u:{SECRET}?x@h:1/a", "%3F"),
        (f"redis://u:{SECRET}#x@h:1/a", "%23"),
        (f"redis://u:{SECRET}@h/a{{b", "the name after the hosts"),
        (f"redis://u:{SECRET}@h/a?socket_timeout=soon&ssl_password={SECRET}", "socket_timeout"),
        (f"redis://u:{SECRET}@h/a?decode_responses=yes", "decode_responses"),
        (f"redis://u:{SECRET}@h/a?sell=1", "sell"),
    ],
)
def test_a_url_that_cannot_be_is_explained_without_its_secrets(url, says):
    with pytest.raises(ValueError, match=says) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


def test_a_url_names_hosts_user_password_name_and_what_redis_py_takes():
    found = parse("rediss://ann:a%40b@one,[::1]:7000/films?ssl_ca_certs=/ca.pem&socket_timeout=5&db=2")
    assert found.hosts == (("one", 6379), ("::1", 7000))
    assert found.name == "films"
    assert found.options == {
        "username": "ann", "password": "a@b", "ssl": True, "ssl_ca_certs": "/ca.pem", "socket_timeout": 5.0, "db": 2,
    }  # fmt: skip
    assert parse("redis://:pw@h").options == {"password": "pw"}
    assert parse("redis://h").name == "croupier"


def test_a_server_that_may_evict_is_refused(redis_single, url):
    redis_single.admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:\d+ has maxmemory-policy allkeys-lru.*noeviction"):
            open_store(url)
    finally:
        redis_single.admin.config_set("maxmemory-policy", "noeviction")


def test_a_server_that_loses_all_by_a_restart_is_named_when_it_is_opened(tmp_path, caplog):
    with Single(tmp_path) as server:
        RedisStore(server.url).close()
        assert [record.message.split(":")[0] for record in caplog.records] == ["the Redis at 127.0.0.1"]
        assert "keeps no append-only file and has no replica" in caplog.text
        caplog.clear()
        server.admin.config_set("appendonly", "yes")
        RedisStore(server.url).close()
    assert caplog.records == []


@contextmanager
def acl_user(server, *rules):
    server.admin.execute_command("ACL", "SETUSER", "ann", "reset", "on", f">{SECRET}", *rules)
    try:
        yield
    finally:
        server.admin.execute_command("ACL", "DELUSER", "ann")


def test_users_and_passwords_pass_through_and_refusals_are_sentences(redis_single, url):
    ours = url.replace("redis://", f"redis://ann:{SECRET}@")
    with acl_user(redis_single, f"~{{{parse(url).name}*", "+@all", "-config"):
        store = open_store(ours)
        store.create(MANIFEST)
        fill(store, 0, 2)
        store.fold(0, commit_id(2), {"a": b"1"})
        store.snapshot(0)
        assert store.get_blob(store.put_blob(b"data")) == b"data"
        assert store.size_bytes() > 0
        store.close()
        for user in ("ann:wrong", "bob:wrong"):
            with pytest.raises(StoreUnavailable, match="refuses the user or password") as caught:
                open_store(url.replace("redis://", f"redis://{user}@"))
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with acl_user(redis_single, "~*", "+@all", "-evalsha", "-eval"):
        store = open_store(ours)
        with pytest.raises(StoreUnavailable, match=r"does not let this user.*evalsha"):
            store.commit(0, step(3))
        store.close()
    with acl_user(redis_single, "~other", "+@all"), pytest.raises(StoreUnavailable, match="does not let this user"):
        open_store(ours).last(0)


@pytest.mark.parametrize("kind", [Single, Cluster])
def test_tls_and_passwords_pass_through(tmp_path, kind):
    with kind(tmp_path, tls=True, user="ann", password=SECRET) as server:
        where, _, query = server.url.partition("/?")
        store = open_store(f"{where}/tls?{query}")
        store.create(MANIFEST)
        fill(store, 1, 2)
        assert [head for _, head in store.lasts()] == [0, 20, 0]
        store.snapshot(1)
        store.close()
        with pytest.raises(StoreUnavailable, match="certificate") as caught:
            open_store(f"{where}/tls")  # without the CA
        assert SECRET not in str(caught.value)


def test_keys_of_others_are_not_taken_for_a_store(redis_single, url, store):
    redis_single.admin.delete(f"{tag(url)}:last")
    redis_single.admin.rpush(f"{tag(url)}:last", "ours")
    with pytest.raises(StoreCorrupt, match="not a store of croupier"):
        store.commit(0, step(1))
    with pytest.raises(StoreCorrupt, match="not a store of croupier"):
        store.load(0)


def test_lost_keys_are_not_taken_for_an_empty_store(redis_single, url, store):
    fill(store, 0, 2)
    redis_single.admin.delete(f"{tag(url)}:last", f"{tag(url)}:base", f"{tag(url)}:stream")
    for call in (store.load, store.last, lambda s: store.commit(s, step(3)), lambda s: store.fold(s, commit_id(2), {})):
        with pytest.raises(StoreCorrupt, match="lost shard 0"):
            call(0)
    redis_single.admin.delete(Keys(parse(url).name).manifest)
    with pytest.raises(LayoutMismatch, match="no manifest"):
        RedisStore(url).create(MANIFEST)


# ------------------------------------------------------------------------------------------------------- damage


def flip(server, key: str) -> None:
    """One bit of a string, or of the first entry of a stream."""
    with raw(server.admin) as client:
        if key.endswith(":stream"):
            (entry, fields), *_ = client.xrange(key, count=1)
            client.delete(key)
            changed = fields[b"d"][:-1] + bytes([fields[b"d"][-1] ^ 1])
            client.xadd(key, {b"h": fields[b"h"], b"d": changed}, id=entry)
        else:
            data = client.get(key)
            client.set(key, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("kind", "says", "calls"),
    [
        ("stream", "commit 0+2 has a wrong checksum", ("load", "changes")),
        ("part", "part a has a wrong checksum", ("load", "snapshot")),
        ("snapshot", "wrong checksum", ("load_snapshot",)),
        ("blob", "wrong checksum", ("get_blob",)),
    ],
)
def test_a_flipped_bit_is_noticed(redis_single, url, store, kind, says, calls):
    fill(store, 0, 1)
    blob = store.put_blob(b"blob" * 1000)
    store.fold(0, commit_id(1), {"a": b"part"}, keep=0)
    snapshot = store.snapshot(0).name
    store.commit(0, step(2))
    call = {
        "load": lambda: store.load(0),
        "changes": lambda: store.changes(0, commit_id(1)),
        "snapshot": lambda: store.snapshot(0),
        "load_snapshot": lambda: store.load_snapshot(snapshot),
        "get_blob": lambda: store.get_blob(blob),
    }
    where = {
        "stream": f"{tag(url)}:stream",
        "part": f"{tag(url)}:part:a",
        "snapshot": f"{tag(url)}:kept:",
        "blob": f"{Keys(parse(url).name).blob(blob)}:kept:",
    }[kind]
    for name in calls:
        call[name]()
    (key,) = [key for _, key in keys_of(redis_single, url) if key.startswith(where)]
    flip(redis_single, key)
    for name in calls:
        with pytest.raises(StoreCorrupt, match=says):
            call[name]()


def test_lost_parts_commits_and_pieces_are_noticed(redis_single, url, store):
    fill(store, 0, 1)
    blob = store.put_blob(b"blob")
    store.fold(0, commit_id(1), {"a": b"part", "b": b"part"})
    for shard_key in (":part:b", ":stream"):
        redis_single.admin.delete(tag(url) + shard_key)
        if shard_key == ":stream":
            redis_single.admin.set(f"{tag(url)}:part:b", "x")
            store.commit(0, step(2))
            redis_single.admin.delete(tag(url) + shard_key)
        with pytest.raises(StoreCorrupt, match=r"lost parts or commits|checksum"):
            store.load(0)
    for _, key in keys_of(redis_single, url):
        if "blob:" in key and not key.endswith(":kept"):
            redis_single.admin.delete(key)
    with pytest.raises(StoreCorrupt, match="has no piece 0"):
        store.get_blob(blob)


# ------------------------------------------------------------------------------------------------------- away


def test_a_server_out_of_memory_does_nothing_by_half(redis_single, store):
    fill(store, 0, 1)
    redis_single.admin.config_set("maxmemory", "1")
    try:
        for call in (
            lambda: store.commit(0, step(2)),
            lambda: store.fold(0, commit_id(1), {"a": b"1"}),
            lambda: store.put_blob(b"blob"),
        ):
            with pytest.raises(StoreUnavailable, match="has used up its maxmemory"):
                call()
        assert store.load(0).deltas == steps(1, 1)
    finally:
        redis_single.admin.config_set("maxmemory", "0")
    store.commit(0, step(2))
    assert store.load(0).deltas == steps(1, 2)


def test_a_commit_whose_fate_is_unknown_is_there_once(tmp_path):
    with Single(tmp_path, proxied=True) as server:
        store = RedisStore(f"{server.url}/x?socket_timeout=0.5")
        store.create(MANIFEST)
        fill(store, 0, 1)
        server.pause()
        with pytest.raises(StoreUnavailable, match="cannot be used now"):
            store.commit(0, step(2))  # it waits in the server's socket
        server.resume()
        store.commit(0, step(2))
        assert store.load(0).deltas == steps(1, 2)
        server.proxy.stall()
        began = time.monotonic()
        for call in (
            lambda: store.commit(0, step(3)),
            lambda: store.load(0),
            store.lasts,
            lambda: store.put_blob(b"x"),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        assert time.monotonic() - began < 10
        server.proxy.pass_through()
        server.proxy.reset()
        while True:
            try:
                store.commit(0, step(3))
                break
            except StoreUnavailable:
                pass
        assert store.last(0) == (commit_id(3), 30)
        server.admin.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="is a replica"):
            store.commit(0, step(4))
        server.kill()
        for call in (lambda: store.commit(0, step(4)), lambda: open_store(server.url)):
            with pytest.raises(StoreUnavailable, match=r"Redis at 127\.0\.0\.1:"):
                call()


def test_what_must_be_durable_waits_for_a_replica_and_a_new_master_is_found(tmp_path, caplog):
    with Single(tmp_path / "a") as one, Single(tmp_path / "b") as two:
        two.admin.replicaof("127.0.0.1", one.port)
        wait_for(lambda: two.admin.info("replication")["master_link_status"] == "up", "the replica is there")
        store = RedisStore(f"redis://127.0.0.1:{two.port},127.0.0.1:{one.port}/x?socket_timeout=1")
        assert "append-only" not in caplog.text  # a replica has it all
        tried(lambda: store.create(MANIFEST))
        fill(store, 0, 2)
        name = store.put_blob(b"blob")
        assert two.admin.keys("*blob*")
        two.pause()
        for call in (lambda: store.snapshot(0), lambda: store.put_blob(b"more")):
            with pytest.raises(StoreUnavailable, match=r"no replica of .* confirmed a write within 0\.75 s"):
                call()
        store.commit(0, step(3))  # does not wait: the log has it
        two.resume()
        assert store.get_blob(store.put_blob(b"more")) == b"more"
        one.kill()
        two.admin.replicaof("NO", "ONE")
        assert tried(lambda: store.get_blob(name)) == b"blob"
        tried(lambda: store.commit(0, step(4)))
        assert store.last(0) == (commit_id(4), 40)
        store.close()


def test_of_a_stalled_node_only_its_shards_are_away_and_not_for_longer_than_a_timeout_or_two(redis_cluster):
    store = RedisStore(redis_url(redis_cluster) + "?socket_timeout=0.4&socket_connect_timeout=0.4")
    shards = 9
    store.create(Manifest("store", "log", shards, 1))
    for shard in range(shards):
        store.commit(shard, step(1))
    masters = [redis_cluster.master_of(store._keys.shard(shard).last) for shard in range(shards)]
    assert store.lasts() == [(commit_id(1), 10)] * shards
    masters[0].proxy.stall()
    try:
        for _ in range(2):
            for shard in range(shards):
                began = time.monotonic()
                try:
                    store.commit(shard, step(2))
                    assert masters[shard] is not masters[0]
                except StoreUnavailable:
                    assert masters[shard] is masters[0]
                assert time.monotonic() - began < 3
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.lasts()
            assert time.monotonic() - began < 3
    finally:
        redis_cluster.heal()
    for shard in range(shards):
        tried(lambda shard=shard: store.commit(shard, step(2)))
    assert store.lasts() == [(commit_id(2), 20)] * shards
    for shard in range(shards):
        assert store.load(shard).deltas == steps(1, 2)
    store.close()


def test_scripts_come_back_after_the_server_forgot_them(redis_single, store):
    fill(store, 0, 1)
    redis_single.admin.script_flush()
    store.commit(0, step(2))
    assert store.load(0).deltas == steps(1, 2)


def test_a_handle_works_in_threads_and_after_a_fork(server):
    store = RedisStore(redis_url(server))
    store.create(MANIFEST)
    fill(store, 0, 1)
    child = os.fork()
    if child == 0:
        try:
            store.commit(0, step(2))
            os._exit(0 if store.changes(0, commit_id(1)) == [step(2)] else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert store.changes(0, commit_id(1)) == [step(2)]
    wins = []

    def race(worker: int) -> None:
        for n in range(3, 30):
            try:
                store.commit(0, msgspec.structs.replace(step(n), head=worker, id=step(n).id))
            except StaleCommit:
                continue
            wins.append(n)

    threads = [threading.Thread(target=race, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commits = store.load(0).deltas
    assert [c.after for c in commits[1:]] == [c.id for c in commits[:-1]]
    assert len(commits) == len({c.id for c in commits}) == commits[-1].id[-1]
    store.close()


# ------------------------------------------------------------------------------------------------------- folds


@pytest.mark.usefixtures("small_pieces")
def test_loads_while_commits_and_folds_go_on_are_what_was_committed(server):
    store = RedisStore(redis_url(server))
    store.create(MANIFEST)
    world = World(store, 1)
    done = threading.Event()
    seen, errors = set(), []

    def read() -> None:
        reader = RedisStore(redis_url_of(store, server))
        try:
            while not done.is_set():
                image = reader.load(0)
                world.same(image)
                seen.add(image.last[0])
        except BaseException as error:
            errors.append(error)
        reader.close()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(250):
        world.commit()
        if n % 4 == 3:
            world.fold(keep=int(world.rng.integers(0, 8)))
        if errors:
            break
    done.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(seen) > 20
    world.same(store.load(0))
    store.close()


def redis_url_of(store, server) -> str:
    return f"{server.url}/{store._keys.name}"


def test_parts_of_a_master_that_is_gone_are_read_again(store, monkeypatch):
    """They may be as of a commit that the failover lost, and which the stream of the new master will not repeat."""
    world = World(store, 2)
    for _ in range(5):
        world.commit()
    world.fold()
    inner = redis_store.read_parts

    def lost(link, keys):
        return {name: (head + 1, data[::-1]) for name, (head, data) in inner(link, keys).items()}

    answers = [lost, inner]
    monkeypatch.setattr(redis_store, "read_parts", lambda link, keys: answers.pop(0)(link, keys))
    world.same(store.load(0))
    assert answers == []


class Cut(Exception):
    """The process ends here."""


@contextmanager
def cut_after(monkeypatch, store, commands: int):
    """The store's handle does so many more commands, and then it is gone."""
    left = itertools.count(commands, -1)
    with monkeypatch.context() as patch:
        for name in ("call", "run", "many", "durable"):
            inner = getattr(store._link, name)

            def counted(*args, inner=inner):
                if next(left) <= 0:
                    raise Cut
                return inner(*args)

            patch.setattr(store._link, name, counted)
        yield


@pytest.mark.usefixtures("small_pieces")
def test_a_fold_cut_off_between_any_two_commands_loses_nothing(redis_single, monkeypatch):
    most = 0
    for commands in range(1, 40):
        url = redis_url(redis_single)
        store = RedisStore(url)
        store.create(MANIFEST)
        world = World(store, 7)  # the same world each time
        for n in range(12):
            world.commit()
            if n == 5:
                world.fold()
        ended = True
        with cut_after(monkeypatch, store, commands):
            try:
                world.fold()
            except Cut:
                ended = False
        store.close()
        other = RedisStore(url)
        world.same(other.load(0))
        assert other.last(0)[0] == world.last
        if not ended and other._link.call("GET", f"{tag(url)}:folding") is not None:
            with pytest.raises(StoreUnavailable, match="fold it first"):
                other.snapshot(0)
        heir = World.loaded(world, other)
        for _ in range(3):
            heir.commit()
        world.same(other.load(0))
        heir.fold(keep=0)
        world.same(other.load(0))
        info = other.snapshot(0)
        world.same(other.load_snapshot(info.name))
        assert left_behind(redis_single, url) == set()
        other.close()
        most = commands
        if ended:
            break
    assert ended
    assert most > 5


@pytest.mark.usefixtures("small_pieces")
def test_pieces_of_a_fold_that_a_failover_lost_are_written_again(redis_single, url, store, monkeypatch):
    """The new master has the commit that is folded, but not what was folded of it."""
    world = World(store, 4)
    for _ in range(8):
        world.commit()

    def parts() -> dict[str, bytes]:
        with raw(redis_single.admin) as client:
            keys = [key for _, key in keys_of(redis_single, url) if ":part" in key or ":folding" in key]
            return {key: client.dump(key) for key in keys}

    before, pieces, run = parts(), itertools.count(), store._link.run

    def failing(*args):
        if next(pieces) == 3:
            with raw(redis_single.admin) as client:
                client.delete(*parts())
                for key, data in before.items():
                    client.restore(key, 0, data)
        return run(*args)

    monkeypatch.setattr(store._link, "run", failing)
    world.fold(keep=0)
    assert next(pieces) > 8
    world.same(store.load(0))


def test_no_command_or_answer_is_huge(url, monkeypatch):
    monkeypatch.setattr("streaming.state.CHUNK", 2000)
    for module in ("redis", "redis_read"):
        monkeypatch.setattr(f"streaming.store.{module}.PIECE_BYTES", 100_000)
    store = RedisStore(url)
    store.create(MANIFEST)
    world = World(store, 3, rows=30_000)
    sizes = []
    for name in ("call", "run"):
        inner = getattr(store._link, name)

        def sized(*args, inner=inner):
            answer = inner(*args)
            sizes.append(max(length(args), length(answer)))
            return answer

        monkeypatch.setattr(store._link, name, sized)
    world.state.write("t0", world.rng.random((30_000, 2)))
    world.fold()
    blob = store.put_blob(bytes(1_000_000))
    store.load_snapshot(store.snapshot(0).name)
    store.load(0)
    store.get_blob(blob)
    assert 50_000 < max(sizes) < 150_000
    store.close()


def length(value) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        return length(list(value.items()))
    return sum(map(length, value)) if isinstance(value, list | tuple) else 0


# ------------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.usefixtures("small_pieces")
def test_half_written_snapshots_and_blobs_are_not_listed_and_expire(redis_single, url, monkeypatch):
    for commands in range(1, 60):
        store = RedisStore(url)
        store.create(MANIFEST)
        if commands == 1:
            fill(store, 0, 1)
            store.fold(0, commit_id(1), {f"p{n}": os.urandom(9000) for n in range(6)})
        data = os.urandom(70_000)
        ended = True
        with cut_after(monkeypatch, store, commands):
            try:
                store.snapshot(0)
                store.put_blob(data)
            except Cut:
                ended = False
        for info in store.snapshots(0):
            assert store.load_snapshot(info.name).parts == store.load(0).parts
            store.drop_snapshot(info.name)
        assert left_behind(redis_single, url) == set()
        store.drop_blobs(set(), put_before_ms=1 << 62)
        store.close()
        if ended:
            break
    assert ended
    assert commands > 10


@pytest.mark.usefixtures("small_pieces")
def test_a_blob_put_again_is_young_and_costs_nothing(redis_single, url):
    now = [0]
    store = RedisStore(url, lambda: now[0])
    store.create(MANIFEST)
    data = os.urandom(100_000)
    name = store.put_blob(data)
    keys = {key for _, key in keys_of(redis_single, url) if "blob:" in key and ":kept" in key}
    assert len(keys) == 1 + 5
    now[0] += HOUR_MS
    assert store.put_blob(data) == name
    assert {key for _, key in keys_of(redis_single, url) if ":kept" in key and "blob:" in key} == keys
    store.drop_blobs(set(), now[0])
    assert store.get_blob(name) == data
    store.drop_blobs(set(), now[0] + 1)
    with pytest.raises(NotFound):
        store.get_blob(name)
    assert not [key for _, key in keys_of(redis_single, url) if "blob:" in key and ":wait" not in key]
    store.close()


def test_a_large_delta_is_compressed(redis_single, url, store):
    delta = bytes(3_000_000)
    store.commit(0, msgspec.structs.replace(step(1), delta=delta))
    assert store.load(0).deltas[0].delta == delta
    assert redis_single.admin.memory_usage(f"{tag(url)}:stream") < 50_000


# ------------------------------------------------------------------------------------------------------- failover


def tried(call):
    """Its result once the store is there again."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def learn(learner) -> None:
    """Polls to the end of the log, through refusals and absence."""
    while True:
        try:
            if tried(learner.poll) == 0:
                return
        except StaleCommit:
            pass


def fold(learner) -> None:
    try:
        tried(learner.fold)
    except StaleCommit:
        learn(learner)
        tried(learner.fold)


def cut_off(replica, master) -> None:
    """The replica hears no more of its master."""
    replica.pause()
    master.admin.client_kill_filter(_type="replica")


@pytest.mark.parametrize("lost", ["nothing", "commits", "a fold"])
def test_after_a_failover_the_store_equals_a_replay(redis_cluster, lost):
    """The master is killed between commits; its replica had missed nothing, the last commits, or a fold."""
    url = redis_url(redis_cluster)
    sim = Simulation(5)
    sim.store = store = RedisStore(url)
    store.create(Manifest("store", "log", sim.n_shards, 1))
    sim.setup()
    follower = RedisStore(url)
    learners = [Learner(shard, sim.log, store, lambda: sim.rng.bytes(16)) for shard in range(sim.n_shards)]
    master = redis_cluster.master_of(f"{tag(url)}:last")
    replica = replica_of(redis_cluster, master)

    def live(fold_too: bool) -> None:
        for _ in range(15):
            sim.now_ms += 400
            sim.decide()
            sim.answer()
        for learner in learners:
            learn(learner)
            if fold_too:
                fold(learner)

    try:
        live(fold_too=True)
        live(fold_too=False)
        before, _ = follower.last(0)
        redis_cluster.wait_ok()
        if lost != "nothing":
            cut_off(replica, master)
        if lost == "commits":
            live(fold_too=True)
            before, _ = follower.last(0)
        elif lost == "a fold":
            for learner in learners:
                fold(learner)
        master.kill()
        replica.resume()
        changes = tried(lambda: follower.changes(0, before))
        assert changes == (None if lost == "commits" else [])
        live(fold_too=False)
        live(fold_too=True)
        live(fold_too=False)
        assert (learners[0].reloads > 0) == (lost != "nothing")
        for shard in range(sim.n_shards):
            stored = tried(lambda shard=shard: sim.stored(shard))
            for batch in (1, 7):
                assert stored.equal(sim.replayed(shard, batch)) == []
            assert tried(lambda shard=shard: store.last(shard))[1] == len(sim.records(shard))
    finally:
        redis_cluster.heal()
        store.close()
        follower.close()


def replica_of(cluster, master):
    ids = {id(node): name for name, node in cluster.ids.items()}
    (name,) = [name for name, entry in view(master).items() if entry["master_id"] == ids[id(master)]]
    return cluster.ids[name]
