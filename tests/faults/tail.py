"""Every record of a team's log, read while it grows: the learners trim behind their snapshots, this remembers."""

import threading
import time
from collections import Counter

from streaming import events, token
from streaming.errors import LogUnavailable
from streaming.log import CONTROL, Record
from streaming.log.kafka import KafkaLog
from tests.faults.load import Reward

PAUSE_S = 0.1


class Tail:
    """Reads all partitions from offset 0 in a thread of its own; `caught_up` waits until nothing is missing."""

    def __init__(self, log_url: str) -> None:
        self._log = KafkaLog(log_url)
        self.shards = self._log.shards
        self.records: dict[int, list[Record]] = {partition: [] for partition in range(CONTROL, self.shards)}
        self.rewards: Counter[Reward] = Counter()
        self.rewards_of = [0] * self.shards
        self.decisions: set[int] = set()
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._thread.start()

    def heads(self) -> list[int]:
        """Where the next read of each shard begins."""
        return [self._head(shard) for shard in range(self.shards)]

    def ends(self) -> list[int] | None:
        """The ends of the shards as the brokers say them; None while they are away."""
        try:
            return self._log.ends()[: self.shards]
        except LogUnavailable:
            return None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._log.close()

    def _head(self, partition: int) -> int:
        records = self.records[partition]
        return records[-1].offset + 1 if records else 0

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._round():
                    time.sleep(PAUSE_S)
        except BaseException as error:
            self.failure = error

    def _round(self) -> int:
        found = 0
        for partition, records in self.records.items():
            try:
                new = self._log.read(partition, self._head(partition))
            except LogUnavailable:
                return 0
            if partition != CONTROL:
                for record in new:
                    self._note(partition, record.data)
            records += new  # last: `heads` says what was noted
            found += len(new)
        return found

    def _note(self, shard: int, data: bytes) -> None:
        if events.control_of(data) is not None:
            return
        at = events.FRAME_SIZE
        while at < len(data):
            size = int.from_bytes(data[at + 4 : at + 6], "little") * 8
            kind = data[at + 7]
            if kind != events.SEGMENT:
                body = data[at + events.EVENT_SIZE : at + size]
                payload = body[: token.size_of(body[2], body[22], body[23])]
                if kind == events.DECISION:
                    self.decisions.add(token.decode(payload).decision)
                else:
                    _, _, _, value, event_hash, _, slot = events._EVENT.unpack_from(data, at + 4)
                    self.rewards[Reward(payload, slot, value, event_hash)] += 1
                    self.rewards_of[shard] += 1
            at += size
