"""The simulated users against the real server, with a restart in the middle of the run."""

import asyncio
from pathlib import Path

import numpy as np

from bandits.worlds import fixed
from loadtest.simulate import simulate
from loadtest.users import Habits
from loadtest.worlds import Taste, films, headlines
from server.launch import ServerProcess, free_port


async def test_the_books_agree_over_a_restart(tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "data"
    worlds = [
        headlines(window_s=4.0),
        films(Taste.draw(np.random.default_rng(0), users=200, items=60, groups=4), window_s=4.0, width=20),
    ]
    habits = Habits(
        users=4, visits_per_s=80, delay=fixed(300), duplicate_share=0.1, late_share=0.05, batch=5, patience_s=30
    )
    first = ServerProcess(port=port, data=data)
    second = ServerProcess(port=port, data=data)

    async def restart() -> None:
        await asyncio.sleep(2.0)
        await asyncio.to_thread(first.stop)
        second.start()
        await second.ready()

    try:
        first.start()
        await first.ready()
        report, _ = await asyncio.gather(simulate(f"http://127.0.0.1:{port}", worlds, habits, seconds=8.0), restart())
    finally:
        for server in (first, second):
            server.stop()
            server.remove()
    total = report.total
    assert report.balanced, report.text()
    assert sum(total.retries.values()) > 0, report.text()
    assert not total.gave_up, report.text()
    assert not [status for _, status in total.statuses if status >= 500 and status != 503], report.text()
    lines = {line.outcome: line.server for line in report.books}
    assert lines["applied"] > 20
    assert lines["duplicate"] > 0
    assert lines["late"] > 0
    assert report.freshness is not None
    assert report.freshness.never == 0
    for ledger in report.ledgers.values():
        assert ledger.tenths()[-1].shown > 0  # and it served on afterwards
