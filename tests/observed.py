"""A whole distributed croupier that Prometheus looks at: under simulated load, with the faults that panels speak of."""

import asyncio
import json
import math
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import httpx
import numpy as np
from kafka import KafkaProducer

from bandits.worlds import geometric
from loadtest.users import Crowd, Habits, set_up
from loadtest.worlds import Taste, World, films, headlines
from server.launch import CODE
from streaming import events
from tests.parts.host import Process, wait_for
from tests.parts.kafka import Broker, client
from tests.parts.prometheus import Prometheus, tool
from tests.parts.redis import Single
from tests.server.processes import SERVE, Server, make_policy

SHARDS = 2
WINDOW_S = 4.0  # short, so that windows close and rewards come late while we look
START_S = 120.0
HAS_PARTITIONS = "count(croupier_router_lag_messages) or vector(0)"
HABITS = Habits(
    users=2, visits_per_s=40, delay=geometric(300.0), duplicate_share=0.1, late_share=0.1, answer_zeros=False
)
POLICIES: dict[str, dict[str, object]] = {
    "limits": {"algorithm": "thompson-beta", "arms": ["a", "b"], "reward": {"window": "60s", "max": 1}},
    "classic": {"algorithm": "banker", "rule": "classic", "arms": ["a", "b"], "reward": {"window": "60s"}},
}


def worlds() -> list[World]:
    """A bank per segment, and a graph: between them they have every metric."""
    taste = Taste.draw(np.random.default_rng(0), users=40, items=60, groups=4)
    return [headlines(window_s=WINDOW_S), films(taste, window_s=WINDOW_S, width=20)]


