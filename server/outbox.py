"""Decisions on their way from a worker to the agent: gathered for `flush_ms`, kept until the log has them.

    batch   for each shard: shard i32 | events u32 | bytes u32 | zero u32, then the events back to back
    parts   what is gathered: the same for each event by itself, in the order in which they came

The agent confirms each batch after its durable append. When the agent dies, what it has not confirmed is sent again to
its successor, in order; the learner knows by the shard sequence what it has had. The kept batches are bounded: beyond
that decisions are dropped, and counted here and, by the gap in their sequence, by the learner.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numba import njit

from bandits.raw import copy, get, put
from server.settings import SHARDS_MAX
from server.shared import Row

HEAD = struct.Struct("<iIII")
KEPT_BYTES_MAX = 64 << 20
PARTS_BYTES = 1 << 20
Batch = Sequence[tuple[int, int, bytes]]  # shard, number of events, their bytes


def pack(events: dict[int, list[bytes]]) -> bytes:
    """A batch of events by shard.

    >>> list(unpack(pack({3: [b"12345678", b"abcdefgh"], 0: [b"ABCDEFGH"]})))
    [(3, 2, b'12345678abcdefgh'), (0, 1, b'ABCDEFGH')]
    """
    parts = []
    for shard, each in events.items():
        joined = b"".join(each)
        parts.append(HEAD.pack(shard, len(each), len(joined), 0) + joined)
    return b"".join(parts)


def unpack(batch: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(shard, number of events, their bytes) of each part of a batch."""
    at = 0
    while at < len(batch):
        shard, count, size, _ = HEAD.unpack_from(batch, at)
        at += HEAD.size
        yield shard, count, batch[at : at + size]
        at += size


@njit(cache=True, nogil=True)
def _count(parts: int, n_bytes: int, sizes: Any) -> int:
    """sizes[shard] = bytes of its events in the parts at this address; the size of their batch."""
    at, whole = 0, n_bytes
    while at < n_bytes:
        shard, size = get(parts + at, np.int32), int(get(parts + at + 8, np.uint32))
        if sizes[shard]:
            whole -= 16
        sizes[shard] += size
        at += 16 + size
    return whole


@njit(cache=True, nogil=True)
def _by_shard(parts: int, n_bytes: int, sizes: Any, places: Any, batch: int) -> None:
    """The batch of these parts, shards ascending, at address `batch`."""
    to = batch
    for shard in range(sizes.shape[0]):
        if sizes[shard]:
            put(to, np.int32(shard))
            put(to + 4, np.uint32(0))
            put(to + 8, np.uint32(sizes[shard]))
            put(to + 12, np.uint32(0))
            places[shard] = to
            to += 16 + sizes[shard]
            sizes[shard] = 16  # from now on, where the next event goes
    at = 0
    while at < n_bytes:
        shard, size = get(parts + at, np.int32), int(get(parts + at + 8, np.uint32))
        place = places[shard]
        put(place + 4, np.uint32(get(place + 4, np.uint32) + np.uint32(1)))
        copy(place + sizes[shard], parts + at + 16, size)
        sizes[shard] += size
        at += 16 + size


class Outbox:
    """`send(number, batch)` hands a batch over, or returns False while nobody is there; `later(seconds, call)` is the
    loop's timer.

    Who writes parts by a kernel asks `is_full` first, puts them into `parts` u8 from fill[0] on, and calls `filled`;
    `fill` i64[2]: bytes in use, bytes there are.
    """

    def __init__(
        self,
        row: Row,
        flush_s: float,
        later: Callable[[float, Callable[[], None]], Any],
        kept_bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        self.send: Callable[[int, bytes], bool] = lambda _number, _batch: False
        self._row = row
        self._flush_s = flush_s
        self._later = later
        self._max = kept_bytes_max
        self.parts = np.empty(PARTS_BYTES, np.uint8)
        self.fill = np.array([0, PARTS_BYTES])
        self._armed = False
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._number = 0

    def __len__(self) -> int:
        """Batches that are not confirmed yet, the one being gathered included."""
        return len(self._kept) + bool(self.fill[0])

    @property
    def is_full(self) -> bool:
        """What comes now may be dropped."""
        return self._kept_bytes >= self._max

    def add(self, shard: int, event: bytes, counted: bool = True) -> None:
        """One event for a shard. Only `counted` ones (decisions) are missed when they have to be dropped."""
        part = HEAD.pack(shard, 1, len(event), 0) + event
        if self._kept_bytes + int(self.fill[0]) >= self._max:
            if counted:
                self._row.dropped(1)
            return
        if self.fill[0] + len(part) > len(self.parts):
            self.flush()
        at = int(self.fill[0])
        self.parts[at : at + len(part)] = np.frombuffer(part, np.uint8)
        self.fill[0] += len(part)
        self.filled()

    def filled(self) -> None:
        """Something has come: it is handed over soon."""
        if not self._armed:
            self._armed = True
            self._later(self._flush_s, self._flush_later)

    def _flush_later(self) -> None:
        self._armed = False
        self.flush()

    def gathered(self) -> bytes:
        """The batch of all that was gathered."""
        parts, n_bytes = self.parts.ctypes.data, int(self.fill[0])
        sizes, places = np.zeros((2, SHARDS_MAX), np.int64)
        batch = np.empty(_count(parts, n_bytes, sizes), np.uint8)
        _by_shard(parts, n_bytes, sizes, places, batch.ctypes.data)
        return batch.tobytes()

    def flush(self) -> None:
        """Hands over what has been gathered."""
        if not self.fill[0]:
            return
        batch = self.gathered()
        self.fill[0] = 0
        self._number += 1
        self._kept.append((self._number, batch))
        self._kept_bytes += len(batch)
        self.send(self._number, batch)

    def confirmed(self, number: int) -> None:
        """The log has every batch up to this one."""
        while self._kept and self._kept[0][0] <= number:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def resend(self) -> None:
        """Everything not confirmed, again: to an agent that has just come up."""
        for number, batch in list(self._kept):
            if not self.send(number, batch):
                return
