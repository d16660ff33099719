"""How many changed cells a second one core of an agent takes from commits to its workers. `python -m benchmarks.follow`

The log and policy of `benchmarks.learner`, in memory. A learner commits; a replica polls the store after each commit,
as an agent does, and its CPU alone is counted. A cell is one edge of one commit, (b, d) of 16 bytes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.learner import fill, make_graph
from server.replica import Replica
from server.shared import HostFile, RunFolder
from streaming.learner import Learner
from streaming.log import open_log
from streaming.state import decode
from streaming.store import open_store

RECORDS = (1, 4, 16)
"""Records a commit; each is about 500 decisions."""


def follow(records: int, decisions: int) -> dict[str, float]:
    """Figures of one replica that follows commits of so many records."""
    rng = np.random.default_rng(1)
    log, store = open_log("memory:", 1), open_store("memory:")
    fill(log, store, make_graph(rng), decisions, 9, rng)
    manifest = store.manifest()
    assert manifest is not None
    with tempfile.TemporaryDirectory(prefix="croupier-follow-") as place:
        folder = RunFolder(Path(place), Path(place))
        learner = Learner(0, log, store)
        learner.poll(3)
        replica = Replica(store, manifest, HostFile.create(folder, 1), folder)
        replica.load()
        cells, commits, cpu, delta_bytes = 0, 0, 0.0, 0
        while learner.poll(records):
            before = time.thread_time()
            applied = replica.poll()
            cpu += time.thread_time() - before
            assert applied == 1
            delta = store.load(0).deltas[-1].delta
            cells += sum(op.count for op, _, _ in decode(delta) if op.name.startswith("edges/"))
            delta_bytes += len(delta)
            commits += 1
    return {
        "cells": cells,
        "cells_per_cpu_s": cells / cpu,
        "us_per_commit": cpu / commits * 1e6,
        "bytes_per_cell": delta_bytes / cells,
    }


def run(quick: bool = False) -> dict[str, object]:
    """All sizes of commits, after one that compiles what is compiled."""
    follow(1, 2_000)
    decisions = 30_000 if quick else 100_000
    return {f"records_{records}": follow(records, decisions) for records in RECORDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    for name, figures in run(parser.parse_args().quick).items():
        assert isinstance(figures, dict)
        print(name, *(f"{each} {value:,.1f}" for each, value in figures.items()), sep="   ")


if __name__ == "__main__":
    main()
