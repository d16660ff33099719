"""Log or store away for a while under load: what is answered meanwhile, and how soon all is as before."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.faults.director import Run, Stage
from tests.faults.site import Team
from tests.faults.troubles import Course, Happened

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
    """One run, and what was answered before, meanwhile and after."""
    lane = [(what.replace("-", " "), SCENARIOS[what](stage.team, seconds))]
    run = stage.run(seed, [(BEFORE_S, lane)], after_s=AFTER_S)
    return run, {
        "scenario": what,
        "seconds": seconds,
        **figures(stage, stage.happened[-1], seconds),
        "run": run.to_dict(),
    }


def figures(stage: Stage, trouble: Happened, seconds: float) -> dict[str, Any]:
    """Answers a second by route and status; and seconds from when it went (`said`) or was back (the others)."""
    answers = [each for each in stage.ledger.answers if abs(each.at - trouble.began) < seconds + 60]
    spans = {
        "before": (trouble.began - BEFORE_S, trouble.began),
        "away": (trouble.began + 0.5, trouble.began + seconds),  # what was under way when it went has been answered
        "after": (trouble.ended, trouble.ended + AFTER_S),
    }
    found: dict[str, Any] = {}
    for when, (start, end) in spans.items():
        counts = Counter((each.route, each.status) for each in answers if start <= each.at <= end)
        found[when] = {f"{route} {status}": n / (end - start) for (route, status), n in sorted(counts.items())}
    meanwhile = [each for each in answers if trouble.began <= each.at <= trouble.ended and each.route == "recommend"]
    said = [each.at for each in stage.ledger.health if each.degraded]
    accepted = [each.at for each in answers if each.route == "feedback" and each.status == 202]
    found |= {
        "said": _first(at - trouble.began for at in said),
        "accepted again": _first(at - trouble.ended for at in accepted),
        "nothing said any more": max((at - trouble.ended for at in said if at > trouble.ended), default=0.0),
        "slowest recommendation meanwhile": max((each.took for each in meanwhile), default=float("nan")),
    }
    return found


def _first(moments: Iterable[float]) -> float:
    return min((moment for moment in moments if moment > 0), default=float("nan"))


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The figures in words."""
    yield f"{found['scenario']} for {found['seconds']:g} s, answers a second:"
    for when in ("before", "away", "after"):
        yield f"  {when:<7} " + ", ".join(f"{name}: {value:.1f}" for name, value in found[when].items())
    for name in ("said", "accepted again", "nothing said any more", "slowest recommendation meanwhile"):
        yield f"  {name}: {found[name]:.2f} s"
