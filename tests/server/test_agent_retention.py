"""Graphs are dropped when neither a shard, nor a snapshot, nor a record on the way from one needs them."""

from pathlib import Path

import pytest

from server.retention import drop_graphs
from streaming.control import GraphPut
from streaming.errors import NotFound
from tests.server.host_parts import Host, random_graph


def test_graphs_go_when_the_oldest_snapshot_is_past_them(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    host.diag("films", random_graph(0))
    blobs = [host.store.put_blob(random_graph(seed).to_bytes()) for seed in range(4)]

    def kept() -> list[int]:
        assert drop_graphs(host.log, host.store, min_age_ms=-1)
        found = []
        for seed, blob in enumerate(blobs):
            try:
                host.store.get_blob(blob)
                found.append(seed)
            except NotFound:
                pass
        return found

    assert not drop_graphs(host.log, host.store, min_age_ms=-1)  # no snapshot: a shard would begin at the beginning
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
    assert not drop_graphs(host.log, host.store, min_age_ms=-1)
    assert drop_graphs(host.log, host.store, min_age_ms=-1)
