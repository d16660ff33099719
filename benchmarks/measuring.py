"""Runs of the compiled load driver in turns, and what is made of them: medians, quartiles, ratios within a round.

A round runs every subject once, one after another and briefly, so that a slow second slows them all; a ratio is the
median over rounds of the round's own ratio. After each run the server may finish what it has left to do (the learner
is behind after a burst), so that nobody pays for another's work. The first round warms up and is not counted.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import Clock, settle
from loadtest.fast import Load, Outcome, Requests

QUANTILES = (50, 90, 99, 99.9)  # percent


@dataclass(frozen=True)
class Subject:
    """A server and what it is asked; `processes` are its own by part, `worker` among them."""

    name: str
    url: str
    requests: Requests
    processes: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Measured:
    """One run. `cpu_s` by the server's parts, `generator_cpu_s` our own, `others` the cores that neither used."""

    outcome: Outcome
    cpu_s: Mapping[str, float]
    generator_cpu_s: float
    others: float
    settle_s: float

    @property
    def rate(self) -> float:
        return self.outcome.rate

    @property
    def worker_us(self) -> float:
        """CPU of all workers for each answer."""
        return self.us("worker")

    def us(self, part: str) -> float:
        return self.cpu_s.get(part, 0.0) / max(1, self.outcome.answers) * 1e6


def measure(subject: Subject, connections: int, call: Callable[[Load], Outcome]) -> Measured:
    """One run with connections of its own, then quiet."""
    with Load(subject.url, connections) as load:
        clock, own, busy, begin = Clock(subject.processes), time.process_time(), _busy_s(), time.monotonic()
        outcome = call(load)
        cpu, own = clock.read(), time.process_time() - own
        others = (_busy_s() - busy - own - sum(cpu.values())) / (time.monotonic() - begin)
    settled = settle(pid for pids in subject.processes.values() for pid in pids)
    return Measured(outcome, cpu, own, max(0.0, others), settled)


def _busy_s() -> float:
    """Seconds that all cores have worked, for whomever, since the machine started."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / 100  # less idle and waiting for a disk


Runs = dict[str, list[Measured]]


def rounds(
    subjects: Iterable[Subject], count: int, connections: int, call: Callable[[Subject, Load, int], Outcome]
) -> Runs:
    """`call(subject, load, round)` for each subject in turns, `count` times after a first time that is not counted."""
    made: Runs = {subject.name: [] for subject in subjects}
    for r in range(count + 1):
        for subject in subjects:
            found = measure(subject, connections, lambda load, s=subject, r=r: call(s, load, r))  # type: ignore[misc]
            if r:
                made[subject.name].append(found)
    return made


def closed(subjects: Sequence[Subject], count: int, seconds: float, connections: int) -> Runs:
    """Closed loops of so many seconds."""
    return rounds(subjects, count, connections, lambda s, load, _: load.closed(s.requests, seconds))


def opened(
    subjects: Sequence[Subject], rates: Mapping[str, float], count: int, seconds: float, connections: int
) -> Runs:
    """Open loops at each subject's own rate; the round is the seed of the arrivals."""
    return rounds(
        subjects, count, connections, lambda s, load, r: load.open(s.requests, rates[s.name], seconds, seed=r)
    )


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    low, middle, high = np.percentile(list(values), [25, 50, 75]).tolist()
    return {"median": middle, "low": low, "high": high}


def ratio(of: Sequence[Measured], to: Sequence[Measured], what: Callable[[Measured], float]) -> dict[str, float]:
    """Spread of one subject's figure over another's, round by round."""
    return spread(what(a) / what(b) for a, b in zip(of, to, strict=True))


def described(runs: Sequence[Measured]) -> dict[str, Any]:
    """What every kind of run says of itself."""
    return {
        "answers_per_s": spread(run.rate for run in runs),
        "worker_cpu_us": spread(run.worker_us for run in runs),
        "agent_cpu_us": spread(run.us("agent") for run in runs),
        "learner_cpu_us": spread(run.us("learner") for run in runs),
        "worker_cores": spread(run.cpu_s["worker"] / run.outcome.seconds for run in runs),
        "generator_cores": spread(run.generator_cpu_s / run.outcome.seconds for run in runs),
        "others_cores": spread(run.others for run in runs),
        "settle_s": spread(run.settle_s for run in runs),
        "errors": sum(run.outcome.errors for run in runs),
        "reconnects": sum(run.outcome.reconnects for run in runs),
    }


def latencies(runs: Sequence[Measured]) -> dict[str, Any]:
    """Quantiles of an open loop's latencies, us from the scheduled time, and how late the generator itself was."""
    return {
        **{f"p{q:g}_us": spread(run.outcome.latency_us(q) for run in runs) for q in QUANTILES},
        **{f"generator_late_p{q:g}_us": spread(run.outcome.late_us(q) for run in runs) for q in (50, 99)},
    }
