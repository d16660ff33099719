"""One SQLite file as both adapters need it: checked on opening, write-ahead log, errors that say what to do.

    PATH        the database; application_id says whose it is, user_version its layout
    PATH-wal    what is not yet copied back; PATH-shm its index (both are SQLite's)
    PATH.lock   an empty file; whoever holds its flock may create the database, or is the log's writer
    PATH.turn   an empty file; its flock asks a busy writer of another process to let one in (see Turns)
    PATH.new    a database being created; renamed to PATH when it is whole

So a file at PATH is whole from its first moment, and one of zero bytes is a truncated one.

Checkpoints run on a thread with a connection of its own, so that no append pays for copying pages back. A passive
checkpoint copies nearly everything without stopping anybody; the restart after it waits only for the few pages that
came meanwhile, and lets the write-ahead log begin again at its start, which keeps it bounded.

Never `open()` a database file by ordinary means in a process that has it open here: closing such a descriptor drops
SQLite's POSIX locks. For the same reason open after a fork, not before.
"""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from streaming.errors import StreamingError
from streaming.turns import Turns, let_others_in

PAGE_BYTES = 4096
CHECKPOINT_BYTES = 16 << 20
"""Roughly how much the write-ahead log grows before it is copied back."""
WAL_BYTES = 64 << 20
"""A write-ahead log that grew beyond this (one large fold) is cut back when it begins anew."""
SLACK_PAGES = 256
VACUUM_PAGES = 4096
"""Most pages given back to the file system in one call."""
VACUUM_STEP_PAGES = 256
"""Pages given back in one transaction."""

Synchronous = Literal["FULL", "NORMAL"]


@dataclass(frozen=True)
class Kind:
    """What a file is, and the errors and remedies that go with it."""

    noun: str
    application_id: int
    layout: int
    unavailable: type[StreamingError]
    in_use: type[StreamingError]
    corrupt: type[StreamingError]
    remedy: str


class _Connection(sqlite3.Connection):
    """A connection that closes with its thread and remembers its durability (a plain one allows neither)."""

    synchronous: Synchronous = "FULL"

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # raised when it never opened
            self.close()


