"""The topics of a log in Kafka: what they must be, creating them, refusing those that would lose rewards.

    NAME.events        P partitions; partition p is shard p. A record's value is a frame of `streaming.events`
                       (at most 1 MiB), its key is empty, its timestamp the broker's: the log's time.
    NAME.control       1 partition: the control records, all of them, for ever.
    NAME.rewards       P partitions: JSON that other producers send to the router. Ours to create, theirs to set.
    NAME.dead-letters  1 partition: what the router could not take, with the reason.

    setting                          events, control     rewards, dead-letters (as created; not checked)
    message.timestamp.type           LogAppendTime       LogAppendTime
    cleanup.policy                   delete              delete
    retention.ms                     -1                  7 days, 30 days
    retention.bytes                  -1                  -1
    min.insync.replicas              2 (1: one_broker)   the same
    unclean.leader.election.enable   false               false
    max.message.bytes                8 MiB               1 MiB
    compression.type                 producer            rewards: uncompressed, whatever a producer uses, since reading
                                                         lz4, zstd and snappy takes libraries that may not be there

Nothing of `events` ends by age: the learners delete what the oldest automatic snapshot of its shard includes.
A finite retention of 7 days or more is accepted in topics that somebody else made.
The log's id is made of the ids that Kafka gave to `events` and `control`: a topic made anew is another log.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from streaming.errors import LayoutMismatch, LogCorrupt, LogUnavailable
from streaming.log.kafka_url import MESSAGE_BYTES, KafkaUrl, asking, kafka_admin

DAY_MS = 24 * 3600 * 1000
RETENTION_MIN_MS = 7 * DAY_MS
PARTITIONS_MAX = 1024
MAKING_S = 3.0
"""A topic whose other one is missing for so long is not being made by somebody else."""


class Topics(NamedTuple):
    """What the brokers say of a log."""

    id: str
    shards: int


@contextlib.contextmanager
def admin_of(at: KafkaUrl) -> Iterator[Any]:
    """An admin client for the time of the block."""
    admin = kafka_admin(at)
    try:
        yield admin
    finally:
        with contextlib.suppress(Exception):
            admin.close()


def open_topics(at: KafkaUrl, shards: int | None, create: bool) -> Topics:
    """Id and number of shards of the log, once everything about its topics is sound.

    `create` and `shards` given: missing topics are created. Raises LogUnavailable where a topic is missing or the
    brokers are away, LayoutMismatch where a topic's settings would lose rewards or `shards` is another number.
    """
    with admin_of(at) as admin, asking(at, "be opened"):
        found = _described(admin, at)
        until = time.monotonic() + MAKING_S
        while create and len(found) == 1 and time.monotonic() < until:  # another server may just be making them
            time.sleep(0.1)
            found = _described(admin, at)
        if create and shards is not None and len(found) < 2:
            if not 1 <= shards <= PARTITIONS_MAX:
                raise ValueError(f"shards is {shards}: a log in Kafka has 1 to {PARTITIONS_MAX}")
            if found:
                raise LayoutMismatch(
                    f"the event log {at.shown} has a topic {next(iter(found))} but not its other one: delete the one "
                    "that is there if the log is to begin anew, else restore both"
                )
            _create(admin, at, _ours(admin, at, shards))
            found = _described(admin, at)
        if missing := [topic for topic in (at.events, at.control) if topic not in found]:
            raise LogUnavailable(
                f"there is no topic {' and no topic '.join(missing)} in Kafka at {','.join(at.servers)}: "
                f"`croupier serve --log {at.shown}` makes them"
            )
        _check_layout(at, found, shards)
        _check_settings(admin, at)
        return _topics(at, found)


def open_public_topics(at: KafkaUrl, partitions: int) -> None:
    """Creates NAME.rewards and NAME.dead-letters where they are missing; raises LogUnavailable."""
    with admin_of(at) as admin, asking(at, "make the router's topics"):
        there = {topic["name"] for topic in _asked(admin, [at.rewards, at.dead_letters])}
        wanted = {
            at.rewards: _spec(
                admin, at, partitions, {"retention.ms": str(7 * DAY_MS), "compression.type": "uncompressed"}
            ),
            at.dead_letters: _spec(admin, at, 1, {"retention.ms": str(30 * DAY_MS)}),
        }
        if missing := {name: spec for name, spec in wanted.items() if name not in there}:
            _create(admin, at, missing)


def check_same_log(at: KafkaUrl, id: str) -> None:
    """Raises LogCorrupt where the topics are no longer those of the log `id`, LogUnavailable where there are none."""
    with admin_of(at) as admin, asking(at, "be looked at"):
        found = _described(admin, at)
        if len(found) < 2:
            raise LogUnavailable(f"the topics of the event log {at.shown} are gone: restore log and store together")
        if _topics(at, found).id != id:
            raise LogCorrupt(
                f"the topics of the event log {at.shown} were deleted and made anew while it was open: restore log and "
                "store together from one backup, or `croupier import` an export under a new name"
            )


def _asked(admin: Any, names: list[str]) -> list[dict[str, Any]]:
    """Those of the topics that are there."""
    from kafka.errors import UnknownTopicOrPartitionError, for_code

    found = [
        topic for topic in admin.describe_topics(names) if topic["error_code"] != UnknownTopicOrPartitionError.errno
    ]
    for topic in found:
        if topic["error_code"]:
            raise for_code(topic["error_code"])(topic["name"])
    return found


def _described(admin: Any, at: KafkaUrl) -> dict[str, dict[str, Any]]:
    return {topic["name"]: topic for topic in _asked(admin, [at.events, at.control])}


def _topics(at: KafkaUrl, found: dict[str, dict[str, Any]]) -> Topics:
    ids = [str(found[topic].get("topic_id") or "") for topic in (at.events, at.control)]
    if not all(each.strip("0-") for each in ids):
        raise LayoutMismatch(
            f"Kafka at {','.join(at.servers)} gives its topics no ids, so a topic made anew could not be told from the "
            "old one: run Kafka 3.1 or newer, in KRaft mode"
        )
    made = hashlib.blake2b(" ".join(ids).encode(), digest_size=16).hexdigest()
    return Topics(made, len(found[at.events]["partitions"]))


def _replicas(admin: Any, at: KafkaUrl) -> int:
    brokers = len(admin.describe_cluster()["brokers"])
    replicas = at.replication or min(3, brokers)
    if replicas < 2 and not at.one_broker:
        raise LayoutMismatch(
            f"Kafka at {','.join(at.servers)} would keep the event log {at.shown} on {replicas} of its {brokers} "
            "brokers, so one lost disk loses acknowledged rewards: run three brokers, or accept it "
            "with one_broker=yes in the URL"
        )
    return replicas


def _spec(admin: Any, at: KafkaUrl, partitions: int, configs: dict[str, str]) -> dict[str, Any]:
    replicas = _replicas(admin, at)
    return {
        "num_partitions": partitions,
        "replication_factor": replicas,
        "configs": {
            "message.timestamp.type": "LogAppendTime",
            "cleanup.policy": "delete",
            "retention.bytes": "-1",
            "min.insync.replicas": str(min(2, replicas)),
            "unclean.leader.election.enable": "false",
            **configs,
        },
    }


def _ours(admin: Any, at: KafkaUrl, shards: int) -> dict[str, dict[str, Any]]:
    configs = {"retention.ms": "-1", "max.message.bytes": str(MESSAGE_BYTES)}
    return {at.events: _spec(admin, at, shards, configs), at.control: _spec(admin, at, 1, configs)}


def _create(admin: Any, at: KafkaUrl, topics: dict[str, dict[str, Any]]) -> None:
    """Two that start at once both create; the second finds them made, which is as good."""
    from kafka.errors import TopicAlreadyExistsError

    for name, spec in topics.items():
        with contextlib.suppress(TopicAlreadyExistsError):
            admin.create_topics({name: spec})
    with asking(at, f"find leaders for {', '.join(topics)}"):
        admin.wait_for_topics(list(topics))


def _check_layout(at: KafkaUrl, found: dict[str, dict[str, Any]], shards: int | None) -> None:
    partitions = len(found[at.events]["partitions"])
    if shards is not None and shards != partitions:
        raise LayoutMismatch(
            f"the topic {at.events} has {partitions} partitions, not {shards}: set shards = {partitions}, or "
            "`croupier export` and `croupier import` into a log of another name"
        )
    if len(found[at.control]["partitions"]) != 1:
        raise LayoutMismatch(
            f"the topic {at.control} has {len(found[at.control]['partitions'])} partitions: control records have one "
            "order, so it must have 1; make it anew together with the topic of the events"
        )
    for name, topic in found.items():
        fewest = min(len(partition["replica_nodes"]) for partition in topic["partitions"])
        if fewest < 2 and not at.one_broker:
            raise LayoutMismatch(
                f"the topic {name} has {fewest} replica: one lost disk loses acknowledged rewards; reassign its "
                "partitions to two or more brokers (kafka-reassign-partitions), or accept that "
                "with one_broker=yes in the URL"
            )


def _check_settings(admin: Any, at: KafkaUrl) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in (at.events, at.control)]
    for name, settings in admin.describe_configs(resources, config_filter="all")["topic"].items():
        if not settings:
            raise LogUnavailable(
                f"Kafka does not show the settings of the topic {name} to this user: grant it DescribeConfigs, for a "
                "topic with settings that lose rewards must be refused"
            )
        values = {key: str(entry["value"]) for key, entry in settings.items()}
        for setting, wanted, why in refusals(values, at.one_broker):
            raise LayoutMismatch(
                f"the topic {name} has {setting}={values[setting]}: {why}; run kafka-configs --alter --entity-type "
                f"topics --entity-name {name} --add-config {setting}={wanted}"
            )


def refusals(values: dict[str, str], one_broker: bool) -> Iterator[tuple[str, str, str]]:
    """(setting, what it must be, why) of every setting of a topic on which no log may start.

    >>> good = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete", "retention.ms": "-1",
    ...     "retention.bytes": "-1", "unclean.leader.election.enable": "false", "min.insync.replicas": "2",
    ...     "max.message.bytes": "8388608"}
    >>> list(refusals(good, one_broker=False))
    []
    >>> [setting for setting, _, _ in refusals(good | {"retention.ms": "3600000"}, one_broker=False)]
    ['retention.ms']
    """
    if values["message.timestamp.type"] != "LogAppendTime":
        yield "message.timestamp.type", "LogAppendTime", "the log's time must be the broker's, or windows close at will"
    if values["cleanup.policy"] != "delete":
        yield "cleanup.policy", "delete", "compaction throws away records that have not been learned"
    if 0 <= int(values["retention.ms"]) < RETENTION_MIN_MS:
        yield "retention.ms", "-1", "records end by age before a learner that was away for days has read them"
    if int(values["retention.bytes"]) >= 0:
        yield "retention.bytes", "-1", "records end by size, read or not; learners trim what their snapshots include"
    if values["unclean.leader.election.enable"] != "false":
        yield "unclean.leader.election.enable", "false", "a replica that lags may become leader and lose rewards"
    if int(values["min.insync.replicas"]) < 2 and not one_broker:
        yield (
            "min.insync.replicas",
            "2",
            "one disk acknowledges a reward (one_broker=yes in the URL accepts that)",
        )
    if int(values["max.message.bytes"]) < MESSAGE_BYTES:
        yield "max.message.bytes", str(MESSAGE_BYTES), "a large control record would be refused"
