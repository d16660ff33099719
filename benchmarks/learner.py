"""How many events a second one core learns from an SQLite log. `python -m benchmarks.learner`

An event is one (decision, item) or one reward; nine to one; ten clusters per decision; the policy of
`docs/benchmarks`: 10,000 clusters x 100 items, 20,000 items. The log is written first, then one learner reads it to
its end, committing to an SQLite store. CPU seconds of the process count, and the wall's beside them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from bandits.graph import Graph
from streaming import events, token
from streaming.control import GraphPut, PolicyPut, PolicySpec, to_json
from streaming.learner import Learner
from streaming.log import CONTROL, EventLog, open_log
from streaming.store import Manifest, ParameterStore, open_store

N_CLUSTERS, N_ITEMS, WIDTH, K = 10_000, 20_000, 100, 10
BAR = 300_000


def make_graph(rng: np.random.Generator) -> Graph:
    """10,000 clusters of 100 random items each."""
    lists = [np.sort(rng.choice(N_ITEMS, WIDTH, replace=False)) for _ in range(N_CLUSTERS)]
    indptr = np.arange(N_CLUSTERS + 1) * WIDTH
    ids = tuple(f"item{j}" for j in range(N_ITEMS))
    return Graph(np.zeros((N_CLUSTERS, 0), np.float32), indptr, np.concatenate(lists).astype(np.uint32), ids)


def fill(log: EventLog, store: ParameterStore, graph: Graph, decisions: int, k: int, rng: np.random.Generator) -> int:
    """Writes control and events in records of about 500 decisions; returns how many events there are."""
    store.create(Manifest("bench", log.id, 1, 1))
    for n, record in enumerate(
        (PolicyPut("films", PolicySpec("diag-linucb")), GraphPut("films", store.put_blob(graph.to_bytes()))), 1
    ):
        frame = events.control_frame(n, to_json(record))
        log.append([(CONTROL, frame), (0, frame)])
    now_ms = time.time_ns() // 1_000_000
    count, batch = 0, []
    owed = 0.0
    for sequence in range(decisions):
        clusters = rng.integers(0, N_CLUSTERS, K).astype(np.uint32)
        edges = graph.indptr[clusters[rng.integers(0, K, k)]] + rng.integers(0, WIDTH, k)
        context = token.Context(
            token.DIAG, 1, 1 << 32 | sequence, now_ms, 1_800_000, 0.0, token.FIRST, 0, True,
            np.unique(graph.items[edges]), np.full(len(np.unique(graph.items[edges])), 0.1, np.float16), 2,
            clusters, np.full(K, 6553, np.uint16),
        )  # fmt: skip
        payload = token.encode(context)
        batch.append(events.decision(payload, sequence))
        shown = len(context.items)
        count += shown
        owed += shown / 9
        while owed >= 1:
            owed -= 1
            count += 1
            batch.append(events.reward(payload, int(rng.integers(shown)), 1.0, int(rng.integers(1 << 62))))
        if len(batch) >= 500 or sequence == decisions - 1:
            log.append([(0, events.frame(batch))])
            batch = []
    return count


def measure(folder: Path, decisions: int, k: int, records: int) -> dict[str, float]:
    """One pass over a fresh log: events, CPU and wall seconds, events per CPU second."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as data:
        log = open_log(Path(data) / "log.sqlite", 1, write=True)
        store = open_store(Path(data) / "store.sqlite")
        count = fill(log, store, make_graph(rng), decisions, k, rng)
        learner = Learner(0, log, store)
        learner.open()
        learner.poll(2)  # the control records: the graph is taken, kernels are compiled or loaded
        learner.poll(1)
        cpu, wall = time.process_time(), time.perf_counter()
        while learner.poll(records):
            if learner.wants_fold:
                learner.fold()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        log.close()
        store.close()
    return {"events": count, "cpu_s": cpu, "wall_s": wall, "events_per_cpu_s": count / cpu}


def run(quick: bool = False) -> dict[str, object]:
    """Slates of nine items and single items, with commits of many records and of one."""
    scale = 1 if quick else 5
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for k, decisions in ((9, 20_000), (1, 60_000)):
            for records in (16, 1):
                rows[f"k={k}, records per commit={records}"] = measure(Path(folder), decisions * scale, k, records)
    return {"bar_events_per_cpu_s": BAR, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the events")
    for name, row in run(parser.parse_args().quick)["rows"].items():  # type: ignore[attr-defined]
        print(f"{name:32} {row['events']:>9,.0f} events  {row['events_per_cpu_s']:>10,.0f} /s and core (bar {BAR:,})")


if __name__ == "__main__":
    main()
