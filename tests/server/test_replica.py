"""The replica shows what the shards hold: whole, agreed among them, and while somebody reads."""

import errno
import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bandits.graph import Graph, by_item
from server import rows, shared
from server.replica import LOAD_WAIT_MS, Replica
from server.schemas import ACCEPTED, User
from server.shared import GENERATION, HostFile, RunFolder
from server.tables import DiagTable
from server.view_arms import ArmsView
from server.view_diag import DiagView
from server.views import Views
from streaming.control import (
    DIAG_LINUCB,
    GraphPut,
    ItemPut,
    PolicyDelete,
    PolicyPut,
    PolicySpec,
)
from streaming.shards import shards_of_items
from tests.server.host_parts import Host, random_graph

BANK = PolicySpec("banker", max_segments=40)


def pairs_by_the_formula(host: Host, policy: str, prior: float, g: float = 1.0) -> np.ndarray[Any, Any]:
    """(mean, inverse) of every edge in cluster order, from the shards' (b, d)."""
    view = host.views.by_name[policy]
    assert isinstance(view, DiagView)
    graph, number = view.graph(), view.entry.number
    owner = shards_of_items(number, view.numbers, host.log.shards)
    pairs = np.full((len(graph.items), 2), np.nan, np.float32)
    for shard, learner in enumerate(host.learners):
        assert learner.shard is not None
        serving = by_item(graph, owner == shard).serving
        b, d = learner.shard.state[f"edges/{number}"].T
        pairs[serving, 0] = b / (d + prior * g)
        pairs[serving, 1] = np.where(d > 0, 1, -1) * g / (d + prior * g)
    return pairs


