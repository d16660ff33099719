"""The parameter store: everything each shard knows, and how much of the log it has read, as one fact.

Per shard the store holds a *base* (named parts, as of some commit) and a *stream* of commits. A commit is one packed
delta of absolute values with the id of the commit it follows; it is redo log and change feed in one:

    base @ b0 --> c1(after b0) --> c2(after c1) --> ... --> last

load = base + the commits after it. `fold` makes the learner's present parts the base and trims the stream, keeping
some commits for followers. The compare-and-set on the chained id is all the coordination there is: a commit that does
not follow the last one is refused, and a retry that finds its own id has succeeded.

A machine that loses power may lose the newest commits, never their order or half of one: the log has what they were
made from, and the head position goes back with them. Snapshots, blobs and the manifest are durable on return.

>>> store = open_store("memory:")
>>> store.create(Manifest(id="s", log_id="l", shards=1, layout=1))
>>> store.commit(0, Commit(id=b"1" * 16, after=NOTHING, head=7, log_time_ms=50, first_time_ms=40, delta=b"x"))
>>> store.last(0)
(b'1111111111111111', 7)
>>> [commit.delta for commit in store.changes(0, NOTHING)]
[b'x']
"""

from collections.abc import Iterable
from os import PathLike, fspath
from typing import Protocol

import msgspec

from streaming.log import Clock, wall_clock

NOTHING = b"\0" * 16
"""The commit id that the first commit of a shard follows."""

HOUR_MS = 3_600_000


class Manifest(msgspec.Struct, frozen=True):
    """What a store is: written once, when it is created."""

    id: str
    log_id: str
    """The `id` of the log whose offsets the heads count in."""
    shards: int
    layout: int
    """Version of the bytes in parts and deltas (`streaming.state` owns it)."""


class Commit(msgspec.Struct, frozen=True):
    """One step of a shard: whole records of its partition, and all that they changed."""

    id: bytes
    """16 random bytes."""
    after: bytes
    """The id of the commit this follows; NOTHING for the first."""
    head: int
    """The next offset to read."""
    log_time_ms: int
    """Log time as of this commit."""
    first_time_ms: int
    """Log time of the oldest record in it: acknowledgement to visible is measured from here."""
    delta: bytes


class Image(msgspec.Struct, frozen=True):
    """A shard, or a snapshot of one: the base, and the commits after it in order."""

    commit_id: bytes
    """The commit as of which `parts` are; NOTHING for a shard that was never folded."""
    head: int
    """The next offset to read as of `parts`."""
    parts: dict[str, bytes]
    deltas: list[Commit]

    @property
    def last(self) -> tuple[bytes, int]:
        """(commit id, head) once the deltas are applied."""
        return (self.deltas[-1].id, self.deltas[-1].head) if self.deltas else (self.commit_id, self.head)


class SnapshotInfo(msgspec.Struct, frozen=True):
    """A durable copy of a shard's base."""

    name: str
    """`SHARD-HEAD-COMMIT`, and `-LABEL` where it has one: the same state gets the same name."""
    head: int
    commit_id: bytes
    time_ms: int
    """Log time of the state (not of the copying)."""
    size_bytes: int
    label: str = ""
    """What a user calls it; "" for those that the learner takes by itself, replaces and trims the log behind."""


def snapshot_name(shard: int, head: int, commit_id: bytes, label: str = "") -> str:
    """The name of a snapshot.

    >>> snapshot_name(2, 700, b"0123456789abcdef", "before-sale")
    '2-700-3031323334353637-before-sale'
    """
    return f"{shard}-{head}-{commit_id[:8].hex()}" + (f"-{label}" if label else "")


