"""From exec to the first recommendation: `python -m benchmarks.startup [--quick]`.

A data folder with a K-armed policy and a graph of 20,000 edges is made once. Then the server is started on it again
and again, asked from the moment of the exec until the first slate comes, and stopped. The first start fills the cache
of compiled kernels and is reported apart.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.processes import cpu_seconds
from loadtest.client import Address, Connection, Unreachable
from loadtest.users import set_up
from loadtest.worlds import Taste, World, films, headlines
from server.launch import ServerProcess, StartFailed

BAR_S = 1.0


async def first_slate(server: ServerProcess, world: World) -> float:
    """Seconds from the exec to the first 200 to a recommend."""
    body = b'{"policy":"%b","user":%b,"k":%d}' % (world.policy.encode(), world.users[0], world.k)
    async with Connection(Address.of(server.url)) as connection:
        while True:
            try:
                if (await connection.request("POST", "/v1/recommend", body)).status == 200:
                    return time.monotonic() - server.started_at
            except Unreachable:
                pass
            assert server.process is not None
            if server.process.poll() is not None or time.monotonic() > server.started_at + 120:
                raise StartFailed(f"no recommendation.\n{server.last_lines()}")
            await asyncio.sleep(0.002)


async def _run(quick: bool, workers: int) -> dict[str, Any]:
    taste = Taste.draw(np.random.default_rng(0), items=2000, groups=200, dim=32)
    worlds = [films(taste, k=10, width=100, window_s=1800, clusters_per_user=10), headlines(window_s=1800)]
    flags = ["--workers", str(workers)]
    times, ready, stops, cpu = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with ServerProcess(flags, data=data) as server:
            first = await server.ready()
            for world in worlds:
                await set_up(server.url, world)
        for _ in range(3 if quick else 9):
            with ServerProcess(flags, data=data) as server:
                times.append(await first_slate(server, worlds[0]))
                cpu.append(cpu_seconds(server.pids()))
                ready.append(await server.ready())
                stop = time.monotonic()
                server.stop()
                stops.append(time.monotonic() - stop)
    return {
        "workers": workers,
        "bar_s": BAR_S,
        "first_recommendation_s": median(times),
        "slowest_s": max(times),
        "fastest_s": min(times),
        "cpu_s": median(cpu),
        "ready_s": median(ready),
        "stop_s": median(stops),
        "starts": len(times),
        "first_start_on_an_empty_folder_s": first,
    }


def run(quick: bool = False, workers: int = 1) -> dict[str, Any]:
    """Nine starts (three when quick); the median."""
    return asyncio.run(_run(quick, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three starts instead of nine")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, arguments.workers)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"exec to first recommendation {found['first_recommendation_s']:.2f} s (median of {found['starts']}, "
        f"{found['fastest_s']:.2f} to {found['slowest_s']:.2f}; bar {BAR_S} s), "
        f"{found['cpu_s']:.2f} s of CPU in all processes; ready {found['ready_s']:.2f} s, "
        f"stopped in {found['stop_s']:.2f} s; first start on an empty folder "
        f"{found['first_start_on_an_empty_folder_s']:.2f} s"
    )


if __name__ == "__main__":
    main()
