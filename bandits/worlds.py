"""Simulated worlds for K-armed policies: what an arm earns at a time, and how long its answer takes.

A `World` is a sequence of phases. In phase p, arm i earns

    reward = offset + scale[p] * Bernoulli(chances[p, i])

so its whole law is four small arrays; `bandits.evaluation` runs policies against them, and `loadtest` sends users of
the same worlds over HTTP. Time is a number of rounds; where milliseconds are asked for, a round is a millisecond.
A `Delay` draws after how many rounds an answer comes, -1 for never.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bandits.arms import Floats, Numbers


class WorldError(ValueError):
    """A file or a parameter no world can be made of: `field` names it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field


@dataclass(frozen=True, eq=False)
class World:
    """Phase p lasts from round starts[p] (starts[0] = 0) to the next start; the last one has no end.

    starts: i64[P], ascending. chances: f64[P, K] in [0, 1]. scale: f64[P], units of reward. offset: units of reward.

    >>> world = still(3)
    >>> world.best(0), world.means(0).tolist()
    (0, [0.55, 0.45, 0.45])
    """

    name: str
    starts: Numbers
    chances: Floats
    scale: Floats
    offset: float = 0.0

    @property
    def n_arms(self) -> int:
        """K."""
        return int(self.chances.shape[1])

    def phase(self, t: int) -> int:
        """The phase that round t is in."""
        return int(np.searchsorted(self.starts, t, side="right")) - 1

    def means(self, t: int) -> Floats:
        """Mean reward of each arm at round t, shape (K,)."""
        p = self.phase(t)
        result: Floats = self.offset + self.scale[p] * self.chances[p]
        return result

    def best(self, t: int) -> int:
        """The arm with the highest mean at round t."""
        return int(np.argmax(self.means(t)))

    def reward(self, arm: int, t: int, rng: np.random.Generator) -> float:
        """What `arm` earns at round t."""
        p = self.phase(t)
        return self.offset + float(self.scale[p]) * float(rng.random() < self.chances[p, arm])

    def totals(self, horizon: int) -> Floats:
        """Expected reward of each arm played in all of `horizon` rounds, shape (K,)."""
        ends = np.append(self.starts[1:], horizon)
        rounds = np.maximum(0, np.minimum(ends, horizon) - self.starts)
        result: Floats = self.offset * horizon + (rounds * self.scale) @ self.chances
        return result


def bernoulli(rates: Floats, name: str = "bernoulli") -> World:
    """Fixed click rates, shape (K,)."""
    rates = np.asarray(rates, np.float64)
    return World(name, np.zeros(1, np.int64), rates[None, :], np.ones(1))


def still(n_arms: int = 10, base: float = 0.45, best: float = 0.55) -> World:
    """One arm is better, and nothing changes."""
    rates = np.full(n_arms, base)
    rates[0] = best
    return bernoulli(rates, "still")


def _levels(name: str, starts: Numbers, n_arms: int, gap: float) -> World:
    """All means jump between 0 and 1 - gap, phase by phase; arm 0 is better by `gap` in all of them."""
    chances = np.zeros((len(starts), n_arms))
    chances[1::2] = 1.0 - gap
    chances[:, 0] += gap
    return World(name, starts, chances, np.ones(len(starts)))


def switching(horizon: int, n_arms: int = 8, gap: float = 0.125, growth: float = 1.6) -> World:
    """Phases of growing length between two levels: a stochastically constrained adversary (arXiv:1807.07623)."""
    starts, length = [0], 1.0
    while starts[-1] + int(length) < horizon:
        starts.append(starts[-1] + int(length))
        length *= growth
    return _levels("switching", np.array(starts, np.int64), n_arms, gap)


def anticorrelated(horizon: int, delay: int, n_arms: int = 8, gap: float = 0.125) -> World:
    """The levels flip every 2 (delay + 1) rounds, so half of the answers come when the world is the opposite."""
    return _levels("anti-correlated", np.arange(0, horizon, 2 * (delay + 1), dtype=np.int64), n_arms, gap)


def shifted(world: World, offset: float = 100.0) -> World:
    """The same world with `offset` added to every reward."""
    return World(f"{world.name} + {offset:g}", world.starts, world.chances, world.scale, world.offset + offset)


