"""What the simulated users saw, counted: every answer by status, every verdict, and the outcome each reward should get.

The server's half of the books is `croupier_reward_outcomes_total{outcome=...}` in /metrics; `compare` lays the two
side by side. A send that got no answer may or may not have reached the log, so an expected count is a range: exact
without such sends.
"""

import array
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

OUTCOMES_METRIC = "croupier_reward_outcomes"
TENTHS = 10


class Visit(NamedTuple):
    """One decision's share in the click rates: items shown, clicks, and what three choosers would expect of them."""

    at_s: float
    shown: int
    clicks: int
    expected: float  # by the true rates of the items shown
    random: float
    best: float


class Tenth(NamedTuple):
    """Click rates of a part of the run, per shown item."""

    shown: int
    clicked: float
    expected: float
    random: float
    best: float


@dataclass
class Ledger:
    """The users' side of the books."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)  # (route, HTTP status)
    lost: Counter[str] = field(default_factory=Counter)  # route -> requests sent that got no answer
    unreachable: Counter[str] = field(default_factory=Counter)  # route -> connections that were refused
    retries: Counter[str] = field(default_factory=Counter)
    gave_up: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (status, reason)
    sends: Counter[str] = field(default_factory=Counter)  # rewards by kind: first, again, late
    expected: Counter[str] = field(default_factory=Counter)  # outcome -> rewards accepted that should get it
    uncertain: Counter[str] = field(default_factory=Counter)  # outcome -> sends without an answer that may get it
    either: int = 0  # rewards accepted so late that they are applied or late; each is in `uncertain` under both
    unsent: int = 0  # rewards whose time came after the end of the run
    unknown_items: int = 0
    decisions: int = 0
    never_answered: int = 0  # clicks the users kept to themselves
    visits: "array.array[float]" = field(default_factory=lambda: array.array("d"))  # Visit after Visit

    def add(self, other: "Ledger") -> None:
        """Take another ledger's counts and visits into this one."""
        for name in (
            "statuses",
            "lost",
            "unreachable",
            "retries",
            "gave_up",
            "verdicts",
            "sends",
            "expected",
            "uncertain",
        ):
            getattr(self, name).update(getattr(other, name))
        for name in ("either", "unsent", "unknown_items", "decisions", "never_answered"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.visits += other.visits

    def add_visit(self, visit: Visit) -> None:
        self.visits.extend(visit)

    def rates(self, last: int | None = None) -> Tenth:
        """Click rates over all visits, or over the last so many."""
        return _rates(self._rows(0 if last is None else -last * len(Visit._fields)))

    def tenths(self) -> list[Tenth]:
        """Click rates by tenth of the run's time."""
        rows = self._rows()
        if not len(rows):
            return []
        first, end = rows[:, 0].min(), rows[:, 0].max()
        tenth = np.minimum((rows[:, 0] - first) / (end - first or 1.0) * TENTHS, TENTHS - 1).astype(int)
        return [_rates(rows[tenth == i]) for i in range(TENTHS)]

    def _rows(self, start: int = 0) -> NDArray[np.float64]:
        return np.array(self.visits[start:]).reshape(-1, len(Visit._fields))  # a copy: the array goes on growing


def _rates(rows: NDArray[np.float64]) -> Tenth:
    shown = float(rows[:, 1].sum())
    if not shown:
        return Tenth(0, math.nan, math.nan, math.nan, math.nan)
    return Tenth(int(shown), *(float(rows[:, column].sum() / shown) for column in (2, 3, 4, 5)))


def outcomes(metrics_text: str, name: str = OUTCOMES_METRIC) -> Counter[str]:
    """The server's counts by outcome, summed over any other labels.

    >>> text = 'croupier_reward_outcomes_total{outcome="late",shard="0"} 2\\n'
    >>> outcomes("# TYPE croupier_reward_outcomes counter\\n" + text)
    Counter({'late': 2})
    """
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics_text):
        for sample in family.samples:
            if sample.name == f"{name}_total" and "outcome" in sample.labels:
                found[sample.labels["outcome"]] += int(sample.value)
    return found


class Line(NamedTuple):
    """One outcome on both sides: the users expect `low` to `high`, the server counted `server`."""

    outcome: str
    low: int
    high: int
    server: int

    @property
    def agrees(self) -> bool:
        return self.low <= self.server <= self.high


def compare(ledger: Ledger, before: Counter[str], after: Counter[str]) -> list[Line]:
    """Both sides of the books, an outcome a line; the last line, `all`, is the sum.

    A reward whose first send was lost and whose second was accepted is applied once in any case; the lost send, if
    it arrived, makes the second a duplicate. So lost sends widen `duplicate`, and `applied` where no try was accepted.
    """
    server = after - before
    names = sorted(set(ledger.expected) | set(ledger.uncertain) | set(server))
    lines = [
        Line(name, ledger.expected[name], ledger.expected[name] + ledger.uncertain[name], server[name])
        for name in names
    ]
    low = sum(ledger.expected.values()) + ledger.either
    high = low + sum(ledger.uncertain.values()) - 2 * ledger.either
    return [*lines, Line("all", low, high, sum(server.values()))]