class SqliteFile:
    """An open file of some `Kind`: a connection per thread, transactions, checkpoints, errors.

    With `schema` the file is created when there is none; without, it must be there.
    """

    def __init__(
        self,
        path: str,
        kind: Kind,
        schema: Callable[[sqlite3.Connection], None] | None,
        busy_timeout_s: float = 5.0,
    ) -> None:
        self.path = os.path.abspath(path)
        self.kind = kind
        self._busy_timeout_s = busy_timeout_s
        self._local = threading.local()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self._turns = Turns(f"{self.path}.turn")
        self._checkpointer = _Checkpointer(self, self._turns)
        try:
            if not os.path.exists(self.path):
                if schema is None:
                    raise kind.unavailable(
                        f"there is no {kind.noun} at {self.path} yet: start the process that writes it first"
                    )
                self._create(schema)
            self.connection()
            self._identity = self._on_disk()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self.explain(error) from error
        except StreamingError:
            self.close()
            raise

    def _create(self, schema: Callable[[sqlite3.Connection], None]) -> None:
        new = f"{self.path}.new"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new + suffix)
        con = sqlite3.connect(new, isolation_level=None)
        try:
            con.execute(f"PRAGMA page_size={PAGE_BYTES}")
            con.execute("PRAGMA auto_vacuum=INCREMENTAL")
            con.execute("PRAGMA journal_mode=WAL")
            con.execute("PRAGMA synchronous=FULL")
            con.execute("BEGIN EXCLUSIVE")
            schema(con)
            con.execute(f"PRAGMA application_id={self.kind.application_id}")
            con.execute(f"PRAGMA user_version={self.kind.layout}")
            con.execute("COMMIT")
        finally:
            con.close()
        os.rename(new, self.path)
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def connect(self) -> _Connection:
        """A new connection to the file, once it is known to be ours."""
        con = sqlite3.connect(
            f"file:{quote(self.path)}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=self._busy_timeout_s,
            check_same_thread=False,
            factory=_Connection,
        )
        self._connections.add(con)
        # Only reading until here, so that a foreign file stays as it is.
        (application_id,) = con.execute("PRAGMA application_id").fetchone()
        (layout,) = con.execute("PRAGMA user_version").fetchone()
        (tables,) = con.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application_id != self.kind.application_id or tables == 0:
            what = "is empty" if tables == 0 else "belongs to another application"
            raise self.kind.corrupt(f"{self.path} {what}, it is no {self.kind.noun} of croupier: {self.kind.remedy}")
        if layout != self.kind.layout:
            raise self.kind.corrupt(
                f"{self.path} has layout {layout}, this release reads layout {self.kind.layout}: "
                "use the release that wrote it, `croupier export` there and `croupier import` here"
            )
        con.execute("PRAGMA journal_mode=WAL")
        con.execute("PRAGMA synchronous=FULL")
        con.execute("PRAGMA wal_autocheckpoint=0")
        con.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        con.execute("PRAGMA temp_store=MEMORY")
        return con

    def connection(self) -> _Connection:
        """This thread's connection."""
        con: _Connection | None = getattr(self._local, "con", None)
        if con is None:
            with self._lock:
                if self._closed:
                    raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
                con = self._local.con = self.connect()
        return con

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Several reads as of one moment."""
        with self._transaction("BEGIN") as con:
            yield con

    @contextlib.contextmanager
    def writing(self, synchronous: Synchronous, size: int, eager: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction of about `size` bytes: all of it or, when anything raises, none.

        An eager one gets in between the transactions of a busy writer, in this process or another.
        """
        try:
            con = self.connection()
            if con.synchronous != synchronous:
                con.execute(f"PRAGMA synchronous={synchronous}")
                con.synchronous = synchronous
        except sqlite3.Error as error:
            raise self.explain(error) from error
        turn = self._turns.taken() if eager else self._turns.awaited()
        with turn, self._transaction("BEGIN IMMEDIATE") as con:
            yield con
            self._check_in_place()
        self._checkpointer.wrote(size + 4 * PAGE_BYTES)

    def _on_disk(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def _check_in_place(self) -> None:
        """Refuses to write on into a file that nobody will find again. SQLite does not notice."""
        try:
            if self._on_disk() == self._identity:
                return
        except FileNotFoundError:
            pass
        raise self.kind.unavailable(
            f"the {self.kind.noun} {self.path} was removed or replaced while it was in use: stop the server, then "
            f"{self.kind.remedy}"
        )

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[_Connection]:
        con = None
        try:
            con = self.connection()
            con.execute(begin)
            yield con
            con.execute("COMMIT")
        except sqlite3.Error as error:
            raise self.explain(error) from error
        finally:
            if con is not None:
                try:
                    if con.in_transaction:
                        con.execute("ROLLBACK")
                except sqlite3.Error:
                    # A connection that cannot even roll back is of no use; the thread's next call makes a new one.
                    con.close()
                    del self._local.con

    def explain(self, error: sqlite3.Error | OSError) -> Exception:
        """Our error for SQLite's or the system's, with the file and the remedy."""
        noun, path = self.kind.noun, self.path
        folder = os.path.dirname(path)
        if isinstance(error, OSError):
            return self.kind.unavailable(f"the {noun} {path} cannot be opened: {error.strerror} ({error.filename})")
        code = getattr(error, "sqlite_errorcode", None)
        match None if code is None else code & 0xFF:
            case None if self._closed:
                return self.kind.unavailable(f"the {noun} {path} was closed: open it again")
            case sqlite3.SQLITE_FULL:
                self._checkpointer.soon()  # lets the write-ahead log begin again, which may be all the room it takes
                return self.kind.unavailable(f"the disk of the {noun} {path} is full: free some space in {folder}")
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return self.kind.unavailable(
                    f"the {noun} {path} was locked for more than {self._busy_timeout_s:g} s: "
                    "find who holds it (a backup? an sqlite3 shell?) with `fuser` and end that"
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return self.kind.unavailable(
                    f"the {noun} {path} cannot be opened for writing ({error}): "
                    f"the folder {folder} and the files in it must be writable for this user"
                )
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL:
                return self.kind.unavailable(
                    f"the {noun} {path} failed to read or write ({error}): look at the disk's free space and health"
                )
            case None | sqlite3.SQLITE_MISUSE | sqlite3.SQLITE_RANGE | sqlite3.SQLITE_TOOBIG:
                return AssertionError(f"wrong use of {path}: {error}")  # ours, not the world's
            case _:
                return self.damaged(str(error))

    def damaged(self, what: str) -> StreamingError:
        """The error for a file whose contents cannot be right."""
        return self.kind.corrupt(f"the {self.kind.noun} {self.path} is damaged ({what}): {self.kind.remedy}")

    def give_back(self) -> None:
        """Return free pages to the file system when they are more than half of the file (fewer are soon used again)."""
        try:
            con = self.connection()
            (free,) = con.execute("PRAGMA freelist_count").fetchone()
            (pages,) = con.execute("PRAGMA page_count").fetchone()
            surplus = min(free - pages // 2 - SLACK_PAGES, VACUUM_PAGES)
            for done in range(0, surplus, VACUUM_STEP_PAGES):
                step = min(VACUUM_STEP_PAGES, surplus - done)
                began = time.perf_counter()
                with self._turns.taken():  # executescript: execute would stop after the first page
                    con.executescript(f"PRAGMA incremental_vacuum({step})")
                self._checkpointer.wrote(step * PAGE_BYTES)
                let_others_in(time.perf_counter() - began)
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def size_bytes(self) -> int:
        """Bytes of the database and its write-ahead log."""
        size = 0
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(self.path + suffix).st_size
        return size

    def close(self) -> None:
        """End the checkpoint thread, close the connections of all threads."""
        self._checkpointer.stop()
        with self._lock:
            self._closed = True
            for con in list(self._connections):
                con.close()
        self._turns.close()


class _Checkpointer:
    """Copies the write-ahead log back after each CHECKPOINT_BYTES or so; its thread starts when first needed."""

    def __init__(self, file: SqliteFile, turns: Turns) -> None:
        self._file = weakref.proxy(file)
        self._turns = turns
        self._pending = 0
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def wrote(self, size: int) -> None:
        """Count what was written."""
        self._pending += size
        if self._pending >= CHECKPOINT_BYTES:
            self._pending = 0
            self.soon()

    def soon(self) -> None:
        """Ask for a checkpoint now."""
        with self._lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="sqlite-checkpoint", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """End the thread after the checkpoint it is in."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        con: _Connection | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                break
            # A checkpoint that fails (disk full, a reader that stays) loses nothing; the next one does its work.
            with contextlib.suppress(sqlite3.Error, StreamingError, ReferenceError):
                if con is None:
                    con = self._file.connect()
                    con.execute("PRAGMA busy_timeout=100")
                con.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                with self._turns.taken():
                    con.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        if con is not None:
            con.close()


def take_lock(path: str, kind: Kind, busy: str) -> int:
    """Take the flock beside the file at `path`; returns the descriptor that holds it (closing it lets go).

    The kernel lets go when the process ends, however it ends.
    """
    lock = f"{os.path.abspath(path)}.lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise kind.unavailable(
            f"the {kind.noun} {path} cannot be opened for writing: {error.strerror} ({lock}): "
            "the folder must exist and be writable for this user"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise kind.in_use(f"{lock}: {busy}") from error
    return descriptor
