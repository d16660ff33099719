"""From one machine to many and back: export a folder, import into a real Kafka and Redis, and the other way."""

import secrets
import time
from pathlib import Path

import pytest

from streaming import archive, token
from streaming.archive import ArchiveError, export, import_
from streaming.contract import COLUMNS
from streaming.control import ItemPut
from streaming.doctor import doctor
from streaming.errors import LayoutMismatch, LogUnavailable
from streaming.log import CONTROL, open_log
from streaming.place import Place, open_place
from streaming.replay import replay
from streaming.store import NOTHING, open_store
from tests.parts.kafka import Broker
from tests.parts.redis import Cluster, Single
from tests.streaming.world import World


@pytest.fixture
def world(tmp_path: Path):
    """A folder whose last decisions are open now, by the clock of the Kafka that they move to."""
    world = World(tmp_path / "data", start_ms=time.time_ns() // 10**6 - 40_000)
    world.run()
    world.learn()
    yield world
    world.close()


def fresh_place(kafka: Broker, redis: Single | Cluster) -> Place:
    name = f"move{secrets.token_hex(4)}"
    return Place(f"kafka://{kafka.bootstrap}/{name}?one_broker=yes", f"{redis.url}/{name}")


def outcomes(world: World) -> dict[str, int]:
    totals = sum(state[f"outcomes/{n}"][0] for state in world.states() for n in (0, 2, 4))
    return dict(zip(COLUMNS, totals.tolist(), strict=True))


@pytest.mark.parametrize("redis", ["redis_single", "redis_cluster"])
def test_one_machine_becomes_many_and_one_again(
    world: World, tmp_path: Path, kafka: Broker, redis: str, request: pytest.FixtureRequest
) -> None:
    apart = fresh_place(kafka, request.getfixturevalue(redis))
    n = world.control(ItemPut("titles", "late"), pointers=False)  # which no shard has applied
    export(world.place, tmp_path / "one.croupier")
    report = import_(tmp_path / "one.croupier", apart)
    assert f"croupier serve {apart.options}" in "\n".join(report.lines())
    many = World(apart, fresh=False)
    many.n, many.now_ms, many.sent = n, world.now_ms, list(world.sent)
    world.log.append([(shard, world.log.read(CONTROL, n - 1)[0].data) for shard in range(world.shards)])
    world.learn()
    for mine, theirs in zip(world.states(), many.states(), strict=True):
        # The late record came at another time to each, and that is all that differs.
        assert set(mine.equal(theirs)) <= {"log_time"}
    assert replay(apart).equal
    # Decisions made before are open, and what was answered stays answered.
    before, payload = outcomes(many), many.sent[-1]
    assert token.decode(payload).time_ms + 60_000 > time.time_ns() // 10**6
    many.answer(payload, 0, 1.0, 77)
    many.answer(payload, 0, 1.0, 77)
    assert many.control(ItemPut("titles", "next")) == n + 1
    many.run(5)
    many.learn()
    gained = {name: value - before[name] for name, value in outcomes(many).items()}
    assert gained["applied"] + gained["amended"] >= 1
    assert gained["duplicate"] >= 1
    assert replay(apart).equal
    many.snapshot(keep=1)
    many.run(5)
    many.learn()
    assert replay(apart).equal
    report = doctor(apart)
    assert report.ok, report.problems
    text = "\n".join(report.lines())
    for expected in ("they belong together; 2 shards", "1 snapshots", "no lag", "trimmed only behind", "KiB; store"):
        assert expected in text, (expected, text)
    export(apart, tmp_path / "many.croupier")
    import_(tmp_path / "many.croupier", Place.of_folder(tmp_path / "back"), clock=lambda: many.now_ms)
    back = World(tmp_path / "back", fresh=False)
    for mine, theirs in zip(many.states(), back.states(), strict=True):
        assert set(mine.equal(theirs)) <= {"log_time"}  # that of the import
    assert replay(back.place).equal
    for each in (many, back):
        each.close()


def test_an_import_makes_another_number_of_partitions(
    world: World, tmp_path: Path, kafka: Broker, redis_single: Single
) -> None:
    apart = fresh_place(kafka, redis_single)
    export(world.place, tmp_path / "two.croupier")
    import_(tmp_path / "two.croupier", apart, shards=5)
    many = World(apart, fresh=False)
    assert many.shards == 5
    assert outcomes(many) == outcomes(world)
    assert replay(apart).equal
    with pytest.raises(ArchiveError, match="holds something already"):
        import_(tmp_path / "two.croupier", apart, shards=5)
    with pytest.raises(ArchiveError, match=r"has 5 partitions, not 2.*--shards"):
        import_(tmp_path / "two.croupier", apart)
    assert replay(apart).equal
    many.close()


class CutOff(Exception):
    """The importing process was killed here."""


@pytest.mark.parametrize("after", ["shard", "shards", "control", "some records"])
def test_an_import_that_was_cut_off_is_seen(
    world: World, tmp_path: Path, kafka: Broker, redis_single: Single, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = fresh_place(kafka, redis_single)
    export(world.place, tmp_path / "one.croupier")
    place_shard, opened = archive._place, archive.open_log

    def place_one(store, shard, state, now_ms):
        if after == "shard" and shard == 1:
            raise CutOff
        place_shard(store, shard, state, now_ms)

    def open_cut(*args, **kwargs):
        log = opened(*args, **kwargs)
        append = log.append

        def cut(batches):
            if after == "shards" or (after != "shard" and batches[0][0] != CONTROL):
                if after == "some records":
                    append([batch for batch in batches if batch[0] == 0])
                raise CutOff
            return append(batches)

        log.append = cut
        return log

    monkeypatch.setattr(archive, "_place", place_one)
    monkeypatch.setattr(archive, "open_log", open_cut)
    with pytest.raises(CutOff):
        import_(tmp_path / "one.croupier", apart)
    monkeypatch.undo()
    with pytest.raises(LayoutMismatch, match="was not finished"):
        replay(apart)
    assert any("was not finished" in problem for problem in doctor(apart).problems)
    with pytest.raises(ArchiveError, match="holds something already"):
        import_(tmp_path / "one.croupier", apart)


def test_a_damaged_export_makes_neither_topics_nor_keys(
    world: World, tmp_path: Path, kafka: Broker, redis_single: Single
) -> None:
    apart = fresh_place(kafka, redis_single)
    export(world.place, tmp_path / "one.croupier")
    whole = (tmp_path / "one.croupier").read_bytes()
    (tmp_path / "half.croupier").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError):
        import_(tmp_path / "half.croupier", apart)
    with pytest.raises(LogUnavailable, match="there is no topic"):
        open_log(apart.log)
    store = open_store(apart.store)
    assert store.manifest() is None
    store.close()


def test_what_lost_a_race_does_not_count(world: World, tmp_path: Path) -> None:
    """Two agents claimed one number: the second record is dead for every reader."""
    n = world.control(ItemPut("titles", "first"))
    dead = archive.events.control_frame(n, archive_json(ItemPut("titles", "second")))
    world.log.append([(CONTROL, dead)])
    world.learn()
    assert "1 more that lost a race" in "\n".join(doctor(world.place).lines())
    export(world.place, tmp_path / "one.croupier")
    import_(tmp_path / "one.croupier", Place.of_folder(tmp_path / "new"))
    with open_place(Place.of_folder(tmp_path / "new")) as opened:
        assert opened.store.lasts()[0][0] != NOTHING
    new = World(tmp_path / "new", fresh=False)
    assert [item.id for item in titles(new)] == ["a", "b", "c", "first"]
    new.close()


def archive_json(record: ItemPut) -> bytes:
    from streaming.control import to_json

    return to_json(record)


def titles(world: World):
    from streaming.place import control_of

    return control_of(world.states()[0]).policies["titles"].items
