"""The agent by itself: group commit, control in order, what a crash leaves, a log that is away."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from bandits.graph import Graph
from server.agent import Agent
from server.errors import Problem
from server.shared import (
    AGENT_BEAT,
    AWAY,
    BEAT,
    BEHIND_SINCE,
    GENERATION,
    LOG,
    PID,
    SEEN,
    STORE,
    THERE,
    HostFile,
    RunFolder,
)
from server.writer import FRAME_BYTES_MAX, InDoubt, Writer
from streaming import events
from streaming.control import (
    DIAG_LINUCB,
    ControlRecord,
    ControlState,
    GraphPut,
    ItemDelete,
    ItemPut,
    KeyAdd,
    PolicyPut,
    PolicySpec,
    from_json,
    to_json,
)
from streaming.errors import LayoutMismatch, LogCorrupt, LogUnavailable
from streaming.learner import Learner
from streaming.log import CONTROL, EventLog, open_log
from streaming.store import Manifest, ParameterStore, open_store
from tests.server.host_parts import random_graph

SHARDS = 2
BANK = PolicyPut("h", PolicySpec("banker"), ["a", "b"])


class FaultyLog:
    """A log whose appends fail while `fault` is set; everything else is the real one's."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.fault: Exception | None = None
        self.appends: list[list[tuple[int, bytes]]] = []
        self.hold = threading.Event()
        self.hold.set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        self.hold.wait(5)
        if self.fault is not None:
            raise self.fault
        self.appends.append(list(batches))
        return self._log.append(batches)


class Parts:
    """Log, store and host file of one test; agents come and go on them, a thread learns."""

    def __init__(self, path: Path) -> None:
        self.log = FaultyLog(open_log("memory:", SHARDS))
        self.store: ParameterStore = open_store("memory:")
        self.store.create(Manifest("s", self.log.id, SHARDS, 1))  # type: ignore[arg-type]
        self.folder = RunFolder(path / "run", path / "disk")
        self.host = HostFile.create(self.folder, 2)
        self._stop = threading.Event()
        self._learner = threading.Thread(target=self._learn)
        self._learner.start()
        self.agents: list[Agent] = []

    def agent(self) -> Agent:
        agent = Agent(self.log, self.store, self.host, self.folder)  # type: ignore[arg-type]
        self.agents.append(agent)
        agent.open()
        return agent

    def _learn(self) -> None:
        learners = [Learner(shard, self.log, self.store) for shard in range(SHARDS)]  # type: ignore[arg-type]
        while not self._stop.wait(0.001):
            for learner in learners:
                learner.poll()

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        self._stop.set()
        self._learner.join()

    def records(self, partition: int) -> list[tuple[int, ControlRecord]]:
        found = [events.control_of(record.data) for record in self.log.read(partition, 0)]  # type: ignore[operator]
        return [(each[0], from_json(each[1])) for each in found if each is not None]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    parts = Parts(tmp_path)
    yield parts
    parts.close()


def wait_for(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.002)


def event(n: int) -> bytes:
    return events.segment(9, n, "s")


# ---------------------------------------------------------------------------------------------------- group commit


