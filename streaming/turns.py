"""Turns among the threads and processes that write one SQLite file."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator


class Turns:
    """Fairness among writers, which SQLite's lock does not have: it lets a busy writer keep all others out.

    Whoever is eager (a trim, the restart of the write-ahead log) says so, and the others wait until it had its turn:
    in this process at a gate, in another by the flock of a file. A stopped process is waited for no longer than
    PATIENCE_S, so this is courtesy; what is exclusive is SQLite's own lock.
    """

    PATIENCE_S = 0.25

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._gate = threading.Event()
        self._gate.set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The turn of one that is not eager."""
        self._gate.wait(self.PATIENCE_S)
        if self._flock(fcntl.LOCK_SH):
            self._flock(fcntl.LOCK_UN)
        with self._lock:
            yield

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """The turn of an eager one."""
        self._gate.clear()
        try:
            with self._lock:
                self._flock(fcntl.LOCK_EX)
                yield
        finally:
            self._flock(fcntl.LOCK_UN)
            self._gate.set()

    def _flock(self, operation: int) -> bool:
        deadline = time.monotonic() + self.PATIENCE_S
        while True:
            try:
                if self._descriptor is None:
                    self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                fcntl.flock(self._descriptor, operation | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
            except OSError:
                return False  # read-only or full: SQLite says so better, in the transaction that follows
            time.sleep(0.0005)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def let_others_in(took_s: float) -> None:
    """Sleep as long as the last transaction took, 2 ms at least, before the next of a series.

    SQLite lets waiting processes try again after 1, 2, 5, ... ms, in no order: one transaction right after the other
    would keep an appending process out until the last.
    """
    time.sleep(max(0.002, took_s))
