"""JSON rewards a second through one router, and where its time goes: `python -m benchmarks.router [--quick]`.

A real Kafka broker and a Redis of its own. The rewards topic is filled first, so that the router never waits for
producers; then it runs as `croupier router` does, in one process, while the broker has the other core. The parts are
measured on the same messages in the same run. CPU is the process's, so the Kafka client's own threads are in it.
"""

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from server.feedback import Judged, judge
from server.router import Router
from server.router_kafka import MESSAGES_MAX, DeadLetters, RewardsTopic
from server.router_metrics import RouterMetrics
from server.router_rows import Message, frames, sort
from server.router_view import KnownPolicies
from server.schemas import FeedbackRow, User
from streaming.log import EventLog, open_log
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import KafkaUrl, kafka_producer, parse_kafka_url
from streaming.store import open_store
from tests.parts.kafka import Broker
from tests.parts.redis import Single
from tests.server.host_parts import Host, random_graph

SHARDS = 8
DECISIONS = 2_000


def bodies(host: Host, count: int) -> list[bytes]:
    """One reward each, for the ten items of decisions of ten clusters: tokens of 219 characters."""
    host.diag("films", random_graph(clusters=40, items=200, width=50), clusters_per_user=10)
    host.now_ms = time.time_ns() // 1_000_000
    rng = np.random.default_rng(1)
    made = []
    for _ in range(DECISIONS):
        decision = host.recommend("films", k=10, user=User(embedding=rng.normal(size=4).tolist()))
        made += [
            msgspec.json.encode({"decision_id": decision.decision_id, "item": item.id, "reward": 1})
            for item in decision.items
        ]
    return [made[i % len(made)] for i in range(count)]


def fill(at: KafkaUrl, values: Sequence[bytes]) -> float:
    """Sends them all to the rewards topic; messages a second."""
    producer = kafka_producer(at, linger_ms=5, delivery_timeout_ms=60_000, request_timeout_ms=30_000)
    began = time.perf_counter()
    for value in values:
        producer.send(at.rewards, value)
    producer.flush()
    taken = time.perf_counter() - began
    producer.close()
    return len(values) / taken


class Limited(RewardsTopic):
    """Says stop after `count` messages; counts time from the first one."""

    def __init__(self, at: KafkaUrl, count: int) -> None:
        super().__init__(at)
        self.left = count
        self.stop = threading.Event()
        self.polls = 0
        self.began = self.cpu = 0.0

    def poll(self, timeout_ms: int) -> list[Message]:
        if not self.polls:
            self.began, self.cpu = time.perf_counter(), time.process_time()
        found = super().poll(timeout_ms)
        self.polls += bool(found)
        self.left -= len(found)
        if self.left <= 0:
            self.stop.set()
        return found


class Uncounted:
    """Nothing is refused here."""

    def refusal(self, reason: str) -> None:
        raise AssertionError(reason)


def us(call: Callable[[], object], count: int) -> float:
    """Time of the call in us, divided by `count`."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) / count * 1e6


def consume(at: KafkaUrl, count: int) -> tuple[list[Message], dict[str, float]]:
    """All messages, and what reading them costs."""
    source = Limited(at, count)
    messages: list[Message] = []
    while not source.stop.is_set():
        messages += source.poll(500)
    wall, cpu = time.perf_counter() - source.began, time.process_time() - source.cpu
    source.close()
    return messages, {"consume_us": wall / count * 1e6, "consume_cpu_us": cpu / count * 1e6}


def parts(messages: Sequence[Message], known: KnownPolicies, log: EventLog) -> dict[str, float]:
    """us a message, of each thing that the router does between the poll and the commit."""
    count = len(messages)
    batches = [messages[i : i + MESSAGES_MAX] for i in range(0, count, MESSAGES_MAX)]

    def judged(rows: Sequence[FeedbackRow]) -> Judged:
        return judge(rows, known, Uncounted())

    decoder = msgspec.json.Decoder(FeedbackRow | list[FeedbackRow])
    rows = [decoder.decode(each.value or b"") for each in messages]
    made = sort(batches[0], judged).by_shard
    records = list(frames(made))
    log.append(records)
    return {
        "decode_us": us(lambda: [decoder.decode(each.value or b"") for each in messages], count),
        "judge_us": us(lambda: judged(rows), count),
        "sort_us": us(lambda: [sort(batch, judged) for batch in batches], count),
        "frames_us": us(lambda: list(frames(made)), len(batches[0])),
        "append_us": us(lambda: [log.append(records) for _ in range(10)], 10 * len(batches[0])),
    }


def measured(folder: Path, broker: Broker, single: Single, count: int) -> dict[str, float]:
    url = f"kafka://{broker.bootstrap}/bench?one_broker=yes"
    at = parse_kafka_url(url)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(open_log(url, SHARDS, write=True)))
        store = stack.enter_context(contextlib.closing(open_store(f"{single.url.rstrip('/')}/bench")))
        open_public_topics(at, SHARDS)
        host = Host(folder, SHARDS, log=log, store=store)
        values = bodies(host, count)
        figures = {"message_bytes": float(len(values[0])), "produced_per_s": fill(at, values)}
        messages, found = consume(at, count)
        known = KnownPolicies(store, log)
        known.renew()
        figures |= found | parts(messages, known, log)
        source = Limited(at, count)
        stack.callback(source.close)
        metrics = RouterMetrics()
        Router(log, known, source, DeadLetters(at), metrics, source.stop).run()
        assert metrics.registry.get_sample_value("croupier_router_accepted_total") == count
        figures["router_per_s"] = count / (time.perf_counter() - source.began)
        figures["router_per_cpu_s"] = count / (time.process_time() - source.cpu)
        figures["messages_a_poll"] = count / source.polls
    return figures


def run(quick: bool = False) -> dict[str, float]:
    """All figures by name. About 25 s when quick, else a minute."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(Broker(folder / "kafka"))
        single = stack.enter_context(Single(folder / "redis", appendonly="yes"))
        figures = measured(folder, broker, single, 40_000 if quick else 200_000)
    for name, figure in figures.items():
        print(f"{name:30s} {figure:>14,.2f}" if figure < 1_000 else f"{name:30s} {figure:>14,.0f}")
    return figures


if __name__ == "__main__":
    run(quick="--quick" in sys.argv)
