"""Users of both servers, and the ledger of what they were told.

A user asks one server for a decision and rewards it: at once or up to 1.5 s later, so rewards overtake each other; over
the other server, the same one, in a bulk, or through the topic of the router; 1 % twice. Some rewards of the policy
with the short window come after it. What was refused with 503 is sent again, as the contract asks.
"""

import asyncio
import io
import json
import random
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp
import httpx
import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from bandits.graph import Graph
from streaming import events, token
from streaming.log.kafka_url import end_producer
from tests.faults.site import Server, Team
from tests.parts.host import wait_for

WINDOW_S = 3.0  # of the policy whose rewards may be late
TRIES = 4
PATIENCE_S = {"recommend": 5.0, "feedback": 30.0}  # a server that starts accepts connections before it answers
CLUSTERS, WIDTH, ITEMS, DIM = 24, 8, 40, 8


class Reward(NamedTuple):
    """A reward as the log knows it."""

    payload: bytes
    slot: int
    value: float
    event_hash: int


class Decided(NamedTuple):
    """A decision that a user was given."""

    number: int
    server: int
    at: float


class Answer(NamedTuple):
    """What a server answered, `status` 0 where the connection broke; `at` is time.monotonic(), `took` in seconds."""

    server: int
    route: str
    status: int
    at: float
    took: float
    detail: str = ""


class Health(NamedTuple):
    """What /readyz of a server said, or that it did not answer."""

    server: int
    at: float
    degraded: tuple[str, ...] | None


class Ledger:
    """What was said to users of a team. `acknowledged` must be in the log, `doubtful` may be."""

    def __init__(self) -> None:
        self.decisions: list[Decided] = []
        self.acknowledged: Counter[Reward] = Counter()
        self.doubtful: Counter[Reward] = Counter()
        self.routed: Counter[Reward] = Counter()  # acknowledged by Kafka: the router takes each at least once
        self.offered: set[Reward] = set()  # given to Kafka, acknowledged or not
        self.poison: list[str] = []  # what the router must put among the dead letters
        self.answers: list[Answer] = []
        self.health: list[Health] = []
        self.retry_after_missing = 0

    def statuses(self, route: str) -> Counter[int]:
        return Counter(answer.status for answer in self.answers if answer.route == route)


def payload_of(decision_id: str) -> bytes:
    return urlsafe_b64decode(decision_id + "=" * (-len(decision_id) % 4))[: -token.MAC_SIZE]


def graph(seed: int) -> Graph:
    """A small graph; the items are the same for every seed, the edges are not."""
    rng = np.random.default_rng(seed)
    lists = [np.sort(rng.choice(ITEMS, WIDTH, replace=False)) for _ in range(CLUSTERS)]
    lists[0] = np.union1d(lists[0], np.setdiff1d(np.arange(ITEMS), np.concatenate(lists)))  # no item without an edge
    indptr = np.cumsum([0, *(len(each) for each in lists)])
    centroids = rng.normal(size=(CLUSTERS, DIM)).astype(np.float32)
    return Graph(centroids, indptr, np.concatenate(lists).astype(np.uint32), tuple(f"film{j}" for j in range(ITEMS)))


def definitions(rng: random.Random) -> dict[str, dict[str, Any]]:
    """The policies of a team: a graph's, a bank's with a short window, and one whose rewards add up or replace."""
    contract: dict[str, Any] = {"window": "30m", "default": 0.0, "aggregation": "first", "max": 10}
    last = rng.choice(("sum", "last"))
    return {
        "films": {"algorithm": "diag-linucb", "reward": contract | {"aggregation": rng.choice(("first", "max"))}},
        "news": {"algorithm": "banker", "arms": ["a", "b", "c", "d"], "reward": contract | {"window": f"{WINDOW_S}s"}},
        "shop": {
            "algorithm": "thompson-beta",
            "arms": ["p", "q", "r"],
            "reward": contract | {"aggregation": last, "default": None, "min": 0, "max": 1},
        },
    }


def put_graph(http: httpx.Client, seed: int, keeps: bool) -> httpx.Response:
    body = io.BytesIO(graph(seed).to_bytes())
    headers = {"content-type": "application/octet-stream"}
    query = "?keeps_clusters=true" if keeps else ""
    return http.put(f"/v1/policies/films/graph{query}", content=body.getvalue(), headers=headers)


def set_up(team: Team, policies: dict[str, dict[str, Any]]) -> None:
    """Makes the policies through the first server and waits until both recommend by each."""
    http = team.servers[0].http
    for name, body in policies.items():
        answer = http.put(f"/v1/policies/{name}", json=body)
        assert answer.status_code in (201, 202), answer.text
    wait_for(lambda: http.get("/v1/policies/films").status_code == 200, "the policies are shown")
    assert put_graph(http, 0, keeps=False).status_code == 202
    for server in team.servers:
        for name in policies:
            query = {"policy": name, "user": {"clusters": [0]} if name == "films" else {"segment": "all"}}
            wait_for(
                lambda server=server, query=query: server.http.post("/v1/recommend", json=query).status_code == 200,  # type: ignore[misc]
                f"server {server.number} recommends by {name}",
            )


