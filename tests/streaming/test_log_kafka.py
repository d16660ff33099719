"""The log in Kafka beyond the contract: what it refuses to start on, brokers that end, secrets, the learners' group."""

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from streaming import events
from streaming.errors import LayoutMismatch, LogCorrupt, LogUnavailable, Trimmed
from streaming.log import CONTROL, EventLog, Record, open_log
from streaming.log import kafka_reader as reader_module
from streaming.log.kafka import RECORD_BYTES, KafkaLog
from streaming.log.kafka_group import Membership
from streaming.log.kafka_topics import admin_of, open_public_topics, refusals
from streaming.log.kafka_url import KafkaUrl, end_producer, kafka_consumer, kafka_producer, parse_kafka_url
from streaming.urls import mask
from tests.parts.host import wait_for
from tests.parts.kafka import PASSWORD, USER, Broker

pytestmark = pytest.mark.xdist_group("parts")
NAMES = (f"log-{n}" for n in itertools.count())
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url(kafka: Broker) -> str:
    """A log of its own name for each test."""
    return f"kafka://{kafka.bootstrap}/{next(NAMES)}?one_broker=yes"


@pytest.fixture
def opened() -> Iterator[Callable[..., KafkaLog]]:
    """Opens logs and closes them after the test."""
    logs: list[EventLog] = []

    def open_(url: str, shards: int | None = 2, write: bool = True) -> EventLog:
        logs.append(open_log(url, shards, write=write))
        return logs[-1]

    yield open_  # type: ignore[misc]
    for log in logs:
        log.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that can also be reached with TLS and a password, and through a proxy."""
    with Broker(tmp_path_factory.mktemp("guarded"), listeners=("PROXY", "SASL_SSL", "SASL_PLAINTEXT")) as broker:
        yield broker


def sasl(broker: Broker, password: str = PASSWORD) -> str:
    security = f"security_protocol=SASL_SSL&ssl_cafile={broker.ca_file}&sasl_mechanism=PLAIN"
    user = f"sasl_plain_username={USER}&sasl_plain_password={password}"
    return f"kafka://{broker.address('SASL_SSL')}/guarded?one_broker=yes&{security}&{user}"


def patiently(call: Callable[[], list[tuple[int, int]]] | Callable[[], list[Record]], timeout_s: float = 20.0) -> list:  # type: ignore[type-arg]
    """What `call` gives once the brokers are back."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except LogUnavailable:
            assert time.monotonic() < deadline, "the log did not come back by itself"


def follow(log: EventLog, end: int) -> None:
    """Reads at the end until the log is away, as a learner does."""
    while True:
        assert log.read(0, end) == []
        time.sleep(0.02)


def together(*calls: Callable[[], object]) -> list[object]:
    """What each of the calls, made at once, returns or raises."""

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def refusal(url: str) -> str:
    with pytest.raises(LogUnavailable) as caught:
        open_log(url)
    return str(caught.value)


def set_topic(at: KafkaUrl, topic: str, setting: str, value: str) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    with admin_of(at) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {setting: value})], incremental=True)


def test_log_time_is_the_brokers(url, opened):
    before = time.time_ns() // 1_000_000
    log = opened(url)
    placed = log.append([(0, b"x"), (1, b"y"), (CONTROL, b"z")])
    after = time.time_ns() // 1_000_000
    assert all(before <= time_ms <= after for _, time_ms in placed)
    assert [log.read(p, 0)[0].time_ms for p in (0, 1, CONTROL)] == [time_ms for _, time_ms in placed]


@pytest.mark.parametrize(
    ("setting", "bad", "why"),
    [
        ("message.timestamp.type", "CreateTime", "log's time must be the broker's"),
        ("cleanup.policy", "compact", "compaction throws away"),
        ("retention.ms", "86400000", "end by age"),
        ("retention.bytes", "1000000000", "end by size"),
        ("unclean.leader.election.enable", "true", "may become leader and lose"),
        ("max.message.bytes", "1048588", "would be refused"),
    ],
)
@pytest.mark.parametrize("which", ["events", "control"])
def test_a_topic_that_would_lose_rewards_is_refused(url, opened, setting, bad, why, which):
    opened(url)
    at = parse_kafka_url(url)
    topic = getattr(at, which)
    set_topic(at, topic, setting, bad)
    wait_for(lambda: not opens(url), f"{setting} is {bad}")
    with pytest.raises(LayoutMismatch, match=why) as caught:
        open_log(url)
    assert f"topic {topic} has {setting}={bad}" in str(caught.value)
    assert f"--add-config {setting}=" in str(caught.value)


