"""The event log in Kafka: one topic of P partitions for the shards, one of one partition for control.

    partition p of the log     partition p of the topic NAME.events
    CONTROL                    partition 0 of the topic NAME.control
    offset, time_ms            Kafka's offset; the broker's LogAppendTime
    data                       the record's value, as it is; no key, no headers, no compression

`streaming.log.kafka_topics` draws the topics, `streaming.log.kafka_url` the URL, `streaming.log.kafka_reader` how
reading works. Any number of handles append; the order of a partition is the order in which its leader took them.

Log time may go back a little when a partition's leader moves to a broker with another clock, so who needs a time that
never does takes the running maximum, as a shard does. Appends are not one transaction: see `EventLog.append`.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

from streaming.errors import LogUnavailable
from streaming.log import CONTROL, Record
from streaming.log.kafka_reader import KafkaReader
from streaming.log.kafka_topics import admin_of, check_same_log, open_topics
from streaming.log.kafka_url import (
    MESSAGE_BYTES,
    TIMEOUT_S,
    KafkaUrl,
    asking,
    end_producer,
    kafka_producer,
    parse_kafka_url,
)

RECORD_BYTES = MESSAGE_BYTES - 1024
"""The largest record; Kafka puts a little around it."""


class KafkaLog:
    """An `EventLog` at a `kafka://` URL. See `streaming.log.open_log` for the arguments and errors.

    `write=True` with `shards` creates the topics that are missing.
    """

    def __init__(self, url: str, shards: int | None = None, *, write: bool = False) -> None:
        self.at: KafkaUrl = parse_kafka_url(url)
        self.id, self.shards = open_topics(self.at, shards, create=write)
        self._write = write
        self._reader = KafkaReader(self.at, self.shards, self.id)
        self._making = threading.Lock()
        self._producer: Any = None
        self._failed = False

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """See `EventLog.append`. Raises LogUnavailable after 3 s without an acknowledgement."""
        if not self._write:
            raise ValueError(f"{self.at.shown} was opened for reading: open_log(..., write=True) appends")
        for partition, data in batches:
            self._known(partition)
            if len(data) > RECORD_BYTES:
                raise ValueError(f"a record of {len(data):,} bytes: the log in Kafka takes at most {RECORD_BYTES:,}")
        if not batches:
            return []
        producer = self._connected()
        deadline = time.monotonic() + TIMEOUT_S + 1.0
        try:
            with asking(self.at, "be appended to"):
                sent = []
                for partition, data in batches:
                    topic, number = (self.at.control, 0) if partition == CONTROL else (self.at.events, partition)
                    sent.append(producer.send(topic, data, partition=number))
                done = [each.get(max(deadline - time.monotonic(), 0.0)) for each in sent]
        except LogUnavailable:
            # Its sequence numbers may have a gap now; a new producer begins without a past.
            self._failed = True
            self._drop(producer)
            raise
        for (partition, _), at in zip(batches, done, strict=True):
            self._reader.saw_end(partition, at.offset + 1)
        return [(at.offset, at.timestamp) for at in done]

    def read(self, partition: int, offset: int, max_records: int = 1000, max_bytes: int = 8 << 20) -> list[Record]:
        """See `EventLog.read`."""
        self._known(partition)
        return self._reader.read(partition, offset, max_records, max_bytes)

    def bounds(self, partition: int) -> tuple[int, int]:
        """See `EventLog.bounds`."""
        self._known(partition)
        return self._reader.bounds(partition)

    def ends(self) -> list[int]:
        """See `EventLog.ends`."""
        return self._reader.ends()

    def trim(self, partition: int, before: int) -> None:
        """See `EventLog.trim`. Kafka gives space back by whole segments, within minutes."""
        from kafka import TopicPartition

        self._known(partition)
        start, end = self.bounds(partition)
        before = min(before, end)
        if before <= start:
            return
        tp = TopicPartition(self.at.control, 0) if partition == CONTROL else TopicPartition(self.at.events, partition)
        with admin_of(self.at) as admin, asking(self.at, "be trimmed"):
            admin.delete_records({tp: before}, timeout_ms=TIMEOUT_S * 1000)
        self._reader.trimmed(partition)

    def size_bytes(self) -> int:
        """See `EventLog.size_bytes`: on all brokers together, so each replica counts."""
        with admin_of(self.at) as admin, asking(self.at, "be measured"):
            brokers = admin.describe_log_dirs([self.at.events, self.at.control])
        topics = [topic for broker in brokers for where in broker["log_dirs"] for topic in where["topics"]]
        return sum(partition["partition_size"] for topic in topics for partition in topic["partitions"])

    def close(self) -> None:
        """See `EventLog.close`; brokers that are away do not matter."""
        self._reader.close()
        self._drop(self._producer)

    def _known(self, partition: int) -> None:
        if not CONTROL <= partition < self.shards:
            raise ValueError(f"partition {partition}: the log has 0..{self.shards - 1} and {CONTROL} (control)")

    def _connected(self) -> Any:
        with self._making:
            if self._producer is None:
                if self._failed:
                    check_same_log(self.at, self.id)
                self._producer = kafka_producer(self.at)
                self._failed = False
            return self._producer

    def _drop(self, producer: Any) -> None:
        with self._making:
            if producer is None or self._producer is not producer:
                return
            self._producer = None
        end_producer(producer)