class Load:
    """`users` users in a thread of their own from `start` to `stop`; everything they hear goes to the ledger."""

    def __init__(
        self, team: Team, policies: dict[str, dict[str, Any]], ledger: Ledger, seed: int, users: int = 12
    ) -> None:
        self._team, self._policies, self._ledger = team, policies, ledger
        self._users, self._seed = users, seed
        self._stop = threading.Event()
        self._later: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._serial = 0
        self._producer: Any = None

    def start(self) -> None:
        self._producer = KafkaProducer(
            bootstrap_servers=self._team.site.broker.bootstrap, acks="all", delivery_timeout_ms=600_000
        )
        self._thread.start()

    def stop(self) -> None:
        """Returns when every reward that is under way has its answer; raises what broke the load itself."""
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "the load does not end"
        with suppress(KafkaTimeoutError):  # what Kafka has not acknowledged by then was only offered
            self._producer.flush(30)
        end_producer(self._producer)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:
            self._failure = error

    async def _all(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            watching = [asyncio.create_task(self._watch(session, server)) for server in self._team.servers]
            await asyncio.gather(*(self._user(session, number) for number in range(self._users)))
            while self._later:
                await asyncio.gather(*self._later)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _watch(self, session: aiohttp.ClientSession, server: Server) -> None:
        while True:
            degraded: tuple[str, ...] | None = None
            try:
                async with session.get(f"{server.url}/readyz", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                    degraded = tuple((await answer.json())["degraded"])
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self._ledger.health.append(Health(server.number, time.monotonic(), degraded))
            await asyncio.sleep(0.2)

    async def _post(
        self, session: aiohttp.ClientSession, server: Server, route: str, body: object
    ) -> tuple[int, Any, float | None]:
        """(status, body, Retry-After); status 0 where there was no answer."""
        began = time.monotonic()
        patience = aiohttp.ClientTimeout(total=PATIENCE_S[route])
        try:
            async with session.post(f"{server.url}/v1/{route}", json=body, timeout=patience) as answer:
                found = await answer.json()
                status, wait = answer.status, answer.headers.get("Retry-After")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            status, found, wait = 0, repr(error), None
        detail = "" if status in (200, 202) else str(found)[:300]
        now = time.monotonic()
        self._ledger.answers.append(Answer(server.number, route, status, now, now - began, detail))
        if status == 503 and wait is None:
            self._ledger.retry_after_missing += 1
        return status, found, None if wait is None else float(wait)

    async def _user(self, session: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        while not self._stop.is_set():
            server = rng.choice(self._team.servers)
            policy = rng.choice(list(self._policies))
            user: dict[str, Any] = {"segment": f"s{rng.randrange(6)}"}
            if policy == "films":
                user = {"clusters": sorted(rng.sample(range(CLUSTERS), 3))}
            query = {"policy": policy, "user": user, "k": rng.choice((1, 1, 3)) if policy == "films" else 1}
            status, decision, _ = await self._post(session, server, "recommend", query)
            if status != 200:
                await asyncio.sleep(0.05)
                continue
            payload = payload_of(decision["decision_id"])
            self._ledger.decisions.append(Decided(token.decode(payload).decision, server.number, time.monotonic()))
            for slot, item in enumerate(decision["items"]):
                if rng.random() < 0.75:
                    for _ in range(2 if policy == "shop" and rng.random() < 0.3 else 1):
                        self._plan(session, rng, server, policy, (decision["decision_id"], slot, item["id"]))
            await asyncio.sleep(rng.expovariate(1 / 0.03))

    def _plan(
        self,
        session: aiohttp.ClientSession,
        rng: random.Random,
        server: Server,
        policy: str,
        shown: tuple[str, int, str],
    ) -> None:
        """One reward, or the same one twice."""
        decision_id, slot, item = shown
        self._serial += 1
        row: dict[str, Any] = {"decision_id": decision_id, "item": item, "reward": float(rng.random() < 0.4)}
        if rng.random() < 0.01:
            row["reward"] = 100.0  # more than the policy believes: an outcome, not a refusal
        hashed = 0
        if self._policies[policy]["reward"]["aggregation"] == "sum" or rng.random() < 0.2:
            row["event_id"] = f"e{self._seed}-{self._serial}"
            hashed = events.event_hash(row["event_id"])
        reward = Reward(payload_of(decision_id), slot, row["reward"], hashed)
        for _ in range(2 if rng.random() < 0.01 else 1):
            delay = 0.0 if rng.random() < 0.6 else rng.uniform(0.0, 1.5)
            if policy == "news" and rng.random() < 0.05:
                delay = WINDOW_S + 0.5
            where = self._team.servers[1 - server.number] if rng.random() < 0.8 else server
            if rng.random() < 0.2:
                where = None  # type: ignore[assignment]
            task = asyncio.get_running_loop().create_task(self._send(session, where, row, reward, delay))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _send(
        self, session: aiohttp.ClientSession, server: Server | None, row: dict[str, Any], reward: Reward, delay: float
    ) -> None:
        await asyncio.sleep(delay)
        if server is None:
            self._produce(row, reward)
            return
        for _ in range(TRIES):
            status, answer, wait = await self._post(session, server, "feedback", row)
            if status == 202:
                self._ledger.acknowledged[reward] += 1
                return
            if status == 0 or "in-doubt" in str(answer):
                self._ledger.doubtful[reward] += 1
            if status not in (0, 503):
                return
            await asyncio.sleep(min(wait or 0.2, 1.0))

    def _produce(self, row: dict[str, Any], reward: Reward) -> None:
        """Hands a reward to the router's topic, now and then with something that is no reward."""
        topic = f"{self._team.name}.rewards"
        self._ledger.offered.add(reward)
        sent = self._producer.send(topic, json.dumps(row).encode())
        sent.add_callback(lambda _: self._ledger.routed.update([reward]))
        if self._serial % 50 == 0:
            poison = f'{{"no reward": {self._serial}, "of": {self._seed}}}'
            sent = self._producer.send(topic, poison.encode())
            sent.add_callback(lambda _: self._ledger.poison.append(poison))
