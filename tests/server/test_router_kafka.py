"""`croupier router` as it runs: real Kafka, real Redis, rewards from the examples, kill -9, a broker that goes away."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from server.router import Router
from server.router_kafka import DeadLetters, RewardsTopic
from server.router_metrics import RouterMetrics
from server.router_view import KnownPolicies
from streaming.control import PolicyPut, PolicySpec
from streaming.log import open_log
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import parse_kafka_url
from streaming.store import open_store
from tests.parts.host import wait_for
from tests.parts.kafka import JAVA, Broker, client, fetched_jars
from tests.parts.redis import Single
from tests.server.host_parts import Host

ROOT = Path(__file__).resolve().parents[2]
MAIN = "from server.cli import main; main()"


class World:
    """A log in Kafka, a store in Redis, a policy, decisions; learners that run when told to."""

    def __init__(self, path: Path, broker: Broker, redis: Single) -> None:
        name = f"t{uuid.uuid4().hex[:8]}"
        self.path, self.servers = path, broker.bootstrap
        quick = "session_timeout_ms=4000&heartbeat_interval_ms=500"
        self.log_url = f"kafka://{broker.bootstrap}/{name}?one_broker=yes&{quick}"
        self.store_url = f"{redis.url.rstrip('/')}/{name}"
        self.at = parse_kafka_url(self.log_url)
        self.log, self.store = open_log(self.log_url, 2, write=True), open_store(self.store_url)
        open_public_topics(self.at, 4)
        self.host = Host(path, 2, log=self.log, store=self.store)
        self.host.now_ms = time.time_ns() // 1_000_000
        self.host.follow(PolicyPut("ads", PolicySpec("thompson-beta"), ["a", "b", "c"]))
        self.number = self.host.views.by_name["ads"].entry.number
        self.routers: list[Process] = []

    def decisions(self, count: int) -> list[tuple[str, str]]:
        """(decision id, item), all in the log."""
        made = [self.host.recommend("ads") for _ in range(count)]
        self.host.outbox.flush()
        return [(each.decision_id, each.items[0].id) for each in made]

    def send(self, values: list[bytes | None]) -> None:
        with client(KafkaProducer(bootstrap_servers=self.servers)) as producer:
            sent = [producer.send(self.at.rewards, value, key=b"%d" % i) for i, value in enumerate(values)]
            for each in sent:
                each.get(10)

    def outcomes(self) -> dict[str, int]:
        self.host.learn()
        self.host.replica.poll()
        return self.host.outcomes(self.number)

    def letters(self, count: int) -> list[tuple[bytes | None, dict[str, object]]]:
        """The first `count` dead letters."""
        found: list[tuple[bytes | None, dict[str, object]]] = []
        with client(KafkaConsumer(bootstrap_servers=self.servers)) as consumer:
            partition = TopicPartition(self.at.dead_letters, 0)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            deadline = time.monotonic() + 20
            while len(found) < count and time.monotonic() < deadline:
                found += [(each.key, json.loads(each.value)) for new in consumer.poll(200).values() for each in new]
        return found

    def start(self) -> "Process":
        self.routers.append(Process(self))
        return self.routers[-1]

    def close(self) -> None:
        for router in self.routers:
            router.end()
        self.log.close()
        self.store.close()


class Process:
    """`croupier router`."""

    def __init__(self, world: World) -> None:
        self.errors = world.path / f"router-{len(world.routers)}.stderr"
        command = [sys.executable, "-c", MAIN, "router", "--metrics-port", "0"]
        environment = os.environ | {"CROUPIER_LOG": world.log_url, "CROUPIER_STORE": world.store_url}
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, env=environment)

    def metrics(self) -> dict[str, float]:
        url = re.search(r"http://\S+/metrics", self.errors.read_text())
        assert url is not None, self.errors.read_text()
        with urllib.request.urlopen(url[0], timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))}

    def wait_until_joined(self) -> None:
        wait_for(lambda: "routing" in self.errors.read_text(), "the router has opened everything")
        wait_for(lambda: self.metrics()["croupier_router_rebalances_total"] > 0, "the router has partitions", 90)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)


@pytest.fixture
def world(tmp_path: Path, kafka: Broker, redis_single: Single) -> Iterator[World]:
    world = World(tmp_path, kafka, redis_single)
    yield world
    world.close()


def body(decision: tuple[str, str], reward: float = 1.0) -> bytes:
    return json.dumps({"decision_id": decision[0], "item": decision[1], "reward": reward}).encode()


def test_rewards_of_the_examples_are_learned_and_poison_is_kept(world: World) -> None:
    router = world.start()
    decisions = world.decisions(40)
    lines = "".join(f"{token},{item},1\n" for token, item in decisions[:20])
    example = [sys.executable, str(ROOT / "examples" / "send_rewards.py"), world.servers, world.at.rewards]
    done = subprocess.run(example, input=lines, capture_output=True, text=True, timeout=60)
    assert done.stdout == "20 rewards sent\n", done.stderr
    console = [*JAVA, "-cp", f"{fetched_jars()}/*", "org.apache.kafka.tools.ConsoleProducer"]
    console += ["--bootstrap-server", world.servers, "--topic", world.at.rewards, "--compression-codec", "lz4"]
    rows = "".join(f"{body(each).decode()}\n" for each in decisions[20:])
    subprocess.run(console, input=rows + "no JSON\n", text=True, timeout=60, check=True, capture_output=True)
    world.send([None, b"\xff", b"[" + body(decisions[0]) + b', {"decision_id": "forged", "item": "a", "reward": 1}]'])
    wait_for(lambda: world.outcomes().get("applied") == 40, "every reward is learned")
    letters = world.letters(4)
    assert sorted((str(each["reason"]), each["index"]) for _, each in letters) == [
        ("bad-token", 1), ("invalid", None), ("not-json", None), ("not-json", None)
    ]  # fmt: skip
    assert {each["value"] for _, each in letters} >= {"no JSON", "/w==", None}
    wait_for(lambda: world.outcomes().get("duplicate") == 1, "the list's sound row is taken")
    wait_for(lambda: router.metrics()['croupier_router_up{part="store"}'] == 1, "a second has passed")
    metrics = router.metrics()
    assert metrics["croupier_router_messages_total"] == 44
    assert metrics["croupier_router_accepted_total"] == 41
    assert metrics['croupier_router_refused_total{reason="not-json"}'] == 2
    assert metrics["croupier_router_dead_letters_total"] == 4
    replay = [sys.executable, str(ROOT / "examples" / "replay_dead_letters.py"), world.servers, world.at.name]
    for count in (6, 8):  # each letter is sent back once; what is still wrong becomes one again
        done = subprocess.run([*replay, "not-json"], capture_output=True, text=True, timeout=60)
        assert done.stdout == "2 letters sent back\n", done.stderr
        again = [letter["value"] for _, letter in world.letters(count)[count - 2 :]]
        assert sorted(map(str, again)) == ["/w==", "no JSON"]
    assert router.stop() == 0
    # In order means: everything committed, so the next one finds nothing.
    second = world.start()
    second.wait_until_joined()
    world.send([body(decisions[0])])
    wait_for(lambda: second.metrics()["croupier_router_messages_total"] >= 1, "the new message is read")
    assert second.metrics()["croupier_router_messages_total"] == 1


class Forgetful(RewardsTopic):
    """Dies each time before it commits."""

    def commit(self, now: bool = False) -> None:
        del now


def test_what_is_appended_but_not_committed_is_taken_again_and_counts_once(world: World) -> None:
    decisions = world.decisions(10)
    world.send([body(each) for each in decisions])
    known = KnownPolicies(world.store, world.log)
    known.renew()
    for count in (10, 20):
        source = Forgetful(world.at)
        letters = DeadLetters(world.at)
        router = Router(world.log, known, source, letters, RouterMetrics(), threading.Event())
        taken = 0
        while taken < 10:
            taken += router.turn()
        source.close()
        assert world.outcomes()["applied"] == 10
        assert sum(world.outcomes().get(name, 0) for name in ("applied", "duplicate")) == count


def test_a_router_that_waits_for_log_or_store_lets_others_in(world: World) -> None:
    """Its polls in between are what takes part in a rebalance."""
    stop = threading.Event()
    waits, comes = RewardsTopic(world.at), RewardsTopic(world.at)

    def wait() -> None:
        while not stop.wait(0.2):
            waits.stay()

    wait_for(lambda: waits.poll(200) == [] and len(waits._consumer.assignment()) == 4, "the first has all")
    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        wait_for(lambda: comes.poll(200) == [] and len(comes._consumer.assignment()) == 2, "the second has half")
    finally:
        stop.set()
        waiting.join()
        waits.close()
        comes.close()


def test_kill_rebalance_and_a_broker_away_lose_nothing(world: World, kafka: Broker) -> None:
    decisions = world.decisions(3000)
    first = world.start()
    first.wait_until_joined()
    world.send([body(each) for each in decisions[:1000]])
    wait_for(lambda: first.metrics()["croupier_router_accepted_total"] > 0, "the first one is at work")
    first.process.kill()
    second, third = world.start(), world.start()
    second.wait_until_joined()
    world.send([body(each) for each in decisions[1000:2000]])
    kafka.kill()
    try:
        wait_for(lambda: second.metrics()['croupier_router_up{part="log"}'] == 0, "the router sees it")
    finally:
        kafka.restart()
    world.send([body(each) for each in decisions[2000:]])
    wait_for(lambda: world.outcomes().get("applied") == 3000, "every reward is learned", 60)
    outcomes = world.outcomes()
    assert outcomes.keys() <= {"applied", "duplicate", "decisions_thompson"}, outcomes
    assert [each.metrics()["croupier_router_dead_letters_total"] for each in (second, third)] == [0, 0]
    assert [second.stop(), third.stop()] == [0, 0]
