"""The SQLite store as files and processes: foreign, damaged, full, locked, read-only, killed, folded for long."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from streaming.errors import StaleCommit, StoreCorrupt, StoreUnavailable
from streaming.log import open_log
from streaming.store import NOTHING, Commit, Image, Manifest, open_store
from streaming.store.sqlite import SqliteStore
from tests.streaming.faults import full_disk, read_only_after  # noqa: F401
from tests.streaming.test_store_contract import MANIFEST, commit_id, fill, step, steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


def write(path):
    """A store with a base, a snapshot, some commits and a blob, closed. Returns the blob's name."""
    store = open_store(path)
    store.create(MANIFEST)
    fill(store, 0, 5)
    store.fold(0, commit_id(5), {"a": b"a" * 50_000})
    store.snapshot(0)
    store.commit(0, step(6))
    name = store.put_blob(b"blob" * 10_000)
    store.close()
    return name


def execute(path, statement):
    con = sqlite3.connect(path)
    con.execute(statement)
    con.commit()
    con.close()


def foreign_bytes(path):
    path.write_bytes(os.urandom(20_000))


def foreign_sqlite(path):
    execute(path, "CREATE TABLE songs (name TEXT)")


def a_log(path):
    open_log(path, 1, write=True).close()


def newer_layout(path):
    write(path)
    execute(path, "PRAGMA user_version=2")


def empty_file(path):
    path.touch()


def truncated(path):
    write(path)
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def shard_missing(path):
    write(path)
    execute(path, "DELETE FROM shards WHERE shard = 1")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (foreign_bytes, "is damaged .*file is not a database"),
        (foreign_sqlite, "belongs to another application"),
        (a_log, "belongs to another application"),
        (newer_layout, "has layout 2, this release reads layout 1: use the release"),
        (empty_file, "is empty"),
        (truncated, "is damaged .*malformed"),
        (shard_missing, r"is damaged .*it has shards \[0, 2\]"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_and_left_as_it_is(path, spoil, sentence):
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match=f"store.sqlite {sentence}") as caught:
        open_store(path)
    assert "backup" in str(caught.value) or "use the release" in str(caught.value)
    assert path.read_bytes() == before


def flip(path, inside):
    """Flip one bit in the middle of a stored value."""
    data = path.read_bytes()
    at = data.index(inside) + len(inside) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_flipped_bit_is_noticed_when_it_is_read(path):
    name = write(path)
    for inside in (b"a" * 1_000, b"blob" * 100, step(6).delta):
        flip(path, inside)
    store = open_store(path)
    with pytest.raises(StoreCorrupt, match=r"part a has a wrong checksum.*backup"):
        store.load(0)
    with pytest.raises(StoreCorrupt, match="part a has a wrong checksum"):
        store.load_snapshot(store.snapshots(0)[0].name)
    with pytest.raises(StoreCorrupt, match=f"commit {commit_id(6).hex()} of shard 0 has a wrong checksum"):
        store.changes(0, commit_id(5))
    with pytest.raises(StoreCorrupt, match=f"blob {name} does not have that hash"):
        store.get_blob(name)
    store.close()


def test_a_full_disk_refuses_everything_and_loses_nothing(full_disk):  # noqa: F811
    folder, filled = full_disk
    store = open_store(folder / "store.sqlite")
    store.create(MANIFEST)
    fill(store, 0, 3)
    store.fold(0, commit_id(3), {"a": b"old"})
    snapshot = store.snapshot(0)
    store.commit(0, step(4))
    before = Image(commit_id(3), 30, {"a": b"old"}, [step(4)])
    large = bytes(1_000_000)  # more than the log file can reuse
    with filled(folder / "store.sqlite"):
        for call in (
            lambda: store.commit(0, replace(step(5), delta=large)),
            lambda: store.fold(0, commit_id(4), {"a": large}),
            lambda: store.put_blob(large),
        ):
            with pytest.raises(StoreUnavailable, match=r"store.sqlite (is full: free some|failed to read or write)"):
                call()
        with contextlib.suppress(StoreUnavailable):  # small enough for the log file, once that begins again
            store.snapshot(0)
        assert store.load(0) == before
        assert store.snapshots(0) == [snapshot]
    assert store.load(0) == before
    store.commit(0, step(5))
    store.fold(0, commit_id(5), {"a": b"new"})
    store.close()
    store = open_store(folder / "store.sqlite")
    assert store.load(0) == Image(commit_id(5), 50, {"a": b"new"}, [])
    assert store.load_snapshot(snapshot.name).parts == {"a": b"old"}
    store.close()


