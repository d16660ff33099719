"""What every event log does, whatever its medium. Another adapter joins by an entry in MEDIA."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streaming.errors import Trimmed
from streaming.log import CONTROL, EventLog, Record, open_log
from streaming.log.memory import MemoryLog
from streaming.log.sqlite import SqliteLog

SHARDS = 3


class SetClock:
    """A clock that shows what the test set."""

    now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


class Medium:
    """A place that holds one log: opened for writing, opened again, opened a second time for reading."""

    def __init__(self, opener: Callable[[Callable[[], int], bool], EventLog]) -> None:
        self.clock = SetClock()
        self._opener = opener
        self._opened: list[EventLog] = []

    def open(self, write: bool = True) -> EventLog:
        log = self._opener(self.clock, write)
        self._opened.append(log)
        return log

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


def memory(*_: object) -> Medium:
    kept: list[MemoryLog] = []

    def opener(clock: Callable[[], int], write: bool) -> EventLog:
        if write and not kept:
            kept.append(MemoryLog(SHARDS, clock))
        return kept[0]

    return Medium(opener)


def sqlite(folder: Path, *_: object) -> Medium:
    path = str(folder / "log.sqlite")
    return Medium(lambda clock, write: SqliteLog(path, SHARDS if write else None, clock, write=write))


def kafka(_: Path, bootstrap: str) -> Medium:
    url = f"kafka://{bootstrap}/contract-{next(NAMES)}?one_broker=yes"
    return Medium(lambda clock, write: open_log(url, SHARDS if write else None, clock, write=write))


MEDIA = {"memory": memory, "sqlite": sqlite, "kafka": kafka}
NAMES = itertools.count()
PARAMS = ["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.xdist_group("parts"))]


@pytest.fixture(params=PARAMS)
def medium(request, tmp_path):
    bootstrap = request.getfixturevalue("kafka").bootstrap if request.param == "kafka" else ""
    medium = MEDIA[request.param](tmp_path, bootstrap)
    yield medium
    medium.close()


def next_offset(log: EventLog, partition: int) -> int:
    return log.bounds(partition)[1]


def read_all(log: EventLog, partition: int, **limits: int) -> list[Record]:
    """All that is kept, page by page, as a learner reads it."""
    offset = log.bounds(partition)[0]
    found: list[Record] = []
    while page := log.read(partition, offset, **limits):
        found += page
        offset = page[-1].offset + 1
    return found


def test_what_is_appended_is_read_in_order_from_its_own_partition(medium):
    log = medium.open()
    placed = log.append([(0, b"a"), (2, b"b"), (CONTROL, b"c"), (0, b""), (0, b"\0" * 100_000)])
    assert len(placed) == 5
    assert [r.data for r in read_all(log, 0)] == [b"a", b"", b"\0" * 100_000]
    assert [r.data for r in read_all(log, 2)] == [b"b"]
    assert [r.data for r in read_all(log, CONTROL)] == [b"c"]
    assert read_all(log, 1) == []
    assert [(r.offset, r.time_ms) for r in read_all(log, 0)] == [placed[0], placed[3], placed[4]]


def test_offsets_rise_and_bounds_enclose_them(medium):
    log = medium.open()
    start, end = log.bounds(1)
    assert start == end
    offsets = [log.append([(1, b"x")])[0][0] for _ in range(5)]
    assert offsets == sorted(set(offsets))
    assert offsets[0] >= start
    assert log.bounds(1) == (start, offsets[-1] + 1)
    assert log.bounds(0)[0] == log.bounds(0)[1]


def test_everything_is_there_after_reopening(medium):
    log = medium.open()
    log.append([(p, bytes([n])) for p in (0, 1, CONTROL) for n in range(10)])
    log.trim(1, log.bounds(1)[0] + 4)
    before = {p: (log.bounds(p), read_all(log, p)) for p in range(CONTROL, SHARDS)}
    identity = log.id, log.shards
    medium.close()
    again = medium.open()
    assert (again.id, again.shards) == identity
    assert {p: (again.bounds(p), read_all(again, p)) for p in range(CONTROL, SHARDS)} == before
    ((offset, _),) = again.append([(1, b"next")])
    assert offset >= before[1][0][1]


def test_another_log_has_another_id(tmp_path, medium):
    (tmp_path / "other").mkdir()
    log = medium.open()
    other = sqlite(tmp_path / "other")
    assert other.open().id != log.id
    other.close()


@pytest.mark.parametrize("medium", ["memory", "sqlite"], indirect=True)  # a broker's clock is its own
def test_log_time_never_goes_back_in_a_partition(medium):
    log = medium.open()
    assert log.append([(0, b"x"), (1, b"x")])[0][1] == 1_000
    medium.clock.now_ms = 400
    assert [t for _, t in log.append([(0, b"x"), (2, b"x"), (0, b"x")])] == [1_000, 400, 1_000]
    log.trim(0, next_offset(log, 0))
    medium.close()
    log = medium.open()
    assert log.append([(0, b"x")])[0][1] == 1_000  # neither a restart nor a trim forgets it
    medium.clock.now_ms = 1_001
    assert [t for _, t in log.append([(0, b"x"), (1, b"x"), (2, b"x")])] == [1_001] * 3


def test_a_read_keeps_to_its_limits_but_gives_at_least_one_record(medium):
    log = medium.open()
    log.append([(0, bytes(100)) for _ in range(20)])
    start = log.bounds(0)[0]
    assert len(log.read(0, start, max_records=7)) == 7
    assert len(log.read(0, start, max_bytes=350)) == 3
    assert len(log.read(0, start, max_bytes=300)) == 3
    assert len(log.read(0, start, max_bytes=1)) == 1
    assert len(read_all(log, 0, max_records=3)) == 20
    assert len(read_all(log, 0, max_bytes=250)) == 20
    assert log.read(0, next_offset(log, 0)) == []
    assert log.read(0, next_offset(log, 0) + 5) == []


def test_what_is_trimmed_says_so(medium):
    log = medium.open()
    log.append([(0, bytes([n])) for n in range(20)])
    start, end = log.bounds(0)
    log.trim(0, start + 12)
    assert log.bounds(0) == (start + 12, end)
    with pytest.raises(Trimmed, match=f"starts at offset {start + 12}") as caught:
        log.read(0, start + 11)
    assert (caught.value.partition, caught.value.offset, caught.value.start) == (0, start + 11, start + 12)
    assert [r.data[0] for r in log.read(0, start + 12)] == list(range(12, 20))
    log.trim(0, start + 3)  # behind the start: nothing to do
    assert log.bounds(0) == (start + 12, end)
    log.trim(0, end + 100)  # beyond the end: all there is
    assert log.bounds(0) == (end, end)
    ((offset, _),) = log.append([(0, b"new")])
    assert offset == end
    assert [r.data for r in log.read(0, end)] == [b"new"]


def test_a_long_trim_leaves_exactly_the_rest(medium):
    log = medium.open()
    log.append([(1, n.to_bytes(2, "little")) for n in range(2_000)])
    start = log.bounds(1)[0]
    log.trim(1, start + 1_555)
    assert [int.from_bytes(r.data, "little") for r in read_all(log, 1)] == list(range(1_555, 2_000))


@pytest.mark.parametrize("partition", [-2, SHARDS, 99])
def test_an_unknown_partition_is_refused_and_nothing_is_appended(medium, partition):
    log = medium.open()
    with pytest.raises(ValueError, match=f"partition {partition}: the log has 0..2 and -1"):
        log.append([(0, b"good"), (partition, b"bad")])
    assert log.bounds(0) == (0, 0)
    for call in (log.bounds, lambda p: log.read(p, 0), lambda p: log.trim(p, 1)):
        with pytest.raises(ValueError, match="partition"):
            call(partition)


def test_appending_nothing_is_nothing(medium):
    log = medium.open()
    assert log.append([]) == []
    assert log.bounds(0) == (0, 0)


def test_size_grows_with_what_is_kept(medium):
    log = medium.open()
    before = log.size_bytes()
    log.append([(0, bytes(1_000_000))])
    assert log.size_bytes() >= before + 1_000_000


def test_readers_in_other_threads_see_every_record_once(medium):
    log, total, seen = medium.open(), 300, {}

    def follow(partition: int) -> None:
        reader = medium.open(write=False)
        records = seen.setdefault(partition, [])
        while len(records) < total:
            offset = records[-1].offset + 1 if records else 0
            if reader.bounds(partition)[1] > offset:
                records += reader.read(partition, offset, max_records=7)

    threads = [threading.Thread(target=follow, args=(p,)) for p in (0, 1)]
    for thread in threads:
        thread.start()
    for n in range(total):
        log.append([(0, n.to_bytes(2, "little")), (1, n.to_bytes(2, "little"))])
    for thread in threads:
        thread.join(60)
    for partition in (0, 1):
        assert [int.from_bytes(r.data, "little") for r in seen[partition]] == list(range(total))
