"""JSON rewards a second through one router, and where its time goes: `python -m benchmarks.router [--quick]`.

A real Kafka broker and a Redis of its own; the broker has the other core. The rewards topic is filled first, so that
the router never waits for producers. `router` is what `croupier router` does, on one thread; the parts are measured
on the same messages in the same run. CPU is the process's, so it includes the client's own thread.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from server.feedback import judge
from server.router import Router
from server.router_kafka import DeadLetters, RewardsTopic
from server.router_metrics import RouterMetrics
from server.router_rows import Message, frames, sort
from server.router_view import KnownPolicies
from streaming.control import PolicyPut, PolicySpec
from streaming.log import open_log
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import KafkaUrl, kafka_producer, parse_kafka_url
from streaming.store import open_store
from tests.parts.kafka import Broker
from tests.parts.redis import Single
from tests.server.host_parts import Host, random_graph

SHARDS = 8
DECISIONS = 2_000


def bodies(host: Host, count: int) -> list[bytes]:
    """One reward each, for the ten items of decisions of ten clusters: 219 characters of token."""
    host.follow(PolicyPut("ads", PolicySpec("thompson-beta"), list("abcdefghij")))
    host.diag("films", random_graph(clusters=40, items=200, width=50), clusters_per_user=10)
    host.now_ms = time.time_ns() // 1_000_000
    rng, made = __import__("numpy").random.default_rng(1), []
    from server.schemas import User

    for _ in range(DECISIONS):
        decision = host.recommend("films", k=10, user=User(embedding=rng.normal(size=4).tolist()))
        made += [(decision.decision_id, item.id) for item in decision.items]
    return [
        msgspec.json.encode({"decision_id": made[i % len(made)][0], "item": made[i % len(made)][1], "reward": 1})
        for i in range(count)
    ]


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
    """Ends the router after `count` messages."""

    def __init__(self, at: KafkaUrl, count: int, stop: threading.Event) -> None:
        super().__init__(at)
        self.left, self.stop, self.sizes = count, stop, list[int]()
        self.began = 0.0

    def poll(self, timeout_ms: int) -> list[Message]:
        found = super().poll(timeout_ms)
        if found:
            self.began = self.began or time.perf_counter()
            self.sizes.append(len(found))
        self.left -= len(found)
        if self.left <= 0:
            self.stop.set()
        return found


def per_message_us(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) / count * 1e6


def run(quick: bool = False) -> dict[str, float]:
    """All figures by name."""
    count = 40_000 if quick else 200_000
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(Broker(folder / "kafka"))
        single = stack.enter_context(Single(folder / "redis", appendonly="yes"))
        return measured(folder, broker, single, count)


def measured(folder: Path, broker: Broker, single: Single, count: int) -> dict[str, float]:
    url = f"kafka://{broker.bootstrap}/bench?one_broker=yes"
    at = parse_kafka_url(url)
    log, store = open_log(url, SHARDS, write=True), open_store(f"{single.url.rstrip('/')}/bench")
    open_public_topics(at, SHARDS)
    host = Host(folder, SHARDS, log=log, store=store)
    values = bodies(host, count)
    figures = {"message_bytes": float(len(values[0])), "produced_per_s": fill(at, values)}

    alone = threading.Event()
    consumer = Limited(KafkaUrl(at.servers, at.name, at.settings, at.replication, True), count, alone)
    messages: list[Message] = []
    cpu = time.process_time()
    while not alone.is_set():
        messages += consumer.poll(500)
    taken = time.perf_counter() - consumer.began
    figures["consume_us"] = taken / count * 1e6
    figures["consume_cpu_us"] = (time.process_time() - cpu) / count * 1e6
    consumer.close()

    known = KnownPolicies(store, log)
    known.renew()
    decoder = msgspec.json.Decoder()
    figures["json_us"] = per_message_us(lambda: [decoder.decode(each.value or b"") for each in messages], count)

    class Uncounted:
        def refusal(self, reason: str) -> None:
            raise AssertionError(reason)

    sorted_rows = [sort(messages[i : i + 5000], lambda rows: judge(rows, known, Uncounted())) for i in (0,)]
    figures["sort_us"] = per_message_us(
        lambda: [
            sort(messages[i : i + 5000], lambda rows: judge(rows, known, Uncounted())) for i in range(0, count, 5000)
        ],
        count,
    )
    records = list(frames(sorted_rows[0].by_shard))
    log.append(records)
    figures["append_us"] = per_message_us(lambda: [log.append(records) for _ in range(10)], 10 * 5000)

    stop = threading.Event()
    source = Limited(at, count, stop)
    router = Router(log, known, source, DeadLetters(at), RouterMetrics(), stop)
    before, cpu = time.perf_counter(), time.process_time()
    router.run()
    after = time.perf_counter()
    source.close()
    figures["router_per_s"] = count / (after - source.began)
    figures["router_per_cpu_s"] = count / (time.process_time() - cpu)
    figures["join_s"] = source.began - before
    figures["messages_a_batch"] = count / len(source.sizes)
    log.close()
    store.close()
    for name, figure in figures.items():
        print(f"{name:30s} {figure:>14,.2f}" if figure < 1_000 else f"{name:30s} {figure:>14,.0f}")
    return figures


if __name__ == "__main__":
    run(quick="--quick" in sys.argv)
