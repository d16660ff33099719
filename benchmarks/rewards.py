"""What durable rewards over HTTP cost: `python -m benchmarks.rewards [--quick] [--unpinned]`.

    bulk     500 rewards a request, 4 connections
    single   one reward a request, 64 connections

Decisions for ten items of 1,000 edges (benchmarks.baselines) are made beforehand; every item of every slate gets one
reward, in random order, so the rewards of a request belong to different decisions. A reward is in the log (fsync)
before its 202. Afterwards the learner's own counts must say that each was applied, once.

    rewards_per_s       until the last 202, by the clock
    rewards_per_cpu_s   the same over the CPU that all of the server's processes used meanwhile
    ..._worker_cpu_s    over the worker's alone
    ..._until_learned   over the CPU of all until the last was learned and counted, and `learned_after_s` later

Unless --unpinned, the worker has core 0, and core 1 is the load generator's, the agent's and the learner's, as in
benchmarks.http.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from benchmarks.baselines import Slates
from benchmarks.measuring import spread
from benchmarks.processes import Clock, generating, parts, pin, settle
from loadtest.client import Address, Connection, Unreachable
from loadtest.fast import Load, Requests
from loadtest.users import server_outcomes, settled_outcomes
from server.launch import ServerProcess

BULK, BULK_CONNECTIONS, SINGLE_CONNECTIONS = 500, 4, 64
AT_ONCE = 200  # decisions asked for in one batch
SIZES = {"bulk": (BULK, BULK_CONNECTIONS), "single": (1, SINGLE_CONNECTIONS)}


async def rewards(url: str, slates: Slates, n: int, seed: int) -> list[dict[str, Any]]:
    """n rewards of 1 for the items of new decisions, in random order."""
    found: list[dict[str, Any]] = []
    bodies = slates.bodies(-(-n // 10), seed)
    async with Connection(Address.of(url)) as connection:
        for i in range(0, len(bodies), AT_ONCE):
            asks = b'{"requests":[%b]}' % b",".join(bodies[i : i + AT_ONCE])
            answer: Any = await connection.request("POST", "/v1/recommend/batch", asks, timeout_s=60)
            if answer.status != 200:
                raise Unreachable(f"POST /v1/recommend/batch answered {answer.status}: {answer.body[:500]!r}")
            for made in answer.json()["results"]:
                found += [
                    {"decision_id": made["decision_id"], "item": item["id"], "reward": 1} for item in made["items"]
                ]
    np.random.default_rng(seed).shuffle(found)  # type: ignore[arg-type]
    return found[:n]


def requests(url: str, rows: list[dict[str, Any]], size: int) -> Requests:
    """The rewards, so many a request."""
    address = Address.of(url)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    bodies = [msgspec.json.encode(group[0] if size == 1 else {"feedback": group}) for group in groups]
    return Requests.of([address.request("POST", "/v1/feedback", body) for body in bodies])


async def one_run(server: ServerProcess, slates: Slates, kind: str, n: int, seed: int) -> dict[str, Any]:
    """Send n rewards and count them."""
    size, connections = SIZES[kind]
    processes = parts(server.pids())
    all_of_them = [pid for pids in processes.values() for pid in pids]
    made = requests(server.url, await rewards(server.url, slates, n, seed), size)
    before = await server_outcomes(server.url)
    settle(all_of_them)
    with Load(server.url, connections) as load:
        clock, own = Clock(processes), time.process_time()
        run = load.once(made, patience_s=120)
        cpu, own = clock.read(), time.process_time() - own
    learned_after_s = settle(all_of_them)
    learned_cpu_s = sum(clock.read().values())
    counts = await settled_outcomes(server.url, before, n) - before
    return {
        "rewards": n,
        "rewards_per_s": n / run.seconds if not run.errors else 0.0,
        "rewards_per_cpu_s": n / sum(cpu.values()),
        "rewards_per_worker_cpu_s": n / cpu["worker"],
        "rewards_per_cpu_s_until_learned": n / learned_cpu_s,
        **{f"{part}_cpu_us": used / n * 1e6 for part, used in cpu.items()},
        "generator_cpu_us": own / n * 1e6,
        "p50_us": run.latency_us(50),
        "p99_us": run.latency_us(99),
        "learned_after_s": learned_after_s,
        "errors": run.errors,
        "each_applied_once": counts == {"applied": n},
    }


async def _run(quick: bool, pinned: bool) -> dict[str, Any]:
    sizes = {"bulk": 50_000, "single": 10_000} if quick else {"bulk": 250_000, "single": 50_000}
    slates = Slates(100)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in sizes}
    with ServerProcess() as server:
        await server.ready()
        await slates.put(server.url)
        for part, pids in parts(server.pids()).items() if pinned else ():
            pin(pids, 0 if part == "worker" else 1)
        with generating(1 if pinned else None):
            for r in range(2 if quick else 6):
                for kind, n in sizes.items():
                    found = await one_run(server, slates, kind, n if r else n // 5, seed=r)
                    if r:
                        runs[kind].append(found)
    return {kind: _together(found) for kind, found in runs.items()} | {"pinned": pinned}


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {name: spread(run[name] for run in runs) for name, value in runs[0].items() if isinstance(value, float)}
    errors, once = sum(run["errors"] for run in runs), all(run["each_applied_once"] for run in runs)
    return {"rewards": runs[0]["rewards"], "runs": len(runs), "errors": errors, "each_applied_once": once} | figures


def run(quick: bool = False, pinned: bool = True) -> dict[str, Any]:
    """Both kinds in turns, five times (once when quick) after a first time that is not counted."""
    import uvloop

    return uvloop.run(_run(quick, pinned))


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The figures for people: median (quartiles)."""
    for kind, (size, connections) in SIZES.items():
        row = found[kind]

        def shown(name: str, row: dict[str, Any] = row) -> str:
            return "{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**row[name])

        each = ", ".join(
            f"{part} {row[f'{part}_cpu_us']['median']:.1f}" for part in ("worker", "agent", "learner", "generator")
        )
        yield f"{kind}: {size} a request, {connections} connections, {row['rewards']:,} rewards, {row['runs']} runs"
        yield f"  {shown('rewards_per_s')}/s; errors {row['errors']}; each applied once: {row['each_applied_once']}"
        yield (
            f"  {shown('rewards_per_cpu_s')} per second of the server's CPU, {shown('rewards_per_worker_cpu_s')} of "
            f"the worker's; {shown('rewards_per_cpu_s_until_learned')} until all were learned, "
            f"{row['learned_after_s']['median']:.1f} s later"
        )
        yield f"  CPU us a reward: {each}; a request takes p50 {shown('p50_us')}, p99 {shown('p99_us')} us"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rewards, one run of each kind")
    parser.add_argument("--unpinned", action="store_true", help="leave it to the kernel which core does what")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, not arguments.unpinned)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
