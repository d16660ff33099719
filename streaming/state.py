"""A shard's whole state as named tables, and the delta that one commit carries.

A table is a growable array of fixed rows; the learner writes rows, says which, and the delta holds their absolute
values: applied twice, it changes nothing. Replicas and a restarting learner apply the same bytes.

    table                 rows
    control               uint8: the control state as MessagePack (`streaming.control`)
    edges/{policy}        float64 (b, d), the shard's edges item by item (`bandits.graph.by_item`)
    items/{policy}        float64 (plays, sum of rewards) by item index
    bank_keys/{policy}    uint64 bank key; row 0 is the shared bank's, key 0
    bank_names/{policy}   64 bytes of UTF-8
    banks/{policy}        float64, the bank's state vector (`bandits.arms`)
    outcomes/{policy}     int64, one column per outcome (`streaming.contract`); policy 0 = what exists no longer
    shown/{policy}        float64 (items shown, answered, sum of their rewards), one row per mode (`streaming.contract`)
    delays/{policy}       int64, first answers by their delay: buckets of DELAY_S, one beyond, the sum in ms
    answered/{minute}     uint64 (decision, key, bits of the aggregate): answers that expire in that minute
    streams               int64 (stream, last shard sequence, log time of it)
    log_time              int64, ms: the latest of any record so far, since a log's clock may step back
    dead_letters          int64 (offset, index in the record), the last 1,000 in a ring

    delta   4     length of the header (uint32), then the header: MessagePack list of operations
            then, at multiples of 8, each operation's arrays: indices (uint32) and rows

An operation is (name, dtype, columns, rows in the table after it, first row or -1 where indices follow, rows written);
a dropped table has dtype "". A base image is cut into parts `name#chunk` of CHUNK rows, each one such operation.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]
Change = Callable[[str, NDArray[np.int64] | None], None]
LAYOUT = 1
"""Version of what this module draws, deltas and parts; the store's manifest names it."""
CHUNK = 32_000  # so that a part of 16-byte rows, its header included, fits an allocation of 512 KiB
_LENGTH = struct.Struct("<I")
_SMALL = 0.5  # where more than this share of a table is written, the whole table is cheaper than indices


class Op(msgspec.Struct, frozen=True, array_like=True):
    """One operation of a delta: rows written to a table, or the table dropped (dtype "")."""

    name: str
    dtype: str
    columns: int
    size: int
    start: int
    count: int


class Table:
    """Rows that grow: `rows` is the view of those in use, (n, columns)."""

    def __init__(self, dtype: str, columns: int, size: int = 0) -> None:
        self.data: Rows = np.zeros((size, columns), dtype)
        self.size = size

    @property
    def rows(self) -> Rows:
        return self.data[: self.size]

    def resize(self, size: int) -> None:
        if size > len(self.data):
            grown = np.zeros((max(size, 2 * len(self.data)), self.data.shape[1]), self.data.dtype)
            grown[: self.size] = self.rows
            self.data = grown
        elif size < self.size:
            self.data[size : self.size] = 0
        self.size = size


def _padded(array: Rows) -> bytes:
    raw = np.ascontiguousarray(array).tobytes()
    return raw + b"\0" * (-len(raw) % 8)


def encode(ops: list[tuple[Op, NDArray[np.uint32] | None, Rows | None]]) -> bytes:
    """The bytes of a delta."""
    head = msgspec.msgpack.encode([op for op, _, _ in ops])
    parts = [_LENGTH.pack(len(head)), head, b"\0" * (-(len(head) + 4) % 8)]
    for _, index, rows in ops:
        if index is not None:
            parts.append(_padded(index))
        if rows is not None:
            parts.append(_padded(rows))
    return b"".join(parts)


