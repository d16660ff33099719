"""Graphs are dropped when neither a shard, nor a snapshot, nor a record on the way from one needs them."""

from pathlib import Path

import pytest

from server.retention import drop_graphs
from streaming import events
from streaming.control import GraphPut
from streaming.errors import NotFound
from streaming.log import CONTROL
from streaming.store import HOUR_MS
from tests.server.host_parts import Host, random_graph


def test_graphs_go_when_the_oldest_snapshot_is_past_them(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    host.diag("films", random_graph(0))
    blobs = [host.store.put_blob(random_graph(seed).to_bytes()) for seed in range(4)]

    def kept() -> list[int]:
        assert drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
        found = []
        for seed, blob in enumerate(blobs):
            try:
                host.store.get_blob(blob)
                found.append(seed)
            except NotFound:
                pass
        return found

    # No snapshot: a shard would begin at the beginning.
    assert not drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
    for learner in host.learners:
        learner.snapshot(keep=1)
    host.follow(GraphPut("films", blobs[1]))
    host.control(GraphPut("films", blobs[2]))  # in the log, learned by nobody
    assert kept() == [0, 1, 2]  # the fourth was uploaded and never named
    host.learners[0].poll()
    host.learners[0].snapshot(keep=1)
    assert kept() == [0, 1, 2]  # the other shard's snapshot is still the old one
    host.learn()
    host.learners[1].snapshot(keep=1)
    assert kept() == [2]
    with pytest.raises(NotFound):
        host.store.get_blob(blobs[0])


def test_a_process_that_slept_while_it_looked_drops_nothing_that_came_in_use_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, shards=1)
    host.diag("films", random_graph(0))
    host.learners[0].snapshot(keep=1)
    read, made = host.log.read, []

    def sleep(partition: int, offset: int):
        found = read(partition, offset)
        if not found and not made:  # it has come to the end of control: now another graph is put and named
            made.append(host.store.put_blob(random_graph(1).to_bytes()))
            host.control(GraphPut("films", made[0]))
            host.now_ms += 2 * HOUR_MS
        return found

    monkeypatch.setattr(host.log, "read", sleep)
    assert drop_graphs(host.log, host.store, host.clock)
    assert host.store.get_blob(made[0])


def test_nothing_is_dropped_beside_a_control_record_of_another_release(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=1)
    host.diag("films", random_graph(0))
    host.learners[0].snapshot(keep=1)
    name = host.store.put_blob(b"what it may name")
    host.log.append([(CONTROL, events.control_frame(host.controls + 1, b'{"type":"of-tomorrow"}'))])
    assert not drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
    assert host.store.get_blob(name)


def test_a_snapshot_that_its_learner_drops_meanwhile_puts_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, shards=2)
    host.diag("films", random_graph(0))
    for learner in host.learners:
        learner.snapshot(keep=1)
    listed = host.store.snapshots

    def snapshots(shard: int):
        monkeypatch.undo()
        found = listed(shard)
        host.diag("books", random_graph(1))
        host.learners[shard].snapshot(keep=1)
        return found

    monkeypatch.setattr(host.store, "snapshots", snapshots)
    assert not drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
    assert drop_graphs(host.log, host.store, host.clock, min_age_ms=-1)