def test_everything_that_waits_becomes_one_append(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    told: list[Exception | None] = []
    parts.log.hold.clear()
    for n in range(5):
        writer.submit([(0, 1, event(n)), (1, 1, event(n))], told.append)
    parts.log.hold.set()
    wait_for(lambda: len(told) == 5)
    writer.stop()
    assert told == [None] * 5
    assert len(parts.log.appends) <= 2  # the first may have left alone
    assert [len(batches) for batches in parts.log.appends] == [2] * len(parts.log.appends)  # one frame a shard
    assert parts.host[LOG] == THERE


def test_nobody_is_told_before_the_append(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    told: list[Exception | None] = []
    parts.log.hold.clear()
    writer.submit([(0, 1, event(1))], told.append)
    time.sleep(0.05)
    assert told == []
    parts.log.hold.set()
    wait_for(lambda: told == [None])
    writer.stop()


def test_while_the_log_is_away_rewards_are_refused_and_decisions_wait_in_order(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    rewards: list[Exception | None] = []
    decisions: list[Exception | None] = []
    parts.log.fault = LogUnavailable("disk full")
    writer.submit([(0, 1, event(1))], decisions.append, keep=True)
    writer.submit([(0, 1, event(2))], rewards.append)
    writer.submit([(0, 1, event(3))], decisions.append, keep=True)
    wait_for(lambda: len(rewards) == 1)
    assert isinstance(rewards[0], LogUnavailable)
    assert parts.host[LOG] == AWAY
    assert decisions == []
    parts.log.fault = None
    wait_for(lambda: decisions == [None, None])
    assert parts.host[LOG] == THERE
    sent = b"".join(data for batches in parts.log.appends for _, data in batches)
    assert sent.index(event(1)) < sent.index(event(3))
    assert event(2) not in sent
    writer.stop()


def test_a_damaged_log_stops_the_writer_and_says_so(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    parts.log.fault = LogCorrupt("it is damaged")
    for _ in range(2):
        with pytest.raises(LogCorrupt):
            writer.append([(0, b"x")])
    writer.stop()


def test_a_writer_that_fails_as_nobody_expects_leaves_nobody_waiting(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    told: list[Exception | None] = []
    parts.log.hold.clear()
    parts.log.fault = RuntimeError("our mistake")
    writer.submit([(0, 1, event(1))], told.append)
    time.sleep(0.05)  # the first is on its way
    writer.submit([(0, 1, event(2))], told.append)
    writer.submit([(0, 1, event(3))], told.append, keep=True)
    parts.log.hold.set()
    wait_for(lambda: len(told) == 3)
    writer.submit([(0, 1, event(4))], told.append)
    assert [type(error) for error in told] == [RuntimeError] * 4
    assert writer.crashed
    assert parts.host[LOG] == AWAY
    writer.stop()


def test_an_agent_whose_writer_crashed_ends_and_is_started_again(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = parts.agent()
    ended: list[int] = []
    monkeypatch.setattr("server.agent.os._exit", ended.append)
    agent.is_process = True
    parts.log.fault = RuntimeError("our mistake")
    with pytest.raises(RuntimeError):
        agent.writer.append([(0, b"x")])
    wait_for(lambda: ended[:1] == [1])


def test_a_stopping_writer_appends_what_waits(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    told: list[Exception | None] = []
    parts.log.hold.clear()
    writer.submit([(0, 1, event(1))], told.append)
    writer.submit([(0, 1, event(2))], told.append)
    threading.Timer(0.05, parts.log.hold.set).start()
    writer.stop()
    assert told == [None, None]
    writer.submit([(0, 1, event(3))], told.append)
    assert isinstance(told[2], LogUnavailable)


def test_a_huge_batch_is_several_records(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    told: list[Exception | None] = []
    parts.log.hold.clear()
    writer.submit([(0, 1, event(0))], told.append)
    big = event(1) * 20_000
    for _ in range(3):
        writer.submit([(0, 20_000, big)], told.append)
    bulk = [events.segment(9, n, "s" * (n % 60)) for n in range(100_000)]  # a part of one shard that is too long
    writer.submit([(1, len(bulk), b"".join(bulk))], told.append)
    parts.log.hold.set()
    wait_for(lambda: len(told) == 5)
    writer.stop()
    frames = [(shard, data) for batches in parts.log.appends for shard, data in batches]
    assert max(len(data) for _, data in frames) <= FRAME_BYTES_MAX + events.FRAME_SIZE
    assert len(frames) < 20
    assert b"".join(data[events.FRAME_SIZE :] for shard, data in frames if shard == 1) == b"".join(bulk)
    counts = [int.from_bytes(data[8:12], "little") for shard, data in frames if shard == 1]
    assert sum(counts) == len(bulk)
    for count, (_, data) in zip(counts, [each for each in frames if each[0] == 1], strict=True):
        assert data == events.frame_of(count, data[events.FRAME_SIZE :])


def test_while_an_append_takes_long_to_fail_the_next_are_refused_at_once(parts: Parts) -> None:
    """As with a Kafka that is away: only the first has to wait."""
    writer = Writer(parts.log, parts.host, whole=False)  # type: ignore[arg-type]
    writer.start()
    first: list[Exception | None] = []
    waiting: list[Exception | None] = []
    parts.log.hold.clear()
    parts.log.fault = LogUnavailable("no broker answers")
    writer.submit([(0, 1, event(1))], first.append)
    wait_for(lambda: not writer._queue)
    writer.submit([(0, 1, event(2))], waiting.append)
    writer.submit([(0, 1, event(3))], first.append, keep=True)
    parts.log.hold.set()
    wait_for(lambda: len(first) == 1)
    wait_for(lambda: len(waiting) == 1)
    assert isinstance(first[0], InDoubt)  # it may be there; what never left is not
    assert not isinstance(waiting[0], InDoubt)
    parts.log.hold.clear()  # from here on an append hangs, the one that finds out as well
    for n in range(3):
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match="no broker answers"):
            writer.append([(0, event(n))])
        assert time.monotonic() - began < 1
    parts.log.fault = None
    parts.log.hold.set()
    wait_for(lambda: first[1:] == [None])  # the decision, though nobody asked for anything
    assert parts.host[LOG] == THERE
    assert writer.append([(1, b"x"), (0, b"y")])[0] == (parts.log.bounds(1)[1] - 1, ANY)  # type: ignore[operator]
    writer.stop()


def test_a_log_that_somebody_saw_away_is_found_again_with_nothing_to_append(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host)  # type: ignore[arg-type]
    writer.start()
    parts.log.fault = LogUnavailable("no broker answers")
    writer.suspect(LogUnavailable("no broker answers"))
    assert parts.host[LOG] == AWAY
    time.sleep(0.05)
    parts.log.fault = None
    wait_for(lambda: parts.host[LOG] == THERE)
    assert parts.log.appends == [[(0, events.frame([])), (1, events.frame([]))]]
    assert writer.append([(0, event(1))])
    writer.stop()


def test_who_came_just_before_somebody_saw_the_log_away_is_told_and_decisions_wait(parts: Parts) -> None:
    writer = Writer(parts.log, parts.host, whole=False)  # type: ignore[arg-type]
    told: list[Exception | None] = []
    kept: list[Exception | None] = []
    parts.log.fault = LogUnavailable("no broker answers")
    writer.submit([(0, 1, event(1))], told.append)
    writer.submit([(0, 1, event(2))], kept.append, keep=True)
    writer.suspect(LogUnavailable("no broker answers"))
    writer.start()
    wait_for(lambda: len(told) == 1)
    assert isinstance(told[0], LogUnavailable)
    assert not isinstance(told[0], InDoubt)
    assert kept == []
    parts.log.fault = None
    wait_for(lambda: kept == [None])
    writer.stop()


def test_a_store_that_hangs_holds_up_neither_metrics_nor_feedback_nor_the_heart(parts: Parts) -> None:
    agent = parts.agent()
    agent.control(to_json(BANK))
    hold, real = threading.Event(), parts.store.lasts

    def lasts() -> list[tuple[bytes, int]]:
        hold.wait(30)
        return real()

    parts.store.lasts = lasts  # type: ignore[method-assign]
    try:
        wait_for(lambda: parts.host[STORE] == AWAY)
        began = time.monotonic()
        assert b'croupier_up{part="store"} 0.0' in agent.metrics()
        agent.writer.append([(0, events.frame([]))])
        assert [arm.id for arm in agent.arms("h", "all", 1, 0).arms] == ["a"]
        assert time.monotonic() - began < 1
        assert time.time_ns() // 1_000_000 - parts.host[AGENT_BEAT] < 2_000
        assert parts.host[BEHIND_SINCE] == 0 or time.time_ns() // 1_000_000 - parts.host[BEHIND_SINCE] < 10_000
    finally:
        hold.set()
        parts.store.lasts = real  # type: ignore[method-assign]
    wait_for(lambda: parts.host[STORE] == THERE)


# ---------------------------------------------------------------------------------------------------------- control


def test_the_first_start_makes_a_key_in_log_and_shards(parts: Parts) -> None:
    parts.agent()
    for partition in (CONTROL, 0, 1):
        ((n, record),) = parts.records(partition)
        assert n == 1
        assert isinstance(record, KeyAdd)
        assert len(bytes.fromhex(record.secret)) == 32


def test_control_is_shown_when_all_live_workers_show_it(parts: Parts) -> None:
    agent = parts.agent()
    assert agent.control(to_json(BANK)).shown  # no worker is alive
    row = parts.host.row(0)
    row[PID], row[BEAT] = 1, time.time_ns() // 1_000_000
    follow = threading.Event()

    def worker() -> None:
        while not follow.wait(0.002):
            row[SEEN] = parts.host[GENERATION]

    thread = threading.Thread(target=worker)
    thread.start()
    result = agent.control(to_json(ItemPut("h", "c")))
    assert (result.number, result.shown) == (3, True)
    follow.set()
    thread.join()
    row[BEAT] = time.time_ns() // 1_000_000
    began = time.monotonic()
    assert not agent.control(to_json(ItemPut("h", "d"))).shown
    assert time.monotonic() - began < 4
    row[PID] = 0


def test_what_control_refuses_changes_nothing(parts: Parts) -> None:
    agent = parts.agent()
    agent.control(to_json(BANK))
    agent.control(to_json(PolicyPut("films", PolicySpec(DIAG_LINUCB))))
    blob = agent.put_blob(random_graph().to_bytes())
    agent.control(to_json(GraphPut("films", blob)))
    other = agent.put_blob(random_graph(clusters=3).to_bytes())
    broken = agent.put_blob(b"no graph")
    before = parts.log.bounds(CONTROL)  # type: ignore[operator]
    refused: list[tuple[ControlRecord, int | None, int]] = [
        (PolicyPut("h", PolicySpec("ucb1"), ["a"]), None, 409),
        (ItemPut("no such", "x"), None, 404),
        (ItemDelete("h", "x"), None, 404),
        (GraphPut("h", blob), None, 409),
        (GraphPut("films", "00" * 32), None, 422),
        (GraphPut("films", broken), None, 422),
        (GraphPut("films", other, keeps_clusters=True), None, 422),
        (ItemPut("h", "c"), 1, 409),
        (ItemPut("gone", "c"), 1, 409),
    ]
    for record, version, status in refused:
        with pytest.raises(Problem) as caught:
            agent.control(to_json(record), version)
        assert caught.value.status == status, record
    assert parts.log.bounds(CONTROL) == before  # type: ignore[operator]
    assert agent.control(to_json(ItemPut("h", "c")), 2).number == 5


def test_control_while_the_log_is_away(parts: Parts) -> None:
    agent = parts.agent()
    parts.log.fault = LogUnavailable("disk full")
    with pytest.raises(Problem) as caught:
        agent.control(to_json(BANK))
    assert caught.value.status == 503
    parts.log.fault = None
    wait_for(lambda: parts.host[LOG] == THERE)
    assert agent.control(to_json(BANK)).number == 2


def test_copies_that_a_crash_left_out_are_appended_by_who_sees_it(parts: Parts) -> None:
    agent = parts.agent()
    agent.control(to_json(BANK))
    agent.close()
    left = [(n, events.control_frame(n, to_json(ItemPut("h", f"item {n}")))) for n in (3, 4)]
    parts.log.append([(CONTROL, frame) for _, frame in left])
    parts.log.append([(0, left[0][1])])  # shard 0 got one of two, shard 1 none
    agent = parts.agent()
    wait_for(lambda: [shard.control.applied for shard in agent.replica.shards] == [4, 4])
    assert [n for n, _ in parts.records(1)] == [1, 2, 3, 4]
    assert agent.control(to_json(ItemPut("h", "item 5"))).number == 5
    control = agent.replica.shards[1].control
    assert [item.id for item in control.policies["h"].items] == ["a", "b", "item 3", "item 4", "item 5"]


def test_a_new_agent_goes_on_where_the_old_one_was_killed(parts: Parts) -> None:
    old = parts.agent()
    old.control(to_json(BANK))
    old._stop.set()  # it never closes
    generation = parts.host[GENERATION]
    new = parts.agent()
    assert parts.host[GENERATION] > generation
    assert [entry.name for entry in new.replica.catalog.entries] == ["h"]
    assert len(new.replica.catalog.keys) == 1
    parts.host[LOG] = AWAY  # what the old one saw last is not what is
    new = parts.agent()
    assert parts.host[LOG] != AWAY
    assert new.control(to_json(ItemPut("h", "c"))).number == 3


def test_arms_show_what_was_learned(parts: Parts) -> None:
    agent = parts.agent()
    agent.control(to_json(BANK))
    page = agent.arms("h", "all", 10, 0)
    assert [(arm.id, arm.plays, arm.probability) for arm in page.arms] == [("a", 0, 0.5), ("b", 0, 0.5)]
    assert [arm.id for arm in agent.arms("h", "all", 1, 1).arms] == ["b"]
    for policy, segment in (("no such", "all"), ("h", "no such")):
        with pytest.raises(Problem) as caught:
            agent.arms(policy, segment, 10, 0)
        assert caught.value.status == 404
    agent.control(to_json(PolicyPut("films", PolicySpec(DIAG_LINUCB))))
    with pytest.raises(Problem, match="no graph"):
        agent.arms("films", "all", 10, 0)
    graph = Graph(np.zeros((1, 0), np.float32), np.array([0, 2]), np.array([0, 1], np.uint32), ("x", "y"))
    agent.control(to_json(GraphPut("films", agent.put_blob(graph.to_bytes()))))
    assert [arm.mean for arm in agent.arms("films", "all", 10, 0).arms] == [0.0, 0.0]


def test_a_store_of_another_log_is_refused(tmp_path: Path) -> None:
    store = open_store("memory:")
    store.create(Manifest("s", "another", 1, 1))
    folder = RunFolder(tmp_path, tmp_path)
    with pytest.raises(LayoutMismatch, match="does not belong"):
        Agent(open_log("memory:", 1), store, HostFile.create(folder, 1), folder)


def test_control_states_agree_between_agent_and_shards(parts: Parts) -> None:
    agent = parts.agent()
    for record in (BANK, ItemPut("h", "c"), ItemDelete("h", "a"), ItemPut("h", "b", True)):
        agent.control(to_json(record))
    assert ControlState.decode(agent.control_log.state.encode()) == agent.replica.shards[0].control
