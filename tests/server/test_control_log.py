"""Many agents, one control log: each number has one winner, each shard applies each record once, in one order."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from server import control_log
from server.control_log import ControlLog
from server.errors import Problem, conflict
from server.writer import InDoubt
from streaming import events
from streaming.control import ControlState, ItemPut, KeyAdd, PolicyPut, PolicySpec, from_json, to_json
from streaming.errors import LayoutMismatch, LogUnavailable
from streaming.log import CONTROL, EventLog, open_log

SHARDS = 3
POLICY = PolicyPut("h", PolicySpec("banker"), ["a"])


class Crash(Exception):
    """The agent is gone, whatever it was doing."""


class World:
    """One log, shards that apply what is in it, agents that act in the middle of each other's appends."""

    def __init__(self, seed: int, event_log: EventLog) -> None:
        self.rng = np.random.default_rng(seed)
        self.log = event_log
        self.late: list[tuple[int, bytes]] = []
        self.shards = [ControlState() for _ in range(SHARDS)]
        self.heads = [0] * SHARDS
        self.agents = [self.agent() for _ in range(3)]
        self.depth = self.made = 0
        self.claimed: dict[int, str] = {}

    def agent(self) -> ControlLog:
        return ControlLog(self.log, self.append, [self.copy(shard) for shard in self.shards], lambda: 0.0)

    @staticmethod
    def copy(state: ControlState) -> ControlState:
        return ControlState.decode(state.encode())

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def append(self, batches: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """One record at a time, as Kafka does; others act in between; it may fail half way, and records may be late."""
        placed = []
        for record in batches:
            while self.depth < 3 and self.chance(0.3):
                self.act()
            if self.chance(0.05):
                if self.chance(0.5):
                    self.late.append(record)
                raise InDoubt("no acknowledgement")
            if self.chance(0.03):
                raise Crash
            placed += self.log.append([record])
            if self.chance(0.03):
                raise Crash
        return placed

    def act(self) -> None:
        """Something that some part does next."""
        self.depth += 1
        what = self.rng.random()
        if what < 0.3:
            self.claim(int(self.rng.integers(len(self.agents))))
        elif what < 0.8:
            self.learn(int(self.rng.integers(SHARDS)), int(self.rng.integers(1, 5)))
        elif what < 0.9 and self.late:
            self.log.append([self.late.pop(int(self.rng.integers(len(self.late))))])
        else:
            self.heal(int(self.rng.integers(len(self.agents))))
        self.depth -= 1

    def claim(self, agent: int) -> None:
        of = self.agents[agent]
        if of._lock.locked():
            return  # it is in the middle of something; another thread of it would wait here
        self.made += 1
        name = f"item {self.made}"
        try:
            number = of.claim(ItemPut("h", name), lambda: "h" in of.state.policies)
        except LogUnavailable:
            return
        except Crash:
            self.agents[agent] = self.agent()
            return
        if number:
            assert number not in self.claimed
            self.claimed[number] = name

    def heal(self, agent: int) -> None:
        if not self.agents[agent]._lock.locked():
            try:
                self.agents[agent].heal([shard.applied for shard in self.shards])
            except LogUnavailable:
                pass
            except Crash:
                self.agents[agent] = self.agent()

    def learn(self, shard: int, records: int = 10_000) -> None:
        for record in self.log.read(shard, self.heads[shard], records):
            self.heads[shard] = record.offset + 1
            found = events.control_of(record.data)
            if found is not None and found[0] == self.shards[shard].applied + 1:
                self.shards[shard].apply(found[0], from_json(found[1]))

    def history(self) -> list[tuple[int, str]]:
        """(number, item) of the records that count."""
        found: list[tuple[int, str]] = []
        for record in self.log.read(CONTROL, 0, 10_000):
            number, data = events.control_of(record.data) or (0, b"")
            if number == len(found) + 1:
                found.append((number, getattr(from_json(data), "id", "")))
        return found


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_agents_that_race_fail_and_crash_agree_on_one_order(
    block: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_log, "HEAL_S", 0.0)
    races = 0
    for seed in range(block * 25, block * 25 + (25 if kind == "memory" else 3)):
        event_log = open_log("memory:" if kind == "memory" else tmp_path / f"{seed}", SHARDS, write=True)
        world = World(seed, event_log)
        frame = events.control_frame(1, to_json(POLICY))
        event_log.append([(CONTROL, frame)])
        for _ in range(60):
            world.act()
        event_log.append(world.late)
        world.depth, world.append = 9, event_log.append  # type: ignore[method-assign]
        healer = world.agent()  # one that came later is enough
        for _ in range(3):
            healer.heal([shard.applied for shard in world.shards])
            for shard in range(SHARDS):
                world.learn(shard)
        history = world.history()
        races += event_log.bounds(CONTROL)[1] > len(history)
        assert {number: item for number, item in history if number in world.claimed} == world.claimed
        items = [item for _, item in history if item]
        assert len(set(items)) == len(items), "a record took effect twice"
        healer.catch_up()
        assert healer.state.applied == len(history)
        assert world.shards == [healer.state] * SHARDS
        event_log.close()
    assert races, "nobody raced"


def plain(event_log: EventLog) -> ControlLog:
    return ControlLog(event_log, event_log.append, [ControlState() for _ in range(event_log.shards)], lambda: 0.0)


def test_agents_that_start_at_once_agree_on_the_first_key() -> None:
    event_log = open_log("memory:", 2)
    agents = [plain(event_log) for _ in range(6)]
    barrier = threading.Barrier(len(agents))

    def start(number: int, agent: ControlLog) -> None:
        barrier.wait()
        agent.claim(KeyAdd(0, f"{number:064x}", 1), lambda: not agent.state.keys)

    threads = [threading.Thread(target=start, args=each) for each in enumerate(agents)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for agent in agents:
        agent.catch_up()
    assert len({agent.state.encode() for agent in agents}) == 1
    assert len(agents[0].state.keys) == 1
    assert agents[0].state.applied == 1


def test_a_version_is_checked_against_what_others_have_done() -> None:
    event_log = open_log("memory:", 2)
    a, b = plain(event_log), plain(event_log)
    assert a.claim(POLICY, lambda: True) == 1

    def at_version(agent: ControlLog, version: int) -> bool:
        if agent.state.policies["h"].version != version:
            raise conflict("read it again")
        return True

    def beaten() -> bool:
        """Looks, and before it can append the other was there."""
        at_version(a, 1)
        if event_log.bounds(CONTROL)[1] == 1:
            assert b.claim(ItemPut("h", "b"), lambda: at_version(b, 1)) == 2
        return True

    with pytest.raises(Problem, match="read it again"):
        a.claim(ItemPut("h", "a2"), beaten)
    assert event_log.bounds(CONTROL)[1] == 3  # its record is there, and dead
    assert [item.id for item in a.state.policies["h"].items] == ["a", "b"]
    assert a.claim(ItemPut("h", "a2"), lambda: at_version(a, 2)) == 3


def test_what_is_no_control_record_is_passed_over_and_a_later_release_stops_us() -> None:
    event_log = open_log("memory:", 1)
    agent = plain(event_log)
    event_log.append([(CONTROL, b"poison"), (CONTROL, events.frame([]))])
    assert agent.claim(POLICY, lambda: True) == 1
    event_log.append([(CONTROL, events.control_frame(2, b'{"type":"of tomorrow"}'))])
    for _ in range(2):
        with pytest.raises(LayoutMismatch, match="record 2 is of another release"):
            agent.catch_up()


def test_a_record_that_cannot_be_read_back_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_log, "READ_BACK_S", 0.01)
    event_log = open_log("memory:", 1)
    agent = plain(event_log)
    agent._append = lambda records: [(5, 0) for _ in records]
    with pytest.raises(InDoubt, match="offset 5"):
        agent.claim(POLICY, lambda: True)


def test_copies_are_appended_once_by_who_sees_them_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    event_log = open_log("memory:", 2)
    event_log.append([(CONTROL, events.control_frame(1, to_json(POLICY)))])
    agent = plain(event_log)
    agent.heal([0, 0])
    agent.heal([0, 0])
    assert event_log.ends() == [0, 0, 1]  # the one who made the record may be at it
    monkeypatch.setattr(control_log, "HEAL_S", 0.0)
    agent.heal([0, 0])
    for _ in range(3):  # nobody learns: that is no reason to repeat them
        agent.heal([0, 0])
    assert event_log.ends() == [1, 1, 1]
    agent.heal([1, 0])
    assert agent.claim(ItemPut("h", "b"), lambda: True) == 2
    assert event_log.ends() == [2, 2, 2]
    assert not agent._frames
