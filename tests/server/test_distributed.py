"""Two real servers on one Kafka and one Redis, a learner beside them: what one is told, the other shows."""

import asyncio
import contextlib
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server import data
from server.launch import free_port
from server.learner_loop import LearnerLoop
from server.local import local_engine
from server.schemas import FeedbackRow, RecommendRequest
from server.settings import Settings
from server.waiting import belong
from streaming import events
from streaming.control import KeyAdd, PolicyPut, PolicySpec, from_json
from streaming.errors import LayoutMismatch, LogUnavailable, StoreUnavailable
from streaming.log import CONTROL, open_log
from streaming.place import Place, control_history, live
from streaming.store import Manifest, open_store
from tests.parts.kafka import Broker
from tests.parts.redis import Single
from tests.server.processes import SERVE, Server, client, wait_for

pytestmark = pytest.mark.xdist_group("parts")
SHARDS = 4
GREEDY = {"algorithm": "epsilon-greedy", "epsilon": 0.0, "arms": ["a", "b", "c"]}


def place_of(kafka: Broker, redis: Single) -> Place:
    name = f"site{secrets.token_hex(4)}"
    return Place(f"kafka://{kafka.bootstrap}/{name}?one_broker=yes", f"{redis.url}/{name}")


class Site:
    """Servers that were started at once on nothing, and a learner, until `close`."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.place = place
        with ThreadPoolExecutor(2) as pool:
            starting = [
                pool.submit(Server, folder / name, log=place.log, store=place.store, shards=SHARDS) for name in "ab"
            ]
        self.servers = [each.result() for each in starting]
        self.a, self.b = (client(server) for server in self.servers)
        self.parts = data.open_parts(place, write=False)
        self.loop = LearnerLoop(self.parts.log, self.parts.store, snapshot_interval_s=3600)
        self.learner = threading.Thread(target=self.loop.run)
        self.learner.start()

    def close(self) -> None:
        for http in (self.a, self.b):
            http.close()
        for server in self.servers:
            server.end()
        self.loop.stop.set()
        self.learner.join(30)
        self.parts.close()

    def decide(self, http: httpx.Client, policy: str, mode: str = "explore") -> dict[str, Any]:
        answer = http.post("/v1/recommend", json={"policy": policy, "mode": mode})
        assert answer.status_code == 200, answer.text
        decision: dict[str, Any] = answer.json()
        return {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"]}

    def control_numbers(self) -> list[int]:
        """Of every record of the control partition, dead ones included."""
        records = self.parts.log.read(CONTROL, 0, 10_000)
        return [number for number, _ in filter(None, (events.control_of(record.data) for record in records))]


@pytest.fixture(scope="module")
def site(kafka: Broker, redis_single: Single, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), place_of(kafka, redis_single))
    yield site
    site.close()


def metric(http: httpx.Client, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return float(found)


def put(http: httpx.Client, name: str) -> int:
    """The version that it got; where a busy machine let an append time out, it is sent again, as a client would."""
    while (answer := http.put(f"/v1/policies/{name}", json=GREEDY)).status_code == 503:
        time.sleep(0.1)
    assert answer.status_code in (200, 201, 202), answer.text
    version: int = answer.json()["version"]
    return version


def make(http: httpx.Client, name: str) -> None:
    """Makes a policy and waits until it is shown."""
    put(http, name)
    wait_for(lambda: http.get(f"/v1/policies/{name}").status_code == 200)


def shows(http: httpx.Client, policy: str, version: int) -> bool:
    answer = http.get(f"/v1/policies/{policy}")
    return answer.status_code == 200 and answer.json()["version"] >= version


def test_servers_that_start_at_once_agree_and_claim_no_learner(site: Site) -> None:
    history = [from_json(text) for _, text, _ in live(control_history(site.parts.log))]
    assert sum(isinstance(record, KeyAdd) for record in history) == 1
    assert site.parts.log.shards == SHARDS
    for server, http in zip(site.servers, (site.a, site.b), strict=True):
        assert set(server.children()) == {"agent", "worker 0"}
        assert http.get("/readyz").json()["degraded"] == []
        assert set(re.findall(r'croupier_up\{part="(\w+)"\} 1.0', http.get("/metrics").text)) == {
            "log", "store", "agent"
        }  # fmt: skip


def test_the_process_that_forks_holds_no_connection_to_them(site: Site, kafka: Broker, redis_single: Single) -> None:
    ports = {int(kafka.bootstrap.rpartition(":")[2]), redis_single.client_port}
    for server in site.servers:
        supervisor = psutil.Process(server.process.pid)
        agent = psutil.Process(server.children()["agent"])
        found = [
            {each.raddr.port for each in process.net_connections("tcp") if each.raddr} & ports
            for process in (supervisor, agent)
        ]
        assert found == [set(), ports]


def test_a_policy_put_at_one_server_is_shown_by_the_other(site: Site) -> None:
    make(site.a, "shown")
    wait_for(lambda: site.b.get("/v1/policies/shown").status_code == 200, 5)
    row = site.decide(site.a, "shown")
    assert site.b.post("/v1/feedback", json={**row, "reward": 1}).status_code == 202  # the other's token
    assert site.b.delete("/v1/policies/shown").status_code in (200, 202, 204)
    wait_for(lambda: site.a.get("/v1/policies/shown").status_code == 404, 5)


def test_rewards_sent_to_one_server_change_what_the_other_chooses(site: Site) -> None:
    make(site.a, "learned")
    wait_for(lambda: site.b.get("/v1/policies/learned").status_code == 200)
    tried: set[str] = set()
    for _ in range(60):
        row = site.decide(site.a, "learned")
        tried.add(row["item"])
        reward = 1 if row["item"] == "c" else 0
        assert site.a.post("/v1/feedback", json={**row, "reward": reward}).status_code == 202
        time.sleep(0.005)
    assert tried == {"a", "b", "c"}
    wait_for(lambda: {site.decide(site.b, "learned", "exploit")["item"] for _ in range(5)} == {"c"}, 5)
    wait_for(lambda: metric(site.b, 'croupier_reward_outcomes_total{outcome="applied",policy="learned"}') == 60, 5)


def test_servers_that_put_at_the_same_time_both_get_numbers_of_their_own(site: Site) -> None:
    make(site.a, "raced")
    wait_for(lambda: site.b.get("/v1/policies/raced").status_code == 200)
    before = len(site.control_numbers())

    def put_all(http: httpx.Client, side: str) -> list[int]:
        return [put(http, f"race-{side}-{n}") for n in range(12)]

    with ThreadPoolExecutor(2) as pool:
        a, b = (pool.submit(put_all, http, side) for http, side in ((site.a, "a"), (site.b, "b")))
        versions = a.result() + b.result()
    assert len(set(versions)) == 24
    numbers = site.control_numbers()[before:]
    assert set(versions) <= set(numbers)
    for http in (site.a, site.b):
        wait_for(lambda http=http: shows(http, "race-a-11", max(a.result())) and shows(http, "race-b-11", 0), 5)
    lists = [
        {each["name"]: each["version"] for each in http.get("/v1/policies").json()["policies"]}
        for http in (site.a, site.b)
    ]
    assert lists[0] == lists[1]
    assert sorted(version for name, version in lists[0].items() if name.startswith("race-")) == sorted(versions)


def test_an_agent_that_is_killed_comes_back(site: Site) -> None:
    make(site.a, "killed")
    site.servers[0].kill("agent")
    row = {**site.decide(site.a, "killed"), "reward": 1}
    wait_for(lambda: site.a.post("/v1/feedback", json=row).status_code == 202)
    make(site.a, "killed-2")
    wait_for(lambda: site.b.get("/v1/policies/killed-2").status_code == 200)
    wait_for(lambda: metric(site.b, 'croupier_reward_outcomes_total{outcome="applied",policy="killed"}') == 1)


async def test_a_server_inside_a_process_is_one_of_them(site: Site, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "inside", log=site.place.log, store=site.place.store, run_dir=tmp_path / "run")
    async with local_engine(settings) as engine:
        await engine.control(PolicyPut("inside", PolicySpec("ucb1"), ["a", "b"]))
        deadline = time.monotonic() + 10
        while "inside" not in engine.views.by_name:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        decision = engine.recommend(RecommendRequest("inside"))
        await engine.feedback([FeedbackRow(decision.decision_id, decision.items[0].id, 1.0)])
        assert engine.status().degraded == []
    await asyncio.to_thread(
        wait_for, lambda: metric(site.a, 'croupier_reward_outcomes_total{outcome="applied",policy="inside"}') == 1
    )
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("writer", "follower", "watcher")]


def test_while_kafka_is_away_servers_say_so_refuse_feedback_at_once_and_recover_by_themselves(
    site: Site, kafka: Broker
) -> None:
    make(site.a, "away")
    kafka.pause()
    try:
        row = {**site.decide(site.a, "away"), "reward": 1}
        refused = site.a.post("/v1/feedback", json=row)  # the first one waits until the append has failed
        assert refused.status_code == 503
        for _ in range(20):
            began = time.monotonic()
            refused = site.a.post("/v1/feedback", json=row)
            assert (refused.status_code, int(refused.headers["retry-after"])) == (503, 1)
            site.decide(site.a, "away")
            assert site.a.get("/metrics").status_code == 200
            assert time.monotonic() - began < 2
            time.sleep(0.02)
        for http in (site.a, site.b):  # the second has appended nothing, and knows it all the same
            wait_for(lambda http=http: any("event log" in each for each in http.get("/readyz").json()["degraded"]), 10)
            assert metric(http, 'croupier_up{part="log"}') == 0
            assert http.get("/readyz").status_code == 200
        assert site.a.put("/v1/policies/never", json=GREEDY).status_code == 503
    finally:
        kafka.resume()
    for http in (site.a, site.b):
        wait_for(lambda http=http: http.get("/readyz").json()["degraded"] == [], 20)
    # A request that was under way may time out now, so that the log is suspected once more: callers try again, as told.
    wait_for(lambda: site.a.post("/v1/feedback", json=row).status_code == 202, 20)
    wait_for(lambda: metric(site.b, 'croupier_distinct_items_shown{policy="away"}') >= 1)
    assert metric(site.b, "croupier_decisions_lost_total") == 0


def test_while_redis_is_away_servers_go_on_and_say_so(site: Site, redis_single: Single) -> None:
    make(site.a, "adrift")
    redis_single.pause()
    try:
        wait_for(lambda: any("store" in each for each in site.a.get("/readyz").json()["degraded"]), 15)
        row = site.decide(site.a, "adrift")
        assert site.a.post("/v1/feedback", json={**row, "reward": 1}).status_code == 202
        began = time.monotonic()
        assert metric(site.a, 'croupier_up{part="store"}') == 0
        assert not any("agent" in each for each in site.a.get("/readyz").json()["degraded"])
        assert time.monotonic() - began < 3
    finally:
        redis_single.resume()
    wait_for(lambda: site.a.get("/readyz").json()["degraded"] == [], 20)
    wait_for(lambda: metric(site.a, 'croupier_reward_outcomes_total{outcome="applied",policy="adrift"}') == 1, 20)


def test_what_does_not_belong_together_is_not_started_on(kafka: Broker, redis_single: Single) -> None:
    first, second = place_of(kafka, redis_single), place_of(kafka, redis_single)
    assert data.prepare(first, 2) == data.prepare(first, 0) == data.prepare(first, 2)
    with pytest.raises(LayoutMismatch, match="has 2 partitions, not 3"):
        data.prepare(first, 3)
    data.prepare(second, 0)
    with contextlib.closing(open_log(second.log)) as event_log:
        assert event_log.shards == data.SHARDS_APART
    with pytest.raises(LayoutMismatch, match="was made for another log"):
        data.prepare(Place(first.log, second.store), 0)
    with contextlib.closing(open_log(first.log, write=True)) as event_log:
        event_log.append([(0, events.frame([]))])
    with pytest.raises(LayoutMismatch, match=r"restore Redis from its backup, .*croupier rebuild --log"):
        data.prepare(Place(first.log, place_of(kafka, redis_single).store), 0)
    assert data.prepare(first, 0)


def test_what_says_it_waits_for_a_store_does_not_wait_for_one_that_was_lost(
    kafka: Broker, redis_single: Single
) -> None:
    place = place_of(kafka, redis_single)
    with (
        contextlib.closing(open_log(place.log, 2, write=True)) as log,
        contextlib.closing(open_store(place.store)) as store,
    ):
        with pytest.raises(StoreUnavailable, match="is empty: `croupier serve"):
            belong(place, log, store)
        log.append([(0, events.frame([]))])
        with pytest.raises(LayoutMismatch, match="has records, but the parameter store"):
            belong(place, log, store)


def test_a_store_that_is_emptied_under_a_server_is_said_to_be_away(
    kafka: Broker, redis_single: Single, tmp_path: Path
) -> None:
    place = place_of(kafka, redis_single)
    server = Server(tmp_path / "data", log=place.log, store=place.store, shards=2)
    try:
        name = place.store.rpartition("/")[2]
        keys = redis_single.admin.keys(f"{{{name}*")
        assert keys
        redis_single.admin.delete(*keys)
        with client(server) as http:
            wait_for(lambda: any("store is away" in each for each in http.get("/readyz").json()["degraded"]), 10)
            wait_for(lambda: 'croupier_up{part="store"} 0.0' in http.get("/metrics").text)
    finally:
        server.end()


def test_servers_that_make_log_and_store_at_once_make_one(kafka: Broker, redis_single: Single) -> None:
    place = place_of(kafka, redis_single)
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: data.prepare(place, 2), range(4)))
    assert len(ids) == 1
    with contextlib.closing(open_store(place.store)) as store:
        assert isinstance(store.manifest(), Manifest)
        assert [head for _, head in store.lasts()] == [0, 0]


def waiting(tmp_path: Path, log: str, store: str, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A server that has said that it waits, and where it says so."""
    said = tmp_path / "stderr"
    command = [sys.executable, "-c", SERVE, "serve", f"--data={tmp_path / 'data'}", f"--log={log}", f"--store={store}"]
    with said.open("wb") as errors:
        process = subprocess.Popen([*command, *flags], stderr=errors, stdout=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or "the server waits: " in said.read_text(), 30)
    assert process.poll() is None, said.read_text()
    return process, said


