"""How soon an acknowledged reward is in every worker's next choice: `python -m benchmarks.freshness [--quick]`.

While 2,000 recommends and 2,000 rewards a second go in (open loop, Poisson arrivals, single requests), a probe sends
rewards of its own and asks every worker, on one connection each, until all show it; how it measures stands in
`loadtest.probe`. The load's own latencies are given too: a freshness bought with slow answers would be none.
"""

import argparse
import asyncio
import json
from collections import deque
from typing import Any

import msgspec
import numpy as np

from loadtest.client import Address, Answer
from loadtest.openloop import Result, drive
from loadtest.probe import Probe
from loadtest.users import server_outcomes, set_up, settled_outcomes
from loadtest.worlds import Taste, films
from server.launch import ServerProcess

BAR_MS = 100.0
RATE = 2000.0
CALLERS = 128  # connections that send rewards: each waits for a durable append, and appends are shared


async def one_connection_a_worker(server: ServerProcess, workers: int) -> Probe:
    """A probe that asks every worker on one connection, and no worker twice.

    The kernel decides which worker gets a connection, so many are made, and /proc tells whose each is.
    """
    for connections in (8 * workers, 32 * workers, 64 * workers):
        probe = Probe(server.url, connections=connections, poll_s=0.002)
        await probe.set_up()
        by_worker = {server.pid_of(c.local_port): c for c in probe.connections if c.local_port}
        if len(by_worker) == workers:
            probe.keep(list(by_worker.values()))
            return probe
        probe.close()
    raise RuntimeError(f"{connections} connections reached {len(by_worker)} of {workers} workers")


async def _run(quick: bool, workers: int, rate: float) -> dict[str, Any]:
    seconds = 10.0 if quick else 60.0
    world = films(Taste.draw(np.random.default_rng(0), items=2000, groups=200, dim=32), k=1, width=100, window_s=600)
    with ServerProcess(["--workers", str(workers)]) as server:
        await server.ready()
        await set_up(server.url, world)
        probe = await one_connection_a_worker(server, workers)
        address = Address.of(server.url)
        asks = [
            address.request("POST", "/v1/recommend", b'{"policy":"films","user":%b,"k":1}' % user)
            for user in world.users[:500]
        ]
        made: deque[tuple[str, str]] = deque()

        def keep(_: int, answer: Answer) -> None:
            if answer.status == 200:
                decision: Any = msgspec.json.decode(answer.body)
                made.append((decision["decision_id"], decision["items"][0]["id"]))

        def reward(_: int) -> bytes | None:
            if not made:
                return None  # the server is slower with decisions than the load wants rewards
            decision_id, item = made.popleft()
            body = b'{"decision_id":"%b","item":"%b","reward":1}' % (decision_id.encode(), item.encode())
            return address.request("POST", "/v1/feedback", body)

        # A start of decisions, so that there is always one to reward: fluctuations of Poisson arrivals over a minute.
        await drive(server.url, lambda i: asks[i % 500], rate=rate, seconds=1.5, connections=16, on_answer=keep)
        before = await server_outcomes(server.url)
        loads = asyncio.gather(
            drive(
                server.url,
                lambda i: asks[i % 500],
                rate=rate,
                seconds=seconds + 1,
                connections=16,
                seed=1,
                on_answer=keep,
            ),
            drive(server.url, reward, rate=rate, seconds=seconds + 1, connections=CALLERS, seed=2),
        )
        await asyncio.sleep(0.5)
        found = await probe.run(seconds, every_s=0.1)
        recommends, rewards = await loads
        probe.close()
        sent = rewards.answered + probe.ledger.expected["applied"]
        counts = await settled_outcomes(server.url, before, sent) - before
    fresh = found.to_dict()
    lines = {
        "acknowledged to visible": fresh["acknowledged_to_visible_ms"],
        "recommend": _short(recommends)["latency_ms"],
        "feedback": _short(rewards)["latency_ms"],
    }
    title = f"Freshness and latency at {rate:,.0f} recommends and rewards a second, {workers} workers"
    return {
        "plots": [{"title": title, "distributions": lines, "y": "ms", "log": "y", "limit": BAR_MS}],
        "workers": workers,
        "bar_p99_ms": BAR_MS,
        "acknowledged_to_visible": fresh,
        "p99_ms": fresh["acknowledged_to_visible_ms"].get("p99"),
        "recommend": _short(recommends),
        "feedback": _short(rewards),
        "rewards_sent": sent,
        "rewards_applied": counts["applied"],
    }


def _short(result: Result) -> dict[str, Any]:
    found = result.to_dict()
    return {name: found[name] for name in ("achieved_rate", "errors", "skipped", "latency_ms", "generator_late_ms")}


def run(quick: bool = False, workers: int = 2, rate: float = RATE) -> dict[str, Any]:
    """A minute (10 s when quick) of load and some ten measurements a second."""
    import uvloop

    return uvloop.run(_run(quick, workers, rate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 s instead of a minute")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=RATE, help="recommends, and rewards, a second")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    found = run(arguments.quick, arguments.workers, arguments.rate)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    fresh = found["acknowledged_to_visible"]
    figures = "  ".join(f"{q} {ms:.1f}" for q, ms in fresh["acknowledged_to_visible_ms"].items())
    print(f"acknowledged to visible in every worker, ms: {figures}  (bar {BAR_MS:g} at p99)")
    print(f"  {fresh['measurements']} measurements, {fresh['never_seen']} never seen, {fresh['failed']} failed")
    for name in ("recommend", "feedback"):
        row = found[name]
        latency = "  ".join(f"{q} {ms:.2f}" for q, ms in row["latency_ms"].items())
        print(f"  {name:<9} {row['achieved_rate']:,.0f}/s, latency ms {latency}, errors {row['errors']}")
    print(f"  rewards accepted {found['rewards_sent']:,}, applied {found['rewards_applied']:,}")


if __name__ == "__main__":
    main()
