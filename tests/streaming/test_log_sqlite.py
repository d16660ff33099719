"""The SQLite log as files and processes: foreign, damaged, full, locked, read-only, killed, trimmed for long."""

import gc
import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from streaming.errors import LayoutMismatch, LogCorrupt, LogInUse, LogUnavailable
from streaming.log import CONTROL, open_log
from streaming.log.sqlite import SqliteLog
from streaming.store import open_store
from tests.streaming.faults import full_disk, read_only_after  # noqa: F401


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.sqlite"


def write(path, records=3, shards=2):
    """A log with some records in it, closed."""
    log = open_log(path, shards, write=True)
    log.append([(0, bytes([n]) * 2_000) for n in range(records)])
    log.close()


def contents(log):
    return {p: (log.bounds(p), log.read(p, log.bounds(p)[0])) for p in range(CONTROL, log.shards)}


def test_a_second_writer_is_refused_with_a_sentence_until_the_first_has_closed(path):
    log = open_log(path, 2, write=True)
    with pytest.raises(LogInUse, match=r"log.sqlite: one log has one writer; stop the other first"):
        open_log(path, 2, write=True)
    reader = open_log(path)
    with pytest.raises(ValueError, match="opened for reading"):
        reader.append([(0, b"x")])
    reader.close()
    log.close()
    open_log(path, 2, write=True).close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_taken_away_acknowledges_nothing_more(path, replaced):
    log = open_log(path, 2, write=True)
    log.append([(0, b"before")])
    if replaced:
        write(path.with_name("other.sqlite"))
        path.with_name("other.sqlite").replace(path)
    else:
        path.unlink()
    with pytest.raises(LogUnavailable, match="was removed or replaced while it was in use: stop the server"):
        log.append([(0, b"lost")])
    log.close()


WRITER = """
import sys
from streaming.log import open_log
log = open_log(sys.argv[1], 2, write=True)
n = 0
while True:
    log.append([(0, n.to_bytes(4, "little") * 50), (1, n.to_bytes(4, "little"))])
    print(n, flush=True)
    n += 1
"""