def test_a_locked_store_refuses_the_commit_and_goes_on_afterwards(path):
    store = SqliteStore(str(path), busy_timeout_s=0.05)
    store.create(MANIFEST)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"store.sqlite was locked for more than 0.05 s: find who holds it"):
        store.commit(0, step(1))
    assert store.last(0) == (NOTHING, 0)
    holder.execute("ROLLBACK")
    holder.close()
    store.commit(0, step(1))
    store.close()


def test_a_read_only_folder_is_named(tmp_path):
    with read_only_after(tmp_path, lambda folder: write(folder / "store.sqlite")) as folder:
        for name in ("store.sqlite", "new.sqlite"):
            with pytest.raises(StoreUnavailable, match=rf"{name}.* writable for this user"):
                open_store(folder / name)


def test_a_closed_store_says_so(path):
    store = open_store(path)
    store.close()
    store.close()
    for call in (store.manifest, lambda: store.last(0), lambda: store.commit(0, step(1))):
        with pytest.raises(StoreUnavailable, match="was closed: open it again"):
            call()


def test_what_only_the_store_holds_waits_for_the_disk(path):
    store = open_store(path)
    con = store._file.connection()
    calls = [
        (2, lambda: store.create(MANIFEST)),
        (1, lambda: store.commit(0, step(1))),
        (2, lambda: store.put_blob(b"graph")),
        (1, lambda: store.fold(0, commit_id(1), {"a": b"1"})),
        (2, lambda: store.snapshot(0)),
    ]
    for synchronous, call in calls:
        call()
        assert con.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    store.close()


def test_several_that_create_it_at_once_make_one(path):
    stores, failures = [], []

    def create() -> None:
        try:
            store = open_store(path)
            store.create(MANIFEST)
            stores.append(store)
        except Exception as error:  # reported below
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    stores[0].commit(0, step(1))
    for store in stores:
        assert store.last(0) == (commit_id(1), 10)
        store.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["store.sqlite", "store.sqlite.lock", "store.sqlite.turn"]


LEARNER = """
import sys
from streaming.store import open_store
from tests.streaming.test_store_contract import commit_id, step
store = open_store(sys.argv[1])
n = 1
while True:
    store.commit(0, step(n))
    if n % 20 == 0:
        store.fold(0, commit_id(n), {"n": str(n).encode() * 1000}, keep=30)
    print(n, flush=True)
    n += 1
"""


def test_what_a_killed_learner_committed_is_there_and_a_follower_never_sees_a_gap(path):
    store = open_store(path)
    store.create(Manifest("s", "l", 1, 1))
    child = subprocess.Popen([sys.executable, "-c", LEARNER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    at, reloads = NOTHING, 0
    while int.from_bytes(at, "big") < 300:
        changes = store.changes(0, at)
        if changes is None:
            at, reloads = store.load(0).last[0], reloads + 1
            continue
        for commit in changes:
            assert commit.after == at
            at = commit.id
    child.kill()
    committed = int(child.stdout.read().splitlines()[-1])
    child.wait()
    child.stdout.close()
    image = store.load(0)
    n = int.from_bytes(image.last[0], "big")
    assert n - committed in (0, 1)
    base = int.from_bytes(image.commit_id, "big")
    assert n - base <= 21
    assert image.parts == {"n": str(base).encode() * 1000}
    assert image.deltas == steps(base + 1, n)
    store.commit(0, step(n + 1))
    with pytest.raises(StaleCommit):
        store.commit(0, Commit(b"z" * 16, commit_id(n), 0, 0, 0, b""))
    store.close()


def test_files_stay_bounded_when_the_base_is_folded_again_and_again(path, monkeypatch):
    monkeypatch.setattr("streaming.sqlite_file.CHECKPOINT_BYTES", 1 << 20)
    store = open_store(path)
    store.create(MANIFEST)
    sizes = []
    for n in range(1, 61):
        store.commit(0, step(n))
        store.fold(0, commit_id(n), {"big": n.to_bytes(2, "big") * 500_000}, keep=10)
        store.snapshot(0)
        for old in store.snapshots(0)[:-2]:
            store.drop_snapshot(old.name)
        sizes.append(store.size_bytes())
    assert max(sizes[30:]) <= max(sizes[:30]) * 1.5 < 40 << 20  # 60 MB went through
    for old in store.snapshots(0):
        store.drop_snapshot(old.name)
    store.fold(0, commit_id(60), {}, drop=["big"], keep=0)
    store.fold(0, commit_id(60), {})
    store.close()
    assert path.stat().st_size < 3 << 20
