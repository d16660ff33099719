"""Sends dead letters of the router back to the rewards topic, once what was wrong has been put right.

    python examples/replay_dead_letters.py h1:9092 shop unknown-policy unknown-item

It takes the letters with these reasons that were there when it started, each once: how far it came is kept in the
consumer group NAME.replay. What the router still cannot take becomes a letter again.
"""

import base64
import json
import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def main(servers: str, name: str, *reasons: str) -> None:
    consumer = KafkaConsumer(
        bootstrap_servers=servers.split(","),
        group_id=f"{name}.replay",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = KafkaProducer(bootstrap_servers=servers.split(","), acks="all", linger_ms=20)
    topic = f"{name}.dead-letters"
    consumer.assign([TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)])
    ends = consumer.end_offsets(list(consumer.assignment()))
    sent = 0
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        replayed = []
        for letters in consumer.poll(timeout_ms=1000).values():
            for each in letters:
                letter = json.loads(each.value)
                if letter["reason"] in reasons and letter["value"] is not None:
                    value = letter["value"].encode()
                    if letter["encoding"] == "base64":
                        value = base64.b64decode(value)
                    replayed.append(producer.send(f"{name}.rewards", value, key=each.key))
        for each in replayed:
            each.get(timeout=30)
        consumer.commit()
        sent += len(replayed)
    producer.close()
    consumer.close()
    print(f"{sent} letters sent back")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 3 else sys.exit(__doc__)
