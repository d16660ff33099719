"""Decisions on their way from a worker to the agent: gathered for `flush_ms`, kept until the log has them.

    batch   for each shard: shard i32 | events u32 | bytes u32 | zero u32, then the events back to back

The agent confirms each batch after its durable append. When the agent dies, what it has not confirmed is sent again to
its successor, in order; the learner knows by the shard sequence what it has had. The kept batches are bounded: beyond
that decisions are dropped, and counted here and, by the gap in their sequence, by the learner.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from server.shared import Row

HEAD = struct.Struct("<iIII")
KEPT_BYTES_MAX = 64 << 20
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


class Outbox:
    """`send(number, batch)` hands a batch over, or returns False while nobody is there; `later(seconds, call)` is the
    loop's timer."""

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
        self._events: dict[int, list[bytes]] = {}
        self._bytes = 0
        self._armed = False
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._number = 0

    def __len__(self) -> int:
        """Batches that are not confirmed yet, the one being gathered included."""
        return len(self._kept) + bool(self._events)

    def add(self, shard: int, event: bytes, counted: bool = True) -> None:
        """One event for a shard. Only `counted` ones (decisions) are missed when they have to be dropped."""
        if self._kept_bytes + self._bytes >= self._max:
            if counted:
                self._row.dropped(1)
            return
        self._events.setdefault(shard, []).append(event)
        self._bytes += len(event)
        if not self._armed:
            self._armed = True
            self._later(self._flush_s, self.flush)

    def flush(self) -> None:
        """Hands over what has been gathered."""
        self._armed = False
        if not self._events:
            return
        batch = pack(self._events)
        self._events, self._bytes = {}, 0
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