def opens(url: str) -> bool:
    try:
        open_log(url).close()
    except LayoutMismatch:
        return False
    return True


def test_what_others_may_have_set_is_accepted_within_bounds(url, opened):
    opened(url)
    at = parse_kafka_url(url)
    set_topic(at, at.events, "retention.ms", str(8 * 24 * 3600 * 1000))
    opened(url, None)


def test_one_replica_is_refused_unless_that_is_said(url, opened):
    plain = url.replace("?one_broker=yes", "")
    with pytest.raises(LayoutMismatch, match=r"on 1 of its 1 brokers.*one_broker=yes"):
        open_log(plain, 2, write=True)
    opened(url)
    with pytest.raises(LayoutMismatch, match=r"has 1 replica.*one_broker=yes"):
        open_log(plain, 2, write=True)


def test_one_replica_in_sync_is_refused_unless_that_is_said():
    values = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete", "retention.ms": "-1"}
    values |= {"retention.bytes": "-1", "unclean.leader.election.enable": "false", "max.message.bytes": "8388608"}
    values |= {"min.insync.replicas": "1"}
    assert [setting for setting, _, _ in refusals(values, one_broker=False)] == ["min.insync.replicas"]
    assert list(refusals(values, one_broker=True)) == []


def test_a_log_that_is_not_there_or_has_other_shards_is_refused(url, opened):
    with pytest.raises(LogUnavailable, match=r"there is no topic log-.*serve"):
        open_log(url)
    with pytest.raises(LogUnavailable, match="there is no topic"):
        open_log(url, write=True)  # how many shards is for the caller to say
    log = opened(url, 3)
    assert log.shards == opened(url, None, write=False).shards == 3
    with pytest.raises(LayoutMismatch, match=r"has 3 partitions, not 4: set shards = 3"):
        open_log(url, 4, write=True)
    with pytest.raises(ValueError, match="opened for reading"):
        opened(url, None, write=False).append([(0, b"x")])
    with pytest.raises(ValueError, match="takes at most"):
        log.append([(0, bytes(RECORD_BYTES + 1))])
    assert len(log.append([(0, bytes(RECORD_BYTES))])) == 1


def test_half_a_log_is_refused(url, opened):
    opened(url)
    at = parse_kafka_url(url)
    with admin_of(at) as admin:
        admin.delete_topics([at.control])
    wait_for(lambda: at.control not in topics(at), "the control topic is gone")
    with pytest.raises(LayoutMismatch, match=rf"has a topic {at.events} but not its other one"):
        open_log(url, 2, write=True)


def topics(at: KafkaUrl) -> list[str]:
    with admin_of(at) as admin:
        return list(admin.list_topics())


def test_a_log_made_anew_is_another_and_an_open_handle_says_so(url, opened):
    log = opened(url)
    log.append([(0, b"old")])
    assert [record.data for record in log.read(0, 0)] == [b"old"]
    at = parse_kafka_url(url)
    with admin_of(at) as admin:
        admin.delete_topics([at.events, at.control])
    wait_for(lambda: at.events not in topics(at), "the topics are gone")
    with pytest.raises(LogUnavailable):
        follow(log, 1)
    anew = opened(url)
    assert anew.id != log.id
    with pytest.raises(LogCorrupt, match="deleted and made anew while it was open"):
        patiently(lambda: log.read(0, 1))


def test_the_public_topics_are_made_once(url, opened):
    opened(url)
    at = parse_kafka_url(url)
    open_public_topics(at, 3)
    open_public_topics(at, 5)
    consumer = kafka_consumer(at)
    assert len(consumer.partitions_for_topic(at.rewards)) == 3
    assert len(consumer.partitions_for_topic(at.dead_letters)) == 1
    consumer.close()


