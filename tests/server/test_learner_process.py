"""`croupier learner` as real processes between a real Kafka and a real Redis."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from server.launch import CODE
from streaming import events, token
from streaming.control import ControlRecord, PolicyPut, PolicySpec, SnapshotTake, snapshot_label, to_json
from streaming.errors import StaleCommit
from streaming.log import CONTROL, EventLog, open_log
from streaming.place import Place, state_of
from streaming.rebuild import rebuild
from streaming.replay import replay
from streaming.store import Commit, Manifest, ParameterStore, open_store
from tests.parts.kafka import Broker
from tests.parts.redis import Single

pytestmark = pytest.mark.xdist_group("parts")
SHARDS = 4


class Process:
    """A learner process; what it writes on stderr goes to a file."""

    def __init__(self, folder: Path, place: Place, *flags: str) -> None:
        self.output = folder / f"learner-{secrets.token_hex(3)}"
        self.log = self.output.open("wb")
        command = [sys.executable, "-c", CODE, "learner", "--log", place.log, "--store", place.store]
        self.process = subprocess.Popen(
            [*command, "--metrics-port", "0", "--group-session-s", "3", *flags], stderr=self.log
        )

    def said(self) -> str:
        return self.output.read_text()

    def metrics(self) -> dict[str, float]:
        (line, *_) = [line for line in self.said().splitlines() if "metrics on " in line] or [""]
        if not line:
            return {}
        text = httpx.get(line.rpartition("metrics on ")[2]).text
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in samples}

    def shards(self) -> int:
        return int(self.metrics().get("croupier_learner_shards", 0))

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            os.kill(self.process.pid, number)
        code = self.process.wait(20)
        self.log.close()
        return code


class World:
    """A log and a store of this test's own, which are not there yet."""

    def __init__(self, kafka: Broker, redis: Single) -> None:
        name = f"learner{secrets.token_hex(4)}"
        self.place = Place(f"kafka://{kafka.bootstrap}/{name}?one_broker=yes", redis.url + "/" + name)
        self.log: EventLog
        self.store: ParameterStore
        self.sent = 0

    def make(self) -> None:
        self.log = open_log(self.place.log, SHARDS, write=True)
        self.store = open_store(self.place.store)
        self.store.create(Manifest(secrets.token_hex(8), self.log.id, SHARDS, 1))
        self.control(1, PolicyPut("titles", PolicySpec("banker"), ["a", "b", "c"]))

    def control(self, n: int, record: ControlRecord) -> None:
        frame = events.control_frame(n, to_json(record))
        self.log.append([(partition, frame) for partition in range(CONTROL, SHARDS)])

    def decide(self, times: int = 1) -> None:
        batch = []
        for shard in range(SHARDS):
            for _ in range(times):
                context = token.Context(
                    token.ARMS, 1, shard << 32 | self.sent, time.time_ns() // 10**6, 60_000, 0.0, 0, 0, True,
                    np.array([0], np.uint32), np.array([0.5], np.float16),
                )._replace(p=0.5, w=0.5, a=0.0, c=0.0)  # fmt: skip
                data = token.encode(context)
                batch.append((shard, events.frame([events.decision(data, self.sent), events.reward(data, 0, 1.0)])))
                self.sent += 1
        self.log.append(batch)

    def learned(self) -> bool:
        return [head for _, head in self.store.lasts()] == self.log.ends()[:-1]


@pytest.fixture
def world(kafka: Broker, redis_single: Single) -> World:
    return World(kafka, redis_single)


@pytest.fixture
def start(tmp_path: Path, world: World) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def one(*flags: str) -> Process:
        started.append(Process(tmp_path, world.place, *flags))
        return started[-1]

    yield one
    for process in started:
        process.end(signal.SIGKILL)


def spoil(store: ParameterStore, shard: int) -> None:
    """One bit of a stored parameter becomes another."""
    while True:
        image = store.load(shard)
        state = state_of(image)
        state["banks/1"].view(np.uint64)[0, -1] ^= 1
        state.changed("banks/1", np.array([0]))
        last, head = image.last
        with contextlib.suppress(StaleCommit):
            return store.commit(shard, Commit(secrets.token_bytes(16), last, head, 0, 0, state.take_delta()))


def soon(what: Callable[[], bool], seconds: float = 30.0) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() < began + seconds
        time.sleep(0.01)
    return time.monotonic() - began


def test_learners_share_take_over_and_are_refused_when_they_wake_too_late(
    world: World, start: Callable[..., Process]
) -> None:
    first = start("--snapshot-interval-s", "1")
    soon(lambda: "the learner waits" in first.said())  # nothing is there yet
    world.make()
    world.decide(3)
    soon(world.learned)
    soon(lambda: first.shards() == SHARDS)
    second = start("--snapshot-interval-s", "1")
    soon(lambda: (first.shards(), second.shards()) == (2, 2))
    world.decide(3)
    soon(world.learned)

    os.kill(second.process.pid, signal.SIGSTOP)  # past its session: the first takes its shards, and it is a zombie
    world.decide(3)
    soon(world.learned)
    soon(lambda: first.shards() == SHARDS)
    os.kill(second.process.pid, signal.SIGCONT)
    for _ in range(20):
        world.decide()
        time.sleep(0.05)
    soon(world.learned)
    soon(lambda: (first.shards(), second.shards()) == (2, 2))

    assert second.end() == 0  # leaves the group: no session has to run out
    world.decide()
    assert soon(world.learned) < 3.0
    third = start()
    soon(lambda: (first.shards(), third.shards()) == (2, 2))
    first.end(signal.SIGKILL)
    world.decide()
    soon(world.learned)
    world.control(2, SnapshotTake("kept"))
    label = snapshot_label("kept", 2)
    soon(lambda: all(label in [each.label for each in world.store.snapshots(shard)] for shard in range(SHARDS)))
    metrics = third.metrics()
    assert metrics["croupier_learner_rebalances_total"] >= 2
    assert metrics["croupier_learner_loads_total"] >= SHARDS
    assert metrics['croupier_learner_up{part="log"}'] == metrics['croupier_learner_up{part="store"}'] == 1
    soon(lambda: third.metrics()['croupier_learner_behind_records{shard="0"}'] == 0)
    spoil(world.store, 1)
    report = rebuild(world.place)  # while the third goes on
    assert [bool(shard.differed) for shard in report.shards] == [False, True, False, False], report.lines()
    world.decide()
    soon(world.learned)
    assert third.end() == 0
    starts = [world.log.bounds(shard)[0] for shard in range(SHARDS)]
    assert max(starts) > 0  # trimmed behind the snapshots
    replayed = replay(world.place)
    assert replayed.equal, replayed.lines()
    outcomes = [state_of(world.store.load(shard))["outcomes/1"][0] for shard in range(SHARDS)]
    assert int(np.sum(outcomes, axis=0)[0]) == world.sent  # each reward applied, once


def test_a_foreign_store_ends_it_with_a_sentence(
    world: World, start: Callable[..., Process], kafka: Broker, redis_single: Single
) -> None:
    world.make()
    other = World(kafka, redis_single)
    other.make()
    world.place = Place(world.place.log, other.place.store)
    process = start()
    assert process.process.wait(30) == 1
    assert "belongs to log" in process.said().splitlines()[-1]
    assert json.dumps(other.place.store) not in process.said()
