"""The event log in memory: the model the other adapters are tested against, and the medium of simulations.

The object plays the disk: it outlives the learners and agents that use it, so a simulated crash is to drop those and
keep this.
"""

import os
import threading
from collections.abc import Sequence

from streaming.errors import Trimmed
from streaming.log import CONTROL, Clock, Record, wall_clock


class MemoryLog:
    """An `EventLog` in lists. `id` may be given so that a simulation is the same every time.

    >>> MemoryLog(1, clock=lambda: 5, id="a").append([(0, b"x")])
    [(0, 5)]
    """

    def __init__(self, shards: int, clock: Clock = wall_clock, id: str | None = None) -> None:
        if shards < 1:
            raise ValueError(f"shards is {shards}: a log has at least one shard")
        self.id = id or os.urandom(16).hex()
        self.shards = shards
        self._clock = clock
        self._lock = threading.Lock()
        self._start = dict.fromkeys(range(CONTROL, shards), 0)
        self._records: dict[int, list[Record]] = {p: [] for p in range(CONTROL, shards)}
        self._time_ms = dict.fromkeys(range(CONTROL, shards), 0)

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """See `EventLog.append`."""
        for partition, _ in batches:
            self._check(partition)
        placed = []
        with self._lock:
            now_ms = self._clock()
            for partition, data in batches:
                records = self._records[partition]
                self._time_ms[partition] = max(self._time_ms[partition], now_ms)
                record = Record(self._start[partition] + len(records), self._time_ms[partition], bytes(data))
                records.append(record)
                placed.append((record.offset, record.time_ms))
        return placed

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """See `EventLog.read`."""
        self._check(partition)
        with self._lock:
            start = self._start[partition]
            if offset < start:
                raise Trimmed(partition, offset, start)
            found = self._records[partition][offset - start : offset - start + max_records]
        size = 0
        for count, record in enumerate(found):
            size += len(record.data)
            if count and size > max_bytes:
                return found[:count]
        return found

    def bounds(self, partition: int) -> tuple[int, int]:
        """See `EventLog.bounds`."""
        self._check(partition)
        with self._lock:
            return self._start[partition], self._start[partition] + len(self._records[partition])

    def ends(self) -> list[int]:
        """See `EventLog.ends`."""
        return [self.bounds(partition)[1] for partition in (*range(self.shards), CONTROL)]

    def trim(self, partition: int, before: int) -> None:
        """See `EventLog.trim`."""
        self._check(partition)
        with self._lock:
            gone = min(before - self._start[partition], len(self._records[partition]))
            if gone > 0:
                del self._records[partition][:gone]
                self._start[partition] += gone

    def size_bytes(self) -> int:
        """See `EventLog.size_bytes`."""
        with self._lock:
            return sum(len(record.data) for records in self._records.values() for record in records)

    def close(self) -> None:
        """Nothing to release: the medium outlives its users."""

    def _check(self, partition: int) -> None:
        if partition not in self._start:
            raise ValueError(f"partition {partition}: the log has 0..{self.shards - 1} and {CONTROL} (control)")