def decode(delta: bytes) -> Iterator[tuple[Op, NDArray[np.uint32] | None, Rows]]:
    """The operations of a delta with their indices (None: consecutive from `start`) and rows, without copying."""
    (length,) = _LENGTH.unpack_from(delta)
    at = -(-(4 + length) // 8) * 8
    for op in msgspec.msgpack.decode(delta[4 : 4 + length], type=list[Op]):
        index = None
        if op.start < 0:
            index = np.frombuffer(delta, np.uint32, op.count, at)
            at += -(-op.count * 4 // 8) * 8
        dtype = np.dtype(op.dtype or "u1")
        rows: Rows = np.frombuffer(delta, dtype, op.count * op.columns, at).reshape(op.count, op.columns)
        at += -(-rows.nbytes // 8) * 8
        yield op, index, rows


class State:
    """The tables of one shard, and what changed in them since the last delta and since the last fold.

    >>> state = State()
    >>> state.write("edges/3", np.array([[0.5, 2.0], [0.0, 0.0]]))
    >>> other = State()
    >>> other.apply(state.take_delta())
    ['edges/3']
    >>> other["edges/3"].tolist()
    [[0.5, 2.0], [0.0, 0.0]]
    """

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self._dirty: dict[str, list[NDArray[np.int64]] | None] = {}  # None: the whole table
        self._dropped: list[str] = []
        self._chunks: set[tuple[str, int]] = set()
        self._gone: set[str] = set()

    def __getitem__(self, name: str) -> Rows:
        return self.tables[name].rows

    def __contains__(self, name: str) -> bool:
        return name in self.tables

    def write(self, name: str, rows: Rows) -> None:
        """The whole table anew; rows (n,) count as one column."""
        rows = rows.reshape(-1, 1) if rows.ndim == 1 else rows
        self.drop(name)
        table = Table(rows.dtype.str, rows.shape[1], len(rows))
        table.data[:] = rows
        self.tables[name] = table
        self._dirty[name] = None
        self._mark_all(name)

    def append(self, name: str, rows: Rows) -> int:
        """Adds rows (2-D) at the end, making the table where there is none; returns the first new row's number."""
        if name not in self.tables:
            self.write(name, rows)
            return 0
        table = self.tables[name]
        start = table.size
        table.resize(start + len(rows))
        table.data[start : table.size] = rows
        self.changed(name, np.arange(start, table.size))
        return start

    def put(self, name: str, index: NDArray[np.int64], rows: Rows) -> None:
        """Writes rows at `index`, growing the table to hold the greatest."""
        table = self.tables[name]
        table.resize(max(table.size, int(index.max()) + 1 if len(index) else 0))
        table.rows[index] = rows
        self.changed(name, index)

    def changed(self, name: str, index: NDArray[np.int64]) -> None:
        """Says that these rows were written in place."""
        if len(index) == 0:
            return
        pending = self._dirty.setdefault(name, [])
        if pending is not None:
            pending.append(np.asarray(index, np.int64))
        self._mark(name, index)

    def drop(self, name: str) -> None:
        """Removes a table; nothing where there is none."""
        table = self.tables.pop(name, None)
        if table is None:
            return
        self._dirty.pop(name, None)
        self._dropped.append(name)
        self._chunks = {(table_name, chunk) for table_name, chunk in self._chunks if table_name != name}
        self._gone.update(part_name(name, chunk) for chunk in range(_chunks_of(table.size)))

    def _mark(self, name: str, index: NDArray[np.int64]) -> None:
        first, last = int(index.min()) // CHUNK, int(index.max()) // CHUNK
        touched = (first,) if first == last else distinct(index // CHUNK).tolist()
        self._chunks.update((name, chunk) for chunk in touched)

    def _mark_all(self, name: str) -> None:
        self._chunks.update((name, chunk) for chunk in range(_chunks_of(self.tables[name].size)))

    def take_delta(self) -> bytes:
        """The changes since the last call, as bytes."""
        ops: list[tuple[Op, NDArray[np.uint32] | None, Rows | None]] = [
            (Op(name, "", 0, 0, 0, 0), None, None) for name in self._dropped
        ]
        for name, pending in self._dirty.items():
            table = self.tables[name]
            columns, dtype = table.data.shape[1], table.data.dtype.str
            index = None if pending is None else distinct(np.concatenate(pending))
            if index is None or len(index) > _SMALL * table.size:
                ops.append((Op(name, dtype, columns, table.size, 0, table.size), None, table.rows))
            elif len(index) == int(index[-1]) - int(index[0]) + 1:
                start = int(index[0])
                ops.append((Op(name, dtype, columns, table.size, start, len(index)), None, table.rows[index]))
            else:
                op = Op(name, dtype, columns, table.size, -1, len(index))
                ops.append((op, index.astype(np.uint32), table.rows[index]))
        self._dirty, self._dropped = {}, []
        return encode(ops)

    def apply(self, delta: bytes, on_change: Change | None = None) -> list[str]:
        """Applies a delta or a part of a base image; returns the names of the tables it touched.

        `on_change(name, index or None for the whole table)` is told of each operation after it was applied.
        """
        names = []
        for op, index, rows in decode(delta):
            names.append(op.name)
            table = self.tables.get(op.name)
            if op.dtype == "":
                if table is not None:
                    self._gone.update(part_name(op.name, chunk) for chunk in range(_chunks_of(table.size)))
                    self._chunks = {(name, chunk) for name, chunk in self._chunks if name != op.name}
                    del self.tables[op.name]
            else:
                if table is None or table.data.dtype.str != op.dtype or table.data.shape[1] != op.columns:
                    table = self.tables[op.name] = Table(op.dtype, op.columns)
                table.resize(op.size)
                at = np.arange(op.start, op.start + op.count) if index is None else index.astype(np.int64)
                table.rows[at] = rows
                if op.count == op.size:
                    self._mark_all(op.name)
                elif op.count:
                    self._mark(op.name, at)
            if on_change is not None:
                whole = op.dtype == "" or op.count == op.size
                on_change(op.name, None if whole else at)
        return names

    def take_parts(self) -> tuple[dict[str, bytes], set[str]]:
        """The parts of the base image that changed since the last call, and those that are no more."""
        parts = {part_name(name, chunk): self.part(name, chunk) for name, chunk in sorted(self._chunks)}
        gone = self._gone - parts.keys()
        self._chunks, self._gone = set(), set()
        return parts, gone

    def part(self, name: str, chunk: int) -> bytes:
        """One chunk of a table as the bytes of a delta."""
        table = self.tables[name]
        rows = table.rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        op = Op(name, table.data.dtype.str, table.data.shape[1], table.size, chunk * CHUNK, len(rows))
        return encode([(op, None, rows)])

    def load(self, parts: Iterable[bytes], deltas: Iterable[bytes]) -> None:
        """Makes the state from a base image and the deltas after it; only these count as changed since the fold."""
        ordered = sorted(parts, key=lambda part: next(decode(part))[0].size)
        for part in ordered:
            self.apply(part)
        self._chunks, self._gone = set(), set()
        for delta in deltas:
            self.apply(delta)

    def equal(self, other: "State") -> list[str]:
        """The names of the tables that differ in any bit; empty where the states are the same."""
        names = self.tables.keys() | other.tables.keys()
        return sorted(name for name in names if not self._same(other, name))

    def _same(self, other: "State", name: str) -> bool:
        if name not in self.tables or name not in other.tables:
            return False
        mine, theirs = self[name], other[name]
        return mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers that there are, ascending: numpy's `unique`, which hashes, takes several times as long.

    >>> distinct(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ordered = np.sort(numbers)
    new = np.empty(len(ordered), np.bool_)
    new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def part_name(name: str, chunk: int) -> str:
    """The name of a part of the base image."""
    return f"{name}#{chunk}"


def _chunks_of(size: int) -> int:
    return max(1, -(-size // CHUNK))
