"""The router's two topics in Kafka: rewards that others send, and what of them could not be taken.

    NAME.rewards --partitions, by the group NAME.router--> RewardsTopic (any number of routers)
    NAME.dead-letters <-- DeadLetters

The group's offsets are how far rewards are in the event log; a router that dies has its last ones read again. Nothing
is committed in a rebalance: the client calls back from its own thread, which must not wait.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from server.router_rows import Message
from streaming.errors import LogUnavailable
from streaming.log.kafka_url import TIMEOUT_S, KafkaUrl, asking, end_producer, kafka_consumer, kafka_producer

MESSAGES_MAX = 5_000  # of one poll
COMMIT_S = 0.1  # between two commits of the group's offsets
SESSION_MS = 10_000  # a router that was killed has its partitions taken over after this
STAY_MS = 500  # a shorter poll would never complete a rebalance: the next one begins it again
FETCH_BYTES = 4 << 20  # what waits in memory, for each partition and in all at most four times that


class RewardsTopic:
    """One member of the routers' group. Calls raise LogUnavailable while the brokers are away; one thread uses it.

    A consumer that has failed is dropped, and the next call makes another; what it had polled is not committed.
    """

    def __init__(self, at: KafkaUrl) -> None:
        self._at = at
        self.rebalances = 0
        self._done: dict[Any, int] = {}  # partition -> the next offset after what is in the event log
        self._committed: dict[Any, int] = {}
        self._next_commit = 0.0
        self._held: list[Message] = []  # came while nobody asked
        self._consumer: Any = None
        self._connected()

    def poll(self, timeout_ms: int) -> list[Message]:
        """The next messages, waiting for the first at most that long."""
        held, self._held = self._held, []
        return held or self._polled(timeout_ms, "resume")

    def stay(self) -> None:
        """Stays a member while what was polled waits for log or store; nothing more is fetched meanwhile."""
        self._held += self._polled(STAY_MS, "pause")

    def done(self, messages: Sequence[Message]) -> None:
        """These are in the event log or among the dead letters, durably."""
        from kafka import TopicPartition

        for message in messages:
            self._done[TopicPartition(message.topic, message.partition)] = message.offset + 1

    def commit(self, now: bool = False) -> None:
        """Commits the group's offsets, unless that was a moment ago.

        It may fail where partitions were taken from us: whoever has them reads these messages again.
        """
        from kafka import OffsetAndMetadata

        if self._consumer is None or (not now and time.monotonic() < self._next_commit):
            return
        self._next_commit = time.monotonic() + COMMIT_S
        mine = self._consumer.assignment()
        self._done = {tp: offset for tp, offset in self._done.items() if tp in mine}
        self._committed = {tp: offset for tp, offset in self._committed.items() if tp in mine}
        new = {tp: offset for tp, offset in self._done.items() if self._committed.get(tp) != offset}
        if not new:
            return
        with asking(self._at, "keep offsets"):
            self._consumer.commit(
                {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in new.items()}, timeout_ms=TIMEOUT_S * 1000
            )
        self._committed |= new

    def lag(self) -> dict[int, int]:
        """Messages behind the end, by partition, as of the last fetch: what was polled counts as done."""
        from kafka.errors import KafkaError

        found = {}
        for tp in self._consumer.assignment() if self._consumer is not None else ():
            with contextlib.suppress(KafkaError, KeyError):  # the client's thread may just have lost it
                end = self._consumer.highwater(tp)
                if end is not None:  # there was a fetch, so there is a position
                    found[tp.partition] = max(0, end - self._consumer.position(tp, timeout_ms=0))
        return found

    def close(self) -> None:
        """Leaves the group."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=TIMEOUT_S * 1000)

    def _polled(self, timeout_ms: int, before: str) -> list[Message]:
        """What a poll gives, after each partition was resumed or paused."""
        consumer = self._connected()
        try:
            with asking(self._at, "give rewards"):
                for tp in consumer.assignment():
                    with contextlib.suppress(KeyError):  # the client's thread may just have lost it
                        getattr(consumer, before)(tp)
                found = consumer.poll(timeout_ms=timeout_ms, max_records=MESSAGES_MAX)
        except LogUnavailable:
            self.close()
            raise
        return [message for messages in found.values() for message in messages]

    def _connected(self) -> Any:
        if self._consumer is None:
            from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

            self._consumer = kafka_consumer(
                self._at,
                group_id=self._at.router,
                auto_offset_reset="earliest",  # a group that is new has everything before it
                isolation_level="read_committed",
                session_timeout_ms=SESSION_MS,
                partition_assignment_strategy=[CooperativeStickyAssignor],
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_bytes=4 * FETCH_BYTES,
            )
            self._consumer.subscribe([self._at.rewards], listener=_listener(self))
        return self._consumer


def _listener(topic: RewardsTopic) -> Any:
    """What the client tells of rebalances, in a thread of its own."""
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            del revoked

        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            del assigned
            topic.rebalances += 1

    return Listener()


class DeadLetters:
    """Where letters go. The producer is made with the first one."""

    def __init__(self, at: KafkaUrl) -> None:
        self._at = at
        self._producer: Any = None

    def append(self, letters: Sequence[tuple[bytes | None, bytes]]) -> None:
        """Writes (key, letter) of each, durably; raises LogUnavailable, and then some of them may be there."""
        if self._producer is None:
            self._producer = kafka_producer(self._at)
        try:
            with asking(self._at, "take dead letters"):
                sent = [self._producer.send(self._at.dead_letters, letter, key=key) for key, letter in letters]
                deadline = time.monotonic() + TIMEOUT_S + 1.0
                for each in sent:
                    each.get(max(0.0, deadline - time.monotonic()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            end_producer(producer)