def growing(horizon: int, n_arms: int = 10, doublings: int = 10) -> World:
    """The still world in a currency that loses value: rewards double `doublings` times, at even intervals."""
    starts = np.arange(doublings + 1, dtype=np.int64) * (horizon // (doublings + 1))
    rates = still(n_arms).chances
    scale = np.ldexp(1.0, np.arange(len(starts)))
    return World("growing", starts, np.repeat(rates, len(starts), axis=0), scale)


def rare(n_arms: int = 1000, base: float = 0.01, best: float = 0.05) -> World:
    """Many arms, few clicks, one arm much better."""
    rates = np.full(n_arms, base)
    rates[0] = best
    return bernoulli(rates, "rare clicks")


@dataclass(frozen=True)
class Problem:
    """One real test: known click rates, shape (K,), and how many impressions it had (its horizon, in rounds)."""

    name: str
    rates: Floats
    horizon: int


COLUMNS = ("test_id", "arm", "impressions", "clicks")


def read_problems(path: str | Path) -> list[Problem]:
    """Bernoulli problems from a CSV with columns test_id, arm, impressions, clicks (others are ignored).

    Tests come in the file's order, arms in the order of `arm`. WorldError names the column and the line that is wrong.
    """
    tests: dict[str, list[tuple[int, int, int]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            for column in COLUMNS:
                if column not in (rows.fieldnames or ()):
                    raise WorldError(column, f"{path} has no such column; it needs {', '.join(COLUMNS)}")
            for row in rows:
                arm, impressions, clicks = (_count(row[c], c, path, rows.line_num) for c in COLUMNS[1:])
                if clicks > impressions:
                    raise WorldError("clicks", f"{path}, line {rows.line_num}: more clicks than impressions")
                if impressions:
                    tests.setdefault(row["test_id"], []).append((arm, impressions, clicks))
    except OSError as error:
        raise WorldError("problems", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WorldError("problems", f"{path} is not UTF-8 text") from error
    if not tests:
        raise WorldError("problems", f"{path} has no rows")
    problems = []
    for name, arms in tests.items():
        table = np.array(sorted(arms))
        problems.append(Problem(name, table[:, 2] / table[:, 1], int(table[:, 1].sum())))
    return problems


def _count(text: str | None, column: str, path: str | Path, line: int) -> int:
    if text is None or not text.strip().isdecimal():
        raise WorldError(column, f"{path}, line {line}: {text!r} is not a whole number from 0")
    return int(text)


@dataclass(frozen=True)
class Delay:
    """After how many rounds the answer comes, and how long the window stays open, in rounds."""

    name: str
    window: int
    sample: Callable[[np.random.Generator, int], Numbers]


def fixed(rounds: int, window: int | None = None) -> Delay:
    """Always the same; the window is that long too unless said.

    >>> fixed(3).sample(np.random.default_rng(0), 2).tolist()
    [3, 3]
    """
    return Delay(f"{rounds}", rounds if window is None else window, lambda _, n: np.full(n, rounds, np.int64))


def geometric(mean: float, window: int | None = None) -> Delay:
    """Memoryless, with that mean; the window is ten means unless said."""
    return Delay(
        f"geometric {mean:g}",
        int(10 * mean) if window is None else window,
        lambda rng, n: rng.geometric(1.0 / (1.0 + mean), n).astype(np.int64) - 1,
    )


def heavy_tailed(median: float, window: int | None = None, tail: float = 1.0) -> Delay:
    """Pareto with that median and tail index (1: no mean); the window is ten medians unless said."""

    def sample(rng: np.random.Generator, n: int) -> Numbers:
        u = 1.0 - rng.random(n)
        rounds = median * ((u ** (-1.0 / tail)) - 1.0) / (2.0 ** (1.0 / tail) - 1.0)
        return np.minimum(rounds, 2.0**40).astype(np.int64)

    return Delay(f"heavy-tailed {median:g}", int(10 * median) if window is None else window, sample)


def never(share: float, delay: Delay) -> Delay:
    """As `delay`, but that share of the answers never comes."""

    def sample(rng: np.random.Generator, n: int) -> Numbers:
        rounds = delay.sample(rng, n)
        return np.where(rng.random(n) < share, -1, rounds)

    return Delay(f"{delay.name}, {share:.0%} never", delay.window, sample)
