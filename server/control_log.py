"""Who gets which control number when several agents write at once, and how each shard gets its copy.

    control partition   1   2   3   3'  4          3' is dead: the first record of a number is the record of it
    shard partition     ..  1  .. 2 ..  3 .. 3 4   a copy takes effect where it is the next; repeats are passed over

A number is claimed by appending. Who has read up to number n appends a record n + 1 to the control partition and reads
on: if that is the first one with this number, it is the record, else somebody else was quicker, and what was checked
before has to be checked again. Everybody who reads the partition goes by that rule, so nothing is ever taken back.

Then the winner appends to each shard the copies that it may lack, the former ones included: a copy that came before
the one it follows would be passed over. What a crash in between leaves out is appended by any agent that sees a shard
without it for long enough. So a shard may hold a copy twice, and a lone writer of an SQLite log does no other than one
of many that write to Kafka.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from server.writer import InDoubt
from streaming import events
from streaming.control import ControlError, ControlRecord, ControlState, from_json, to_json
from streaming.errors import LayoutMismatch, LogUnavailable
from streaming.log import CONTROL, EventLog

log = logging.getLogger(__name__)
HEAL_S = 0.5
READ_BACK_S = 5.0
Append = Callable[[list[tuple[int, bytes]]], list[tuple[int, int]]]


class ControlLog:
    """The control partition as this agent has read it: `state` after every record so far.

    `controls`: each shard's own control state, as the store has it. `append` is the writer's. `claim` and `heal` may
    be called from several threads. After `catch_up` raised LayoutMismatch, an agent of this release cannot go on.
    """

    def __init__(
        self,
        event_log: EventLog,
        append: Append,
        controls: Sequence[ControlState],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._log = event_log
        self._append = append
        self._jitter = jitter
        self._lock = threading.Lock()
        furthest = max(controls, key=lambda control: control.applied)
        self.state = ControlState.decode(furthest.encode())
        self._has = [control.applied for control in controls]
        """For each shard: its partition holds the copies up to this number, each after the one before."""
        self._last = min(self._has)
        self._offset = self._last  # every number has one record at least, so number n + 1 is not before offset n
        self._frames: dict[int, tuple[int, bytes]] = {}  # number -> offset and record, of those a shard may lack
        self._lacks_since = [0.0] * len(controls)

    def catch_up(self, beyond: int | None = None) -> None:
        """Reads on to the end; where `beyond` is an offset that is known to be there, until that has been read."""
        deadline = time.monotonic() + READ_BACK_S
        while True:
            records = self._log.read(CONTROL, self._offset)
            for record in records:
                self._read(record.offset, record.data)
                self._offset = record.offset + 1
            if not records:
                if beyond is None or self._offset > beyond:
                    return
                if time.monotonic() > deadline:
                    raise LogUnavailable(f"control record at offset {beyond} cannot be read")
                time.sleep(0.001)

    def _read(self, offset: int, data: bytes) -> None:
        control = events.control_of(data)
        if control is None:
            log.warning("control partition, offset %d: this is no control record, it is passed over", offset)
            return
        number, text = control
        if number != self._last + 1:
            return  # dead
        if number > self.state.applied:
            try:
                record = from_json(text)
            except msgspec.ValidationError as error:
                raise LayoutMismatch(
                    f"control record {number} is of another release ({error}): run the same release everywhere"
                ) from None
            before = self.state.encode()
            try:
                self.state.apply(number, record)
            except ControlError:  # cannot be, since every record was checked; but the shards do the same
                self.state = ControlState.decode(before)
                self.state.applied = number
        self._last = number
        self._frames[number] = offset, data

    def claim(self, record: ControlRecord, check: Callable[[], bool]) -> int:
        """Makes `record` the next control record, and returns its number; 0 where `check` says it is not wanted.

        `check` looks at `state`, which is up to date then, and raises where the record must not come after it; it is
        called again for each number that somebody else was quicker to get. Raises what it raises, LogUnavailable where
        nothing was done, InDoubt where the record may be there, or may still come.
        """
        with self._lock:
            while True:
                self.catch_up()
                if not check():
                    return 0
                number = self._last + 1
                ((offset, _),) = self._append([(CONTROL, events.control_frame(number, to_json(record)))])
                try:
                    self.catch_up(beyond=offset)
                except LogUnavailable as error:
                    raise InDoubt(str(error)) from error
                if self._frames[number][0] == offset:
                    break
            try:
                self._copy(range(len(self._has)))
            except LogUnavailable as error:  # the record stands; its copies come with `heal`
                log.warning("control record %d: its copies wait: %s", number, error)
            return number

    def heal(self, applied: Sequence[int]) -> None:
        """Reads on, and appends the copies that a shard has lacked for too long. `applied`: as the store has it now.

        A shard whose learner is away looks the same; then each agent appends them once, and that does no harm.
        """
        if not self._lock.acquire(blocking=False):
            return  # a claim is under way: it does both
        try:
            self.catch_up()
            now = time.monotonic()
            due = []
            for shard, number in enumerate(applied):
                self._has[shard] = max(self._has[shard], number)
                if self._has[shard] >= self._last:
                    self._lacks_since[shard] = 0.0
                elif not self._lacks_since[shard]:
                    self._lacks_since[shard] = now + HEAL_S * self._jitter()
                elif now - self._lacks_since[shard] > HEAL_S:
                    due.append(shard)
            self._copy(due)
        finally:
            self._lock.release()

    def _copy(self, shards: Sequence[int]) -> None:
        records = [
            (shard, self._frames[number][1])
            for shard in shards
            for number in range(self._has[shard] + 1, self._last + 1)
        ]
        if records:
            self._append(records)
        for shard in shards:
            self._has[shard] = self._last
        for number in [number for number in self._frames if number <= min(self._has)]:
            del self._frames[number]
