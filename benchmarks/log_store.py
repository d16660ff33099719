"""What the SQLite log and store cost: `python -m benchmarks.log_store [--quick]`.

Append is compared with the floor of the same disk in the same run: one write and one fdatasync of as many bytes.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from streaming.log import EventLog, open_log
from streaming.store import NOTHING, Commit, Manifest, ParameterStore, open_store

ROW = bytes(176)
"""One small record, as in a log of single events."""
DELTA_ROWS = 100
EDGES = 1_000_000


def quantiles_us(call: Callable[[], object], times: int) -> tuple[float, float]:
    """(median, p99) of the call's time in us."""
    taken = np.empty(times)
    for n in range(times):
        began = time.perf_counter()
        call()
        taken[n] = time.perf_counter() - began
    return float(np.median(taken) * 1e6), float(np.quantile(taken, 0.99) * 1e6)


def appends(folder: Path, log: EventLog, times: int) -> dict[str, float]:
    """Rows per second in groups of 1, 10, 100 and 1,000; each group is one durable transaction."""
    figures = {}
    for group in (1, 10, 100, 1000):
        batch = [(0, ROW)] * group
        count = max(int(times / group**0.5), 50)
        began = time.perf_counter()
        p50, p99 = quantiles_us(partial(log.append, batch), count)
        figures[f"append_{group}_rows_per_s"] = group * count / (time.perf_counter() - began)
        with (folder / "floor").open("wb", buffering=0) as file:

            def floor(data: bytes = ROW * group, descriptor: int = file.fileno()) -> None:
                os.write(descriptor, data)
                os.fdatasync(descriptor)

            floor_p50, _ = quantiles_us(floor, count)
        figures[f"append_{group}_p50_us"] = p50
        figures[f"append_{group}_p99_us"] = p99
        figures[f"append_{group}_of_write_and_fdatasync"] = p50 / floor_p50
    eight = [(p, ROW * 10) for p in range(8)]
    figures["append_8_partitions_p50_us"], figures["append_8_partitions_p99_us"] = quantiles_us(
        lambda: log.append(eight), times // 4
    )
    return figures


def reads(path: Path, log: EventLog, frames: int) -> dict[str, float]:
    """Reading back small rows and packed records of 16 kB, in pages, through a handle of its own."""
    figures = {}
    for partition, name in ((0, "rows"), (1, "frames_16kb")):
        if partition:
            for _ in range(frames // 50):
                log.append([(1, bytes(16_384))] * 50)
        reader = open_log(path)
        offset, size = reader.bounds(partition)[0], 0
        began, first = time.perf_counter(), offset
        while page := reader.read(partition, offset):
            offset = page[-1].offset + 1
            size += sum(len(record.data) for record in page)
        taken = time.perf_counter() - began
        figures[f"read_{name}_per_s"] = (offset - first) / taken
        figures[f"read_{name}_mb_per_s"] = size / taken / 1e6
        reader.close()
    return figures


def commits(store: ParameterStore, times: int) -> dict[str, float]:
    """Commits of a packed delta of 100 rows, and what a follower pays to look and to fetch."""
    delta = bytes(DELTA_ROWS * 24)
    ids = [NOTHING, *(os.urandom(16) for _ in range(times))]
    steps = iter(Commit(new, after, 1, 1, 1, delta) for after, new in pairwise(ids))
    began = time.perf_counter()
    p50, p99 = quantiles_us(lambda: store.commit(0, next(steps)), times)
    figures = {"commit_per_s": times / (time.perf_counter() - began), "commit_p50_us": p50, "commit_p99_us": p99}
    figures["last_p50_us"], _ = quantiles_us(lambda: store.last(0), 5_000)
    figures["changes_of_1_p50_us"], _ = quantiles_us(lambda: store.changes(0, ids[-2]), 2_000)
    return figures


def images(path: Path, store: ParameterStore) -> dict[str, float]:
    """A shard of 1M edges: (b, d) of 16 bytes each, folded, kept as a snapshot, loaded by a fresh handle."""
    part = np.random.default_rng(0).random((EDGES, 2)).tobytes()
    figures = {}
    last, _ = store.last(0)
    for name, call in (
        ("fold_1m_edges_ms", lambda: store.fold(0, last, {"edges/1": part})),
        ("snapshot_1m_edges_ms", lambda: store.snapshot(0)),
        ("put_blob_16mb_ms", lambda: store.put_blob(part)),
    ):
        began = time.perf_counter()
        call()
        figures[name] = (time.perf_counter() - began) * 1e3
    fresh = open_store(path)
    began = time.perf_counter()
    image = fresh.load(0)
    figures["load_1m_edges_ms"] = (time.perf_counter() - began) * 1e3
    assert image.parts["edges/1"] == part
    began = time.perf_counter()
    bytes(bytearray(part))
    figures["load_of_two_memory_copies"] = figures["load_1m_edges_ms"] / ((time.perf_counter() - began) * 1e3)
    fresh.close()
    return figures


def run(quick: bool = False) -> dict[str, float]:
    """All figures by name. About 3 s when quick, else 15."""
    times = 500 if quick else 4_000
    with tempfile.TemporaryDirectory(dir=".") as name:  # the disk the project is on, not a tmpfs
        folder = Path(name)
        log = open_log(folder / "log.sqlite", 8, write=True)
        figures = appends(folder, log, times)
        figures |= reads(folder / "log.sqlite", log, 500 if quick else 5_000)
        figures["bounds_p50_us"], figures["bounds_p99_us"] = quantiles_us(lambda: log.bounds(0), 20_000)
        figures["log_mb"] = log.size_bytes() / 1e6
        log.close()
        store = open_store(folder / "store.sqlite")
        store.create(Manifest("benchmark", "benchmark", 1, 1))
        figures |= commits(store, times)
        figures |= images(folder / "store.sqlite", store)
        store.close()
    for name, figure in figures.items():
        print(f"{name:40s} {figure:>14,.2f}" if figure < 1_000 else f"{name:40s} {figure:>14,.0f}")
    return figures


if __name__ == "__main__":
    run(quick="--quick" in sys.argv)
