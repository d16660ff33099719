"""The client while its server is killed, all of its processes at once, and started again on the same data and port."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil

from croupier.client import Client
from tests.parts.host import free_ports
from tests.server.processes import Server, wait_for

KILLS = 3
ANSWERED = 50  # rewards between two kills, at least
SUMS = {
    "algorithm": "banker",
    "arms": ["a", "b", "c"],
    "reward": {"window": "1h", "default": 0, "aggregation": "sum"},
}


def kill_all(server: Server) -> None:
    root = psutil.Process(server.process.pid)
    for each in [root, *root.children(recursive=True)]:
        os.kill(each.pid, signal.SIGKILL)
    server.end()


def test_no_reward_is_lost_or_counted_twice(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    server = Server(tmp_path / "data", port=port)
    stop = threading.Event()
    client = Client(server.url, timeout_s=0.5, fallback=["a"], max_batch=10, request_timeout_s=5.0)

    def visit() -> None:
        while not stop.is_set():
            decision = client.recommend("sums")
            client.feedback_later(decision, decision.items[0].id, 1)
            time.sleep(0.002)

    def learned() -> float:
        return sum(arm.rewards for arm in client.arms("sums"))

    def wait_for_answers() -> None:
        least = client.stats.accepted + ANSWERED
        wait_for(lambda: client.stats.accepted >= least, 60)

    threads = [threading.Thread(target=visit) for _ in range(4)]
    try:
        client.put_policy("sums", SUMS)
        wait_for(lambda: client.policies())
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            wait_for_answers()
            kill_all(server)
            server = Server(tmp_path / "data", port=port)
        wait_for_answers()
        stop.set()
        for thread in threads:
            thread.join()
        assert client.flush(60)
        stats = client.stats
        wait_for(lambda: learned() >= stats.sent, 60)
        print(f"{KILLS} kills: {stats}; each reward was 1, the arms' sum is {learned():g}")
        assert learned() == stats.sent == stats.accepted
        assert stats.fallbacks > 0
        assert stats.retried > 0
    finally:
        stop.set()
        client.close(0.0)
        server.end()
