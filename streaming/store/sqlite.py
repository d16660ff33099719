"""The parameter store in one SQLite file.

    manifest        (id, log_id, shards, layout)                              one row
    shards          (shard, last_id, head, time_ms, seq, base_id, base_head, base_time_ms, base_seq)
    commits         (key = shard << 48 | seq, id, after, head, log_time_ms, first_time_ms, crc, delta)
    base            (shard, part) -> chunk
    snapshots       (name, shard, head, commit_id, time_ms, size_bytes)
    snapshot_parts  (name, part) -> chunk
    chunks          (chunk, crc, data)          a part's bytes, never changed; gone when nothing names them
    blobs           (name, put_ms, data)

Commits and folds use `synchronous=NORMAL`: kill -9 loses nothing; loss of power may lose the newest transactions, in
order and whole, and the learner makes them again from the log, which is FULL and trimmed only behind a snapshot.
Snapshots, blobs and the manifest are FULL: nothing else holds what they hold, and a log is trimmed on their word.

A snapshot names the base's chunks instead of copying them. Parts and deltas carry a CRC-32, since SQLite itself does
not notice a flipped bit inside a value.
"""

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from streaming.errors import LayoutMismatch, NotFound, StaleCommit, StoreCorrupt, StoreUnavailable
from streaming.log import Clock, wall_clock
from streaming.sqlite_file import Kind, SqliteFile, take_lock
from streaming.store import NOTHING, Commit, Image, Manifest, SnapshotInfo, snapshot_name

STORE = Kind(
    noun="parameter store",
    application_id=0x43725374,  # "CrSt"
    layout=1,
    unavailable=StoreUnavailable,
    in_use=StoreUnavailable,
    corrupt=StoreCorrupt,
    remedy="restore log and store together from one backup, or move the data folder away to start anew",
)

_SCHEMA = """
CREATE TABLE manifest (id TEXT NOT NULL, log_id TEXT NOT NULL, shards INTEGER NOT NULL, layout INTEGER NOT NULL);
CREATE TABLE shards (
    shard INTEGER PRIMARY KEY,
    last_id BLOB NOT NULL, head INTEGER NOT NULL, time_ms INTEGER NOT NULL, seq INTEGER NOT NULL,
    base_id BLOB NOT NULL, base_head INTEGER NOT NULL, base_time_ms INTEGER NOT NULL, base_seq INTEGER NOT NULL
);
CREATE TABLE commits (
    key INTEGER PRIMARY KEY, id BLOB NOT NULL, after BLOB NOT NULL, head INTEGER NOT NULL,
    log_time_ms INTEGER NOT NULL, first_time_ms INTEGER NOT NULL, crc INTEGER NOT NULL, delta BLOB NOT NULL
);
CREATE INDEX commits_after ON commits (after);
CREATE TABLE base (shard INTEGER, part TEXT, chunk INTEGER NOT NULL, PRIMARY KEY (shard, part)) WITHOUT ROWID;
CREATE TABLE snapshots (
    name TEXT PRIMARY KEY, shard INTEGER NOT NULL, head INTEGER NOT NULL, commit_id BLOB NOT NULL,
    time_ms INTEGER NOT NULL, size_bytes INTEGER NOT NULL, label TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE snapshot_parts (name TEXT, part TEXT, chunk INTEGER NOT NULL, PRIMARY KEY (name, part)) WITHOUT ROWID;
CREATE INDEX snapshot_chunks ON snapshot_parts (chunk);
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE blobs (name TEXT PRIMARY KEY, put_ms INTEGER NOT NULL, data BLOB NOT NULL);
"""


