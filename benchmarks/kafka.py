"""What Kafka costs us: `python -m benchmarks.kafka [--quick]`; it starts a broker of its own.

    json      small messages as other producers send them, by kafka-python with crc32c: packed in batches by a busy
              producer, and each in a batch of its own, as from a thousand idle ones
    frames    many events packed in a record, through `KafkaLog.append` and `KafkaLog.read`
    paced     20,000 events/s, gathered while the append before is under way, and read by another handle

"per core" is per second of this process's CPU, its network threads included; the broker's is its own. Two threads of
Python share one core, so a wall-clock figure cannot be above the figure per core for long.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from streaming import events
from streaming.log import EventLog, open_log
from streaming.log.kafka_topics import open_public_topics
from streaming.log.kafka_url import kafka_consumer, kafka_producer, parse_kafka_url
from tests.parts.kafka import Broker

PAYLOAD = bytes(100)
"""A decision of three items is about as long."""
RATE = 20_000


def spent(call: Callable[[], int]) -> tuple[float, float]:
    """(per second, per second of CPU) of what `call` counts."""
    began, cpu = time.perf_counter(), time.process_time()
    done = call()
    return done / (time.perf_counter() - began), done / (time.process_time() - cpu)


def small_messages(url: str, count: int, batch_size: int) -> dict[str, float]:
    """JSON rewards of 200 bytes, one record each; a batch holds `batch_size` bytes, or one record if that is 0."""
    at = parse_kafka_url(url)
    open_public_topics(at, 4)
    message = json.dumps(
        {"decision_id": "d" * 120, "item": "item-12345", "reward": 1.0, "event_id": "e-123456"}
    ).encode()
    decoder = msgspec.json.Decoder()
    figures: dict[str, float] = {"bytes": len(message)}
    producer = kafka_producer(at, batch_size=batch_size, delivery_timeout_ms=120_000, request_timeout_ms=30_000)

    def produce() -> int:
        for n in range(count):
            producer.send(at.rewards, message, partition=n % 4)
        producer.flush()
        return count

    def consume(decode: bool) -> int:
        found = 0
        while found < count:
            for records in consumer.poll(timeout_ms=1000, max_records=5000).values():
                found += len(records)
                if decode:
                    for record in records:
                        decoder.decode(record.value)
        return found

    producer.send(at.rewards, message, partition=0).get(10)
    figures["produced_per_s"], figures["produced_per_core_s"] = spent(produce)
    producer.close()
    for name, decode in (("consumed", False), ("consumed_and_decoded", True)):
        consumer = kafka_consumer(
            at, auto_offset_reset="earliest", group_id=f"bench-{name}", max_partition_fetch_bytes=1 << 20
        )
        consumer.subscribe([at.rewards])
        while not consumer.assignment():
            consumer.poll(timeout_ms=500, max_records=1)
        consumer.seek_to_beginning()
        figures[f"{name}_per_s"], figures[f"{name}_per_core_s"] = spent(lambda decode=decode: consume(decode))  # type: ignore[misc]
        consumer.close()
    return figures


def appends(log: EventLog, seconds: float) -> dict[str, float]:
    """Frames of 20, 200 and 2,000 events, one after another: events/s and the time an append takes."""
    figures: dict[str, float] = {}
    for size in (20, 200, 2_000):
        frame = events.frame([events.decision(PAYLOAD, n) for n in range(size)])
        taken: list[float] = []

        def append(frame: bytes = frame, taken: list[float] = taken, size: int = size) -> int:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                began = time.perf_counter()
                log.append([(len(taken) % log.shards, frame)])
                taken.append(time.perf_counter() - began)
            return len(taken) * size

        figures[f"of_{size}_events_per_s"], figures[f"of_{size}_events_per_core_s"] = spent(append)
        figures[f"of_{size}_p50_ms"] = statistics.median(taken) * 1e3
        figures[f"of_{size}_p99_ms"] = float(np.quantile(taken, 0.99)) * 1e3
    return figures


def reads(log: EventLog) -> dict[str, float]:
    """All that was appended, shard by shard, as a learner that comes late reads it."""
    figures: dict[str, float] = {}
    size = 0

    def read() -> int:
        nonlocal size
        found = 0
        for shard in range(log.shards):
            offset, end = log.bounds(shard)
            while offset < end:
                for record in log.read(shard, offset):
                    found += int(np.frombuffer(record.data, np.uint32, 1, 8)[0])
                    size += len(record.data)
                    offset = record.offset + 1
        return found

    began = time.perf_counter()
    figures["events_per_s"], figures["events_per_core_s"] = spent(read)
    figures["mb_per_s"] = size / (time.perf_counter() - began) / 1e6
    return figures


def paced(log: EventLog, reader: EventLog, seconds: float) -> dict[str, float]:
    """Events come at RATE; what has come while an append was under way is the next one's, a frame for each shard.

    An event carries when it was due. Latencies are from then: to its acknowledgement, and to its read by the other
    handle, which asks all shards every 2 ms.
    """
    heads = log.ends()
    acknowledged: list[float] = []
    seen: list[float] = []
    done = threading.Event()

    def follow() -> None:
        while not done.is_set():
            for shard in range(reader.shards):
                for record in reader.read(shard, heads[shard]):
                    heads[shard] = record.offset + 1
                    now = time.perf_counter()
                    count = int(np.frombuffer(record.data, np.uint32, 1, 8)[0])
                    words = np.frombuffer(record.data, np.uint8).reshape(-1)[events.FRAME_SIZE :].reshape(count, -1)
                    seen.extend((now - words[:, 8:16].copy().view(np.float64).ravel()).tolist())
            time.sleep(0.002)

    follower = threading.Thread(target=follow)
    follower.start()
    began, cpu = time.perf_counter(), time.process_time()
    sent = 0
    while (now := time.perf_counter()) < began + seconds:
        due = int((now - began) * RATE)
        if due - sent < 1:
            time.sleep(0.0005)
            continue
        frames = []
        for shard in range(log.shards):
            whens = [began + n / RATE for n in range(sent, due) if n % log.shards == shard]
            frames += [(shard, events.frame([events.reward(PAYLOAD, 0, when) for when in whens]))] if whens else []
        log.append(frames)
        now = time.perf_counter()
        acknowledged.extend(now - began - n / RATE for n in range(sent, due))
        sent = due
    taken, busy = time.perf_counter() - began, time.process_time() - cpu
    while len(seen) < sent and time.perf_counter() < began + seconds + 5:
        time.sleep(0.05)
    done.set()
    follower.join()
    figures = {"events_per_s": sent / taken, "lost": sent - len(seen), "cores_busy": busy / taken}
    for name, values in (("acknowledged", acknowledged), ("read", seen)):
        figures[f"{name}_p50_ms"], figures[f"{name}_p99_ms"] = (
            float(q) * 1e3 for q in np.quantile(values, [0.5, 0.99])
        )
    return figures


def run(quick: bool = False) -> dict[str, dict[str, float]]:
    """All figures by name. About 25 s when quick, else 60."""
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "kafka") as broker:
        url = f"kafka://{broker.bootstrap}/bench?one_broker=yes"
        alone = f"kafka://{broker.bootstrap}/bench-alone?one_broker=yes"
        figures = {"json": small_messages(url, 50_000 if quick else 200_000, 1 << 20)}
        figures["json_alone"] = small_messages(alone, 10_000 if quick else 40_000, 0)
        log, reader = open_log(url, 4, write=True), open_log(url)
        log.append([(shard, events.frame([])) for shard in range(4)])
        figures["append"] = appends(log, 1.0 if quick else 5.0)
        figures["read"] = reads(reader)
        figures["paced"] = paced(log, reader, 3.0 if quick else 15.0)
        log.close()
        reader.close()
    for part, values in figures.items():
        for name, value in values.items():
            print(
                f"{part + ' / ' + name:50s} {value:>14,.2f}"
                if value < 1000
                else f"{part + ' / ' + name:50s} {value:>14,.0f}"
            )
    return figures


if __name__ == "__main__":
    run(quick="--quick" in sys.argv)
