"""What HTTP costs: `python -m benchmarks.http [--quick] [--workers N]`.

    feedback    durable rewards a second in bulk requests of 500; each is in the log (fsync) before its 202
    recommend   answers a second and server CPU an answer, by the hot path and by the ordinary route of a server without
                it, beside a raw ASGI app that returns a constant of the same size, all by uvicorn, in turns

The load comes from the same two cores; `server_cpu_us` (user and system time of the server's processes for each
answer) does not depend on how fast the load is, so its ratio is the steadier one.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from loadtest.client import Address, Answer, Connection, Unreachable, Wire
from loadtest.users import server_outcomes, set_up, settled_outcomes
from loadtest.worlds import Taste, World, films, headlines
from server.launch import ServerProcess, free_port

REWARDS_BAR = 50_000  # durable rewards a second
BULK = 500
SLATE = 10
CONNECTIONS = 32

CONSTANT = """
ITEM = b'{"id":"film123","score":0.123456,"propensity":0.1}'
BODY = b'{"decision_id":"' + b"x" * 220 + b'","items":[' + b",".join([ITEM] * 10) + b']}'
HEAD = {"type": "http.response.start", "status": 200,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]}

async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(HEAD)
        await send({"type": "http.response.body", "body": BODY})
"""


@dataclass
class Hammered:
    """What a closed loop of some seconds did."""

    answers: int
    errors: int
    seconds: float
    server_cpu_s: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.server_cpu_s / max(1, self.answers) * 1e6


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text()
        ticks += sum(int(x) for x in stat[stat.rindex(")") + 2 :].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


async def hammer(
    url: str, requests: Sequence[bytes], pids: Sequence[int], *, connections: int, seconds: float, once: bool = False
) -> Hammered:
    """Every connection sends the next request as soon as the last is answered; `once`: until all were sent."""
    address, turn, done = Address.of(url), 0, asyncio.Event()
    result = Hammered(0, 0, 0.0, 0.0)
    wires: list[Wire] = []
    busy = connections

    def answered(wire: Wire, answer: Answer) -> None:
        nonlocal turn, busy
        if 200 <= answer.status < 300:
            result.answers += 1
        else:
            result.errors += 1
        if time.monotonic() < end and not (once and turn >= len(requests)):
            wire.send(requests[turn % len(requests)])
            turn += 1
        else:
            busy -= 1
            if not busy:
                done.set()

    def lost(_: Wire) -> None:
        if not done.is_set():
            done.set()
            result.errors += 1

    for _ in range(connections):
        wires.append(await address.connect(lambda: Wire(answered, lost)))
    cpu, start = cpu_seconds(pids), time.monotonic()
    end = start + seconds
    for wire in wires:
        wire.send(requests[turn % len(requests)])
        turn += 1
    await done.wait()
    result.seconds = time.monotonic() - start
    result.server_cpu_s = cpu_seconds(pids) - cpu
    for wire in wires:
        wire.close()
    await asyncio.sleep(0)
    return result


async def decisions(url: str, world: World, n: int) -> list[tuple[str, list[str]]]:
    """Some (decision id, items shown), asked for in batches."""
    rng = np.random.default_rng(1)
    found: list[tuple[str, list[str]]] = []
    async with Connection(Address.of(url)) as connection:
        while len(found) < n:
            users = rng.integers(len(world.users), size=min(200, n - len(found)))
            asks = [{"policy": world.policy, "user": msgspec.Raw(world.users[u]), "k": world.k} for u in users]
            body = msgspec.json.encode({"requests": asks})
            answer: Any = await connection.request("POST", "/v1/recommend/batch", body, timeout_s=60)
            if answer.status != 200:
                raise Unreachable(f"POST /v1/recommend/batch answered {answer.status}: {answer.body[:500]!r}")
            found += [(d["decision_id"], [item["id"] for item in d["items"]]) for d in answer.json()["results"]]
    return found


async def feedback(server: ServerProcess, world: World, rewards: int) -> dict[str, Any]:
    """Durable rewards a second in bulk requests; then whether each was counted once."""
    await set_up(server.url, world)
    made = await decisions(server.url, world, -(-rewards // world.k))
    rows = [{"decision_id": d, "item": item, "reward": 1} for d, items in made for item in items]
    address = Address.of(server.url)
    bodies = [msgspec.json.encode({"feedback": rows[i : i + BULK]}) for i in range(0, len(rows), BULK)]
    requests = [address.request("POST", "/v1/feedback", body) for body in bodies]
    before = await server_outcomes(server.url)
    run = await hammer(server.url, requests, server.pids(), connections=4, seconds=600, once=True)
    acknowledged = time.monotonic()
    after = await settled_outcomes(server.url, before, len(rows))
    counts = after - before
    return {
        "rewards": len(rows),
        "rewards_per_s": len(rows) / run.seconds if not run.errors else 0.0,
        "errors": run.errors,
        "request_kb": len(bodies[0]) / 1e3,
        "server_cpu_us_per_reward": run.server_cpu_s / len(rows) * 1e6,
        "settled_after_s": time.monotonic() - acknowledged,
        "applied": counts["applied"],
        "each_applied_once": counts == {"applied": len(rows)},
    }


def asks(url: str, world: World, path: str = "/v1/recommend") -> list[bytes]:
    address = Address.of(url)
    bodies = [
        b'{"policy":%b,"user":%b,"k":%d}' % (msgspec.json.encode(world.policy), user, world.k)
        for user in world.users[:500]
    ]
    return [address.request("POST", path, body) for body in bodies]


async def recommend(
    server: ServerProcess, ordinary: ServerProcess, worlds: Sequence[World], rounds: int, seconds: float
) -> dict[str, Any]:
    """Answers a second of each world's policy by both servers and of the constant app, in turns; medians and ratios."""
    for world in worlds:
        await set_up(server.url, world)
        await set_up(ordinary.url, world)
    port = free_port()
    command = [sys.executable, "-c", CONSTANT + f"\nimport uvicorn\nuvicorn.run(app, port={port}, log_level='warning')"]
    with subprocess.Popen(command) as constant:
        try:
            url = f"http://127.0.0.1:{port}"
            await _listening(url)
            subjects = {"constant": (url, asks(url, worlds[0], "/"), [constant.pid])}
            for world in worlds:
                for name, to in ((world.policy, server), (f"{world.policy}, ordinary", ordinary)):
                    subjects[name] = (to.url, asks(to.url, world), to.pids())
            runs: dict[str, list[Hammered]] = {name: [] for name in subjects}
            for _ in range(rounds):
                for name, (url, requests, pids) in subjects.items():
                    runs[name].append(await hammer(url, requests, pids, connections=CONNECTIONS, seconds=seconds))
        finally:
            constant.terminate()
    base = runs["constant"]
    return {
        name: {
            "answers_per_s": median(r.rate for r in found),
            "server_cpu_us": median(r.cpu_us for r in found),
            "errors": sum(r.errors for r in found),
            "rate_of_constant": median(r.rate / b.rate for r, b in zip(found, base, strict=True)),
            "constant_cpu_of_this": median(b.cpu_us / r.cpu_us for r, b in zip(found, base, strict=True)),
        }
        for name, found in runs.items()
    }


