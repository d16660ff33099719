"""Real processes: what survives kill -9, what ends with SIGTERM, and that nothing is left behind."""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from server.data import open_parts
from streaming import events, token
from streaming.contract import COLUMNS, OUTCOMES
from streaming.learner import Learner
from streaming.log import CONTROL, EventLog
from streaming.place import Place
from streaming.shard import Shard
from streaming.state import State
from streaming.store import ParameterStore
from tests.server.processes import Load, Said, Server, client, make_policy, serving, wait_for

SLACK_MS = 500  # beyond the flush window: what a starved event loop may add before it hands a decision over
FLUSH_MS = 20
BANK = {"algorithm": "banker", "arms": ["a", "b", "c"]}


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def events_in(log: EventLog) -> tuple[Counter[tuple[bytes, int]], set[int]]:
    """(payload, slot) of every reward with how often it is there, and the decision numbers that are there."""
    rewards: Counter[tuple[bytes, int]] = Counter()
    decisions: set[int] = set()
    for shard in range(log.shards):
        offset = 0
        while records := log.read(shard, offset):
            offset = records[-1].offset + 1
            for record in records:
                if events.control_of(record.data) is None:
                    _events_of(record.data, rewards, decisions)
    return rewards, decisions


def _events_of(data: bytes, rewards: Counter[tuple[bytes, int]], decisions: set[int]) -> None:
    at = events.FRAME_SIZE
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 6], "little") * 8
        kind = data[at + 7]
        body = data[at + events.EVENT_SIZE : at + size]
        if kind != events.SEGMENT:
            payload = body[: token.size_of(body[2], body[22], body[23])]
            if kind == events.REWARD:
                rewards[payload, data[at + 28]] += 1
            else:
                decisions.add(token.decode(payload).decision)
        at += size


def payload_of(said: Said) -> bytes:
    text = said.decision_id
    from base64 import urlsafe_b64decode

    return urlsafe_b64decode(text + "=" * (-len(text) % 4))[: -token.MAC_SIZE]


def catch_up(log: EventLog, store: ParameterStore) -> list[Learner]:
    """Learns whatever the killed server had not."""
    learners = [Learner(shard, log, store) for shard in range(log.shards)]
    for learner in learners:
        while learner.poll():
            pass
    return learners


def replayed(log: EventLog, store: ParameterStore, shard: int) -> State:
    """A plain replay of the log from its beginning, by batches of another size."""
    state = State()
    machine, offset = Shard(shard, log.shards, state, store.get_blob), 0
    while records := log.read(shard, offset, 7):
        machine.step(records)
        offset = records[-1].offset + 1
    return state


async def under_load(server: Server, rounds: int) -> tuple[Load, list[tuple[str, int, int]]]:
    """Kills one child after the other under load; (name, pid, time) of each kill."""
    load = Load(server.url, "h")
    running = asyncio.create_task(load.run())
    kills = []
    for turn in range(rounds):
        await asyncio.sleep(0.4)
        name = ("worker 0", "agent", "learner", "worker 1")[turn % 4]
        before = time.time_ns() // 1_000_000
        pid = await asyncio.to_thread(server.kill, name)
        kills.append((name, pid, before))
    await asyncio.sleep(0.5)
    load.stop()
    await running
    return load, kills


async def kills_under_load(path: Path, rounds: int) -> None:
    data = path / "data"
    with serving(data, workers=2, shards=2, flush_ms=FLUSH_MS, snapshot_interval_s=10_000) as server:
        with client(server) as http:
            make_policy(http, "h", BANK)
        load, kills = await under_load(server, rounds)
        with client(server) as http:
            text = http.get("/metrics").text
        assert server.stop() == 0
        restarts = sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "croupier_restarts_total{" in line
        )
        assert restarts == rounds
    assert load.statuses[200] > 10 * rounds, "servers kept answering"
    assert load.statuses[202] > 5 * rounds
    assert set(load.statuses) <= {200, 202, 503}
    parts = open_parts(Place.of_folder(data), write=True)
    try:
        check(load, kills, parts.log, parts.store)
    finally:
        parts.close()


def check(load: Load, kills: list[tuple[str, int, int]], log: EventLog, store: ParameterStore) -> None:
    rewards, decisions = events_in(log)
    accepted = Counter((payload_of(said), 0) for said in load.accepted)
    for reward, count in accepted.items():
        assert rewards[reward] >= count, "a reward that was acknowledged is not in the log"
    unanswered = Counter((payload_of(said), 0) for said in load.unanswered)
    assert not rewards - accepted - unanswered, "the log has rewards that nobody sent"
    learners = catch_up(log, store)
    total = Counter[str]()
    for shard, learner in enumerate(learners):
        assert learner.shard is not None
        state = learner.shard.state
        assert state.equal(replayed(log, store, shard)) == []
        for name in [name for name in state.tables if name.startswith("outcomes/")]:
            total.update(dict(zip(COLUMNS, state[name][0].tolist(), strict=True)))
    assert sum(total[outcome] for outcome in OUTCOMES) == rewards.total(), "each reward has one outcome"
    assert total["applied"] + total["unfunded"] == len(rewards)
    worker_kills = [at for name, _, at in kills if name.startswith("worker")]
    for said in load.decisions:
        if token.decode(payload_of(said)).decision not in decisions:
            near = [at for at in worker_kills if at - FLUSH_MS - SLACK_MS <= said.at_ms <= at + SLACK_MS]
            assert near, f"a decision was lost at {said.at_ms}, workers were killed at {worker_kills}"


