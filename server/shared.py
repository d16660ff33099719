"""The files that one host's processes share: the host file of counters, and the replica's files of arrays.

All lie in the run folder (/dev/shm/croupier-ID, see `RunFolder`). Each region has one writer.

    host            64-bit words, little-endian
      header        0 magic          1 layout            2 number of worker rows
        agent       3 catalog generation   4 heartbeat, ms   5 pid
                    6 log, 7 store: 0 not tried yet, 1 there, 2 away
                    8 log time of the oldest thing not learned yet, ms; 0: all is learned
        supervisor  9 draining      10, 11, 12 restarts of workers, agent, learner
                   40 1: learners run elsewhere
        agent      41 tables, the catalog among them, that have no room here
        learner    13 pid          14 heartbeat, ms
                   42 what it has done, see LEARNED; where learners run elsewhere all 0
        agent      16 acknowledgement to visible: a count per bucket of VISIBLE_S and one beyond, then the sum, us
      row of worker i, at HEADER + i * ROW
                    0 pid            1 heartbeat, ms     2 catalog generation in use
                    3 decisions dropped because the agent was away too long    4 connected to the agent, 0 or 1
                    5 requests answered by the hot path
                    8 refused rewards, one word per reason of REASONS
                   16 requests: for each of ROUTES and OUTCOMES a count per bucket of LATENCY_S and one beyond,
                      then the sum, us
                    then decisions: POLICIES entries of (policy number, explore, exploit, thompson); entry 0 is for
                      policies that are gone or found no entry

    catalog-G       MessagePack of `server.catalog.Catalog`, written whole before the generation becomes G
    in-use          locked (shared) while a process of the server is alive
    NUMBER-G        arrays of one policy, each at a multiple of 64; the catalog says which and where

A row outlives its process: the worker that follows goes on counting in it, so sums never fall. Words are written by
one aligned store each; a reader sees the old or the new one.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streaming.counts import COMMIT_S, Counts

MAGIC = int.from_bytes(b"CRPRHOST", "little")
LAYOUT = 1
(
    _MAGIC, _LAYOUT, _ROWS, GENERATION, AGENT_BEAT, AGENT_PID, LOG, STORE, BEHIND_SINCE, DRAINING,
    WORKER_RESTARTS, AGENT_RESTARTS, LEARNER_RESTARTS, LEARNER_PID, LEARNER_BEAT, LOG_TIME,
) = range(16)  # fmt: skip
UNTRIED, THERE, AWAY = range(3)
APART, NO_ROOM, LEARNED = 40, 41, 42
COUNTED = ("records", "events", "refused", "loads", "folds", "snapshots", "stopped")
"""The words from LEARNED on; then a count per bucket of `streaming.counts.COMMIT_S`, one beyond, and the sum, us."""
VISIBLE = 16
VISIBLE_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HEADER = 64

PID, BEAT, SEEN, DROPPED, LINKED, HOT = range(6)
REFUSALS = 8
REASONS = ("bad-token", "unknown-policy", "unknown-item", "out-of-range", "missing-event-id", "invalid")
REQUESTS = 16
ROUTES = (
    "unknown",
    "/v1/recommend",
    "/v1/recommend/batch",
    "/v1/feedback",
    "/v1/policies",
    "/v1/policies/{name}",
    "/v1/policies/{name}/items/{id}",
    "/v1/policies/{name}/graph",
    "/v1/policies/{name}/arms",
    "/v1/policies/{name}/restore",
    "/v1/snapshots",
    "/v1/snapshots/{label}",
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/",
    "/static/{name}",
    "/v1/live",
)
OUTCOMES = ("2xx", "4xx", "5xx")
LATENCY_S = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
SPAN = len(LATENCY_S) + 2  # words of one latency histogram
DECISIONS = REQUESTS + len(ROUTES) * len(OUTCOMES) * SPAN
POLICIES = 256
ROW = (DECISIONS + 4 * POLICIES + 7) // 8 * 8
assert VISIBLE + len(VISIBLE_S) + 2 <= APART < LEARNED + len(COUNTED) + len(COMMIT_S) + 2 <= HEADER

_ROUTE = {name: place for place, name in enumerate(ROUTES)}
_OUTCOME = {name: place for place, name in enumerate(OUTCOMES)}
_REASON = {name: place for place, name in enumerate(REASONS)}
SILENT_MS = 3_000
"""Without a sign of life for so long, a process is said to be away."""
MEMORY_MIN = 8 << 20  # with less of it free, the run folder is on disk altogether
_ALIGN = 64
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_CLAIM = "in-use"


class NoRoom(Exception):
    """Neither place for shared files has room for one more; the sentence says how large it is."""


class ArraySpec(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class RunFolder:
    """Where shared files go: `first`, a folder in memory where there is one, and `second` on disk when it is full."""

    def __init__(self, first: Path, second: Path) -> None:
        self.first, self.second = first, second
        self._claim: int | None = None
        first.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def disk(self) -> Path:
        """A folder that is there, on the disk of the second place."""
        return next(path for path in (self.second, *self.second.absolute().parents) if path.is_dir())

    @property
    def socket(self) -> Path:
        return self.first / "agent.sock"

    @property
    def host(self) -> Path:
        return self.first / "host"

    def used_bytes(self) -> int:
        """Size of the files in both places."""
        files = [path for folder in {self.first, self.second} if folder.is_dir() for path in folder.iterdir()]
        return sum(path.stat().st_size for path in files if path.is_file())

    def claim(self) -> None:
        """Says that this folder is in use for as long as this process, or a child forked from it, is alive."""
        while self._claim is None:
            self.first.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):  # another server is just removing what was left here
                claim = os.open(self.first / _CLAIM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(claim, fcntl.LOCK_SH)
                if os.fstat(claim).st_nlink:
                    self._claim = claim
                else:
                    os.close(claim)

    def create(self, name: str, size: int) -> tuple[Path, mmap.mmap]:
        """A new file of `size` bytes, all of them really there, mapped for writing. Raises NoRoom."""
        for folder in (self.first, self.second):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                return _create(folder / name, size)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
        raise NoRoom(f"{size / 1e6:,.1f} MB fit neither into {self.first} nor into {self.second}: make room in one")

    def free_bytes(self) -> int:
        """How large a file can be that is made now."""
        found = []
        for folder in (self.first, self.second):
            there = next(each for each in (folder, *folder.parents) if each.exists())
            state = os.statvfs(there)
            found.append(state.f_bavail * state.f_frsize)
        return max(found)

    def write(self, name: str, data: bytes) -> Path:
        """A whole file at once: it has its name only when it is complete."""
        path, mapped = self.create(f".new-{name}", len(data))
        mapped[:] = data
        mapped.close()
        return path.rename(path.with_name(name))

    def find(self, name: str) -> Path:
        """Where a file is that `write` has made."""
        path = self.first / name
        return path if path.exists() else self.second / name

    def sweep(self, keep: Iterable[Path]) -> None:
        """Unlinks the replica's files not in `keep`. Who has one mapped keeps reading it; who comes late to open one
        finds a newer catalog."""
        kept = {*keep, self.host, self.socket, self.first / _CLAIM}
        for folder in (self.first, self.second):
            if folder.is_dir():
                for path in folder.iterdir():
                    if path not in kept:
                        with contextlib.suppress(OSError):
                            path.unlink()

    def remove(self) -> None:
        """Removes the folders and all files in them, when the last process of this host ends."""
        for folder in (self.first, self.second):
            _remove(folder)
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()


def remove_dead(memory: Path, prefix: str = "croupier-") -> list[Path]:
    """Removes the run folders whose servers were killed and never started again: they would fill the memory."""
    removed = []
    for folder in memory.glob(prefix + "*"):
        try:
            claim = os.open(folder / _CLAIM, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # none of ours, or one that is just being made
            continue
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
            removed.append(folder)
        except OSError:
            pass  # it is in use
        finally:
            os.close(claim)
    return removed


def run_folder(data: Path, store_id: str, chosen: Path | None = None) -> RunFolder:
    """The run folder of a data folder: `chosen`, else in /dev/shm, else in the data folder."""
    disk = data / "run"
    if chosen is not None:
        return RunFolder(chosen, disk)
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return RunFolder(disk, disk)
    remove_dead(memory)
    free = os.statvfs(memory)
    roomy = free.f_bavail * free.f_frsize >= MEMORY_MIN
    return RunFolder(memory / f"croupier-{store_id}" if roomy else disk, disk)


def _create(path: Path, size: int) -> tuple[Path, mmap.mmap]:
    path.unlink(missing_ok=True)  # and never cut short: a worker that has it mapped would die of the missing pages
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
        return path, mmap.mmap(handle, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(handle)


def lay_out(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[dict[str, ArraySpec], int]:
    """Places arrays of (dtype, shape) in one file; returns where each lies, and the file's size.

    >>> lay_out({"a": ("<f4", (3, 2)), "b": ("<u1", (5,))})[1]
    128
    """
    specs, at = {}, 0
    for name, (dtype, shape) in arrays.items():
        specs[name] = ArraySpec(dtype, shape, at)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        at += -(-size // _ALIGN) * _ALIGN
    return specs, max(at, _ALIGN)


def arrays_in(mapped: mmap.mmap, specs: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
    """The arrays of a mapped file, without copying; they keep the mapping alive."""
    return {
        name: np.frombuffer(mapped, spec.dtype, int(np.prod(spec.shape, dtype=np.int64)), spec.offset).reshape(
            spec.shape
        )
        for name, spec in specs.items()
    }


def map_file(path: str) -> mmap.mmap:
    """A shared file mapped for reading; FileNotFoundError where a newer catalog has replaced it."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(handle, 0, prot=mmap.PROT_READ)
    finally:
        os.close(handle)