def test_two_writers_append_to_one_partition_and_nothing_is_lost_or_mixed(url, opened):
    writers = [opened(url), opened(url)]
    sent = 200

    def write(number: int) -> None:
        for n in range(sent):
            writers[number].append([(0, bytes([number, n])), (0, bytes([number, n, 0]))])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [record.data for record in opened(url, None, write=False).read(0, 0, max_records=10_000)]
    for number in range(2):
        mine = [data for data in found if data[0] == number]
        assert mine == [bytes([number, n, *more]) for n in range(sent) for more in ([], [0])]


def test_numpy_reads_a_record_where_it_lies(url, opened):
    log = opened(url)
    frame = events.frame([events.decision(b"x" * 40, n) for n in range(1000)])
    log.append([(0, frame)])
    (record,) = log.read(0, 0)
    seen = np.frombuffer(record.data, np.uint8)
    assert seen.base is record.data
    assert seen.tobytes() == frame
    assert not seen.flags.owndata


def test_a_partition_trimmed_under_its_reader_says_so(url, opened):
    log, follower = opened(url), opened(url, None, write=False)
    log.append([(0, bytes([n])) for n in range(10)])
    assert len(follower.read(0, 0)) == 10
    log.append([(0, bytes(2_000_000)) for n in range(5)])
    log.trim(0, 14)
    with pytest.raises(Trimmed, match="starts at offset 14"):
        follower.read(0, 5)
    assert [record.offset for record in follower.read(0, 14)] == [14]
    assert follower.bounds(0) == (14, 15)


def test_what_is_read_ahead_is_bounded_and_nothing_is_passed_over(url, opened, monkeypatch):
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", 1 << 20)
    log, follower = opened(url), opened(url, None, write=False)
    for n in range(24):
        log.append([(0, bytes([n]) * (1 << 20)), (1, bytes([n]))])
    assert follower.read(0, 0, max_records=1)[0].data[0] == 0
    seen = [follower.read(1, n, max_records=1)[0].data[0] for n in range(24)]
    assert seen == list(range(24))
    follower.read(1, 24)
    time.sleep(0.3)
    follower.read(1, 24)
    ahead = follower._reader._ahead[0]
    assert ahead.bytes == sum(len(record.data) for record in ahead.records)
    assert ahead.bytes <= (1 << 20) + 2 * reader_module.FETCH_BYTES
    offset = 1
    while offset < 24:
        for record in follower.read(0, offset, max_records=3):
            assert (record.offset, record.data[0]) == (offset, offset)
            offset += 1
    assert ahead.bytes == 0


def test_a_read_at_the_end_asks_nobody(url, opened, monkeypatch):
    log = opened(url)
    log.append([(0, b"x")])
    assert len(log.read(0, 0)) == 1
    polls = []
    poll = log._reader._consumer.poll
    monkeypatch.setattr(log._reader._consumer, "poll", lambda **settings: polls.append(1) or poll(**settings))
    until = time.monotonic() + 0.5
    reads = 0
    while time.monotonic() < until:
        assert log.read(0, 1) == []
        reads += 1
    assert 1 <= len(polls) < 100
    assert reads > 20 * len(polls)


def test_a_partition_that_nobody_reads_is_let_go(url, opened, monkeypatch):
    monkeypatch.setattr(reader_module, "UNREAD_S", 0.2)
    log = opened(url)
    log.append([(0, b"x"), (1, b"x")])
    log.read(0, 0)
    log.read(1, 0)
    assert set(log._reader._ahead) == {0, 1}
    until = time.monotonic() + 10
    while 0 in log._reader._ahead:
        assert time.monotonic() < until
        log.read(1, 1)
        time.sleep(0.02)
    log.append([(0, b"y"), (1, b"y")])
    assert [record.data for record in log.read(0, 1)] == [b"y"]
    assert [record.data for record in log.read(1, 1)] == [b"y"]


def test_a_killed_broker_keeps_what_was_acknowledged_and_open_handles_go_on(kafka, url, opened):
    log, follower = opened(url), opened(url, None, write=False)
    log.append([(0, b"%d" % n) for n in range(100)])
    assert len(follower.read(0, 0)) == 100
    kafka.kill()
    try:
        calls = [lambda: log.append([(0, b"lost")]), log.ends, lambda: log.bounds(1), lambda: opened(url)]
        refused = together(*calls, lambda: follow(follower, 100))
        assert all(isinstance(error, LogUnavailable) for error in refused), refused
        assert all("trying again is safe" in str(error) for error in refused)
        assert sum("croupier" in thread.name for thread in threading.enumerate()) < 8  # failed tries leave none
    finally:
        kafka.restart()
    ((offset, _),) = patiently(lambda: log.append([(0, b"after")]))
    assert offset in (100, 101)  # the one without an acknowledgement may be there
    found = patiently(lambda: follower.read(0, 100))
    assert found[-1].data == b"after"
    assert [record.data for record in opened(url, None, write=False).read(0, 0)][:100] == [
        b"%d" % n for n in range(100)
    ]


