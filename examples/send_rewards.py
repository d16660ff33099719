"""Rewards into the topic that `croupier router` reads, from a program with kafka-python.

    python examples/send_rewards.py h1:9092 shop.rewards < rewards.csv

Each line is DECISION_ID,ITEM,REWARD or DECISION_ID,ITEM,REWARD,EVENT_ID. All of a decision's rewards get one key, so
they stay in order; several may be sent as one message, a JSON list.
"""

import csv
import json
import sys

from kafka import KafkaProducer


def main(servers: str, topic: str) -> None:
    producer = KafkaProducer(
        bootstrap_servers=servers.split(","),
        acks="all",  # a reward is sent when it is on all replicas; with idempotence, once
        linger_ms=20,
    )
    sent = []
    for decision_id, item, reward, *event_id in csv.reader(sys.stdin):
        row = {"decision_id": decision_id, "item": item, "reward": float(reward)}
        if event_id:
            row["event_id"] = event_id[0]
        sent.append(producer.send(topic, json.dumps(row).encode(), key=decision_id.encode()))
    for each in sent:
        each.get(timeout=30)  # raises where it was not taken
    producer.close()
    print(f"{len(sent)} rewards sent")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