def test_a_server_that_cannot_reach_them_waits_until_it_is_told_to_end(tmp_path: Path) -> None:
    log = "kafka://127.0.0.1:1/shop?security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN&sasl_plain_username=u"
    port = free_port()
    process, said = waiting(
        tmp_path, f"{log}&sasl_plain_password=hunter2", "redis://:hunter2@127.0.0.1:1/shop", f"--port={port}"
    )
    assert re.search(r"the event log kafka://127.0.0.1:1/shop cannot connect: .*", said.read_text())
    with pytest.raises(httpx.ConnectError):  # who asks for it is refused, and need not wait too
        httpx.get(f"http://127.0.0.1:{port}/readyz")
    children = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(10) == 0
    wait_for(lambda: not any(child.is_running() for child in children), 5)
    assert "hunter2" not in said.read_text()
    assert "Traceback" not in said.read_text()


def test_a_server_that_waited_for_redis_serves_once_it_is_there(kafka: Broker, tmp_path: Path) -> None:
    redis = Single(tmp_path / "redis", appendonly="yes").start()
    process = None
    try:
        place = place_of(kafka, redis)
        redis.kill()
        port = free_port()
        process, _ = waiting(tmp_path, place.log, place.store, f"--port={port}", "--shards=2")
        redis.restart()

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            return False

        wait_for(ready, 40)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        redis.close()


def test_a_server_started_on_what_cannot_be_ends_at_once(tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", SERVE, "serve", "--port=0", f"--data={tmp_path}", "--log=kafka://h/shop?acks=0",
        "--store=redis://:hunter2@127.0.0.1:1/shop",
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert re.fullmatch(r"croupier: .*acks cannot be set.*\n", found.stderr)
    assert "hunter2" not in found.stderr + found.stdout


def test_brokers_that_come_back_between_two_looks_are_taken_as_they_are(
    kafka: Broker, redis_single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(kafka, redis_single)
    made = data.prepare(place, 3)
    really, away = data.open_log, [LogUnavailable("the brokers are away")]

    def once_away(*args: Any, **more: Any) -> Any:
        if away:
            raise away.pop()
        return really(*args, **more)

    monkeypatch.setattr(data, "open_log", once_away)
    assert data.prepare(place, 0) == made