class Observed:
    """Server (two workers), learner and router on one Kafka and one Redis, and the Prometheus that scrapes them."""

    def __init__(self, folder: Path, broker: Broker, redis: Single, rules: Path) -> None:
        tool("prometheus")  # before anything is started for it
        self.folder, self.broker = folder, broker
        self.name = f"seen{secrets.token_hex(4)}"
        self.place = {
            "log": f"kafka://{broker.bootstrap}/{self.name}?one_broker=yes",
            "store": f"{redis.url}/{self.name}",
        }
        self.parts: list[Process] = []
        self.worlds = worlds()
        self.server = Server(folder / "server", **self.place, shards=SHARDS, workers=2)
        try:
            learner = self.start("learner", "--snapshot-interval-s", "2", "--group-session-s", "3")
            router = self.start("router")
            self.http = httpx.Client(base_url=self.server.url, timeout=30)
            jobs = {
                "server": [self.server.url.removeprefix("http://")],
                "learner": [self.address(learner)],
                "router": [self.address(router)],
            }
            for world in self.worlds:
                asyncio.run(set_up(self.server.url, world, patience_s=START_S))
            for name, body in POLICIES.items():
                make_policy(self.http, name, body)
            self.prometheus = Prometheus(folder / "prometheus", jobs, rules).__enter__()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "prometheus"):
            self.prometheus.close()
        if hasattr(self, "http"):
            self.http.close()
        for part in self.parts:
            part.kill()
        self.server.end()

    def start(self, command: str, *flags: str) -> Process:
        """`croupier learner` or `croupier router`, on a port that it takes by itself."""
        place = [word for name, url in self.place.items() for word in (f"--{name}", url)]
        part = Process(
            [sys.executable, "-c", CODE, command, *place, "--metrics-port", "0", *flags],
            self.folder / f"{command}-{len(self.parts)}.log",
        )
        part.start()
        self.parts.append(part)
        return part

    def address(self, part: Process) -> str:
        """HOST:PORT at which its metrics are."""

        def said() -> str | None:
            part.check()
            found = re.search(r"metrics on http://([\d.:]+)/metrics", part.tail())
            return found and found[1]

        wait_for(lambda: said() is not None, "a part says where its metrics are", START_S)
        return said() or ""

    def load(self, seconds: float) -> None:
        """Simulated users of every world, while others make the faults."""
        crowds = [Crowd(self.server.url, world, HABITS, seed=seed) for seed, world in enumerate(self.worlds)]

        async def run() -> None:
            await asyncio.gather(*(crowd.run(seconds) for crowd in crowds))

        with ThreadPoolExecutor(2) as pool:
            users = pool.submit(asyncio.run, run())
            faults = pool.submit(self.make_faults)
            users.result()
            faults.result()
        self.stop_a_shard()

    def make_faults(self) -> None:
        """Each is one that a panel or an alert is there for."""
        self.ask_for_the_best(100)
        for _ in range(20):
            self.decide("classic")
        decisions = [self.decide("limits") for _ in range(20)]
        for decision in decisions[:5]:
            self.reward(decision, 5.0)  # out of range
        for _ in range(5):
            self.reward(decisions[5] | {"decision_id": "forged"}, 1.0)
            self.reward(decisions[5] | {"item": "never shown"}, 1.0)
        rows = [json.dumps(decision | {"reward": 1.0}).encode() for decision in decisions[6:]]
        self.send("rewards", [*rows, b"no JSON", json.dumps(decisions[0] | {"item": "x", "reward": 1}).encode()])
        self.send("events", [b"no event"])
        self.server.kill(next(name for name in self.server.children() if name.startswith("worker")))
        self.share_for_a_while("learner", "sum(croupier_learner_shards)", SHARDS, "--group-session-s", "3")
        partitions = self.value(HAS_PARTITIONS)
        self.share_for_a_while("router", HAS_PARTITIONS, partitions)
        self.rebuild()
        self.kill_the_agent(decisions[5])

    def share_for_a_while(self, command: str, count: str, all_of_them: float, *flags: str) -> None:
        """A second process takes some of the first one's, and gives them back."""
        second = self.start(command, *flags)
        wait_for(lambda: self.value(count) < all_of_them, f"the second {command} has some", START_S, 0.3)
        second.stop(30)
        wait_for(lambda: self.value(count) == all_of_them, f"the first {command} has all again", START_S, 0.3)

    def rebuild(self) -> None:
        """Puts a commit of its own between two of the learner's: its next one is refused, and it loads the shard."""
        place = [word for name, url in self.place.items() for word in (f"--{name}", url)]
        command = [sys.executable, "-c", SERVE, "rebuild", *place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
        assert done.returncode == 0, done.stdout + done.stderr
        refused = "sum(croupier_learner_refused_commits_total)"
        wait_for(lambda: self.value(refused) > 0, "a commit of the learner is refused", START_S, 0.3)

    def stop_a_shard(self) -> None:
        """By an event whose checksum holds and whose layout is of a later release; for good, so it comes last."""
        event = events.reward(bytes(8), 0, 1.0)
        rest = event[4:6] + bytes([events.LAYOUT + 1]) + event[7:]
        self.send("events", [events.frame([crc32(rest).to_bytes(4, "little") + rest])], SHARDS - 1)
        for metric in ("learner_shards_stopped", "learner_behind_records", "learner_lag_records"):
            said = f"sum(croupier_{metric})"
            wait_for(lambda said=said: self.value(said) > 0, f"{said} is above 0", START_S, 0.3)  # type: ignore[misc]

    def kill_the_agent(self, decision: dict[str, str]) -> None:
        """While it is away, feedback is answered 503."""
        killed = threading.Thread(target=self.server.kill, args=("agent",))
        killed.start()
        statuses = set()
        while killed.is_alive():
            statuses.add(self.reward(decision, 1.0))
        killed.join()
        assert 503 in statuses

    def ask_for_the_best(self, times: int) -> None:
        for number in range(times):
            for world in self.worlds:
                user = json.loads(world.users[number % len(world.users)])
                decision = self.decide(world.policy, user=user, mode="exploit")
                if number % 4 == 0:
                    self.reward(decision, 1.0)

    def decide(self, policy: str, **more: object) -> dict[str, str]:
        answer = self.http.post("/v1/recommend", json={"policy": policy, "user": {"segment": "all"}} | more)
        assert answer.status_code == 200, answer.text
        decision = answer.json()
        return {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"]}

    def reward(self, decision: dict[str, str], reward: float) -> int:
        return self.http.post("/v1/feedback", json=decision | {"reward": reward}).status_code

    def send(self, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
        with client(KafkaProducer(bootstrap_servers=self.broker.bootstrap)) as producer:
            for sent in [producer.send(f"{self.name}.{topic}", value, partition=partition) for value in values]:
                sent.get(10)

    def value(self, expr: str) -> float:
        """Of the one series that there is; NaN where there is none, as while a process starts again."""
        samples = self.prometheus.query(expr)
        assert len(samples) < 2, expr
        return samples[0].value if samples else math.nan