class HostFile:
    """The host file: header words, and the rows of the workers.

    >>> import tempfile
    >>> host = HostFile.create(RunFolder(Path(tempfile.mkdtemp()), Path("unused")), workers=2)
    >>> row = host.row(1)
    >>> row.request("/v1/feedback", 202, 0.0004)
    >>> row.request("/of/no/route", 404, 7.0)
    >>> [host.rows, sum(row.latency("/v1/feedback", "2xx")[:-1]), sum(row.latency("unknown", "4xx")[:-1])]
    [2, 1, 1]
    """

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.words = memoryview(mmap.mmap(handle, 0)).cast("B").cast("Q")
        finally:
            os.close(handle)
        assert self.words[_MAGIC] == MAGIC
        assert self.words[_LAYOUT] == LAYOUT
        self.rows = self.words[_ROWS]

    @classmethod
    def create(cls, folder: RunFolder, workers: int, apart: bool = False) -> "HostFile":
        """A new host file, all counters 0. `apart`: learners run elsewhere. Raises NoRoom."""
        handle = os.open(folder.host, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, 8 * (HEADER + workers * ROW))
            os.pwrite(handle, b"".join(n.to_bytes(8, "little") for n in (MAGIC, LAYOUT, workers)), 0)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise NoRoom(f"{folder.first} is full: make room there, or choose another folder with --run-dir") from None
        finally:
            os.close(handle)
        host = cls(folder.host)
        host[APART] = int(apart)
        return host

    def __getitem__(self, place: int) -> int:
        return self.words[place]

    def __setitem__(self, place: int, value: int) -> None:
        self.words[place] = value

    def add(self, place: int, amount: int = 1) -> None:
        self.words[place] += amount

    def row(self, worker: int) -> "Row":
        start = HEADER + worker * ROW
        return Row(self.words[start : start + ROW])

    def live_rows(self, now_ms: int) -> list["Row"]:
        """Rows of the workers that are alive."""
        rows = [self.row(worker) for worker in range(self.rows)]
        return [row for row in rows if row[PID] and now_ms - row[BEAT] < SILENT_MS]

    def parts(self, now_ms: int) -> dict[str, bool]:
        """Whether log, store, agent, and the learner where it is this host's own, are there. The agent asks."""
        parts = {"log": self[LOG] != AWAY, "store": self[STORE] != AWAY, "agent": True}
        if not self[APART]:
            parts["learner"] = now_ms - self[LEARNER_BEAT] < SILENT_MS
        return parts

    def visible(self, seconds: float, count: int = 1) -> None:
        """Counts commits that became visible this long after the acknowledgement of their oldest record."""
        self.words[VISIBLE + bisect_left(VISIBLE_S, seconds)] += count
        self.words[VISIBLE + len(VISIBLE_S) + 1] += round(seconds * 1e6) * count

    def learned(self, counts: Counts, stopped: int) -> None:
        """Notes what the host's own learner has done."""
        words = [
            *(getattr(counts, name) for name in COUNTED[:-1]),
            stopped,
            *counts.commits,
            round(counts.commit_s * 1e6),
        ]
        for place, word in enumerate(words, LEARNED):
            self.words[place] = word

    def learned_counts(self) -> tuple[Counts, int]:
        """(what the host's own learner has done, how many shards it cannot learn)."""
        words = list(self.words[LEARNED : LEARNED + len(COUNTED) + len(COMMIT_S) + 2])
        *named, stopped = words[: len(COUNTED)]
        commits, commit_us = words[len(COUNTED) : -1], words[-1]
        return Counts(**dict(zip(COUNTED, named, strict=False)), commits=commits, commit_s=commit_us / 1e6), stopped

    def visible_counts(self) -> list[int]:
        """A count per bucket of VISIBLE_S, one beyond, then the sum in us."""
        return list(self.words[VISIBLE : VISIBLE + len(VISIBLE_S) + 2])


