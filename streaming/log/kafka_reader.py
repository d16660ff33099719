"""Reading a log in Kafka: one consumer that reads ahead, a buffer of records for each partition that is followed.

    wire       consumer (its own thread; a fetch is always under way)     caller's thread
    fetch  ->  responses, unparsed                          poll(0)  ->  ahead[partition] -> read()

A learner asks every partition it has for records every 2 ms. So a call makes no round trip: when a fetch has been
answered somebody's call empties the consumer into the buffers and sends the next fetch; all others look at their
buffer. While a partition's buffer is full its fetching is paused, so memory is bounded; a partition that nobody has
read for a while is let go.

Where a call must know more, it asks: on a jump (an offset that does not follow the last read) for the partition's
bounds, and once a second when nothing comes, so that brokers that are away are not taken for a log without news.
An empty answer is the end: it is given only where the offset has reached the largest end that this handle has seen,
be it by `append`, `bounds`, `ends` or a fetch.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from streaming.errors import LogCorrupt, LogUnavailable, Trimmed
from streaming.log import CONTROL, Record
from streaming.log.kafka_topics import check_same_log
from streaming.log.kafka_url import TIMEOUT_S, KafkaUrl, asking, kafka_consumer

AHEAD_BYTES = 16 << 20
"""A partition whose buffer holds more is paused."""
AHEAD_TOTAL_BYTES = 128 << 20
"""With many partitions each may hold less, but 1 MiB at least."""
FETCH_BYTES = 4 << 20
"""Asked for at once from a partition."""
POLL_S = 0.05
"""A poll without a reason costs as much as a hundred looks at the buffers, so it is made this seldom."""
QUIET_S = 1.0
"""After this long without a record the brokers are asked whether they are there."""
AWAY_S = 0.5
"""After a failed call the next ones fail at once for this long."""
UNREAD_S = 10.0
"""A partition that was not read for this long is no longer read ahead."""
_ALL = 1 << 30


class _Ahead:
    """What was read ahead of one partition. `head` is the offset that the next read should ask for."""

    __slots__ = ("bytes", "head", "paused", "read_at", "records", "tp")

    def __init__(self, tp: Any, head: int) -> None:
        self.tp = tp
        self.head = head
        self.records: deque[Record] = deque()
        self.bytes = 0
        self.paused = False
        self.read_at = time.monotonic()


class KafkaReader:
    """Reads the log of `shards` data partitions at `at`. Thread-safe. The consumer is made at the first call."""

    def __init__(self, at: KafkaUrl, shards: int, id: str) -> None:
        from kafka import TopicPartition

        self._at = at
        self._id = id
        self._partitions = {p: TopicPartition(at.events, p) for p in range(shards)}
        self._partitions[CONTROL] = TopicPartition(at.control, 0)
        self._numbers = {tp: partition for partition, tp in self._partitions.items()}
        self._lock = threading.RLock()
        self._ends_lock = threading.Lock()  # an append must not wait for a read
        self._consumer: Any = None
        self._ahead: dict[int, _Ahead] = {}
        self._ends: dict[int, int] = {}
        self._polled_at = 0.0
        self._fetches: tuple[Any, ...] = ()
        self._heard_at = 0.0
        self._away: tuple[float, LogUnavailable] | None = None

    def read(self, partition: int, offset: int, max_records: int, max_bytes: int) -> list[Record]:
        """See `EventLog.read`."""
        with self._lock:
            ahead = self._ahead.get(partition)
            if ahead is None or ahead.head != offset:
                ahead = self._jump(partition, offset)
                if ahead is None:
                    return []
            ahead.read_at = time.monotonic()
            if self._stirs():
                self._poll(0)
                if self._ahead.get(partition) is not ahead:  # trimmed while we followed it
                    return self.read(partition, offset, max_records, max_bytes)
            if not ahead.records and self._ends[partition] > ahead.head:
                self._wait_for(partition, ahead)
            taken = _take(ahead, max_records, max_bytes)
            if ahead.paused and ahead.bytes < self._limit() // 2:
                ahead.paused = False
                self._consumer.resume(ahead.tp)
            return taken

    def bounds(self, partition: int) -> tuple[int, int]:
        """See `EventLog.bounds`."""
        tp = self._partitions[partition]
        with self._lock:
            start = int(self._ask("beginning_offsets", [tp])[tp])
            end = int(self._ask("end_offsets", [tp])[tp])
            self.saw_end(partition, end)
            return start, max(start, end)

    def ends(self) -> list[int]:
        """See `EventLog.ends`: one request to each broker."""
        with self._lock:
            found = self._ask("end_offsets", list(self._partitions.values()))
            for tp, end in found.items():
                self.saw_end(self._numbers[tp], end)
            return [int(found[self._partitions[p]]) for p in (*range(len(self._partitions) - 1), CONTROL)]

    def saw_end(self, partition: int, end: int) -> None:
        """A read up to `end` will find the records that are there."""
        with self._ends_lock:
            self._ends[partition] = max(end, self._ends.get(partition, 0))

    def trimmed(self, partition: int) -> None:
        """Forgets what was read ahead of a partition whose start has moved."""
        with self._lock:
            if self._ahead.pop(partition, None) is not None:
                self._assign()

    def close(self) -> None:
        """Ends the consumer; brokers that are away do not matter."""
        with self._lock:
            self._drop()

    def _jump(self, partition: int, offset: int) -> _Ahead | None:
        """Begins to follow a partition at `offset`; None beyond its end."""
        start, end = self.bounds(partition)
        if offset < start:
            raise Trimmed(partition, offset, start)
        if end < self._ends[partition]:
            raise self._shortened(partition, end)
        if offset > end:
            return None
        ahead = self._ahead[partition] = _Ahead(self._partitions[partition], offset)
        self._assign()
        self._consumer.seek(ahead.tp, offset)
        self._consumer.resume(ahead.tp)
        return ahead

    def _wait_for(self, partition: int, ahead: _Ahead) -> None:
        """Polls until records come that are known to be there."""
        deadline = time.monotonic() + TIMEOUT_S
        while not ahead.records and self._ends[partition] > ahead.head:
            if self._ahead.get(partition) is not ahead or time.monotonic() > deadline:
                # Whatever the consumer's state is: a new one begins at the same offset.
                self._drop()
                raise self._unavailable(
                    f"the event log {self._at.shown} does not give the records of partition {partition} from offset "
                    f"{ahead.head} on, though it ends at {self._ends[partition]}: the brokers are slow or away; "
                    "trying again is safe"
                )
            self._poll(20)

    def _stirs(self) -> bool:
        """Whether a poll would find anything to do: a fetch was answered, with records or without."""
        if self._consumer is None or time.monotonic() - self._polled_at >= POLL_S:
            return True
        return any(fetch.is_done for fetch in self._fetches) or bool(self._consumer._fetcher._completed_fetches)

    def _poll(self, timeout_ms: int) -> None:
        """Empties the consumer into the buffers."""
        from kafka.errors import CorruptRecordError, LogTruncationError, OffsetOutOfRangeError

        self._fail_while_away()
        consumer = self._connected()
        if not self._ahead:
            return
        try:
            with asking(self._at, "be read"):
                try:
                    found = consumer.poll(timeout_ms=timeout_ms, max_records=_ALL)
                except OffsetOutOfRangeError:
                    return self._out_of_range()
                except LogTruncationError as error:
                    raise self._lost(str(error)) from None
                except CorruptRecordError as error:
                    raise LogCorrupt(
                        f"the event log {self._at.shown} holds a record whose checksum is wrong: {error}: restore "
                        "log and store together from one backup"
                    ) from None
        except LogUnavailable as error:
            self._drop()
            raise self._unavailable(str(error)) from None
        now = self._polled_at = time.monotonic()
        self._fetches = tuple(consumer._fetcher._fetch_futures)
        for tp, records in found.items():
            self._keep(self._numbers[tp], records)
        if found:
            self._heard_at = now
            self._let_go(now)
        elif now - self._heard_at >= QUIET_S:
            self._ask("end_offsets", [ahead.tp for ahead in self._ahead.values()], saw=True)
            self._let_go(now)

    def _keep(self, partition: int, records: Sequence[Any]) -> None:
        ahead = self._ahead.get(partition)
        if ahead is None:
            return
        for each in records:
            data = each.value if each.value is not None else b""
            ahead.records.append(Record(each.offset, each.timestamp, data))
            ahead.bytes += len(data)
        self.saw_end(partition, records[-1].offset + 1)
        if ahead.bytes > self._limit() and not ahead.paused:
            ahead.paused = True
            self._consumer.pause(ahead.tp)

    def _out_of_range(self) -> None:
        """A partition was trimmed, or shortened, under its reader; the next read of it jumps, and finds out which."""
        for partition, ahead in list(self._ahead.items()):
            start, end = self.bounds(partition)
            position = ahead.records[-1].offset + 1 if ahead.records else ahead.head
            if position > end:
                self.saw_end(partition, position)
                raise self._shortened(partition, end)
            if position < start:
                del self._ahead[partition]
        self._assign()

    def _shortened(self, partition: int, end: int) -> LogUnavailable:
        """The error of a partition that ends before what was seen; raises LogCorrupt where it is another log's.

        A partition's new leader may not know for a moment how far the old one came.
        """
        check_same_log(self._at, self._id)
        self._drop()
        return self._unavailable(
            f"partition {partition} of the event log {self._at.shown} ends at {end} but went up to "
            f"{self._ends[partition]}: if this stays so, acknowledged records were lost; restore log and store together"
        )

    def _lost(self, how: str) -> LogCorrupt:
        self._drop()
        return LogCorrupt(
            f"the event log {self._at.shown} has lost records that were acknowledged, an unclean leader was elected: "
            f"{how}: restore log and store together from one backup"
        )

    def _let_go(self, now: float) -> None:
        """Partitions that others read now, or nobody."""
        old = [partition for partition, ahead in self._ahead.items() if now - ahead.read_at > UNREAD_S]
        if old:
            for partition in old:
                del self._ahead[partition]
            self._assign()

    def _limit(self) -> int:
        return max(1 << 20, min(AHEAD_BYTES, AHEAD_TOTAL_BYTES // max(len(self._ahead), 1)))

    def _assign(self) -> None:
        """Follows what is read ahead. One partition of each topic is always assigned, so that its leaders are known."""
        if self._consumer is None:
            return
        followed = {ahead.tp for ahead in self._ahead.values()}
        known = self._consumer.assignment()
        anchors = {self._partitions[0], self._partitions[CONTROL]} - followed
        self._consumer.assign(list(followed | anchors))
        for tp in anchors:
            if tp not in known:
                self._consumer.seek(tp, 0)
        self._consumer.pause(*anchors)

    def _ask(self, what: str, partitions: list[Any], saw: bool = False) -> dict[Any, int]:
        """Offsets from the brokers; what it learns about ends is kept where `saw`."""
        self._fail_while_away()
        consumer = self._connected()
        deadline = time.monotonic() + TIMEOUT_S
        found: dict[Any, int] | None = None
        while found is None:
            try:
                with asking(self._at, "be asked for its bounds"):
                    found = getattr(consumer, what)(partitions, timeout_ms=TIMEOUT_S * 1000)
            except KeyError:  # how the client says that it does not know the leader of a partition yet
                if time.monotonic() > deadline:
                    raise self._unavailable(
                        f"the event log {self._at.shown} has a partition without a leader: check that the brokers run"
                    ) from None
                time.sleep(0.01)
            except LogUnavailable as error:
                raise self._unavailable(str(error)) from None
        self._heard_at = time.monotonic()
        if self._away is not None:
            self._away = None
            check_same_log(self._at, self._id)
        if saw:
            for tp, end in found.items():
                self.saw_end(self._numbers[tp], end)
        return found

    def _connected(self) -> Any:
        if self._consumer is None:
            try:
                self._consumer = kafka_consumer(
                    self._at, max_partition_fetch_bytes=FETCH_BYTES, fetch_max_bytes=8 * FETCH_BYTES
                )
            except LogUnavailable as error:
                raise self._unavailable(str(error)) from None
            self._heard_at = time.monotonic()
            self._assign()
        return self._consumer

    def _fail_while_away(self) -> None:
        if self._away is not None and time.monotonic() < self._away[0]:
            raise LogUnavailable(str(self._away[1]))

    def _unavailable(self, sentence: str) -> LogUnavailable:
        """The error to raise, which calls of the next moments raise again without asking."""
        error = LogUnavailable(sentence)
        self._away = time.monotonic() + AWAY_S, error
        return error

    def _drop(self) -> None:
        self._ahead.clear()
        self._fetches = ()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(Exception):
                consumer.close(timeout_ms=500)


def _take(ahead: _Ahead, max_records: int, max_bytes: int) -> list[Record]:
    taken: list[Record] = []
    size = 0
    while ahead.records and len(taken) < max_records:
        size += len(ahead.records[0].data)
        if taken and size > max_bytes:
            break
        record = ahead.records.popleft()
        ahead.bytes -= len(record.data)
        taken.append(record)
    if taken:
        ahead.head = taken[-1].offset + 1
    return taken