def test_a_network_that_stalls_is_noticed_and_ends_no_close(guarded, opened):
    url = f"kafka://{guarded.address('PROXY')}/{next(NAMES)}?one_broker=yes"
    log, other = opened(url), opened(url)
    member = Membership(url)
    log.append([(0, b"x")])
    other.append([(0, b"y")])
    assert len(log.read(0, 0)) == len(other.read(0, 0)) == 2
    wait_for(lambda: member.shards() == {0, 1}, "the only member has all")
    guarded.proxy.stall()
    try:
        refused = together(lambda: log.append([(0, b"z")]), log.ends)
        assert all(isinstance(error, LogUnavailable) for error in refused), refused
        assert member.shards() == {0, 1}
        began = time.monotonic()
        other.close()
        member.close()
        assert time.monotonic() - began < 10
    finally:
        guarded.proxy.pass_through()
    patiently(lambda: log.append([(0, b"after")]))
    assert patiently(lambda: log.read(0, 2))[-1].data == b"after"


def senders() -> int:
    """Threads of producers that are alive."""
    from kafka.producer.sender import Sender

    return sum(isinstance(thread, Sender) for thread in threading.enumerate())


def test_a_producer_that_is_given_up_leaves_no_thread(guarded):
    at = parse_kafka_url(f"kafka://{guarded.address('PROXY')}/{next(NAMES)}?one_broker=yes")
    open_public_topics(at, 1)
    before = senders()
    producer = kafka_producer(at, delivery_timeout_ms=60_000)
    producer.send(at.rewards, b"x").get(10)
    assert senders() == before + 1
    guarded.proxy.stall()
    try:
        waiting = producer.send(at.rewards, b"y")
        began = time.monotonic()
        end_producer(producer)
        assert time.monotonic() - began < 4
        assert waiting.failed()
    finally:
        guarded.proxy.pass_through()
    wait_for(lambda: senders() == before, "its thread has ended")


