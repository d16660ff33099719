"""One run: load, troubles drawn from a seed, healing, and the verdict."""

import heapq
import itertools
import pickle
import random
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import verdict
from tests.faults.load import Ledger, Load, definitions, set_up
from tests.faults.site import Site, Team
from tests.faults.tail import Tail
from tests.faults.troubles import TROUBLES, Course, Happened

LOAD_S = 7.0
AFTER_S = 1.0
PAUSE_S = 0.2  # between two troubles of a lane

Schedule = Sequence[tuple[float, Sequence[tuple[str, Course]]]]
"""Lanes: when the first trouble of each begins (s), and its troubles, (name, course), one after the other."""


@dataclass
class Run:
    """What one run did and found."""

    seed: int
    troubles: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recommends: int = 0
    feedback: dict[int, int] = field(default_factory=dict)
    acknowledged: int = 0
    routed: int = 0
    rewards_in_log: int = 0
    decisions_in_log: int = 0
    decisions_lost: int = 0
    records: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    slowest_recommend_s: float = 0.0  # of servers that were not killed
    caught_up_s: float = 0.0
    seconds: float = 0.0
    phases_s: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        statuses = ", ".join(f"{n:,} x {status or 'broken'}" for status, n in sorted(self.feedback.items()))
        outcomes = ", ".join(f"{name} {n:,}" for name, n in self.outcomes.items() if n and "decisions" not in name)
        return (
            f"seed {self.seed}: {'ok' if not self.wrong else 'WRONG'}  {'; '.join(self.troubles)}\n"
            f"    {self.recommends:,} recommended, feedback {statuses}; {self.routed:,} through the router; log: "
            f"{self.rewards_in_log:,} rewards in {self.records:,} records: {outcomes}; {self.decisions_lost} decisions "
            f"lost; slowest recommendation {self.slowest_recommend_s:.1f} s, caught up in {self.caught_up_s:.1f} s, "
            f"{self.seconds:.0f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Stage:
    """A team with its load's ledger and its tail, for several runs; what the runs say adds up."""

    def __init__(self, team: Team, seed: int) -> None:
        self.team = team
        self.policies = definitions(random.Random(seed))
        self.ledger = Ledger()
        self.happened: list[Happened] = []
        self.tail = Tail(team.log_url)
        self.failed = False

    def run(self, seed: int, schedule: Schedule, load_s: float = LOAD_S, after_s: float = AFTER_S) -> Run:
        """The troubles of `schedule` under load, then the verdict."""
        began = time.monotonic()
        run = Run(seed)
        before = len(self.ledger.answers), len(self.happened), self.ledger.acknowledged.total()
        load = Load(self.team, self.policies, self.ledger, seed)
        load.start()
        clock = _Phases(run)
        self.happened += direct(schedule, began + load_s)
        clock.over("troubles")
        run.troubles = [f"{each.name} ({each.note})" if each.note else each.name for each in self.happened[before[1] :]]
        self.team.site.heal()
        run.wrong += self._ended_alone()
        self.team.heal()
        clock.over("healing")
        time.sleep(after_s)
        load.stop()
        clock.over("the load's end")
        self._count(run, *before)
        try:
            run.caught_up_s = verdict.settled(self.team, self.tail, self.ledger)
        except AssertionError as error:
            run.wrong.append(str(error))
            run.seconds = time.monotonic() - began
            return run
        run.wrong += verdict.healthy(self.team)
        clock.over("catching up")
        wrong, counts, run.decisions_lost = verdict.check(self.team, self.tail, self.ledger, self.happened)
        run.wrong += wrong
        run.records, run.rewards_in_log, run.decisions_in_log = counts.records, counts.rewards, counts.decisions
        run.outcomes = dict(counts.outcomes)
        clock.over("verdict")
        run.seconds = time.monotonic() - began
        return run

    def _ended_alone(self) -> Iterator[str]:
        """Troubles start again what they killed, so by now everybody lives."""
        for process in (*(server.process for server in self.team.servers), *self.team.learners, self.team.router):
            if not process.alive:
                yield f"{process.log.stem} ended by itself: {process.tail(1000)}"

    def _count(self, run: Run, answers_before: int, _: int, acknowledged_before: int) -> None:
        new = self.ledger.answers[answers_before:]
        run.recommends = sum(each.route == "recommend" and each.status == 200 for each in new)
        run.feedback = dict(Counter(each.status for each in new if each.route == "feedback"))
        run.acknowledged = self.ledger.acknowledged.total() - acknowledged_before
        run.routed = self.ledger.routed.total()
        asked = [each for each in new if each.route == "recommend" and not verdict.was_killed(self.happened, each)]
        run.slowest_recommend_s = max((each.took for each in asked), default=float("nan"))


class _Phases:
    """Where a run's seconds go."""

    def __init__(self, run: Run) -> None:
        self._run, self._began = run, time.monotonic()

    def over(self, phase: str) -> None:
        now = time.monotonic()
        self._run.phases_s[phase], self._began = round(now - self._began, 1), now


def direct(schedule: Schedule, until: float) -> list[Happened]:
    """Goes on with each lane's course when it is due, in this thread; returns after `until` and once all are over."""
    order = itertools.count()
    now = time.monotonic()
    waiting = [(now + at, next(order), deque(lane)) for at, lane in schedule]
    heapq.heapify(waiting)
    began: dict[int, float] = {}
    happened: list[Happened] = []
    while waiting:
        due, number, lane = heapq.heappop(waiting)
        time.sleep(max(0.0, due - time.monotonic()))
        name, course = lane[0]
        began.setdefault(number, time.monotonic())
        try:
            pause = next(course)
        except StopIteration as end:
            happened.append(Happened(name, began.pop(number), time.monotonic(), end.value or ""))
            lane.popleft()
            pause = PAUSE_S
        if lane:
            heapq.heappush(waiting, (time.monotonic() + pause, number, lane))
    time.sleep(max(0.0, until - time.monotonic()))
    return sorted(happened, key=lambda each: each.began)


def drawn(team: Team, seed: int, only: Sequence[str] | None = None) -> Schedule:
    """Two to four troubles (or those of `only`) at moments of their own."""
    rng = random.Random(f"troubles {seed}")
    names = only or rng.sample(sorted(TROUBLES), rng.randint(2, 4))
    return [(rng.uniform(0.3, LOAD_S - 1.5), in_turn(team, rng, [name])) for name in names]


def in_turn(team: Team, rng: random.Random, names: Sequence[str]) -> list[tuple[str, Course]]:
    """A lane of these troubles."""
    return [(name, TROUBLES[name](team, rng)) for name in names]


@contextmanager
def stage(site: Site, seed: int, keep: Path | None = None) -> Iterator[Stage]:
    """A team of its own for the block; what it wrote is copied to `keep` when the block raises, or has set `failed`."""
    folder = Path(tempfile.mkdtemp(prefix="croupier-faults-"))
    name = f"faults-{seed}-{time.time_ns() % 10**9}"
    team = Team(site, name, folder / "team")
    made: Stage | None = None
    sound = False
    try:
        team.begin()
        made = Stage(team, seed)
        team.start()
        set_up(team, made.policies)
        yield made
        sound = not made.failed
    finally:
        if made is not None:
            made.tail.close()
        team.close()
        if not sound and keep is not None:
            shutil.copytree(folder / "team", keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data-*", "run-*"))
            if made is not None:
                (keep / "run.pickle").write_bytes(pickle.dumps((made.tail.records, made.ledger, made.happened)))
        shutil.rmtree(folder, ignore_errors=True)
        site.heal()
        site.forget(name)
