"""Which shards this learner has: its part of the partitions of NAME.events, as the consumer group shares them out.

    group      NAME.learners, protocol cooperative-sticky: a rebalance moves only the partitions that change hands, all
               others go on being learned
    position   none: no offset is ever committed, a shard's position is in its last commit in the store
    fetching   none: every partition is paused here, `KafkaReader` reads
    alive      the client's thread beats twice a second; a learner not heard of for 6 s (session_timeout_ms in the URL)
               loses its shards to the others

    one learner more:   old   shards() -> {0,1,2,3} .. {0,1,2}     {0,1,2} ..   and so on until the shares are even
                        new                         gives 3 back,  then shards() -> {3}
    one stopped, woken: it still believes in its shards until it has heard from the group, and learns on; its first
                        commit after another learner's is refused

So the group decides who works, and the store what counts.
"""

import contextlib
import threading
from typing import Any

from streaming.errors import LogUnavailable
from streaming.log.kafka_url import KafkaUrl, asking, kafka_consumer, parse_kafka_url

SESSION_TIMEOUT_MS = 6_000
HEARTBEAT_MS = 500
POLL_INTERVAL_MAX_MS = 300_000
HANDOVER_S = 1.0
"""How long a shard that is to go is held for the call of `shards` that no longer shows it; less than a session."""
POLL_MS = 500
AGAIN_S = 1.0


class Membership:
    """A learner's place in the group of the log at `url`. It joins at the first call of `shards`.

    `rebalances` counts the generations of the group that this learner took part in. A shard that is taken away is
    given to another learner once `shards` was called again, or after a second. Thread-safe.
    """

    def __init__(self, url: str | KafkaUrl) -> None:
        self.at = parse_kafka_url(url) if isinstance(url, str) else url
        self.rebalances = 0
        self._shards: frozenset[int] = frozenset()
        self._error: LogUnavailable | None = None
        self._stop = threading.Event()
        self._seen = threading.Event()
        self._thread: threading.Thread | None = None

    def shards(self) -> frozenset[int]:
        """The shards that are this learner's now. It only looks, so call it as often as you like.

        While the brokers are away it is what it was last: nobody else can be given shards then. Raises LogUnavailable
        where the group cannot be joined.
        """
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="kafka-group", daemon=True)
            self._thread.start()
        error, shards = self._error, self._shards
        self._seen.set()
        if error is not None:
            raise LogUnavailable(str(error))
        return shards

    def close(self) -> None:
        """Leaves the group, so that others need not wait for the session's end; brokers that are away do not matter."""
        self._stop.set()
        self._seen.set()
        if self._thread is not None:
            self._thread.join(POLL_MS / 1000 + 2.0)
        self._shards = frozenset()

    def assigned(self, shards: set[int]) -> None:
        """The group gave these shards to this learner."""
        self._shards |= shards

    def revoked(self, shards: set[int]) -> None:
        """The group takes these shards away; what is being learned of them may still be committed."""
        self._seen.clear()
        self._shards -= shards
        if not self._stop.is_set():
            self._seen.wait(HANDOVER_S)

    def lost(self, shards: set[int]) -> None:
        """The group has given these shards to others already."""
        self._shards -= shards

    def _run(self) -> None:
        consumer: Any = None
        generation = -1
        while not self._stop.is_set():
            try:
                consumer = consumer or self._joining()
                with asking(self.at, "be shared with other learners"):
                    consumer.poll(timeout_ms=POLL_MS)
                    now = consumer.group_metadata().generation_id
                self.rebalances += now > generation
                generation = now
                self._error = None
            except Exception as error:  # of whatever kind: a thread that ended would leave its shards to nobody
                unknown = f"the group of the event log {self.at.shown} cannot be joined: {error!r}"
                named = LogUnavailable(self.at.without_secrets(unknown))
                self._error = error if isinstance(error, LogUnavailable) else named
                _close(consumer)
                consumer, generation, self._shards = None, -1, frozenset()
                self._stop.wait(AGAIN_S)
        _close(consumer)

    def _joining(self) -> Any:
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        consumer = kafka_consumer(
            self.at,
            group_id=self.at.learners,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            max_poll_interval_ms=POLL_INTERVAL_MAX_MS,
        )
        try:
            with asking(self.at, "be shared with other learners"):
                consumer.subscribe([self.at.events], listener=_listener(consumer, self))
                # A leader without metadata would share out nothing, and the group would have to begin again.
                consumer.partitions_for_topic(self.at.events)
        except LogUnavailable:
            _close(consumer)
            raise
        return consumer


def _listener(consumer: Any, member: Membership) -> Any:
    """Tells `member`, on the client's thread. New partitions get a position, so that no committed one is looked for."""
    from kafka.consumer.subscription_state import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Any) -> None:
            for tp in assigned:
                consumer.seek(tp, 0)
                consumer.pause(tp)
            member.assigned({tp.partition for tp in assigned})

        def on_partitions_revoked(self, revoked: Any) -> None:
            member.revoked({tp.partition for tp in revoked})

        def on_partitions_lost(self, lost: Any) -> None:
            member.lost({tp.partition for tp in lost})

    return Listener()


def _close(consumer: Any) -> None:
    if consumer is not None:
        with contextlib.suppress(Exception):
            consumer.close(autocommit=False, timeout_ms=1000)