async def test_kill_9_of_each_process_under_load(tmp_path: Path) -> None:
    await kills_under_load(tmp_path, rounds=3)


@pytest.mark.long
async def test_kill_9_twenty_times_under_load(tmp_path: Path) -> None:
    await kills_under_load(tmp_path, rounds=20)


def test_sigterm_keeps_what_was_said_and_leaves_nobody_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, workers=2) as server:
        # The learner is started last, and has its name a moment after the first answer can be had.
        wait_for(lambda: sorted(server.children()) == ["agent", "learner", "worker 0", "worker 1"])
        children = server.children()
        with client(server) as http:
            make_policy(http, "h", BANK)
            said = [http.post("/v1/recommend", json={"policy": "h"}).json()["decision_id"] for _ in range(20)]
        assert server.stop() == 0
        assert gone(list(children.values()))
        run = [path for path in Path("/dev/shm").glob("croupier-*") if _opened_by(path, list(children.values()))]
        assert run == []
    parts = open_parts(Place.of_folder(data), write=False)
    try:
        _, decisions = events_in(parts.log)
        numbers = {token.decode(payload_of(Said(each, "", 0))).decision for each in said}
        assert numbers <= decisions, "decisions are handed over before the end"
        for learner in catch_up(parts.log, parts.store):
            assert learner._pending is None
            assert learner.head == parts.log.bounds(learner.number)[1]
    finally:
        parts.close()


def _opened_by(path: Path, pids: list[int]) -> bool:
    return any(str(path) in (each.path for each in psutil.Process(pid).open_files()) for pid in pids if not gone([pid]))


def test_a_killed_supervisor_takes_its_children_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, workers=2) as server:
        pids = list(server.children().values())
        with client(server) as http:
            make_policy(http, "h", BANK)
            decision = http.post("/v1/recommend", json={"policy": "h"}).json()
            body = {"decision_id": decision["decision_id"], "item": decision["items"][0]["id"], "reward": 1}
            assert http.post("/v1/feedback", json=body).status_code == 202
        server.process.kill()
        server.process.wait(10)
        wait_for(lambda: gone(pids))
    with serving(data, workers=1) as server, client(server) as http:
        assert http.post("/v1/feedback", json=body).status_code == 202  # the token is still good; a duplicate

        def counted() -> bool:
            text = http.get("/metrics").text
            wanted = ('policy="h"} 1.0', 'croupier_reward_outcomes_total{outcome="duplicate"')
            return all(each in text for each in wanted) and 'outcome="duplicate",policy="h"} 1.0' in text

        wait_for(counted)
        assert server.stop() == 0


def test_a_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        with pytest.raises(AssertionError, match="another server runs on the data folder"):
            Server(tmp_path / "data")
        with client(server) as http:
            assert http.get("/readyz").status_code == 200
        assert server.stop() == 0


def test_while_draining_readyz_says_503_and_requests_finish(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server:
        for _ in range(5):  # a machine that starves us for 0.2 s lets the notice pass
            if (answer := _asked_while_draining(server)) is not None:
                break
        assert answer is not None
        assert answer.status_code == 503
        assert answer.json()["draining"] is True
        wait_for(lambda: "worker 0" in server.children())
        wait_for(lambda: _ready(server))
        assert server.stop() == 0


def _asked_while_draining(server: Server) -> httpx.Response | None:
    """The first answer of a worker told to end that is not 200; None where its connection was closed before it."""
    wait_for(lambda: "worker 0" in server.children())
    wait_for(lambda: _ready(server))
    with client(server) as http:
        assert http.get("/readyz").json()["draining"] is False
        os.kill(server.children()["worker 0"], signal.SIGTERM)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                answer = http.get("/readyz")
            except httpx.TransportError:
                return None
            if answer.status_code != 200:
                return answer
    return None


def _ready(server: Server) -> bool:
    with client(server) as http:
        return http.get("/readyz").status_code == 200


def test_a_paused_agent_shows_as_degraded_and_recommending_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as server, client(server) as http:
        make_policy(http, "h", BANK)
        agent = server.children()["agent"]
        os.kill(agent, signal.SIGSTOP)
        try:
            wait_for(lambda: any("agent is away" in each for each in http.get("/readyz").json()["degraded"]))
            assert http.get("/readyz").status_code == 200
            assert http.post("/v1/recommend", json={"policy": "h"}).status_code == 200
        finally:
            os.kill(agent, signal.SIGCONT)
        wait_for(lambda: http.get("/readyz").json()["degraded"] == [])
        assert server.stop() == 0


def test_the_control_partition_is_in_every_shard(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, shards=3) as server:
        with client(server) as http:
            make_policy(http, "h", BANK)
        assert server.stop() == 0
    parts = open_parts(Place.of_folder(data), write=False)
    try:
        found = [
            [record.data for record in parts.log.read(partition, 0)] for partition in range(CONTROL, parts.log.shards)
        ]
        assert len(found[0]) == 2
        assert all(each == found[0] for each in found)
    finally:
        parts.close()