class Row:
    """The counters of one worker; only that worker writes them."""

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self._entry: dict[int, int] = {}

    def __getitem__(self, place: int) -> int:
        return int(self.words[place])

    def __setitem__(self, place: int, value: int) -> None:
        self.words[place] = value

    def request(self, route: str, status: int, seconds: float) -> None:
        """One answered request, by its route's template and HTTP status."""
        outcome = 0 if status < 400 else 1 if status < 500 else 2
        at = REQUESTS + (_ROUTE.get(route, 0) * len(OUTCOMES) + outcome) * SPAN
        self.words[at + bisect_left(LATENCY_S, seconds)] += 1
        self.words[at + SPAN - 1] += int(seconds * 1e6)

    def hot(self) -> None:
        """One request answered by the hot path."""
        self.words[HOT] += 1

    def latency(self, route: str, outcome: str) -> list[int]:
        """Counts per bucket of LATENCY_S, one beyond, then the sum in us."""
        at = REQUESTS + (_ROUTE[route] * len(OUTCOMES) + _OUTCOME[outcome]) * SPAN
        return list(self.words[at : at + SPAN])

    def refusal(self, reason: str) -> None:
        self.words[REFUSALS + _REASON[reason]] += 1

    def refusals(self) -> list[int]:
        """A count for each of REASONS."""
        return list(self.words[REFUSALS : REFUSALS + len(REASONS)])

    def dropped(self, count: int) -> None:
        self.words[DROPPED] += count

    def decided(self, policy: int, mode: int) -> None:
        """One decision of a policy, by its number, in that mode."""
        self.words[self._entry.get(policy, DECISIONS) + 1 + mode] += 1

    def counted(self, policy: int) -> NDArray[np.uint64]:
        """The counts of a policy's decisions by mode, u64[3], until `keep_policies` is called again."""
        at = self._entry.get(policy, DECISIONS) + 1
        return np.frombuffer(self.words[at : at + 3], np.uint64)

    def keep_policies(self, numbers: Iterable[int]) -> None:
        """Gives each policy an entry; what those that are gone have counted moves to entry 0."""
        wanted = set(numbers)
        self._entry, free = {}, []
        for at in range(DECISIONS + 4, DECISIONS + 4 * POLICIES, 4):
            number = self.words[at]
            if number in wanted:
                self._entry[number] = at
                continue
            for mode in (1, 2, 3):
                self.words[DECISIONS + mode] += self.words[at + mode]
                self.words[at + mode] = 0
            self.words[at] = 0
            free.append(at)
        for number, at in zip(sorted(wanted - self._entry.keys()), free, strict=False):
            self.words[at] = number
            self._entry[number] = at

    def decisions(self) -> dict[int, list[int]]:
        """Policy number -> count per mode; 0 stands for policies that are gone."""
        words = list(self.words[DECISIONS : DECISIONS + 4 * POLICIES])
        return {words[at]: words[at + 1 : at + 4] for at in range(0, 4 * POLICIES, 4) if at == 0 or words[at]}
