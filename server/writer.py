"""Group commit: everything that waits becomes one durable append, then everybody waiting is told.

    submit(batch, done) --queue--> the writer's thread: one log.append of all that is there --> done(None)

While one append is on its way to the disk the next one gathers, so throughput grows with load. A lone one waits for
nothing; under load appends start at least a millisecond apart.

When the log is away, what may be refused (rewards, control) is refused at once, that which waits and that which comes,
because an append to a Kafka that is away takes seconds to fail. Decisions stay in the queue, in order. The writer finds
out by itself when the log is back: it tries the decisions again, or, where there are none or where each try may leave
something behind, an empty frame for each shard.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from server import errors
from server.outbox import Batch
from server.shared import AWAY, LOG, THERE, UNTRIED, HostFile
from streaming import events
from streaming.errors import LogCorrupt, LogUnavailable
from streaming.log import EventLog

log = logging.getLogger(__name__)
Done = Callable[[Exception | None], None]
FRAME_BYTES_MAX = 1 << 20
APPEND_BYTES_MAX = 16 << 20
APPEND_BYTES_APART_MAX = 4 << 20  # over a slow network too it is there within the seconds that an append has
QUEUE_BYTES_MAX = 256 << 20
RETRY_S = 0.25
GATHER_S = 0.001  # between the starts of two appends: many small ones would cost more than what they hold
_LENGTH_AT = 4  # of an event: its length in words of 8 bytes (`streaming.events`)


class InDoubt(LogUnavailable):
    """The append failed in a log that takes each record by itself: some may be there, or may still come."""


def problem_of(error: Exception) -> errors.Problem:
    """What a caller is told whose append failed."""
    away = isinstance(error, LogUnavailable)
    sentence = f"The event log is away: {error}." if away else f"The event log takes nothing now: {error}."
    return errors.in_doubt(sentence) if isinstance(error, InDoubt) else errors.unavailable(sentence)


class Work(NamedTuple):
    """Events by shard, or `records` as they are; `done` is called from the writer's thread. `keep`: until it works.

    `placed` is given (offset, time) of each of `records`.
    """

    batch: Batch
    records: list[tuple[int, bytes]]
    done: Done
    keep: bool
    size: int
    placed: list[tuple[int, int]]


class Writer:
    """What appends to the log for this process: a thread of its own from `start` to `stop`.

    `whole`: the log appends all records of a call or none, so that after a failure nothing is there.
    """

    def __init__(self, event_log: EventLog, host: HostFile, whole: bool = True) -> None:
        self._log = event_log
        self._host = host
        self._whole = whole
        self._append_max = APPEND_BYTES_MAX if whole else APPEND_BYTES_APART_MAX
        self._queue: deque[Work] = deque()
        self._size = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._away: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.failure: Exception | None = None

    @property
    def crashed(self) -> bool:
        """Whether it ended by our own mistake, or by trouble that we do not know: a new process may do better."""
        return self.failure is not None and not isinstance(self.failure, LogCorrupt)

    def start(self) -> None:
        self._host[LOG] = UNTRIED
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Appends what is waiting, then ends; what cannot be appended by then is refused."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def suspect(self, error: Exception) -> None:
        """Somebody else has seen that the log is away; the writer finds out when it is back."""
        self._went(error)

    def submit(self, batch: Batch, done: Done, keep: bool = False) -> None:
        """Hands over events by shard."""
        self._put(Work(batch, [], done, keep, sum(len(each) for _, _, each in batch), []))

    def append(self, records: list[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """Appends whole records with whatever else waits, and returns (offset, time) of each; raises its error."""
        finished = threading.Event()
        found: list[Exception | None] = [None]

        def done(error: Exception | None) -> None:
            found[0] = error
            finished.set()

        work = Work((), records, done, False, sum(len(data) for _, data in records), [])
        self._put(work)
        finished.wait()
        if found[0] is not None:
            raise found[0]
        return work.placed

    def _put(self, work: Work) -> None:
        with self._wake:
            error = self._refusal(work)
            if error is None:
                self._queue.append(work)
                self._size += work.size
                self._wake.notify()
                return
        work.done(error)

    def _refusal(self, work: Work) -> Exception | None:
        if self.failure or self._stopping:
            return self.failure or LogUnavailable("the server is stopping")
        if work.keep:
            return None
        if self._away:
            return LogUnavailable(str(self._away))
        return LogUnavailable("the log is too far behind") if self._size + work.size > QUEUE_BYTES_MAX else None

    def _run(self) -> None:
        began = 0.0
        while self.failure is None:
            with self._wake:
                while not (self._queue or self._stopping or self._away):
                    self._wake.wait()
                if self._stopping and not self._queue:
                    return
                if self._away and not self._stopping:
                    self._wake.wait_for(lambda: self._stopping, RETRY_S)
                probing = self._away is not None and not self._stopping and not (self._whole and self._queue)
            if probing:
                self._probe()
                continue
            time.sleep(max(0.0, min(GATHER_S, began + GATHER_S - time.monotonic())))
            began = time.monotonic()
            self._append(self._take())

    def _take(self) -> list[Work]:
        with self._wake:
            taken: list[Work] = []
            size = 0
            while self._queue and (not taken or size + self._queue[0].size <= self._append_max):
                work = self._queue.popleft()
                taken.append(work)
                size += work.size
            self._size -= size
            return taken

    def _append(self, taken: list[Work]) -> None:
        try:
            placed = self._log.append(_records(taken))
        except LogUnavailable as error:
            self._failed(taken, error)
        except Exception as error:
            self._crash(error, taken)
        else:
            self._is_there()
            at = len(placed) - sum(len(work.records) for work in taken)
            for work in taken:
                work.placed.extend(placed[at : at + len(work.records)])
                at += len(work.records)
                work.done(None)

    def _failed(self, taken: list[Work], error: LogUnavailable) -> None:
        self._went(error)
        with self._wake:
            stopping = self._stopping
            if not stopping:  # decisions go back to where they were, those who would wait are told
                kept = [work for work in taken if work.keep]
                waiting = list(self._queue)
                self._queue = deque([*kept, *(work for work in waiting if work.keep)])
                self._size = sum(work.size for work in self._queue)
        told = InDoubt(str(error)) if not self._whole else error
        for work in taken:
            if stopping or not work.keep:
                work.done(told)
        if not stopping:
            for work in waiting:
                if not work.keep:
                    work.done(error)

    def _probe(self) -> None:
        try:
            self._log.append([(shard, events.frame([])) for shard in range(self._log.shards)])
        except LogUnavailable as error:
            self._failed([], error)  # who had come just before somebody else saw that it is away is told, too
        except Exception as error:
            self._crash(error, [])
        else:
            self._is_there()

    def _is_there(self) -> None:
        if self._away:
            log.warning("the event log is back")
        self._away = None
        self._host[LOG] = THERE

    def _went(self, error: Exception) -> None:
        with self._wake:
            if self.failure:
                return
            if self._away is None:
                log.warning("the event log is away: %s", error)
            self._away = error
            self._host[LOG] = AWAY
            self._wake.notify()

    def _crash(self, error: Exception, taken: list[Work]) -> None:
        log.exception("the event log cannot be written: %s", error)
        self._host[LOG] = AWAY
        with self._wake:  # nothing gets in any more, and nobody is left waiting
            self.failure = error
            taken = [*taken, *self._queue]
            self._queue.clear()
        for work in taken:
            work.done(error)


def _records(taken: list[Work]) -> list[tuple[int, bytes]]:
    """One frame per shard (more where it would be larger than allowed), then the whole records."""
    frames: dict[int, tuple[int, int, list[bytes]]] = {}
    records: list[tuple[int, bytes]] = []
    for work in taken:
        for shard, count, data in (piece for part in work.batch for piece in _pieces(*part)):
            have, size, parts = frames.get(shard, (0, 0, []))
            if have and size + len(data) > FRAME_BYTES_MAX:
                records.append((shard, events.frame_of(have, b"".join(parts))))
                have, size, parts = 0, 0, []
            parts.append(data)
            frames[shard] = have + count, size + len(data), parts
    records += [(shard, events.frame_of(count, b"".join(parts))) for shard, (count, _, parts) in frames.items()]
    for work in taken:
        records += work.records
    return records


def _pieces(shard: int, count: int, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """A part of a batch as parts of whole events that each fit into a frame; nearly always it does as it is."""
    if len(data) <= FRAME_BYTES_MAX:
        yield shard, count, data
        return
    start = at = counted = 0
    while at < len(data):
        size = 8 * int.from_bytes(data[at + _LENGTH_AT : at + _LENGTH_AT + 2], "little")
        assert size, f"shard {shard}: an event without a length at byte {at} of a batch"
        if at + size - start > FRAME_BYTES_MAX:
            yield shard, counted, data[start:at]
            start, counted = at, 0
        at, counted = at + size, counted + 1
    yield shard, counted, data[start:at]