def test_tls_and_passwords_pass_through_and_are_never_shown(guarded, opened, caplog):
    caplog.set_level(logging.DEBUG)
    log = opened(sasl(guarded))
    log.append([(0, b"sealed")])
    assert log.read(0, 0)[0].data == b"sealed"
    log.trim(0, 1)
    member = Membership(sasl(guarded))
    wait_for(lambda: member.shards() == {0, 1}, "a member of the group")
    member.close()
    with pytest.raises(LogUnavailable, match="user and password") as caught:
        open_log(sasl(guarded, "wrong-guess"))
    bare = sasl(guarded, "wrong-guess").replace("SASL_SSL", "SASL_PLAINTEXT")
    bare = bare.replace(guarded.address("SASL_SSL"), guarded.address("SASL_PLAINTEXT"))
    wait_for(lambda: "SaslAuthenticationFailed" in refusal(bare), "the reason is said")
    with pytest.raises(LogUnavailable) as without:
        open_log(f"kafka://{guarded.address('SASL_SSL')}/guarded")
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("kafka")]
    for text in (str(caught.value), str(without.value), log.at.shown, *ours):
        assert "wrong-guess" not in text
        assert PASSWORD not in text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka:///x", "no address of a Kafka"),
        ("kafka://h/a b", "the name may have"),
        ("kafka://u:hunter2@h/x", "sasl_plain_username"),
        ("kafka://h/x?acks=1&sasl_plain_password=hunter2", "acks cannot be set: a record is acknowledged by all"),
        ("kafka://h/x?enable_idempotence=no", "would count rewards twice"),
        ("kafka://h/x?sesion_timeout_ms=1&ssl_password=hunter2", "has a parameter sesion_timeout_ms"),
        ("kafka://h/x?session_timeout_ms=soon", "session_timeout_ms must be a whole number"),
        ("kafka://h/x?ssl_check_hostname=perhaps", "ssl_check_hostname must be yes or no"),
        ("kafka://h/x?socket_options=1", "socket_options cannot be said in a URL"),
        ("kafka://h/x?replication=two", "replication=two is no number"),
        ("kafka://h/x?one_broker=maybe", "one_broker=maybe is neither yes nor no"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_what_to_write_instead(url, says):
    with pytest.raises(ValueError, match=says) as caught:
        open_log(url)
    assert "hunter2" not in str(caught.value)


def test_secrets_are_masked_wherever_they_stand():
    at = parse_kafka_url("kafka://h/x?sasl_plain_password=hunter2&ssl_cafile=/ca")
    assert at.without_secrets("no hunter2 at kafka://h/x?sasl_plain_password=q") == (
        "no *** at kafka://h/x?sasl_plain_password=***"
    )
    for password in ("hun/ter2", "hun ter2", "hun?ter2", "hun#ter2", "hun@ter2"):
        assert mask(f"no redis://ann:{password}@h:1/x at all") == "no redis://***@h:1/x at all"
        with pytest.raises(ValueError, match="Kafka takes no user") as caught:
            open_log(f"kafka://ann:{password}@h/x")
        assert "ter2" not in str(caught.value)
    assert mask("rediss://:hunter2@h:1/0 and x?a=1&client_secret=q;b=2") == (
        "rediss://***@h:1/0 and x?a=1&client_secret=***;b=2"
    )


def test_members_share_the_shards_and_take_over_what_one_leaves(url, opened):
    opened(url, 4)
    first, second = Membership(url), Membership(url)
    wait_for(lambda: first.shards() == {0, 1, 2, 3}, "the first member has all")
    kept: list[frozenset[int]] = []

    def shared() -> bool:
        kept.append(first.shards())
        assert not first.shards() & second.shards()
        return len(first.shards()) == len(second.shards()) == 2

    wait_for(shared, "two members have two each", every_s=0.005)
    assert all(len(shards) >= 2 for shards in kept)  # what stays is never taken away meanwhile
    assert first.shards() | second.shards() == {0, 1, 2, 3}
    assert first.rebalances >= 2
    first.close()
    assert first.shards() == frozenset()
    wait_for(lambda: second.shards() == {0, 1, 2, 3}, "the second has all again")
    second.close()


def test_a_member_outlives_what_the_client_should_not_raise(monkeypatch):
    monkeypatch.setattr("streaming.log.kafka_group.AGAIN_S", 0.01)
    member = Membership("kafka://h/x?sasl_plain_password=hunter2")
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise KeyError("hunter2")

    monkeypatch.setattr(member, "_joining", fail)
    with contextlib.suppress(LogUnavailable):  # it has tried already, or not yet
        member.shards()
    wait_for(lambda: len(tries) > 3, "it tries again")
    with pytest.raises(LogUnavailable, match=r"cannot be joined: KeyError\('\*\*\*'\)"):
        member.shards()
    member.close()


FROZEN = """
import sys, time, warnings
warnings.simplefilter("ignore")
from streaming.log.kafka_group import Membership
member = Membership(sys.argv[1])
said = None
while True:
    shards = sorted(member.shards())
    if shards != said:
        print(*shards, sep=",", flush=True)
        said = shards
    time.sleep(0.01)
"""


def test_a_member_stopped_past_its_session_loses_its_shards_and_joins_again(url, opened, tmp_path):
    opened(url, 4)
    url += "&session_timeout_ms=1500"
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", FROZEN, url], stdout=file, cwd=ROOT)
    member = Membership(url)
    try:
        wait_for(lambda: out.read_text().splitlines()[-1:] == ["0,1,2,3"], "the process has all", every_s=0.05)
        wait_for(lambda: len(member.shards()) == 2, "two have two each")
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: len(member.shards()) == 4, "the stopped one's are taken over")
        os.kill(process.pid, signal.SIGCONT)
        wait_for(lambda: len(member.shards()) == 2, "it came back and was given its share")
        others = ",".join(str(shard) for shard in sorted({0, 1, 2, 3} - member.shards()))
        wait_for(lambda: out.read_text().splitlines()[-1] == others, "each shard has one member")
        assert "" in out.read_text().splitlines()[1:]  # it knew that it had lost all
    finally:
        process.kill()
        process.wait()
        member.close()
