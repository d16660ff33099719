"""Memory and files under ten minutes of load with short windows: `python -m benchmarks.soak [--minutes 10]`.

Windows of 5 s make the answered-set, the banks' buckets and the tokens turn over a hundred times; a snapshot every 10 s
lets the log be trimmed behind it. Sampled every few seconds: each server process's own memory (RssAnon), the shared
memory, the log's and the store's files. Flat means that the highest sample of the last third is not above that of the
middle third by more than 10 % and 4 MB. Exit status 1 when something grows, or when a reward's outcome is wrong.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bandits.worlds import geometric
from loadtest.simulate import simulate
from loadtest.users import Habits, SetupRefused
from loadtest.worlds import Taste, films, headlines
from server.launch import ServerProcess

WINDOW_S = 5.0
ALLOWED_SHARE, ALLOWED_BYTES = 0.10, 4 << 20


def sizes(server: ServerProcess) -> dict[str, int]:
    """What the server holds at present, in bytes: memory by process, files by name."""
    found = {f"memory of {pid}": size for pid, size in server.memory_bytes().items()}
    for folder in (server.data, server.run_folder):
        for path in folder.rglob("*"):
            try:
                if path.is_file():
                    # Sparse files and files that shrank in place count by the blocks they occupy.
                    found[path.name] = found.get(path.name, 0) + path.stat().st_blocks * 512
            except FileNotFoundError:
                continue  # replaced just now
    return found


def verdict(samples: list[dict[str, int]]) -> dict[str, dict[str, Any]]:
    """By name: the highest sample of each third, and whether it is flat.

    >>> verdict([{"log": 5}, {"log": 7}, {"log": 100 << 20}])["log"]["flat"]
    False
    >>> verdict([{"log": 0}, {"log": 50 << 20}, {"log": 52 << 20}])["log"]["flat"]
    True
    """
    names = sorted({name for sample in samples for name in sample})
    found = {}
    for name in names:
        values = np.array([sample.get(name, 0) for sample in samples])
        first, middle, last = (int(part.max()) if len(part) else 0 for part in np.array_split(values, 3))
        flat = last <= middle * (1 + ALLOWED_SHARE) + ALLOWED_BYTES
        found[name] = {"first_third": first, "middle_third": middle, "last_third": last, "flat": bool(flat)}
    return found


async def _sample(server: ServerProcess, every_s: float, into: list[dict[str, int]]) -> None:
    start = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        into.append(sizes(server))
        memory = sum(size for name, size in into[-1].items() if name.startswith("memory")) / 1e6
        files = sum(into[-1].values()) / 1e6 - memory
        passed = time.monotonic() - start
        print(f"  {passed:5.0f} s  memory {memory:.1f} MB  files {files:.1f} MB", file=sys.stderr, flush=True)


async def _run(minutes: float, workers: int, rate: float) -> dict[str, Any]:
    worlds = [
        headlines(window_s=WINDOW_S),
        films(Taste.draw(np.random.default_rng(0), items=2000, groups=100), window_s=WINDOW_S, width=100),
    ]
    habits = Habits(users=8, visits_per_s=rate, delay=geometric(500.0), duplicate_share=0.05, late_share=0.05, batch=20)
    samples: list[dict[str, int]] = []
    with ServerProcess(["--workers", str(workers), "--snapshot-interval-s", "10"]) as server:
        await server.ready()
        sampling = asyncio.create_task(_sample(server, max(1.0, minutes * 60 / 120), samples))
        try:
            report = await simulate(server.url, worlds, habits, minutes * 60, drain_s=WINDOW_S + 3)
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
    found = verdict(samples)
    return {
        "minutes": minutes,
        "workers": workers,
        "decisions": report.total.decisions,
        "rewards": sum(report.total.sends.values()),
        "samples": len(samples),
        "sizes": found,
        "flat": all(row["flat"] for row in found.values()),
        "balanced": report.balanced,
        "report": report.to_dict(),
        "text": report.text(),
    }


def run(quick: bool = False, minutes: float = 10.0, workers: int = 2, rate: float = 300.0) -> dict[str, Any]:
    """`rate`: visits a second of each of the two policies. Quick is one minute."""
    import uvloop

    return uvloop.run(_run(1.0 if quick else minutes, workers, rate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=300.0, help="visits a second of each policy")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    try:
        found = run(False, arguments.minutes, arguments.workers, arguments.rate)
    except SetupRefused as e:
        sys.exit(str(e))
    print(found.pop("text"))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"BOUNDED  {found['decisions']:,} decisions, {found['rewards']:,} rewards, windows of {WINDOW_S:g} s")
    print(f"  {'highest sample, MB':<28} {'first third':>12} {'middle':>12} {'last':>12}")
    for name, row in found["sizes"].items():
        thirds = "".join(f" {row[part] / 1e6:>12.2f}" for part in ("first_third", "middle_third", "last_third"))
        print(f"  {name:<28}{thirds}   {'flat' if row['flat'] else 'GROWS'}")
    print(
        f"  verdict: {'flat' if found['flat'] else 'NOT flat'}; outcomes {'agree' if found['balanced'] else 'DIFFER'}"
    )
    if not (found["flat"] and found["balanced"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