class SqliteStore:
    """A `ParameterStore` in the file at `path`, which is created if there is none.

    `busy_timeout_s`: how long a call waits for another process's transaction before it raises StoreUnavailable.
    """

    def __init__(self, path: str, clock: Clock = wall_clock, *, busy_timeout_s: float = 5.0) -> None:
        self._clock = clock
        if os.path.exists(path):
            self._file = SqliteFile(path, STORE, None, busy_timeout_s)
        else:
            lock = _creation_lock(path, busy_timeout_s)
            try:
                self._file = SqliteFile(path, STORE, _create, busy_timeout_s)
            finally:
                os.close(lock)
        try:
            with self._file.reading() as con:
                shards = [row[0] for row in con.execute("SELECT shard FROM shards ORDER BY shard")]
                manifest = _manifest(con)
                if shards != list(range(manifest.shards if manifest else 0)):
                    raise self._file.damaged(f"it has shards {shards}, its manifest is {manifest}")
        except BaseException:
            self._file.close()
            raise

    def manifest(self) -> Manifest | None:
        """See `ParameterStore.manifest`."""
        with self._file.reading() as con:
            return _manifest(con)

    def create(self, manifest: Manifest) -> None:
        """See `ParameterStore.create`."""
        with self._file.writing("FULL", 0) as con:
            found = _manifest(con)
            if found is None:
                con.execute("INSERT INTO manifest VALUES (?, ?, ?, ?)", msgspec.structs.astuple(manifest))
                con.executemany(
                    "INSERT INTO shards VALUES (?, ?, 0, 0, 0, ?, 0, 0, 0)",
                    [(shard, NOTHING, NOTHING) for shard in range(manifest.shards)],
                )
            elif found != manifest:
                raise LayoutMismatch(
                    f"the parameter store {self._file.path} is {found}, not {manifest}: "
                    "log and store of one data folder belong together; use another folder for another log"
                )

    def load(self, shard: int) -> Image:
        """See `ParameterStore.load`."""
        with self._file.reading() as con:
            base_id, head, seq = self._shard(con, "base_id, base_head, base_seq", shard)
            parts = self._parts(
                con.execute("SELECT part, crc, data FROM base JOIN chunks USING (chunk) WHERE shard = ?", (shard,))
            )
            return Image(base_id, head, parts, self._stream(con, shard, seq + 1))

    def last(self, shard: int) -> tuple[bytes, int]:
        """See `ParameterStore.last`."""
        try:
            last_id, head = self._shard(self._file.connection(), "last_id, head", shard)
        except sqlite3.Error as error:
            raise self._file.explain(error) from error
        return last_id, head

    def lasts(self) -> list[tuple[bytes, int]]:
        """See `ParameterStore.lasts`."""
        try:
            return self._file.connection().execute("SELECT last_id, head FROM shards ORDER BY shard").fetchall()
        except sqlite3.Error as error:
            raise self._file.explain(error) from error

    def commit(self, shard: int, commit: Commit) -> None:
        """See `ParameterStore.commit`."""
        with self._file.writing("NORMAL", len(commit.delta)) as con:
            last_id, seq = self._shard(con, "last_id, seq", shard)
            if last_id == commit.id:
                return
            if last_id != commit.after:
                raise StaleCommit(shard, commit.after, last_id)
            c, crc = commit, zlib.crc32(commit.delta)
            con.execute(
                "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    _key(shard, seq + 1),
                    c.id,
                    c.after,
                    c.head,
                    c.log_time_ms,
                    c.first_time_ms,
                    crc,
                    c.delta,
                ),
            )
            con.execute(
                "UPDATE shards SET last_id = ?, head = ?, time_ms = ?, seq = ? WHERE shard = ?",
                (c.id, c.head, c.log_time_ms, seq + 1, shard),
            )

    def changes(self, shard: int, after: bytes) -> list[Commit] | None:
        """See `ParameterStore.changes`."""
        if self.last(shard)[0] == after:
            return []
        with self._file.reading() as con:
            if self._shard(con, "last_id", shard) == (after,):
                return []
            (key,) = con.execute(
                "SELECT min(key) FROM commits WHERE after = ? AND key BETWEEN ? AND ?",
                (after, _key(shard, 0), _key(shard + 1, 0) - 1),
            ).fetchone()
            return None if key is None else self._stream(con, shard, key - _key(shard, 0))

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
        """See `ParameterStore.fold`."""
        with self._file.writing("NORMAL", sum(map(len, parts.values()))) as con:
            last_id, seq, base_id = self._shard(con, "last_id, seq, base_id", shard)
            if last_id != commit_id:
                raise StaleCommit(shard, commit_id, last_id)
            if base is not None and base_id != base:
                raise StaleCommit(shard, base, base_id)
            there = con.execute("SELECT part FROM base WHERE shard = ?", (shard,)) if whole else ()
            for part in {*drop, *parts, *(part for (part,) in there)}:
                key = (shard, part)
                old = con.execute("SELECT chunk FROM base WHERE shard = ? AND part = ?", key).fetchall()
                con.execute("DELETE FROM base WHERE shard = ? AND part = ?", key)
                _drop_chunks(con, old)
            for part, data in parts.items():
                chunk = con.execute("INSERT INTO chunks (crc, data) VALUES (?, ?)", (zlib.crc32(data), data)).lastrowid
                con.execute("INSERT INTO base VALUES (?, ?, ?)", (shard, part, chunk))
            con.execute(
                "UPDATE shards SET base_id = last_id, base_head = head, base_time_ms = time_ms, base_seq = seq"
                " WHERE shard = ?",
                (shard,),
            )
            con.execute(
                "DELETE FROM commits WHERE key BETWEEN ? AND ?", (_key(shard, 0), _key(shard, max(0, seq - keep)))
            )
        self._file.give_back()

    def put_blob(self, data: bytes) -> str:
        """See `ParameterStore.put_blob`."""
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        with self._file.writing("FULL", len(data)) as con:
            put_ms = self._clock()
            known = con.execute("UPDATE blobs SET put_ms = ? WHERE name = ?", (put_ms, name)).rowcount
            if not known:
                # Not as a parameter: the statement is kept for the next time, and its copy of a graph with it.
                row = con.execute("INSERT INTO blobs VALUES (?, ?, zeroblob(?))", (name, put_ms, len(data))).lastrowid
                assert row is not None
                with con.blobopen("blobs", "data", row) as blob:
                    blob.write(data)
        return name

    def get_blob(self, name: str) -> bytes:
        """See `ParameterStore.get_blob`."""
        with self._file.reading() as con:
            row = con.execute("SELECT data FROM blobs WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"the parameter store {self._file.path} has no blob {name}: upload it again")
        data: bytes = row[0]
        if hashlib.blake2b(data, digest_size=32).hexdigest() != name:
            raise self._file.damaged(f"blob {name} does not have that hash")
        return data

    def drop_blobs(self, keep: set[str], put_before_ms: int) -> None:
        """See `ParameterStore.drop_blobs`."""
        with self._file.writing("NORMAL", 0) as con:
            old = con.execute("SELECT name FROM blobs WHERE put_ms < ?", (put_before_ms,)).fetchall()
            con.executemany("DELETE FROM blobs WHERE name = ?", [(name,) for (name,) in old if name not in keep])
        self._file.give_back()

    def snapshot(self, shard: int, label: str = "") -> SnapshotInfo:
        """See `ParameterStore.snapshot`."""
        with self._file.writing("FULL", 0) as con:
            commit_id, head, time_ms = self._shard(con, "base_id, base_head, base_time_ms", shard)
            (size,) = con.execute(
                "SELECT coalesce(sum(length(data)), 0) FROM base JOIN chunks USING (chunk) WHERE shard = ?", (shard,)
            ).fetchone()
            name = snapshot_name(shard, head, commit_id, label)
            info = SnapshotInfo(name, head, commit_id, time_ms, size, label)
            _drop_snapshot(con, info.name)
            con.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, shard, head, commit_id, time_ms, size, label),
            )
            con.execute("INSERT INTO snapshot_parts SELECT ?, part, chunk FROM base WHERE shard = ?", (name, shard))
        return info

    def snapshots(self, shard: int) -> list[SnapshotInfo]:
        """See `ParameterStore.snapshots`."""
        self.last(shard)  # raises for a shard that is not there
        with self._file.reading() as con:
            rows = con.execute(
                "SELECT name, head, commit_id, time_ms, size_bytes, label FROM snapshots WHERE shard = ?"
                " ORDER BY head, name",
                (shard,),
            )
            return [SnapshotInfo(*row) for row in rows]

    def load_snapshot(self, name: str) -> Image:
        """See `ParameterStore.load_snapshot`."""
        with self._file.reading() as con:
            row = con.execute("SELECT commit_id, head FROM snapshots WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise NotFound(
                    f"the parameter store {self._file.path} has no snapshot {name}: "
                    "`croupier doctor` lists those it has"
                )
            rows = con.execute(
                "SELECT part, crc, data FROM snapshot_parts JOIN chunks USING (chunk) WHERE name = ?", (name,)
            )
            return Image(row[0], row[1], self._parts(rows), [])

    def drop_snapshot(self, name: str) -> None:
        """See `ParameterStore.drop_snapshot`."""
        with self._file.writing("NORMAL", 0) as con:
            _drop_snapshot(con, name)
        self._file.give_back()

    def size_bytes(self) -> int:
        """See `ParameterStore.size_bytes`."""
        return self._file.size_bytes()

    def close(self) -> None:
        """See `ParameterStore.close`."""
        self._file.close()

    def _stream(self, con: sqlite3.Connection, shard: int, seq: int) -> list[Commit]:
        """The shard's commits from number `seq` on."""
        commits = []
        for crc, *values in con.execute(
            "SELECT crc, id, after, head, log_time_ms, first_time_ms, delta FROM commits"
            " WHERE key BETWEEN ? AND ? ORDER BY key",
            (_key(shard, seq), _key(shard + 1, 0) - 1),
        ):
            commit = Commit(*values)
            if zlib.crc32(commit.delta) != crc:
                raise self._file.damaged(f"commit {commit.id.hex()} of shard {shard} has a wrong checksum")
            commits.append(commit)
        return commits

    def _parts(self, rows: Iterable[tuple[str, int, bytes]]) -> dict[str, bytes]:
        parts = {}
        for name, crc, data in rows:
            if zlib.crc32(data) != crc:
                raise self._file.damaged(f"part {name} has a wrong checksum")
            parts[name] = data
        return parts

    def _shard(self, con: sqlite3.Connection, columns: str, shard: int) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = con.execute(f"SELECT {columns} FROM shards WHERE shard = ?", (shard,)).fetchone()
        if row is None:
            raise ValueError(f"the parameter store {self._file.path} has no shard {shard} (none at all before create)")
        return row