def test_what_a_killed_writer_acknowledged_is_there_and_the_lock_is_free(path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "0\n"
    reader = open_log(path)  # while the writer writes
    assert reader.read(0, 0, max_records=1)[0].data == bytes(200)
    with pytest.raises(LogInUse):
        open_log(path, 2, write=True)
    while int(acknowledged := child.stdout.readline()) < 50:
        pass
    child.kill()
    last = int([acknowledged, *child.stdout.read().splitlines(keepends=True)][-1])
    child.wait()
    child.stdout.close()
    end = reader.bounds(0)[1]
    assert end >= last + 1
    assert reader.bounds(1)[1] == end  # both partitions of an append, or neither
    assert [int.from_bytes(r.data, "little") for r in reader.read(1, 0, max_records=10**6)] == list(range(end))
    reader.close()
    log = open_log(path, 2, write=True)
    assert log.append([(0, b"on")])[0][0] == end
    log.close()


def test_a_reader_before_the_first_writer_is_told_to_wait(path):
    with pytest.raises(LogUnavailable, match=r"there is no event log at .*log.sqlite yet: start"):
        open_log(path)
    with pytest.raises(LogUnavailable, match=r"No such file or directory.*folder must exist"):
        open_log(path.parent / "nowhere" / "log.sqlite", 2, write=True)


def test_another_number_of_shards_is_refused(path):
    write(path, shards=2)
    with pytest.raises(LayoutMismatch, match=r"has 2 shards, not 8: set shards = 2, or"):
        open_log(path, 8, write=True)
    assert open_log(path, write=True).shards == 2


def foreign_bytes(path):
    path.write_bytes(os.urandom(20_000))


def foreign_sqlite(path):
    con = sqlite3.connect(path)
    con.execute("CREATE TABLE songs (name TEXT)")
    con.commit()
    con.close()


def a_store(path):
    open_store(path).close()


def newer_layout(path):
    write(path)
    con = sqlite3.connect(path)
    con.execute("PRAGMA user_version=2")
    con.close()


def empty_file(path):
    path.touch()


def truncated(path):
    write(path, records=100)
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def overwritten_pages(path):
    write(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def record_missing(path):
    write(path)
    con = sqlite3.connect(path)
    con.execute("DELETE FROM records_0 WHERE offset = 2")
    con.commit()
    con.close()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (foreign_bytes, "is damaged .*file is not a database"),
        (foreign_sqlite, "belongs to another application"),
        (a_store, "belongs to another application"),
        (newer_layout, "has layout 2, this release reads layout 1: use the release"),
        (empty_file, "is empty"),
        (truncated, "is damaged .*malformed"),
        (overwritten_pages, "is damaged"),
        (record_missing, "is damaged .*partition 0 says 0 to 3, has 0 to 1"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_and_left_as_it_is(path, spoil, sentence):
    spoil(path)
    before = path.read_bytes()
    for write_too in (False, True):
        with pytest.raises(LogCorrupt, match=f"log.sqlite {sentence}") as caught:
            open_log(path, 2, write=write_too)
        assert "backup" in str(caught.value) or "use the release" in str(caught.value)
    assert path.read_bytes() == before


def test_a_gap_inside_a_partition_is_not_read_over(path):
    write(path)
    con = sqlite3.connect(path)
    con.execute("DELETE FROM records_0 WHERE offset = 1")
    con.commit()
    con.close()
    log = open_log(path)
    with pytest.raises(LogCorrupt, match="lacks records after offset 0"):
        log.read(0, 0)
    log.close()


def test_a_full_disk_refuses_the_append_and_loses_nothing(full_disk):  # noqa: F811
    folder, filled = full_disk
    log = open_log(folder / "log.sqlite", 2, write=True)
    log.append([(0, b"first"), (1, b"second")])
    before = contents(log)
    with filled(folder / "log.sqlite"):
        for _ in range(3):
            with pytest.raises(LogUnavailable, match=r"log.sqlite (is full: free some space|failed to read or write)"):
                log.append([(0, b"small"), (1, bytes(100_000))])
        assert contents(log) == before
    assert [offset for offset, _ in log.append([(0, b"later"), (1, bytes(100_000))])] == [1, 1]
    log.close()
    log = open_log(folder / "log.sqlite")
    assert [r.data for r in log.read(0, 0)] == [b"first", b"later"]
    log.close()


def test_a_locked_log_refuses_the_append_and_goes_on_afterwards(path):
    log = SqliteLog(str(path), 2, write=True, busy_timeout_s=0.05)
    log.append([(0, b"first")])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match=r"log.sqlite was locked for more than 0.05 s: find who holds it"):
        log.append([(0, b"second")])
    assert log.bounds(0) == (0, 1)  # reading goes on
    holder.execute("ROLLBACK")
    holder.close()
    assert log.append([(0, b"second")])[0][0] == 1
    log.close()


def test_a_read_only_folder_is_named(tmp_path):
    with read_only_after(tmp_path, lambda folder: write(folder / "log.sqlite")) as folder:
        for write_too in (True, False):
            with pytest.raises(LogUnavailable, match=r"log.sqlite.* must .*be writable for this user"):
                open_log(folder / "log.sqlite", 2, write=write_too)
        with pytest.raises(LogUnavailable, match=r"new.sqlite.* writable for this user"):
            open_log(folder / "new.sqlite", 2, write=True)


def test_an_append_waits_for_the_disk_and_a_trim_does_not(path):
    log = open_log(path, 1, write=True)
    con = log._file.connection()
    log.append([(0, b"x")])
    assert con.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: an fsync per commit
    log.trim(0, 1)
    assert con.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    log.append([(0, b"x")])
    assert con.execute("PRAGMA synchronous").fetchone() == (2,)
    log.close()


def test_an_append_gets_in_while_another_process_trims_for_long(path):
    log = open_log(path, 2, write=True)
    for _ in range(20):
        log.append([(0, bytes(2_000))] * 500)
    code = (
        "import sys; from streaming.log import open_log; log = open_log(sys.argv[1]); log.trim(0, 10_000); log.close()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path])
    starts = set()
    while child.poll() is None:
        log.append([(1, b"x")])
        starts.add(log.bounds(0)[0])
    assert child.returncode == 0
    assert len(starts - {0, 10_000}) > 3  # it was let in between the steps, not only before and after
    log.close()


def test_threads_that_end_leave_no_open_files(path):
    write(path)
    log = open_log(path)

    def open_files_after(threads: int) -> int:
        for _ in range(threads):
            thread = threading.Thread(target=log.bounds, args=(0,))
            thread.start()
            thread.join()
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    # SQLite keeps closed descriptors of the file for the next connection, so the first threads do leave some.
    assert open_files_after(60) + 15 > open_files_after(60)
    log.close()


def test_an_append_that_fails_half_way_leaves_no_half(path):
    log = open_log(path, 2, write=True)
    with pytest.raises(AssertionError, match="wrong use"):
        log.append([(0, b"good"), (1, [1, 2])])
    assert (log.bounds(0), log.read(0, 0)) == ((0, 0), [])
    assert log.append([(0, b"later")])[0][0] == 0
    log.close()


def test_a_closed_log_says_so(path):
    log = open_log(path, 2, write=True)
    log.close()
    log.close()
    for call in (lambda: log.append([(0, b"x")]), lambda: log.read(0, 0), lambda: log.bounds(0)):
        with pytest.raises(LogUnavailable, match="was closed: open it again"):
            call()


def test_a_creation_cut_short_leaves_nothing_in_the_way(path):
    path.with_name("log.sqlite.new").write_bytes(b"half")
    path.with_name("log.sqlite.new-wal").write_bytes(b"half")
    write(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["log.sqlite", "log.sqlite.lock", "log.sqlite.turn"]


def test_files_stay_bounded_when_what_is_read_is_trimmed(path, monkeypatch):
    monkeypatch.setattr("streaming.sqlite_file.CHECKPOINT_BYTES", 1 << 20)
    log, reader = open_log(path, 1, write=True), open_log(path)
    sizes, wal_sizes = [], []
    for _ in range(60):
        for _ in range(10):
            log.append([(0, bytes(20_000)) for _ in range(5)])  # 1 MB a round
        reader.trim(0, log.bounds(0)[1] - 50)  # the last megabyte stays
        sizes.append(log.size_bytes())
        wal_sizes.append(os.path.getsize(f"{path}-wal"))
    assert max(wal_sizes) < 12 << 20
    assert max(sizes[30:]) <= max(sizes[:30]) * 1.5 < 30 << 20  # 60 MB went through
    reader.close()
    log.close()


def test_a_trim_gives_space_back_to_the_file_system(path):
    log = open_log(path, 1, write=True)
    log.append([(0, bytes(1_000_000)) for _ in range(20)])
    log.close()
    full = path.stat().st_size
    assert full > 20_000_000
    log = open_log(path, 1, write=True)
    for offset in range(1, 21):
        log.trim(0, offset)
    log.close()
    assert path.stat().st_size < full / 4