async def _listening(url: str) -> None:
    for _ in range(1000):
        try:
            async with Connection(Address.of(url)) as connection:
                await connection.request("GET", "/")
                return
        except Unreachable:
            await asyncio.sleep(0.01)
    raise Unreachable(f"nobody listens at {url}")


async def _run(quick: bool, workers: int) -> dict[str, Any]:
    taste = Taste.draw(np.random.default_rng(0), items=2000, groups=200, dim=32)
    slate = films(taste, k=SLATE, width=100, window_s=1800, clusters_per_user=10)
    arms = headlines(window_s=1800)
    flags = ["--workers", str(workers)]
    with ServerProcess(flags) as server, ServerProcess([*flags, "--no-hot-path"]) as ordinary:
        await server.ready()
        await ordinary.ready()
        rounds, seconds = (3, 1.0) if quick else (7, 2.0)
        rates = await recommend(server, ordinary, [slate, arms], rounds, seconds)
        ordinary.stop()
        bulk = [await feedback(server, slate, 50_000 if quick else 250_000) for _ in range(1 if quick else 3)]
    bulk.sort(key=lambda found: found["rewards_per_s"])
    return {
        "workers": workers,
        "feedback": bulk[len(bulk) // 2] | {"bar_rewards_per_s": REWARDS_BAR},
        "all_applied_once": all(found["each_applied_once"] for found in bulk),
        "recommend": rates,
    }


def run(quick: bool = False, workers: int = 1) -> dict[str, Any]:
    """Both parts; feedback's figures are of the median of three runs."""
    import uvloop

    return uvloop.run(_run(quick, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, arguments.workers)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    row = found["feedback"]
    print(
        f"feedback   {row['rewards_per_s']:,.0f} durable rewards/s in requests of {BULK} (bar {REWARDS_BAR:,}); "
        f"{row['server_cpu_us_per_reward']:.1f} us of server CPU each; each applied once: {found['all_applied_once']}"
    )
    for name, row in found["recommend"].items():
        print(
            f"recommend  {name:<19} {row['answers_per_s']:>8,.0f}/s  {row['server_cpu_us']:>7.1f} us CPU  "
            f"{row['rate_of_constant']:.2f} of the constant app's rate, {row['constant_cpu_of_this']:.2f} by CPU  "
            f"errors {row['errors']}"
        )


if __name__ == "__main__":
    main()
