"""Replay, export, import and doctor on real data folders."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from streaming import events, token
from streaming.archive import ArchiveError, export, import_
from streaming.contract import COLUMNS
from streaming.control import ItemPut, SnapshotDrop, SnapshotTake, to_json
from streaming.doctor import doctor
from streaming.errors import LayoutMismatch, LogCorrupt, StreamingError
from streaming.place import LOG_FILE, STORE_FILE, Place, control_of, open_place, state_of
from streaming.replay import replay
from streaming.store import NOTHING
from tests.streaming.world import ITEMS, World, graph


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path / "data")
    world.run()
    world.learn()
    yield world
    world.close()


# -------------------------------------------------------------------------------------------------------------- replay


def test_replay_is_equal_from_the_start_and_from_a_snapshot(world: World) -> None:
    whole = replay(world.place)
    assert whole.equal
    assert [shard.snapshot for shard in whole.shards] == [None, None]
    assert sum(shard.outcomes["applied"] for shard in whole.shards) > 10
    world.snapshot(keep=1)
    world.run()
    world.learn()
    behind = replay(world.place)
    assert behind.equal
    assert all(shard.snapshot and shard.start > 0 and shard.records > 0 for shard in behind.shards)
    for name in ("applied", "duplicate", "late"):
        stored = sum(int(state[f"outcomes/{n}"][0, COLUMNS.index(name)]) for state in world.states() for n in (0, 2, 4))
        assert stored == sum(shard.outcomes[name] for report in (whole, behind) for shard in report.shards)


def test_replay_of_paused_films_in_a_process_of_its_own(world: World) -> None:
    """Python orders a set of strings anew in each process; the tables must not show it."""
    for film in range(ITEMS):
        world.control(ItemPut("films", f"film {film}", paused=True))
    world.learn()
    world.snapshot(keep=1)
    world.control(ItemPut("films", "film 3"))
    world.learn()
    code = "import sys, streaming.replay as r; sys.exit(not r.replay(r.Place(*sys.argv[1:])).equal)"
    for seed in "123":
        command = [sys.executable, "-c", code, *world.place]
        assert subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}).returncode == 0


def test_replay_names_the_table_and_counts_the_rows_that_differ(world: World) -> None:
    learner = world.learners[0]
    learner.shard.state["edges/2"][1, 0] += 2.0**-40
    learner.shard.state.changed("edges/2", np.array([1]))
    world.run(3)
    world.learn()
    report = replay(world.place)
    assert not report.equal
    assert report.shards[0].differing == {"edges/2": 1}
    assert report.shards[1].equal
    assert any("edges/2: 1 rows differ" in line for line in report.lines())


def test_replay_while_learners_write_trim_and_drop_snapshots(world: World) -> None:
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            world.run(5)
            world.learn()
            world.snapshot(keep=1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert replay(world.place).equal
    finally:
        stop.set()
        thread.join()


def test_replay_of_a_folder_where_nothing_was_learned(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    report = replay(world.place)
    world.close()
    assert report.equal
    assert [shard.records for shard in report.shards] == [0, 0]


def test_replay_refuses_a_shortened_log(world: World) -> None:
    world.close()
    with sqlite3.connect(world.data / LOG_FILE) as con:
        con.execute("DELETE FROM records_0 WHERE offset >= 5")
        con.execute("UPDATE partitions SET stop = 5 WHERE partition = 0")
    con.close()
    with pytest.raises(LayoutMismatch, match="shortened or replaced"):
        replay(world.place)
    assert any("shortened" in problem for problem in doctor(world.place).problems)


# --------------------------------------------------------------------------------------------------- export and import


def test_an_import_serves_the_same_learns_on_and_replays(world: World, tmp_path: Path) -> None:
    world.snapshot()
    world.run()
    world.learn()
    report = export(world.place, tmp_path / "all.zip")
    assert report.behind == 0
    assert report.policies == ["films", "titles"]
    assert (tmp_path / "all.zip").stat().st_mode & 0o777 == 0o600
    import_(tmp_path / "all.zip", Place.of_folder(tmp_path / "new"), clock=lambda: world.now_ms)
    new = World(tmp_path / "new", fresh=False)
    new.now_ms, new.sent, new.rng = world.now_ms, list(world.sent), np.random.default_rng(9)
    for mine, theirs in zip(world.states(), new.states(), strict=True):
        assert mine.equal(theirs) == []
    blob = world.store.put_blob(graph().to_bytes())
    assert new.store.get_blob(blob) == world.store.get_blob(blob)
    assert replay(new.place).equal
    assert doctor(new.place).problems == []
    # A follower that has nothing must load: no commit leads from nothing to what was imported.
    assert [new.store.changes(shard, NOTHING) for shard in range(2)] == [None, None]
    # What was answered before stays answered, and an old decision can still be rewarded.
    world.rng = np.random.default_rng(9)
    for each in (world, new):
        each.n = 5
        assert each.control(ItemPut("titles", "d")) == 6
        each.answer(each.sent[-1], 0, 1.0, 77)
        each.answer(each.sent[-1], 0, 1.0, 77)
        each.run(10)
        each.learn()
    assert replay(new.place).equal
    different = {name for mine, theirs in zip(world.states(), new.states(), strict=True) for name in mine.equal(theirs)}
    # The two worlds' workers are different streams, and their control records came at other times.
    assert different <= {"streams"} | {name for name in different if name.startswith("answered/")}
    new.close()


def test_what_a_shard_had_not_applied_comes_with_the_new_log(world: World, tmp_path: Path) -> None:
    n = world.control(ItemPut("titles", "late"), pointers=False)
    world.log.append([(0, events.control_frame(n, to_json(ItemPut("titles", "late"))))])
    world.learn()
    export(world.place, tmp_path / "all.zip")
    with pytest.raises(ArchiveError, match="had not all applied"):
        import_(tmp_path / "all.zip", Place.of_folder(tmp_path / "three"), shards=3)
    import_(tmp_path / "all.zip", Place.of_folder(tmp_path / "new"))
    new = World(tmp_path / "new", fresh=False)
    assert [control_of(state).applied for state in new.states()] == [n, n]
    assert new.control(ItemPut("titles", "next")) == n + 1
    new.close()
    assert replay(new.place).equal


def test_labels_are_deleted_by_an_import_since_their_copies_stay_behind(world: World, tmp_path: Path) -> None:
    for label in ("early", "gone"):
        world.control(SnapshotTake(label))
    world.control(SnapshotDrop("gone"))
    world.learn()
    assert "early (not made yet)" in "\n".join(doctor(world.place).lines())
    for learner in world.learners:
        learner.sync_labels()
    text = "\n".join(doctor(world.place).lines())
    assert "labelled snapshots, kept until they are deleted: early (offset" in text
    assert "gone (" not in text
    export(world.place, tmp_path / "all.zip")
    report = import_(tmp_path / "all.zip", Place.of_folder(tmp_path / "new"), clock=lambda: world.now_ms)
    assert report.labels == ["early"]
    new = World(tmp_path / "new", fresh=False)
    assert [control_of(state).labels for state in new.states()] == [{}, {}]
    assert [control_of(state).applied for state in new.states()] == [world.n + 1] * 2
    for learner in new.learners:
        learner.open()
        learner.sync_labels()
    assert [info.label for info in new.store.snapshots(0)] == [""]
    new.close()
    assert replay(new.place).equal


def test_log_time_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    export(world.place, tmp_path / "all.zip")
    import_(tmp_path / "all.zip", Place.of_folder(tmp_path / "new"), clock=lambda: 5)
    new = World(tmp_path / "new", fresh=False)
    new.now_ms = 5
    last = max(world.log.read(shard, world.log.bounds(shard)[1] - 1)[0].time_ms for shard in range(2))
    assert [new.log.append([(shard, events.frame([]))])[0][1] for shard in range(2)] == [last, last]
    new.close()


@pytest.mark.parametrize(("shards", "half_life_s"), [(1, None), (5, None), (3, 1.0)])
def test_another_number_of_shards_and_back(tmp_path: Path, shards: int, half_life_s: float | None) -> None:
    world = World(tmp_path / "data", half_life_s=half_life_s)
    world.run(40)
    world.learn()
    export(world.place, tmp_path / "two.zip")
    import_(tmp_path / "two.zip", Place.of_folder(tmp_path / "other"), shards=shards, clock=lambda: world.now_ms)
    export(Place.of_folder(tmp_path / "other"), tmp_path / "other.zip")
    import_(tmp_path / "other.zip", Place.of_folder(tmp_path / "back"), shards=2, clock=lambda: world.now_ms)
    other, back = World(tmp_path / "other", fresh=False), World(tmp_path / "back", fresh=False)
    for mine, theirs in zip(world.states(), back.states(), strict=True):
        for name in ("items/2", "numbers/2", "control"):
            assert mine[name].tobytes() == theirs[name].tobytes(), name
        decay = [2.0 ** float(state["decay/2"][0, 1]) for state in (mine, theirs)]
        np.testing.assert_allclose(mine["edges/2"] * decay[0], theirs["edges/2"] * decay[1], rtol=1e-12)
        order = np.argsort(mine["bank_keys/4"][:, 0])
        assert mine["banks/4"][order].tobytes() == theirs["banks/4"].tobytes()
    plays = [sum(state["items/2"][:, 0].sum() for state in each.states()) for each in (world, other)]
    assert plays[0] == plays[1] > 0
    # The same rewards get the same outcomes in both, duplicates of what was answered before included.
    rows = [(payload, slot) for payload in world.sent for slot in range(len(token.decode(payload).items))]
    counts = []
    for each in (world, other):
        each.now_ms = world.now_ms
        for payload, slot in rows:
            each.answer(payload, slot, 1.0, 1)
        each.learn()
        counts.append(sum(state[f"outcomes/{n}"][0] for state in each.states() for n in (0, 2, 4)))
    np.testing.assert_array_equal(*counts)
    assert replay(other.place).equal
    for each in (world, other, back):
        each.close()


def test_export_says_what_was_not_learned_and_never_overwrites(world: World, tmp_path: Path) -> None:
    world.run(5)
    report = export(world.place, tmp_path / "all.zip")
    assert report.behind > 0
    assert any("not learned yet" in line for line in report.lines())
    with pytest.raises(ArchiveError, match="is there already"):
        export(world.place, tmp_path / "all.zip")
    with pytest.raises(ArchiveError, match="cannot be written"):
        export(world.place, tmp_path / "nowhere" / "all.zip")
    assert list(tmp_path.glob("*.part")) == []


def test_import_refuses_with_a_sentence_and_makes_nothing(world: World, tmp_path: Path) -> None:
    file = tmp_path / "all.zip"
    export(world.place, file)
    with pytest.raises(ArchiveError, match="not an empty folder"):
        import_(file, Place.of_folder(world.data))
    with pytest.raises(ArchiveError, match="cannot be read"):
        import_(tmp_path / "none.zip", Place.of_folder(tmp_path / "new"))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ArchiveError, match="no export of croupier"):
        import_(tmp_path / "text.zip", Place.of_folder(tmp_path / "new"))
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ArchiveError, match=r"it has no manifest\.json"):
        import_(tmp_path / "foreign.zip", Place.of_folder(tmp_path / "new"))
    for change, sentence in (({"layout": 9}, "has layout 9.1"), ({"format": "x"}, "does not say so")):
        _rewrite(file, tmp_path / "changed.zip", change)
        with pytest.raises(ArchiveError, match=sentence):
            import_(tmp_path / "changed.zip", Place.of_folder(tmp_path / "new"))
    _rewrite(file, tmp_path / "changed.zip", {}, leave="shards/1/banks/4.npy")
    with pytest.raises(ArchiveError, match="members are missing"):
        import_(tmp_path / "changed.zip", Place.of_folder(tmp_path / "new"))
    with pytest.raises(ArchiveError, match="shards is 0"):
        import_(file, Place.of_folder(tmp_path / "new"), shards=0)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"data"}


def _rewrite(file: Path, to: Path, change: dict, leave: str = "") -> None:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                content = json.dumps(json.loads(content) | change).encode()
            if name != leave:
                new.writestr(name, content)


def test_a_damaged_export_is_refused_or_does_no_harm(world: World, tmp_path: Path) -> None:
    """A zip file has bytes that mean nothing (dates, attributes); a flip of any other must be seen."""
    export(world.place, tmp_path / "all.zip")
    sound = (tmp_path / "all.zip").read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
        if rng.random() < 0.3:
            damaged = damaged[: int(rng.integers(len(sound)))]
        (tmp_path / "bad.zip").write_bytes(bytes(damaged))
        try:
            import_(tmp_path / "bad.zip", Place.of_folder(tmp_path / "new"), clock=lambda: world.now_ms)
        except ArchiveError:
            refused += 1
            assert not (tmp_path / "new").exists()
            continue
        with open_place(Place.of_folder(tmp_path / "new")) as folder:
            for shard, state in enumerate(world.states()):
                assert state.equal(state_of(folder.store.load(shard))) == []
        shutil.rmtree(tmp_path / "new")
    assert refused > 50


# -------------------------------------------------------------------------------------------------------------- doctor


def _files(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir() if not path.name.endswith(("-wal", "-shm"))}


def test_doctor_shows_what_is_kept_and_why_and_writes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    world.run()
    world.log.append([(0, b"poison")])
    world.learn()
    world.snapshot(keep=1)
    world.run(3)
    world.learn()
    world.close()
    before = _files(world.data)
    report = doctor(world.place, clock=lambda: world.now_ms)
    assert report.ok, report.problems
    assert _files(world.data) == before
    text = "\n".join(report.lines())
    for expected in (
        "is in order", "they belong together; 2 shards", "1 signing keys", "no lag", "1 snapshots", "answered-set",
        "without effect: 5 (there is no policy 'nowhere')", "trimmed only behind", "streams", "dead letters: 1",
    ):  # fmt: skip
        assert expected in text, (expected, text)


def test_doctor_names_each_problem_with_its_remedy(world: World, tmp_path: Path) -> None:
    def problems(data: Path, now_ms: int = world.now_ms) -> str:
        report = doctor(Place.of_folder(data), clock=lambda: now_ms)
        assert not report.ok
        return "\n".join(report.problems)

    assert "`croupier serve" in problems(tmp_path / "none")
    world.run(2)
    assert "have waited 120 s" in problems(world.data, world.log.read(0, world.learners[0].head)[0].time_ms + 120_000)
    world.learn()
    world.control(ItemPut("titles", "lost"), pointers=False)
    assert "control record 6 of 6 has not reached it: start the server" in problems(world.data)
    world.close()

    def copy(name: str) -> Path:
        return Path(shutil.copytree(world.data, tmp_path / name))

    lonely = copy("lonely")
    (lonely / STORE_FILE).unlink()
    assert "there is no parameter store" in problems(lonely)
    assert not (lonely / STORE_FILE).exists()
    other = World(tmp_path / "other")
    other.close()
    mixed = copy("mixed")
    shutil.copy(other.data / LOG_FILE, mixed / LOG_FILE)
    assert "belongs to log" in problems(mixed)
    foreign = copy("foreign")
    (foreign / LOG_FILE).unlink()
    con = sqlite3.connect(foreign / LOG_FILE)
    con.execute("CREATE TABLE t (x)")
    con.close()
    assert "belongs to another application" in problems(foreign)
    text = copy("text")
    (text / STORE_FILE).write_text("not a database, surely" * 1000)
    assert "is damaged" in problems(text)
    flipped = copy("flipped")
    with sqlite3.connect(flipped / STORE_FILE) as con:
        con.execute("UPDATE commits SET crc = crc + 1 WHERE key = (SELECT max(key) FROM commits)")
    con.close()
    assert "wrong checksum" in problems(flipped)
    bare = copy("bare")
    with sqlite3.connect(bare / STORE_FILE) as con:
        con.execute("DELETE FROM blobs")
    con.close()
    assert "upload the graph again" in problems(bare)


def test_the_commands_raise_sentences_for_what_is_no_data_folder(tmp_path: Path) -> None:
    empty = Place.of_folder(tmp_path)
    for call in (lambda: replay(empty), lambda: export(empty, tmp_path / "x.zip")):
        with pytest.raises(StreamingError, match="there is no event log"):
            call()
    (tmp_path / LOG_FILE).write_bytes(b"")
    with pytest.raises(LogCorrupt):
        replay(empty)
