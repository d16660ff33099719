"""What is given to an outbox is handed over once, in order, shard by shard, however it came and whoever listens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.outbox import HEAD, Outbox, unpack
from server.settings import SHARDS_MAX
from server.shared import DROPPED, HostFile, Row, RunFolder


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    folder: Path = tmp_path_factory.mktemp("row")
    return HostFile.create(RunFolder(folder / "memory", folder / "disk"), 1).row(0)


class Listener:
    """Takes batches while it is there."""

    def __init__(self, row: Row, most: int) -> None:
        self.there = True
        self.taken: list[tuple[int, bytes]] = []
        self.outbox = Outbox(row, 0.01, lambda seconds, call: self.timers.append((seconds, call)), most)
        self.outbox.send = self.send
        self.timers: list[Any] = []

    def send(self, number: int, batch: bytes) -> bool:
        if self.there:
            self.taken.append((number, batch))
        return self.there


def by_kernel(outbox: Outbox, parts: list[tuple[int, bytes]]) -> bool:
    """Puts events as the kernel of server/reply.py does; False where there is no room for them."""
    text = b"".join(HEAD.pack(shard, 1, len(event), 0) + event for shard, event in parts)
    at = int(outbox.fill[0])
    if outbox.is_full or at + len(text) > outbox.fill[1]:
        return False
    outbox.parts[at : at + len(text)] = np.frombuffer(text, np.uint8)
    outbox.fill[0] += len(text)
    outbox.filled()
    return True


def event_of(i: int, size: int) -> bytes:
    return i.to_bytes(8, "little") + bytes([i % 251]) * (8 * size)


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "kernel", "kernel", "flush", "timer"]), st.integers(0, 9))
    | st.tuples(st.sampled_from(["away", "back", "confirm"]), st.integers(0, 2)),
    max_size=60,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, room=st.integers(300, 2000), most=st.integers(400, 4000))
def test_nothing_is_lost_or_doubled(row: Row, steps: list[tuple[str, int]], room: int, most: int) -> None:
    listener = Listener(row, most)
    outbox, dropped = listener.outbox, row[DROPPED]
    outbox.parts, outbox.fill[1] = outbox.parts[:room], room
    given: list[tuple[int, bytes]] = []
    lost = 0
    for i, (step, n) in enumerate(steps):
        event = event_of(i, n)
        if step == "add":
            before = row[DROPPED]
            outbox.add(n % 3, event)
            if row[DROPPED] == before:
                given.append((n % 3, event))
            else:
                lost += 1
        elif step == "kernel":
            parts = [(shard, event) for shard in range(1 + n % 3)]
            if by_kernel(outbox, parts):
                given += parts
        elif step == "flush":
            outbox.flush()
        elif step == "timer" and listener.timers:
            listener.timers.pop()[1]()
            assert not outbox.fill[0]
        elif step == "confirm" and listener.taken:
            outbox.confirmed(listener.taken[-1][0] - n)
        elif step in ("away", "back"):
            listener.there = step == "back"
            outbox.resend()
        assert bool(listener.timers) or not outbox.fill[0]
    listener.there = True
    outbox.flush()
    outbox.resend()
    assert row[DROPPED] == dropped + lost
    batches = dict(sorted(listener.taken))
    assert all(batches[number] == batch for number, batch in listener.taken), "what is sent again is the same"
    assert list(batches) == list(range(1, len(batches) + 1))
    for batch in batches.values():
        shards = [shard for shard, _, _ in unpack(batch)]
        assert shards == sorted(set(shards))
    for shard in range(3):
        wanted = [event for its, event in given if its == shard]
        parts = [(count, data) for batch in batches.values() for its, count, data in unpack(batch) if its == shard]
        assert b"".join(data for _, data in parts) == b"".join(wanted)
        assert sum(count for count, _ in parts) == len(wanted)
    outbox.confirmed(len(batches))
    assert len(outbox) == outbox._kept_bytes == 0


def test_every_shard_there_may_be(row: Row) -> None:
    listener = Listener(row, 1 << 30)
    shards = [*np.random.default_rng(1).permutation(SHARDS_MAX).tolist(), SHARDS_MAX - 1, 0]
    for i, shard in enumerate(shards):
        listener.outbox.add(shard, event_of(i, shard % 3))
    listener.outbox.flush()
    ((_, batch),) = listener.taken
    found = {shard: (count, data) for shard, count, data in unpack(batch)}
    assert list(found) == list(range(SHARDS_MAX))
    for shard in range(SHARDS_MAX):
        wanted = [event_of(i, shard % 3) for i, its in enumerate(shards) if its == shard]
        assert found[shard] == (len(wanted), b"".join(wanted))


def test_parts_that_are_full_are_handed_over_at_once(row: Row) -> None:
    listener = Listener(row, 1 << 30)
    events = [event_of(i, 2000) for i in range(150)]
    for event in events:
        listener.outbox.add(0, event)
    assert len(listener.taken) == 2
    listener.outbox.flush()
    assert b"".join(data for _, batch in listener.taken for _, _, data in unpack(batch)) == b"".join(events)


def test_what_is_gathered_counts_for_the_bound(row: Row) -> None:
    listener = Listener(row, 304)  # what a batch of the first two takes
    before = row[DROPPED]
    for i in range(2):
        listener.outbox.add(0, event_of(i, 17))  # 160 bytes with its head
        assert not listener.outbox.is_full
    assert row[DROPPED] == before
    listener.outbox.add(0, event_of(2, 17))
    listener.outbox.add(0, event_of(3, 17), counted=False)
    assert row[DROPPED] == before + 1
    listener.there = False
    listener.outbox.flush()
    assert listener.outbox.is_full
    listener.outbox.confirmed(1)
    assert not listener.outbox.is_full


def test_one_timer_runs_at_a_time(row: Row) -> None:
    listener = Listener(row, 1 << 30)
    for i in range(3):
        listener.outbox.add(0, event_of(i, 1))
    ((seconds, call),) = listener.timers
    assert seconds == 0.01
    listener.timers.clear()
    call()
    assert not listener.timers
    listener.outbox.add(0, event_of(4, 1))
    assert len(listener.timers) == 1