def _key(shard: int, seq: int) -> int:
    return shard << 48 | seq


def _manifest(con: sqlite3.Connection) -> Manifest | None:
    row = con.execute("SELECT id, log_id, shards, layout FROM manifest").fetchone()
    return None if row is None else Manifest(*row)


def _drop_chunks(con: sqlite3.Connection, chunks: list[tuple[int]]) -> None:
    """Delete those of the chunks that neither a base nor a snapshot names."""
    con.executemany(
        "DELETE FROM chunks WHERE chunk = ?1 AND NOT EXISTS (SELECT 1 FROM snapshot_parts WHERE chunk = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM base WHERE chunk = ?1)",
        chunks,
    )


def _drop_snapshot(con: sqlite3.Connection, name: str) -> None:
    old = con.execute("SELECT chunk FROM snapshot_parts WHERE name = ?", (name,)).fetchall()
    con.execute("DELETE FROM snapshots WHERE name = ?", (name,))
    con.execute("DELETE FROM snapshot_parts WHERE name = ?", (name,))
    _drop_chunks(con, old)


def _creation_lock(path: str, timeout_s: float) -> int:
    """The lock under which the file is created; another process that creates it holds it for milliseconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return take_lock(path, STORE, "another process is creating the parameter store: try again")
        except StoreUnavailable:
            if time.monotonic() > deadline or not os.path.exists(f"{path}.lock"):
                raise
        time.sleep(0.01)


def _create(con: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        con.execute(statement)