def play(host: Host, policy: str, rounds: int, seed: int = 3) -> None:
    """Decisions of random users, half of the items rewarded."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        decision = host.recommend(policy, user=User(embedding=rng.normal(size=4).tolist()), k=3)
        for item in decision.items:
            if rng.random() < 0.5:
                host.reward(decision, item.id, float(rng.random()))


@pytest.mark.parametrize("shards", [1, 3])
def test_pairs_are_the_shards_edges(tmp_path: Path, shards: int) -> None:
    host = Host(tmp_path, shards)
    host.diag("films", random_graph(), prior=2.0)
    for _ in range(3):
        play(host, "films", 20)
        host.follow()
        view = host.views.by_name["films"]
        assert_array_equal(view.arrays["pairs"], pairs_by_the_formula(host, "films", 2.0))
    assert (view.arrays["pairs"][:, 1] > 0).any()
    assert view.entry.graph is not None
    assert view.entry.graph.version == random_graph().version


def test_a_change_of_prior_rewrites_the_pairs_in_place(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.diag("films", random_graph(), prior=1.0)
    play(host, "films", 10)
    host.follow()
    path = host.views.by_name["films"].entry.path
    host.follow(PolicyPut("films", PolicySpec(DIAG_LINUCB, parameters={"prior": 5.0})))
    view = host.views.by_name["films"]
    assert view.entry.path == path
    assert_array_equal(view.arrays["pairs"], pairs_by_the_formula(host, "films", 5.0))


def test_forgetting_fades_pairs_without_any_commit(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.diag("films", random_graph(), half_life_s=10.0, prior=1.0)
    start_ms = host.now_ms
    play(host, "films", 10)
    host.follow()
    host.now_ms = start_ms + 30_000
    host.replica.sweep()
    pairs = host.views.by_name["films"].arrays["pairs"]
    assert_array_equal(pairs, pairs_by_the_formula(host, "films", 1.0, g=8.0))


def test_a_policy_is_shown_when_all_shards_show_it(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=3)
    host.control(PolicyPut("h", BANK, ["a", "b"]))
    generation = host.host[GENERATION]
    for learner in host.learners[:2]:
        learner.poll()
        host.replica.poll()
        host.views.refresh()
        assert host.views.by_name == {}
        assert host.replica.shown == (1, generation)
    host.learners[2].poll()
    host.replica.poll()
    host.views.refresh()
    assert list(host.views.by_name) == ["h"]
    assert host.replica.shown == (2, host.host[GENERATION])
    assert host.row[shared.SEEN] == host.host[GENERATION]


def test_an_agent_that_starts_between_two_shards_keeps_what_is_in_use(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    host.control(PolicyPut("h", BANK, ["a", "b", "c"]))
    host.learners[0].poll()  # and then the learner and the agent are killed
    decision = host.recommend("h")
    manifest = host.store.manifest()
    assert manifest is not None
    new = Replica(host.store, manifest, host.host, host.folder, host.clock)
    new.load()
    host.now_ms += 60_000
    new.poll()
    assert host.recommend("h").version == decision.version
    assert host.reward(decision, decision.items[0].id, 1.0) == ACCEPTED
    host.learners[1].poll()
    new.poll()
    assert host.recommend("h", k=3).version == 3


def test_a_host_that_has_nothing_in_use_waits_for_the_shards_and_then_shows_what_it_has(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    host.follow(PolicyPut("h", BANK, ["a"]), PolicyPut("other", BANK, ["a"]))
    host.control(PolicyPut("h", BANK, ["a", "b"]))
    host.learners[0].poll()
    manifest = host.store.manifest()
    assert manifest is not None
    folder = RunFolder(tmp_path / "memory of the next", tmp_path / "disk of the next")
    new_host = HostFile.create(folder, 1)
    new = Replica(host.store, manifest, new_host, folder, host.clock)
    new.load()
    new.poll()
    assert new_host[GENERATION] == 0
    host.now_ms += LOAD_WAIT_MS
    new.poll()
    assert (new_host[GENERATION], new.policy("h"), new.policy("other") is None) == (1, None, False)


def test_half_a_change_leaves_the_former_graph_in_use(tmp_path: Path) -> None:
    host = Host(tmp_path, shards=2)
    host.diag("films", random_graph(0), prior=1.0)
    play(host, "films", 10)
    host.follow()
    before = host.views.by_name["films"].arrays["pairs"].copy()
    host.control(GraphPut("films", host.store.put_blob(random_graph(1).to_bytes())))
    host.learners[0].poll()
    host.replica.poll()
    host.views.refresh()
    view = host.views.by_name["films"]
    assert view.entry.graph is not None
    assert view.entry.graph.version == random_graph(0).version
    assert_array_equal(view.arrays["pairs"], before)
    play(host, "films", 5)  # still answers
    host.follow()
    after = host.views.by_name["films"].entry.graph
    assert after is not None
    assert after.version == random_graph(1).version
    assert_array_equal(host.views.by_name["films"].arrays["pairs"], pairs_by_the_formula(host, "films", 1.0))


def test_an_agent_that_starts_again_leaves_the_files_in_use_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_anew() -> None:  # a counter of file names, as there once was, starts again in a new process
        monkeypatch.setattr("server.tables._serial", iter(range(99)), raising=False)

    begin_anew()
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    view = host.views.view("h")
    before, content = view.entry.path, {name: array.copy() for name, array in view.arrays.items()}
    begin_anew()
    manifest = host.store.manifest()
    assert manifest is not None
    Replica(host.store, manifest, host.host, host.folder, host.clock).load()
    for name, array in view.arrays.items():
        assert_array_equal(array, content[name])
    assert host.views.view("h").entry.path != before, "a worker tells tables by their paths"


def test_a_file_of_a_name_that_is_mapped_is_another_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, tmp_path)
    _, mapped = folder.create("x", 4096)
    mapped[:5] = b"still"
    folder.create("x", 10)
    assert mapped[:5] == b"still"


def test_a_deleted_policy_goes_with_its_file(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    path = Path(host.views.by_name["h"].entry.path)
    assert path.exists()
    host.follow(PolicyDelete("h"))
    assert host.views.by_name == {}
    assert not path.exists()


def test_pausing_changes_no_file(tmp_path: Path) -> None:
    host = Host(tmp_path)
    graph = random_graph()
    host.diag("films", graph)
    path = host.views.by_name["films"].entry.path
    host.follow(ItemPut("films", graph.ids[3], paused=True))
    view = host.views.by_name["films"]
    assert view.entry.path == path
    assert view.arrays["paused"].tolist() == [int(i == 3) for i in range(40)]
    assert view.info().paused == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_banks_are_the_shards_rows(tmp_path: Path, shards: int) -> None:
    host = Host(tmp_path, shards)
    host.follow(PolicyPut("h", BANK, ["a", "b", "c"]))
    for i in range(60):
        decision = host.recommend("h", user=User(segment=f"s{i % 25}"))
        host.reward(decision, decision.items[0].id, 1.0)
        host.follow()
    view = host.views.by_name["h"]
    assert isinstance(view, ArmsView)
    number = view.entry.number
    for shard, learner in enumerate(host.learners):
        assert learner.shard is not None
        banks = learner.shard.state[f"banks/{number}"]
        assert view.arrays["used"][shard] == len(banks)
        copies = view.arrays["versions"][shard, : len(banks)] & 1
        assert_array_equal(view.arrays["states"][shard, np.arange(len(banks)), copies], banks)
        assert_array_equal(view.arrays["keys"][shard, : len(banks)], learner.shard.state[f"bank_keys/{number}"][:, 0])
    assert view.arrays["used"].sum() == 25 + shards
    assert host.outcomes(number)["applied"] == 60


def test_a_bank_that_many_commits_have_changed_is_written_once(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    versions = host.views.by_name["h"].arrays["versions"]
    before = int(versions[0, 0])
    for _ in range(30):
        host.recommend("h", user=User(segment="all"))
        host.reward(host.recommend("h", user=User(segment="all")), "a", 1.0)
        host.outbox.flush()
        host.learn()
    host.replica.poll()
    assert versions[0, 1] - before <= 2, "a reader gives up on a row that never holds still"


def test_a_change_of_one_policy_leaves_the_views_of_the_others(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.diag("films", random_graph())
    host.follow(PolicyPut("h", BANK, ["a", "b"]), PolicyPut("other", BANK, ["a"]))
    before = dict(host.views.by_name)
    host.follow(ItemPut("h", "c"))
    after = host.views.by_name
    assert [name for name in before if after[name] is before[name]] == ["films", "other"]
    host.follow(ItemPut("films", random_graph().ids[0], paused=True))
    assert after["films"] is not host.views.by_name["films"]


def test_a_new_arm_makes_a_new_table(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    for _ in range(5):
        host.reward(host.recommend("h"), "a", 1.0)
    host.follow(ItemPut("h", "c"))
    view = host.views.by_name["h"]
    assert [item.id for item in view.entry.items] == ["a", "b", "c"]
    assert host.recommend("h", k=3).items[0].propensity is not None


def test_a_broken_chain_reloads_the_shard(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.diag("films", random_graph(), prior=1.0)
    play(host, "films", 10)
    host.outbox.flush()
    host.learn()
    play(host, "films", 10)
    host.outbox.flush()
    host.learn()
    learner = host.learners[0]
    assert learner.shard is not None
    parts, gone = learner.shard.state.take_parts()
    host.store.fold(0, host.store.last(0)[0], parts, gone, keep=0)
    host.replica.poll()
    host.views.refresh()
    assert host.replica.reloads == 1
    assert_array_equal(host.views.by_name["films"].arrays["pairs"], pairs_by_the_formula(host, "films", 1.0))


def test_a_worker_that_starts_while_catalogs_are_swapped_finds_the_newest(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.follow(PolicyPut("h", BANK, ["a", "b"]))
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                views = Views(host.host, HostFile(host.folder.host).row(0), host.folder)
                views.refresh()
                assert set(views.by_name) == {"h"}
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        host.control(ItemPut("h", f"arm {i}"))
        host.learn()
        host.replica.poll()
    stop.set()
    reader.join()
    assert failures == []


def test_ids_stand_in_the_file_as_json(tmp_path: Path) -> None:
    host = Host(tmp_path)
    graph = random_graph()
    host.diag("films", graph)
    arrays = host.views.by_name["films"].arrays
    text, at = arrays["ids"].tobytes(), arrays["ids_at"]
    assert [msgspec.json.decode(text[a : b - 1]) for a, b in pairwise(at)] == list(graph.ids)


def test_a_full_memory_folder_falls_back_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate
    memory = tmp_path / "memory"
    memory.mkdir()

    def fallocate(handle: int, offset: int, size: int) -> None:
        if size > 1000 and os.readlink(f"/proc/self/fd/{handle}").startswith(str(memory)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, offset, size)

    folder = RunFolder(memory, tmp_path / "disk")
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    path, mapped = folder.create("small", 512)
    assert path.parent == memory
    path, mapped = folder.create("large", 5000)
    assert path.parent == tmp_path / "disk"
    assert len(mapped) == 5000
    assert not (memory / "large").exists()
    for name, size in (("catalog-1", 100), ("catalog-2", 5000)):
        folder.write(name, b"x" * size)
        assert folder.find(name).read_bytes() == b"x" * size
    assert folder.find("catalog-2").parent == tmp_path / "disk"


def test_run_folders_of_the_dead_are_removed_and_others_left_alone(tmp_path: Path) -> None:
    live, dead = (RunFolder(tmp_path / f"croupier-{name}", tmp_path / "disk") for name in ("live", "dead"))
    (tmp_path / "croupier-foreign").mkdir()
    for folder in (live, dead):
        folder.claim()
        HostFile.create(folder, 1)
    assert shared.remove_dead(tmp_path) == []
    assert dead._claim is not None
    os.close(dead._claim)  # as a kill does
    assert shared.remove_dead(tmp_path) == [dead.first]
    assert live.host.exists()
    assert (tmp_path / "croupier-foreign").exists()
    live.remove()
    assert not live.first.exists()


def test_a_row_is_never_torn() -> None:
    states, versions = np.zeros((2, 2, 4000)), np.zeros(2, np.uint64)
    out = np.empty(4000)
    stop = threading.Event()

    def write() -> None:
        value = 0.0
        index = np.array([1, 1, 1])  # both copies in one breath: a reader that does not look again is overtaken
        while not stop.is_set():
            value += 3.0
            new = np.repeat(np.array([[value], [value + 1], [value + 2]]), 4000, axis=1)
            rows.write_rows(states, versions, index, new)

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[float] = set()
    deadline = time.monotonic() + 30
    try:
        while len(seen) < 200:
            assert time.monotonic() < deadline
            assert rows.read_row(rows.address(states), rows.address(versions), 1, out)
            assert (out == out[0]).all()
            seen.add(float(out[0]))
    finally:
        stop.set()
        writer.join()


def test_a_writer_that_stops_inside_a_row_holds_up_nobody() -> None:
    states, versions = np.zeros((1, 2, 4)), np.zeros(1, np.uint64)
    rows.write_rows(states, versions, np.array([0]), np.ones((1, 4)))
    states[0, 0, :2] = 7.0  # half of the next row
    out = np.empty(4)
    assert rows.read_row(rows.address(states), rows.address(versions), 0, out)
    assert out.tolist() == [1.0] * 4


def test_dim_0_graphs_are_served(tmp_path: Path) -> None:
    host = Host(tmp_path)
    graph = Graph(np.zeros((2, 0), np.float32), np.array([0, 2, 3]), np.array([0, 1, 1], np.uint32), ("a", "b"))
    host.diag("films", graph)
    assert {item.id for item in host.recommend("films", user=User(clusters=[0, 1]), k=2).items} == {"a", "b"}
    assert isinstance(host.replica.tables[2], DiagTable)
