"""The event log in one SQLite file, `synchronous=FULL`: an append is one transaction and one fsync.

    log         (id, shards)                        one row
    partitions  (partition, start, stop, time_ms)   one row each: bounds, and the latest log time (survives a trim)
    records_N   (offset, time_ms, data)             one table per partition, `records_control` for CONTROL

A table per partition, so that every append goes to the right edge of its tree (full pages) and a trim takes the left.
"""

import os
import sqlite3
import time
from collections.abc import Sequence

from streaming.errors import LayoutMismatch, LogCorrupt, LogInUse, LogUnavailable, Trimmed
from streaming.log import CONTROL, Clock, Record, wall_clock
from streaming.sqlite_file import PAGE_BYTES, Kind, SqliteFile, take_lock
from streaming.turns import let_others_in

LOG = Kind(
    noun="event log",
    application_id=0x43724C67,  # "CrLg"
    layout=1,
    unavailable=LogUnavailable,
    in_use=LogInUse,
    corrupt=LogCorrupt,
    remedy="restore log and store together from one backup, or move the data folder away to start anew",
)
TRIM_RECORDS = 32
"""Records deleted in the first transaction of a trim; the next ones take more or fewer."""
TRIM_S = 0.003
"""Aimed at for a transaction of a trim, so that an append never waits long for it."""


