"""Log or store away for a while under load: what is answered meanwhile, and how soon all is as before."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.director import Run, Stage
from tests.faults.load import Answer
from tests.faults.site import Team
from tests.faults.troubles import Course

BEFORE_S, AFTER_S = 4.0, 5.0


def log_away(team: Team, seconds: float) -> Course:
    """The broker is killed and comes back after so long."""
    team.site.broker.kill()
    yield seconds
    team.site.broker.start()
    return f"{seconds:g} s and the broker's start"


def store_away(team: Team, seconds: float) -> Course:
    """Nobody reaches any node of the Redis Cluster for so long."""
    proxies = [node.proxy for node in team.site.cluster.nodes if node.proxy is not None]
    for proxy in proxies:
        proxy.refuse()
    yield seconds
    for proxy in proxies:
        proxy.pass_through()
    return f"{seconds:g} s"


SCENARIOS: dict[str, Callable[[Team, float], Course]] = {"log-away": log_away, "store-away": store_away}


def away(stage: Stage, what: str, seconds: float, seed: int) -> tuple[Run, dict[str, Any]]:
    """The run and its figures; the verdict of the run includes that feedback was refused, with Retry-After."""
    name = what.replace("-", " ")
    before = len(stage.ledger.answers), len(stage.ledger.health)
    course = _and_after(SCENARIOS[what](stage.team, seconds))
    run = stage.run(seed, [(BEFORE_S, [(name, course)])], 0.0)
    trouble = stage.happened[-1]
    answers = stage.ledger.answers[before[0] :]
    # Until the far side had answered the last question that it got before it went.
    ended = trouble.ended - AFTER_S
    spans = {
        "before": (answers[0].at, trouble.began),
        "away": (trouble.began + 0.5, trouble.began + seconds),
        "after": (ended, trouble.ended),
    }
    figures: dict[str, Any] = {"scenario": what, "seconds": seconds}
    for when, (start, end) in spans.items():
        found = [each for each in answers if start <= each.at <= end]
        figures[when] = _statuses(found, end - start)
    health = [each for each in stage.ledger.health[before[1] :] if each.degraded is not None]
    figures["said_after_s"] = _first(
        each.at - trouble.began for each in health if each.at > trouble.began and each.degraded
    )
    figures["accepted_again_after_s"] = _first(
        each.at - ended for each in answers if each.at > ended and each.route == "feedback" and each.status == 202
    )
    figures["nothing_said_after_s"] = max(
        [each.at - ended for each in health if each.degraded and each.at > ended], default=0.0
    )
    figures["longest_gap_of_recommending_s"] = run.longest_gap_s
    figures["learned_after_the_load_s"] = run.caught_up_s
    return run, figures


def _and_after(course: Course) -> Course:
    """The load goes on for a while when all is back."""
    note = yield from course
    yield AFTER_S
    return note


def _statuses(answers: list[Answer], seconds: float) -> dict[str, Any]:
    counts = Counter((each.route, each.status) for each in answers)
    return {f"{route} {status}, /s": round(n / seconds, 1) for (route, status), n in sorted(counts.items())}


def _first(moments: Iterator[float]) -> float:
    return min(moments, default=float("nan"))


def lines(figures: dict[str, Any]) -> Iterator[str]:
    yield f"{figures['scenario']} for {figures['seconds']:g} s"
    for when in ("before", "away", "after"):
        yield f"  {when:<7} " + ", ".join(f"{name} {value:g}" for name, value in figures[when].items())
    for name in ("said_after_s", "accepted_again_after_s", "nothing_said_after_s", "longest_gap_of_recommending_s"):
        yield f"  {name.removesuffix('_s').replace('_', ' ')}: {figures[name]:.1f} s"