class ParameterStore(Protocol):
    """What learners commit to and agents follow. Shards are 0..manifest.shards-1; others raise ValueError.

    Any call may raise StoreUnavailable or StoreCorrupt.
    """

    def manifest(self) -> Manifest | None:
        """The manifest, None before `create`."""

    def create(self, manifest: Manifest) -> None:
        """Make the shards, empty. Durable. The same manifest again is no error; another raises LayoutMismatch."""

    def load(self, shard: int) -> Image:
        """The base and the commits after it, as of one moment."""

    def last(self, shard: int) -> tuple[bytes, int]:
        """(id of the last commit, head); (NOTHING, 0) before the first."""

    def lasts(self) -> list[tuple[bytes, int]]:
        """`last` of every shard, all asked for at once. Cheap: it is how a follower polls."""

    def commit(self, shard: int, commit: Commit) -> None:
        """Append to the shard's stream if `commit.after` is its last id, else raise StaleCommit.

        If `commit.id` is the last id, it is there already: succeeds and changes nothing.
        """

    def changes(self, shard: int, after: bytes) -> list[Commit] | None:
        """The commits after the one with id `after`, in order; [] if that is the last.

        None when the stream no longer joins (trimmed, or a failover lost commits): the follower loads the shard.
        """

    def fold(
        self,
        shard: int,
        commit_id: bytes,
        parts: dict[str, bytes],
        drop: Iterable[str] = (),
        keep: int = 1000,
        base: bytes | None = None,
        whole: bool = False,
    ) -> None:
        """Write these parts into the base as of `commit_id`, which must be the last id (else StaleCommit).

        Parts neither given nor dropped stay as they are. The stream keeps its last `keep` commits for followers.
        `base`: the commit as of which the base is, since which `parts` are all that changed. StaleCommit where it is
        another: a failover may lose a fold and keep the commits after it.
        `whole`: these are all parts there shall be, and what is there, be it damaged, is not looked at.
        """

    def put_blob(self, data: bytes) -> str:
        """Store bytes under their BLAKE2b-256 (64 hex characters), which is returned. Durable."""

    def get_blob(self, name: str) -> bytes:
        """The blob of that name. Raises NotFound; StoreCorrupt when the bytes do not have that hash."""

    def drop_blobs(self, keep: set[str], put_before_ms: int) -> None:
        """Drop the blobs not named in `keep` that were last put before this time, by the clock that dates them.

        A caller takes the time before it finds out what to keep, and subtracts what an upload's control record may
        take to arrive (HOUR_MS is plenty): then nothing that came in use meanwhile is dropped, however long it took.
        """

    def snapshot(self, shard: int, label: str = "") -> SnapshotInfo:
        """Keep the present base (the caller folds first) under a name, until it is dropped. Durable."""

    def snapshots(self, shard: int) -> list[SnapshotInfo]:
        """The shard's snapshots, oldest head first, with a label or without."""

    def load_snapshot(self, name: str) -> Image:
        """The snapshot's parts, without deltas. Raises NotFound."""

    def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot; no error if there is none."""

    def size_bytes(self) -> int:
        """Bytes the store takes on its medium now."""

    def close(self) -> None:
        """Release files and threads. The contents stay."""


def automatic(store: ParameterStore, shard: int) -> list[SnapshotInfo]:
    """The snapshots of the shard that have no label, oldest first: those that replays start from."""
    return [info for info in store.snapshots(shard) if not info.label]


def open_store(url: str | PathLike[str], clock: Clock = wall_clock) -> ParameterStore:
    """Open the store at `url`: the path of an SQLite file (created if there is none), `redis://...`, or `memory:`.

    `streaming.store.redis_url` says what a URL of a Redis may be. `memory:` is a new one. The clock dates blobs only.
    Raises StoreUnavailable, StoreCorrupt; ValueError for a URL that cannot be.
    """
    where = fspath(url)
    if where == "memory:":
        from streaming.store.memory import MemoryStore

        return MemoryStore(clock)
    if where.startswith(("redis:", "rediss:")):
        from streaming.store.redis import RedisStore

        return RedisStore(where, clock)
    from streaming.store.sqlite import SqliteStore

    return SqliteStore(where, clock)