class SqliteLog:
    """An `EventLog` in the file at `path`. See `streaming.log.open_log` for the arguments and errors.

    `busy_timeout_s`: how long a call waits for another process's transaction before it raises LogUnavailable.
    """

    def __init__(
        self,
        path: str,
        shards: int | None = None,
        clock: Clock = wall_clock,
        *,
        write: bool = False,
        busy_timeout_s: float = 5.0,
    ) -> None:
        self._clock = clock
        self._write = write
        self._writer_lock: int | None = None
        if write:
            if shards is not None and shards < 1:
                raise ValueError(f"shards is {shards}: a log has at least one shard")
            self._writer_lock = take_lock(
                path, LOG, f"another process writes the event log {path}: one log has one writer; stop the other first"
            )
        try:
            schema = (lambda con: _create(con, shards)) if write and shards is not None else None
            self._file = SqliteFile(path, LOG, schema, busy_timeout_s)
            self.id, self.shards = self._check(shards)
        except BaseException:
            self.close()
            raise
        self._select = {
            p: f"SELECT offset, time_ms, data FROM {_table(p)} WHERE offset >= ? ORDER BY offset LIMIT ?"
            for p in range(CONTROL, self.shards)
        }

    def _check(self, shards: int | None) -> tuple[str, int]:
        """The log's id and shards, once bounds and records are seen to agree: a part restored alone shows here."""
        with self._file.reading() as con:
            log_id, found = con.execute("SELECT id, shards FROM log").fetchone() or (None, 0)
            if not isinstance(log_id, str):
                raise self._file.damaged("it has no id")
            if shards is not None and shards != found:
                raise LayoutMismatch(
                    f"the event log {self._file.path} has {found} shards, not {shards}: set shards = {found}, "
                    "or `croupier export` and `croupier import` into a new data folder"
                )
            rows = con.execute("SELECT partition, start, stop FROM partitions")
            bounds = {partition: (start, stop) for partition, start, stop in rows}
            for partition in range(CONTROL, found):
                first, last = con.execute(f"SELECT min(offset), max(offset) FROM {_table(partition)}").fetchone()
                start, stop = bounds.get(partition, (None, None))
                if (
                    start is None
                    or (first is None and start != stop)
                    or (first is not None and (first, last + 1) != (start, stop))
                ):
                    raise self._file.damaged(f"partition {partition} says {start} to {stop}, has {first} to {last}")
        return log_id, found

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """See `EventLog.append`."""
        if not self._write:
            raise ValueError(f"{self._file.path} was opened for reading: open_log(..., write=True) appends")
        for partition, _ in batches:
            self._known(partition)
        if not batches:
            return []
        placed: list[tuple[int, int]] = []
        with self._file.writing("FULL", sum(len(data) + 32 for _, data in batches)) as con:
            now_ms = self._clock()
            ends: dict[int, tuple[int, int]] = {}
            rows: dict[int, list[tuple[int, int, bytes]]] = {}
            for partition, data in batches:
                if partition not in ends:
                    stop, latest_ms = con.execute(
                        "SELECT stop, time_ms FROM partitions WHERE partition = ?", (partition,)
                    ).fetchone()
                    ends[partition] = stop, max(latest_ms, now_ms)
                    rows[partition] = []
                offset, time_ms = ends[partition]
                rows[partition].append((offset, time_ms, data))
                ends[partition] = offset + 1, time_ms
                placed.append((offset, time_ms))
            for partition, new in rows.items():
                con.executemany(f"INSERT INTO {_table(partition)} VALUES (?, ?, ?)", new)
            con.executemany(
                "UPDATE partitions SET stop = ?, time_ms = ? WHERE partition = ?",
                [(stop, time_ms, partition) for partition, (stop, time_ms) in ends.items()],
            )
        return placed

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """See `EventLog.read`."""
        self._known(partition)
        found: list[Record] = []
        try:
            cursor = self._file.connection().execute(self._select[partition], (offset, max_records))
            size = 0
            for row in cursor:
                size += len(row[2])
                if found and size > max_bytes:
                    break
                found.append(Record._make(row))
            cursor.close()
        except sqlite3.Error as error:
            raise self._file.explain(error) from error
        if not found or found[0].offset != offset:
            # Records are deleted together with the move of the start, so what is missing here was trimmed (or not yet
            # written), and by now the start says so.
            start, _ = self.bounds(partition)
            if offset < start:
                raise Trimmed(partition, offset, start)
        if found and (found[0].offset != offset or found[-1].offset != offset + len(found) - 1):
            raise self._file.damaged(f"partition {partition} lacks records after offset {offset}")
        return found

    def bounds(self, partition: int) -> tuple[int, int]:
        """See `EventLog.bounds`."""
        try:
            row: tuple[int, int] | None = (
                self._file.connection()
                .execute("SELECT start, stop FROM partitions WHERE partition = ?", (partition,))
                .fetchone()
            )
        except sqlite3.Error as error:
            raise self._file.explain(error) from error
        if row is None:
            self._known(partition)
            raise self._file.damaged(f"partition {partition} has no bounds")
        return row

    def ends(self) -> list[int]:
        """See `EventLog.ends`."""
        return [self.bounds(partition)[1] for partition in (*range(self.shards), CONTROL)]

    def trim(self, partition: int, before: int) -> None:
        """See `EventLog.trim`."""
        self._known(partition)
        count, more = TRIM_RECORDS, True
        while more:
            # NORMAL: an append's fsync makes it durable along the way, and a trim that is undone loses nothing.
            with self._file.writing("NORMAL", 16 * PAGE_BYTES, eager=True) as con:
                began = time.perf_counter()
                start, stop = con.execute(
                    "SELECT start, stop FROM partitions WHERE partition = ?", (partition,)
                ).fetchone()
                wanted = min(before, stop)
                upto = min(wanted, start + count)
                if upto > start:
                    con.execute(f"DELETE FROM {_table(partition)} WHERE offset < ?", (upto,))
                    con.execute("UPDATE partitions SET start = ? WHERE partition = ?", (upto, partition))
                more = upto < wanted
            took_s = time.perf_counter() - began
            if more:
                count = max(1, count // 2 if took_s > TRIM_S else count * 2)
                let_others_in(took_s)
        self._file.give_back()

    def size_bytes(self) -> int:
        """See `EventLog.size_bytes`."""
        return self._file.size_bytes()

    def close(self) -> None:
        """See `EventLog.close`."""
        if hasattr(self, "_file"):
            self._file.close()
        if self._writer_lock is not None:
            os.close(self._writer_lock)
            self._writer_lock = None

    def _known(self, partition: int) -> None:
        if not CONTROL <= partition < self.shards:
            raise ValueError(f"partition {partition}: the log has 0..{self.shards - 1} and {CONTROL} (control)")


def _table(partition: int) -> str:
    return "records_control" if partition == CONTROL else f"records_{partition}"


def _create(con: sqlite3.Connection, shards: int) -> None:
    con.execute("CREATE TABLE log (id TEXT NOT NULL, shards INTEGER NOT NULL)")
    con.execute("INSERT INTO log VALUES (?, ?)", (os.urandom(16).hex(), shards))
    con.execute(
        "CREATE TABLE partitions (partition INTEGER PRIMARY KEY,"
        " start INTEGER NOT NULL, stop INTEGER NOT NULL, time_ms INTEGER NOT NULL)"
    )
    for partition in range(CONTROL, shards):
        con.execute("INSERT INTO partitions VALUES (?, 0, 0, 0)", (partition,))
        con.execute(
            f"CREATE TABLE {_table(partition)}"
            " (offset INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, data BLOB NOT NULL)"
        )
