"""What ten million edges cost a host in memory, whatever the workers: `python -m benchmarks.memory [--quick]`.

A graph of 10,000 clusters with 1,000 edges each, over 20,000 items and 64 dimensions, is put to a server; every worker
then recommends from it. Of each process the proportional set size is read (PSS, /proc/PID/smaps_rollup: a page that n
processes map counts 1/n for each), before the graph and after, and of the run folder what its files occupy.

    shared    bytes of the run folder's files after the graph less those before, an edge
    host      PSS of all processes together, less before, an edge
    further   how much of that a second worker adds, and what the other two of four add on average
"""

import argparse
import asyncio
import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.client import Address, Connection
from server.launch import ServerProcess

CLUSTERS, WIDTH, ITEMS, DIM = 10_000, 1_000, 20_000, 64
FILE_BAR, WORKER_BAR = 12.5, 0.5  # bytes an edge
POLICY = b'{"algorithm":"diag-linucb","clusters_per_user":10,"reward":{"window":"30m","default":0}}'
SETTLE_S = 3.0


def graph(clusters: int, rng: np.random.Generator) -> bytes:
    """The .npz: each cluster's items stand at one stride of its own from one another, so that none comes twice."""
    strides = rng.choice([7, 11, 13, 17, 19], (clusters, 1))
    items = np.sort((rng.integers(ITEMS, size=(clusters, 1)) + strides * np.arange(WIDTH)) % ITEMS, axis=1)
    out = io.BytesIO()
    np.savez(
        out,
        centroids=rng.normal(size=(clusters, DIM)).astype(np.float32),
        indptr=np.arange(clusters + 1, dtype=np.int64) * WIDTH,
        items=items.astype(np.uint32).ravel(),
        ids=np.array([f"film{i}" for i in range(ITEMS)]),
    )
    return out.getvalue()


def pss_bytes(pid: int) -> int:
    """A process's share of the memory that it has mapped."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss of process {pid}")


def by_process(server: ServerProcess) -> dict[str, int]:
    """PSS by the processes' names; the supervisor is the one that was started."""
    pids = server.pids()
    names = ["supervisor"] + [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids[1:]]
    return dict(zip(names, map(pss_bytes, pids), strict=True))


def file_bytes(server: ServerProcess) -> int:
    return sum(path.stat().st_blocks * 512 for path in server.run_folder.iterdir() if path.is_file())


async def ask_all(server: ServerProcess, clusters: int, rng: np.random.Generator, requests: int = 200) -> None:
    """So many recommendations on each of so many connections that every worker gets its share."""
    for _ in range(16):
        async with Connection(Address.of(server.url)) as connection:
            for _ in range(requests // 4):
                user = ",".join(map(str, rng.choice(clusters, 10, replace=False)))
                body = b'{"policy":"films","user":{"clusters":[%b]},"k":10}' % user.encode()
                answer = await connection.request("POST", "/v1/recommend", body)
                assert answer.status == 200, answer


async def put(server: ServerProcess, path: str, body: bytes, kind: str = "application/json") -> None:
    async with Connection(Address.of(server.url)) as connection:
        answer = await connection.request("PUT", path, body, content_type=kind, timeout_s=120)
        assert answer.status < 300, answer


async def until_shown(server: ServerProcess) -> None:
    deadline = time.monotonic() + 120
    async with Connection(Address.of(server.url)) as connection:
        while b'"graph":null' in (await connection.request("GET", "/v1/policies/films")).body:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def measure(workers: int, clusters: int, body: bytes) -> dict[str, Any]:
    """Memory of one server before the graph and after, MB by process, and bytes an edge."""
    edges, rng = clusters * WIDTH, np.random.default_rng(1)
    with ServerProcess(["--workers", str(workers)]) as server:
        await server.ready()
        await put(server, "/v1/policies/films", POLICY)
        await asyncio.sleep(SETTLE_S)
        before, files_before = by_process(server), file_bytes(server)
        start = time.monotonic()
        await put(server, "/v1/policies/films/graph", body, "application/octet-stream")
        await until_shown(server)
        shown_s = time.monotonic() - start
        await ask_all(server, clusters, rng)
        await asyncio.sleep(SETTLE_S)
        after, files = by_process(server), file_bytes(server)
    return {
        "before_mb": {name: size / 1e6 for name, size in before.items()},
        "after_mb": {name: size / 1e6 for name, size in after.items()},
        "files_mb": files / 1e6,
        "shared_bytes_per_edge": (files - files_before) / edges,
        "host_bytes_per_edge": (sum(after.values()) - sum(before.values())) / edges,
        "upload_to_shown_s": shown_s,
    }


def run(quick: bool = False, workers: tuple[int, ...] = (1, 2, 4)) -> dict[str, Any]:
    """Ten million edges, or one when quick; a server of its own for each number of workers."""
    clusters = CLUSTERS // 10 if quick else CLUSTERS
    body = graph(clusters, np.random.default_rng(0))
    rows = {str(n): asyncio.run(measure(n, clusters, body)) for n in workers}
    found: dict[str, Any] = {
        "edges": clusters * WIDTH,
        "workers": rows,
        "shared_bytes_per_edge": max(row["shared_bytes_per_edge"] for row in rows.values()),
    }
    for fewer, more in pairwise(workers):
        added = rows[str(more)]["host_bytes_per_edge"] - rows[str(fewer)]["host_bytes_per_edge"]
        found[f"further_worker_from_{fewer}_bytes_per_edge"] = added / (more - fewer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a million edges instead of ten")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, tuple(arguments.workers))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    shared = found["shared_bytes_per_edge"]
    print(f"{found['edges']:,} edges; bytes an edge in shared files {shared:.2f} (bar {FILE_BAR})")
    for workers, row in found["workers"].items():
        sizes = "  ".join(f"{name} {row['before_mb'][name]:.0f}>{size:.0f}" for name, size in row["after_mb"].items())
        print(
            f"  {workers} workers: {row['host_bytes_per_edge']:.2f} B an edge for the host, shown after "
            f"{row['upload_to_shown_s']:.1f} s; PSS, MB: {sizes}"
        )
    for name, value in found.items():
        if name.startswith("further"):
            print(f"  {name.replace('_', ' ')}: {value:.2f} (bar {WORKER_BAR})")


if __name__ == "__main__":
    main()
