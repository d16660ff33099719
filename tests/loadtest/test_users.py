import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bandits.worlds import fixed, heavy_tailed, never
from loadtest.__main__ import main
from loadtest.ledger import Ledger, Visit, compare
from loadtest.probe import Probe
from loadtest.report import Report, captured, times
from loadtest.simulate import simulate
from loadtest.users import Crowd, Habits, SetupRefused, server_outcomes, set_up
from loadtest.worlds import Taste, World, films, headlines
from tests.loadtest.tiny import Tiny

RATES = {"day": [0.05, 0.4, 0.1], "night": [0.3, 0.05, 0.1]}
QUICK = Habits(users=4, delay=fixed(20), duplicate_share=0.2, late_share=0.1, patience_s=5)


def world(window_s: float = 1.5) -> World:
    return headlines(RATES, window_s=window_s)


async def test_both_sides_count_the_same_outcomes(tiny: Tiny) -> None:
    report = await simulate(tiny.url, [world()], QUICK, seconds=1.0)
    lines = {line.outcome: line for line in report.books}
    assert report.balanced, report.text()
    assert all(lines[name].server > 5 for name in ("applied", "duplicate", "late"))
    assert all(line.low == line.high for line in report.books)  # nothing was lost, so nothing is in doubt
    assert lines["all"].server == sum(tiny.outcomes.values())


async def test_the_report_sees_a_server_that_loses_acknowledged_rewards(tiny: Tiny) -> None:
    tiny.forget = 3
    habits = Habits(users=2, delay=fixed(0), duplicate_share=0, late_share=0)
    report = await simulate(tiny.url, [world(30)], habits, seconds=0.4, probe=False, drain_s=1)
    assert not report.balanced
    assert report.books[-1].server == report.books[-1].low - 3
    assert "DIFFERS" in report.text()


async def test_click_rate_leaves_random_behind_and_stays_below_the_best(tiny: Tiny) -> None:
    await set_up(tiny.url, world(30))
    crowd = Crowd(tiny.url, world(30), Habits(users=4, delay=fixed(10), duplicate_share=0, late_share=0))
    ledger = await crowd.run(1.5, drain_s=1)
    overall = ledger.rates()
    assert overall.random == pytest.approx(np.mean([0.55 / 3, 0.45 / 3]), rel=0.05)
    assert overall.best == pytest.approx(0.35, rel=0.05)
    assert overall.clicked == pytest.approx(overall.expected, abs=0.05)
    assert times(overall) > 1.4
    assert 0.3 < captured(overall) < 1.1


async def test_films_world_is_asked_by_embedding_and_answers_slates(tiny: Tiny) -> None:
    taste = Taste.draw(np.random.default_rng(0), users=20, items=30, groups=3)
    one = films(taste, window_s=30, k=4, width=10)
    await set_up(tiny.url, one)
    ledger = await Crowd(tiny.url, one, Habits(users=2, batch=50, delay=fixed(0), late_share=0)).run(0.4, drain_s=1)
    assert ledger.rates().shown == 4 * ledger.decisions > 0
    assert tiny.outcomes["applied"] == ledger.expected["applied"] > 0
    assert ledger.statuses["feedback", 202] <= ledger.sends["first"] + ledger.sends["again"]


async def test_a_restart_in_mid_run_is_survived_and_counted(tiny: Tiny) -> None:
    async def restart() -> None:
        await asyncio.sleep(0.4)
        await tiny.stop()
        await asyncio.sleep(0.4)
        await tiny.start()

    habits = Habits(users=4, delay=fixed(20), duplicate_share=0.1, late_share=0, patience_s=10)
    report, _ = await asyncio.gather(simulate(tiny.url, [world(30)], habits, 1.6, probe=False, drain_s=3), restart())
    total = report.total
    assert sum(total.retries.values()) > 0
    assert sum(total.lost.values()) + sum(total.unreachable.values()) > 0
    assert not total.gave_up
    assert report.balanced, report.text()
    tenths = report.ledgers["headlines"].tenths()
    assert tenths[0].shown > 0
    assert tenths[-1].shown > 0


async def test_answers_that_got_lost_leave_a_range(tiny: Tiny) -> None:
    tiny.drop_answers = 5
    habits = Habits(users=2, senders=1, delay=fixed(0), duplicate_share=0, late_share=0)
    report = await simulate(tiny.url, [world(30)], habits, seconds=0.5, probe=False, drain_s=2)
    lines = {line.outcome: line for line in report.books}
    assert report.total.lost["feedback"] == 5
    assert (lines["duplicate"].low, lines["duplicate"].high, lines["duplicate"].server) == (0, 5, 5)
    assert lines["applied"].low == lines["applied"].high == lines["applied"].server
    assert report.balanced


async def test_answers_in_doubt_leave_a_range(tiny: Tiny) -> None:
    tiny.doubt = 5
    habits = Habits(users=2, senders=1, delay=fixed(0), duplicate_share=0, late_share=0)
    report = await simulate(tiny.url, [world(30)], habits, seconds=0.5, probe=False, drain_s=2)
    lines = {line.outcome: line for line in report.books}
    assert report.total.statuses["feedback", 503] == 5
    assert (lines["duplicate"].low, lines["duplicate"].high, lines["duplicate"].server) == (0, 5, 5)
    assert report.balanced


async def test_503_is_repeated_after_the_time_it_names(tiny: Tiny) -> None:
    await set_up(tiny.url, world(30))
    tiny.refuse["/v1/recommend"] = tiny.refuse["/v1/feedback"] = 4
    ledger = await Crowd(tiny.url, world(30), Habits(users=2, delay=fixed(0), late_share=0)).run(0.4, drain_s=1)
    assert ledger.statuses["recommend", 503] == ledger.statuses["feedback", 503] == 4
    assert ledger.retries == {"recommend": 4, "feedback": 4}
    assert tiny.outcomes["applied"] == ledger.expected["applied"] > 0
    assert not ledger.uncertain


