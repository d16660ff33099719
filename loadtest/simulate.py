"""A whole run: policies made, users and probe side by side, the books compared at the end."""

import asyncio
import sys
import time
from collections import Counter

from loadtest.client import Unreachable
from loadtest.probe import Probe
from loadtest.report import Report, times
from loadtest.users import Crowd, Habits, server_outcomes, set_up, settled_outcomes
from loadtest.worlds import World


async def simulate(
    url: str,
    worlds: list[World],
    habits: Habits,
    seconds: float,
    drain_s: float | None = None,
    probe: bool = True,
    create: bool = True,
    seed: int = 0,
    headers: dict[str, str] | None = None,
) -> Report:
    """One run of all worlds at once, with progress on stderr, and its report."""
    headers = headers or {}
    if create:
        for world in worlds:
            await set_up(url, world, headers)
    prober = Probe(url, headers=headers) if probe else None
    if prober is not None:
        await prober.set_up()
    crowds = [Crowd(url, world, habits, seed + i, headers) for i, world in enumerate(worlds)]
    before = await _counters(url, headers)
    start = time.monotonic()
    beside = [asyncio.create_task(_progress(crowds, start))]
    if prober is not None:
        beside.append(asyncio.create_task(_probing(prober, seconds)))
    try:
        await asyncio.gather(*(crowd.run(seconds, drain_s=drain_s) for crowd in crowds))
        if prober is not None:
            await beside[1]
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if prober is not None:
            prober.close()
    report = Report(
        ledgers={crowd.world.policy: crowd.ledger for crowd in crowds},
        seconds=seconds,
        freshness=prober.found if prober else None,
        probe_ledger=prober.ledger if prober else None,
        before=before,
    )
    if before is None:
        return report
    wanted = sum(report.total.expected.values()) + report.total.either
    after = await settled_outcomes(url, before, wanted, headers)
    return Report(report.ledgers, seconds, report.freshness, report.probe_ledger, before, after)


async def _probing(prober: Probe, seconds: float) -> None:
    await prober.run(seconds)


async def _counters(url: str, headers: dict[str, str]) -> Counter[str] | None:
    try:
        return await server_outcomes(url, headers)
    except Unreachable as e:
        print(f"no comparison of outcomes: {e}", file=sys.stderr)
        return None


async def _progress(crowds: list[Crowd], start: float) -> None:
    while True:
        await asyncio.sleep(2)
        parts = []
        for crowd in crowds:
            rates = crowd.ledger.rates(last=2000)
            clicked = f"{rates.clicked:.2%} ({times(rates):.2f} x random)" if rates.shown else "nothing shown yet"
            parts.append(f"{crowd.world.policy} {crowd.ledger.decisions:,} decisions, lately {clicked}")
        print(f"  {time.monotonic() - start:5.1f} s  " + "   ".join(parts), file=sys.stderr, flush=True)
