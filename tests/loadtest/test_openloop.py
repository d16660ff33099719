import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from loadtest.__main__ import main
from loadtest.client import Address, Unreachable
from loadtest.openloop import Alarm, bodies_of, cycle, drive, histogram, record, schedule
from tests.loadtest.tiny import Tiny

METRICS = "/metrics"


def get(server: Tiny) -> bytes:
    return Address.of(server.url).request("GET", METRICS)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = schedule(1000, 100, "poisson", seed=3)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(100_000, rel=0.02)
    assert due[-1] < 100
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(1e-3, rel=0.03)


def test_a_seed_gives_the_same_schedule_again() -> None:
    assert (schedule(50, 5, "poisson", 7) == schedule(50, 5, "poisson", 7)).all()
    assert not np.array_equal(schedule(50, 5, "poisson", 7)[:9], schedule(50, 5, "poisson", 8)[:9])


def test_histogram_keeps_three_digits() -> None:
    h = histogram()
    record(h, np.array([0.0005] * 99 + [0.25]))
    assert h.get_total_count() == 100
    assert h.get_value_at_percentile(50) == pytest.approx(500, rel=1e-3)
    assert h.get_max_value() == pytest.approx(250_000, rel=1e-3)


async def test_the_alarm_rings_within_a_millisecond() -> None:
    rung = asyncio.Event()
    alarm = Alarm(asyncio.get_running_loop(), rung.set)
    try:
        lateness = []
        for _ in range(20):
            rung.clear()
            at = time.monotonic() + 0.0032
            alarm.set(at)
            await rung.wait()
            lateness.append(time.monotonic() - at)
    finally:
        alarm.close()
    assert min(lateness) >= 0
    assert sorted(lateness)[5] < 0.001  # the loop's own timers would be up to a millisecond late


@pytest.mark.parametrize("connections", [1, 4])
async def test_all_scheduled_requests_are_answered(tiny: Tiny, connections: int) -> None:
    seen: list[int] = []
    result = await drive(
        tiny.url,
        lambda _: get(tiny),
        rate=200,
        seconds=0.5,
        connections=connections,
        on_answer=lambda number, _: seen.append(number),
    )
    assert result.answered == result.scheduled == len(seen) == tiny.requests[METRICS]
    assert sorted(seen) == list(range(result.scheduled))
    assert result.errors == 0
    assert 0 < result.quantile_ms(50) <= result.quantile_ms(99) <= result.max_ms


async def test_latency_counts_the_wait_for_a_connection(tiny: Tiny) -> None:
    """One connection and answers of 20 ms can do 50 a second. Asked for 100, the line grows: the last of 50 requests
    is due at 0.49 s and answered at 1.0 s. A clock that started with the sending would say 20 ms."""
    tiny.pause_s = 0.02
    result = await drive(tiny.url, lambda _: get(tiny), rate=100, seconds=0.5, connections=1, arrivals="constant")
    assert result.answered == 50
    assert result.max_ms > 400
    assert result.achieved_rate < 60


async def test_answers_that_are_not_2xx_are_errors_and_not_latencies(tiny: Tiny) -> None:
    tiny.refuse[METRICS] = 3
    result = await drive(tiny.url, lambda _: get(tiny), rate=100, seconds=0.3, connections=2, arrivals="constant")
    assert result.statuses == {200: 27, 503: 3}
    assert result.errors == 3
    assert result.latency.get_total_count() == 27


async def test_lost_connections_are_counted_and_made_again(tiny: Tiny) -> None:
    tiny.drop_answers = 2
    feedback = Address.of(tiny.url).request("POST", "/v1/feedback", b'{"decision_id":"x","item":"a","reward":1}')
    result = await drive(tiny.url, lambda _: feedback, rate=100, seconds=0.3, connections=2, arrivals="constant")
    assert result.lost == 2
    assert result.reconnects == 2
    assert result.answered == 28


async def test_what_is_out_when_the_patience_ends_is_counted(tiny: Tiny) -> None:
    tiny.pause_s = 30
    result = await drive(
        tiny.url, lambda _: get(tiny), rate=20, seconds=0.2, connections=1, arrivals="constant", patience_s=0.2
    )
    assert (result.answered, result.unanswered, result.unsent) == (0, 1, 3)
    assert result.errors == 4


async def test_a_request_that_is_none_is_skipped_and_counted(tiny: Tiny) -> None:
    result = await drive(
        tiny.url, lambda n: get(tiny) if n % 2 else None, rate=100, seconds=0.2, connections=1, arrivals="constant"
    )
    assert (result.answered, result.skipped, result.errors) == (10, 10, 10)


async def test_nobody_listening_is_said_at_once() -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        await drive("http://127.0.0.1:1", lambda _: b"", rate=1, seconds=1)


def test_bodies_take_turns() -> None:
    request = cycle("http://127.0.0.1:80", "/x", bodies_of(b'{"k":1}\n{"k":2}'))
    assert [request(n)[-7:] for n in range(3)] == [b'{"k":1}', b'{"k":2}', b'{"k":1}']
    assert b"content-length: 7\r\n" in request(0)


@pytest.mark.parametrize("text", [b"", b"  \n", b'{"k":1}\nnot json'])
def test_a_bad_body_file_is_told(text: bytes) -> None:
    with pytest.raises(ValueError, match="body file"):
        bodies_of(text)


async def test_the_command_prints_quantiles_and_writes_json(tiny: Tiny, tmp_path: Path) -> None:
    tiny.policies.clear()
    body, out = tmp_path / "body.json", tmp_path / "out.json"
    body.write_text('{"decision_id":"x","item":"a","reward":1}')
    args = ["openloop", "--url", tiny.url, "--path", "/v1/feedback", "--rate", "50", "--seconds", "0.5"]
    command = [*args, "--body", str(body), "--connections", "2", "--json", str(out)]
    run = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert run.exit_code == 0, run.output
    assert "p99.9" in run.output
    assert json.loads(out.read_text())["errors"] == 0