async def test_never_answered_clicks_and_zeros(tiny: Tiny) -> None:
    await set_up(tiny.url, world(30))
    habits = Habits(users=2, delay=never(0.5, fixed(0)), duplicate_share=0, late_share=0, answer_zeros=True)
    ledger = await Crowd(tiny.url, world(30), habits).run(0.4, drain_s=1)
    assert ledger.never_answered + ledger.sends["first"] == ledger.decisions
    assert ledger.never_answered == pytest.approx(ledger.decisions / 2, rel=0.3)


async def test_heavy_tails_reach_beyond_the_window(tiny: Tiny) -> None:
    habits = Habits(users=2, delay=heavy_tailed(200.0), duplicate_share=0, late_share=0)
    report = await simulate(tiny.url, [world(1.2)], habits, seconds=0.5, probe=False)
    assert report.total.sends["late"] > 0
    assert report.balanced, report.text()


async def test_rewards_that_did_not_fit_into_the_run_are_told(tiny: Tiny) -> None:
    await set_up(tiny.url, world(30))
    habits = Habits(users=2, delay=fixed(0), duplicate_share=0, late_share=1)
    ledger = await Crowd(tiny.url, world(30), habits).run(0.3, drain_s=0.05)
    assert ledger.unsent > 0
    assert not ledger.sends


async def test_visits_keep_to_the_rate(tiny: Tiny) -> None:
    await set_up(tiny.url, world(30))
    ledger = await Crowd(tiny.url, world(30), Habits(users=4, visits_per_s=100, late_share=0)).run(1.0, drain_s=0)
    assert ledger.decisions == pytest.approx(100, abs=12)


async def test_freshness_is_what_the_server_takes(tiny: Tiny) -> None:
    tiny.visible_after_s = 0.08
    probe = Probe(tiny.url, connections=2)
    await probe.set_up()
    found = await probe.run(0.6, every_s=0.01)
    probe.close()
    assert len(found.seconds) >= 3
    assert all(0.06 < s < 0.3 for s in found.seconds)
    assert (await server_outcomes(tiny.url))["applied"] == probe.ledger.expected["applied"]


async def test_a_reward_that_never_shows_is_told(tiny: Tiny) -> None:
    tiny.visible_after_s = 60
    probe = Probe(tiny.url, connections=1, patience_s=0.1)
    await probe.set_up()
    assert await probe.measure() is None
    probe.close()
    assert probe.found.never == 1


async def test_a_probe_that_is_cancelled_leaves_its_reward_in_doubt(tiny: Tiny) -> None:
    probe = Probe(tiny.url, connections=1)
    await probe.set_up()
    tiny.pause_s = 0.2
    measuring = asyncio.create_task(probe.measure())
    while not tiny.requests["/v1/feedback"]:
        await asyncio.sleep(0.01)
    measuring.cancel()
    await asyncio.wait([measuring])
    probe.close()
    assert probe.ledger.uncertain == {"applied": 1}


async def test_set_up_waits_for_a_server_that_is_just_starting(tiny: Tiny) -> None:
    tiny.refuse["/v1/policies/headlines"] = 3
    await set_up(tiny.url, world())
    assert tiny.requests["/v1/policies/headlines"] == 4


async def test_a_policy_that_is_refused_is_told_in_the_servers_words(tiny: Tiny) -> None:
    with pytest.raises(SetupRefused, match="no such algorithm"):
        await set_up(tiny.url, headlines(RATES, algorithm={"algorithm": "unheard-of"}))


async def test_the_command_reports_and_exits_with_the_verdict(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    args = ["users", "--url", tiny.url, "--seconds", "0.5", "--window", "1.2", "--delay", "0.01", "--users", "2"]
    run = await asyncio.to_thread(CliRunner().invoke, main, [*args, "--json", str(out)])
    assert run.exit_code == 0, run.output
    assert "CLICK RATE  headlines" in run.output
    found = json.loads(out.read_text())
    assert found["balanced"] is True
    tiny.forget = 10**6
    run = await asyncio.to_thread(CliRunner().invoke, main, [*args, "--no-probe", "--users", "8", "--late", "0"])
    assert run.exit_code == 1, run.output


def test_habits_are_checked() -> None:
    with pytest.raises(ValueError, match="late_share"):
        Habits(late_share=1.5)


def test_tenths_part_the_run_by_time() -> None:
    ledger = Ledger()
    for at in range(100):
        ledger.add_visit(Visit(float(at), 2, int(at >= 50), 0.5, 0.2, 1.0))
    tenths = ledger.tenths()
    assert [t.shown for t in tenths] == [20] * 10
    assert [t.clicked for t in tenths] == [0.0] * 5 + [0.5] * 5
    assert ledger.rates(last=10).clicked == 0.5


def test_books_that_agree_and_books_that_do_not() -> None:
    ledger = Ledger(expected=Counter(applied=5, late=1), uncertain=Counter(duplicate=2))
    good = compare(ledger, Counter(applied=10), Counter(applied=15, late=1, duplicate=1))
    assert all(line.agrees for line in good)
    bad = compare(ledger, Counter(applied=10), Counter(applied=15, gone=1))
    assert [line.outcome for line in bad if not line.agrees] == ["gone", "late"]


def test_a_report_of_nothing_can_be_printed() -> None:
    report = Report({"headlines": Ledger()}, 1.0)
    assert "nothing was shown" in report.text()
    assert json.dumps(report.to_dict())
