"""The event log: what happened, in order, durable before it is acknowledged.

A log has `shards` data partitions, numbered from 0, and one control partition, `CONTROL` = -1. A partition is a
sequence of records; a record is opaque bytes (a frame of `streaming.events`) with an offset and the log's time.
Offsets rise within a partition. The memory and SQLite adapters number them densely from 0; a caller may rely only
on this: the next offset to read is the last one read, plus one.

Any number of processes read. SQLite has one that writes; to Kafka any number do, and order is the broker's. Adapters
may be used from several threads; open them after a fork, not before.

>>> log = open_log("memory:", shards=2, clock=lambda: 1_000)
>>> log.append([(0, b"decision"), (CONTROL, b"policy"), (0, b"reward")])
[(0, 1000), (0, 1000), (1, 1000)]
>>> log.read(0, 1)
[Record(offset=1, time_ms=1000, data=b'reward')]
>>> log.bounds(0)
(0, 2)
"""

import time
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import NamedTuple, Protocol

CONTROL = -1
"""The partition of control records."""

Clock = Callable[[], int]
"""Milliseconds since the epoch."""


def wall_clock() -> int:
    """The machine's clock, ms since the epoch."""
    return time.time_ns() // 1_000_000


class Record(NamedTuple):
    """One record of a partition."""

    offset: int
    time_ms: int
    """Log time: stamped inside the append, never less than the partition's former record's."""
    data: bytes


class EventLog(Protocol):
    """What the agent appends to and the learners read."""

    @property
    def id(self) -> str:
        """Drawn at random when the log is created. The store's manifest names it, so that a swapped log is seen."""

    @property
    def shards(self) -> int:
        """Number of data partitions, fixed when the log is created."""

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """Append records, given as (partition, data), durably: in memory and in SQLite all of them or none.

        Kafka takes each record by itself: after LogUnavailable some may be there, or still come. So whoever appends
        makes repeats harmless (numbered decisions, the reward contract, numbered control records).
        Returns (offset, time_ms) of each, in the order given. The time is the clock's, or the partition's latest
        where the clock has gone back. When this returns, the records survive kill -9 and loss of power.
        Raises LogUnavailable (SQLite: nothing is visible; after a *power loss* a record whose fsync failed may still
        turn up, as it may when the caller dies before it sees the answer), LogCorrupt, ValueError for a partition
        that is not there or a handle opened for reading.
        """

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """Up to `max_records` records from `offset` on, in order: one if there is any, more while within `max_bytes`.

        Empty at and beyond the end. Raises Trimmed when `offset` lies before the start, LogUnavailable, LogCorrupt.
        """

    def bounds(self, partition: int) -> tuple[int, int]:
        """(start, end): the offsets kept are start <= offset < end. About 10 us; a round trip where the log is away."""

    def ends(self) -> list[int]:
        """The end of each data partition, then that of the control partition, all asked for at once."""

    def trim(self, partition: int, before: int) -> None:
        """Forget the records before offset `before` (at most all there are); their space is reused, then given back.

        Allowed on a reading handle too: the learner trims, behind its newest durable snapshot. May stop half way on
        LogUnavailable, with every record before the new start gone and none after it.
        """

    def size_bytes(self) -> int:
        """Bytes the log takes on its medium now."""

    def close(self) -> None:
        """Release files and threads. The records stay."""


def open_log(
    url: str | PathLike[str], shards: int | None = None, clock: Clock = wall_clock, *, write: bool = False
) -> EventLog:
    """Open the log at `url`: a path of an SQLite file, `memory:` for a new one in memory, or `kafka://` hosts `/` name.

    `write=True` creates what is missing if `shards` is given: the file, or the topics; SQLite's writer's lock is taken.
    `shards=None` takes what the log has. Kafka's brokers stamp log time; `clock` is not asked. Raises LogInUse when
    another handle writes an SQLite log, LogUnavailable when there is nothing to read yet, LayoutMismatch when the log
    has another number of shards or its topics could lose records, LogCorrupt, ValueError for a bad URL.
    """
    where = fspath(url)
    if where.startswith("kafka://"):
        from streaming.log.kafka import KafkaLog

        return KafkaLog(where, shards, write=write)
    if where == "memory:":
        from streaming.log.memory import MemoryLog

        return MemoryLog(shards or 1, clock)
    from streaming.log.sqlite import SqliteLog

    return SqliteLog(where, shards, clock, write=write)
