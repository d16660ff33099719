"""Group commit: everything that waits becomes one durable append, then everybody waiting is told.

    submit(batch, done) --queue--> the writer's thread: one log.append of all that is there --> done(None)

While one append is on its way to the disk the next one gathers, so throughput grows with load. A lone one waits for
nothing; under load appends start at least a millisecond apart. When the log is away, what may be refused (rewards,
control) is refused at once; decisions stay at the head of the queue, in order, and are tried again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from server.outbox import Batch
from server.shared import AWAY, LOG, THERE, HostFile
from streaming import events
from streaming.errors import LogCorrupt, LogUnavailable
from streaming.log import EventLog

log = logging.getLogger(__name__)
Done = Callable[[Exception | None], None]
FRAME_BYTES_MAX = 1 << 20
APPEND_BYTES_MAX = 16 << 20
QUEUE_BYTES_MAX = 256 << 20
RETRY_S = 0.25
GATHER_S = 0.001  # between the starts of two appends: many small ones would cost more than what they hold


class Work(NamedTuple):
    """Events by shard, or `records` as they are; `done` is called from the writer's thread. `keep`: until it works."""

    batch: Batch
    records: list[tuple[int, bytes]]
    done: Done
    keep: bool
    size: int


class Writer:
    """The log's only writer: a thread of its own from `start` to `stop`."""

    def __init__(self, event_log: EventLog, host: HostFile) -> None:
        self._log = event_log
        self._host = host
        self._queue: deque[Work] = deque()
        self._size = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.failure: Exception | None = None

    @property
    def crashed(self) -> bool:
        """Whether it ended by our own mistake, or by trouble that we do not know: a new process may do better."""
        return self.failure is not None and not isinstance(self.failure, LogCorrupt)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Appends what is waiting, then ends; what cannot be appended by then is refused."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def submit(self, batch: Batch, done: Done, keep: bool = False) -> None:
        """Hands over events by shard."""
        self._put(Work(batch, [], done, keep, sum(len(each) for _, _, each in batch)))

    def append(self, records: list[tuple[int, bytes]]) -> None:
        """Appends whole records in one transaction with whatever else waits, and returns after it; raises its error."""
        finished = threading.Event()
        found: list[Exception | None] = [None]

        def done(error: Exception | None) -> None:
            found[0] = error
            finished.set()

        self._put(Work((), records, done, False, sum(len(data) for _, data in records)))
        finished.wait()
        if found[0] is not None:
            raise found[0]

    def _put(self, work: Work) -> None:
        with self._wake:
            full = self._size + work.size > QUEUE_BYTES_MAX and not work.keep
            if not (full or self._stopping or self.failure):
                self._queue.append(work)
                self._size += work.size
                self._wake.notify()
                return
        work.done(self.failure or LogUnavailable("the log is too far behind" if full else "the server is stopping"))

    def _run(self) -> None:
        began = 0.0
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                if not self._queue:
                    return
            time.sleep(max(0.0, min(GATHER_S, began + GATHER_S - time.monotonic())))
            began = time.monotonic()
            with self._wake:
                taken: list[Work] = []
                size = 0
                while self._queue and (not taken or size + self._queue[0].size <= APPEND_BYTES_MAX):
                    work = self._queue.popleft()
                    taken.append(work)
                    size += work.size
                self._size -= size
            self._append(taken)

    def _append(self, taken: list[Work]) -> None:
        try:
            self._log.append(_records(taken))
        except LogUnavailable as error:
            self._failed(taken, error)
        except Exception as error:
            log.exception("the event log cannot be written: %s", error)
            self._host[LOG] = AWAY
            with self._wake:  # nothing gets in any more, and nobody is left waiting
                self.failure = error
                taken = [*taken, *self._queue]
                self._queue.clear()
            for work in taken:
                work.done(error)
        else:
            self._host[LOG] = THERE
            for work in taken:
                work.done(None)

    def _failed(self, taken: list[Work], error: LogUnavailable) -> None:
        if self._host[LOG] != AWAY:
            log.warning("the event log is away: %s", error)
        self._host[LOG] = AWAY
        kept = [work for work in taken if work.keep]
        with self._wake:
            stopping = self._stopping
            if not stopping:
                self._queue.extendleft(reversed(kept))
                self._size += sum(work.size for work in kept)
        for work in taken:
            if stopping or not work.keep:
                work.done(error)
        if kept and not stopping:
            with self._wake:
                if all(work.keep for work in self._queue):  # nobody waits: no hurry to find out again
                    self._wake.wait(RETRY_S)


def _records(taken: list[Work]) -> list[tuple[int, bytes]]:
    """One frame per shard (more where it would be huge), then the whole records."""
    frames: dict[int, tuple[int, int, list[bytes]]] = {}
    records: list[tuple[int, bytes]] = []
    for work in taken:
        for shard, count, data in work.batch:
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
