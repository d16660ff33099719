"""K-armed policies: one interface, one state vector per bank, one batch of operations.

State of a bank is one flat float64 vector; it is all a policy knows, so saving it saves the policy:

    header[H]  ++  K rows of F columns  ++  tail
                   row: PLAYS, REWARDS, TAUGHT, then the algorithm's own columns

PLAYS counts decisions, REWARDS sums what they earned (the default until the answer), TAUGHT counts the plays that have
taught something: with `default: none` a play waits for its first answer, otherwise it teaches the default at once.
The mean of an arm is REWARDS / TAUGHT. Only `classic` (the paper's Banker rule) has a tail.

An operation is one record of dtype `OP`, in the order of the log. `learn` applies a batch of them to many banks, one by
one, and nothing depends on where a batch ends. Policies hold hyper-parameters only; they have no clock and no generator
of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]
Records = NDArray[np.void]

PLAYS, REWARDS, TAUGHT, OWN = 0, 1, 2, 3  # columns of a row; an algorithm's own columns start at OWN
PLAY, ANSWER = 0, 1  # OP["kind"]
LEARNED, UNFUNDED = 0, 1  # status of an operation
EXPLORE, EXPLOIT, THOMPSON = 0, 1, 2  # mode codes of a decision

# One operation: 120 bytes, aligned. `p, w, a, c` are the snapshot the decision's token carries; p <= 0 (or NaN) says
# the play was unfunded. `default` is NaN where the policy has none. `old` is the reward this (decision, item) taught
# before, `new` what it is now; `first` says that nothing was taught before because there is no default.
OP = np.dtype(
    [
        ("bank", "i8"),
        ("decision", "u8"),
        ("arm", "i8"),
        ("time_ms", "i8"),  # of the decision
        ("window_ms", "i8"),
        ("log_time_ms", "i8"),  # of the record; a bank first closes what is due by it
        ("p", "f8"),
        ("w", "f8"),
        ("a", "f8"),
        ("c", "f8"),
        ("default", "f8"),
        ("old", "f8"),
        ("new", "f8"),
        ("kind", "u1"),
        ("first", "u1"),
    ],
    align=True,
)


def operations(n: int) -> Records:
    """An array of `n` operations, all zero but `default`, which is NaN (none). Fill its columns.

    >>> ops = operations(2)
    >>> ops["arm"] = [0, 1]
    >>> len(ops), bool(np.isnan(ops["default"]).all())
    (2, True)
    """
    ops = np.zeros(n, OP)
    ops["default"] = np.nan
    return ops


class ParameterError(ValueError):
    """A hyper-parameter that cannot be: `field` names it, the sentence says what would do."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


class Draw(NamedTuple):
    """A slate. `arms`, `scores` and `propensities` have shape (k',), k' = min(k, arms that may be shown).

    `propensities[0]` is the exact chance of the first arm, or NaN where there is no exact value; later slots have NaN.
    `p, w, a, c` go into the token and come back in the operations; `p` is 0 when the play is not `funded`.
    """

    arms: Numbers
    scores: Floats
    propensities: Floats
    p: float
    w: float
    a: float
    c: float
    funded: bool


class ArmPolicy(Protocol):
    """What the server, the learner and the simulations ask of a K-armed policy. All methods leave their inputs alone,
    but `learn`, which writes `states` and `status`."""

    algorithm: str
    header: int
    columns: int
    learns_slate: bool  # True: every shown arm teaches; False: only slot 1, the draw, does

    def size(self, n_arms: int) -> int: ...
    def arms(self, state: Floats) -> int: ...
    def empty(self, n_arms: int) -> Floats: ...
    def grow(self, state: Floats, n_arms: int) -> Floats: ...
    def probabilities(self, state: Floats, active: Mask, now_ms: int) -> Floats: ...
    def draw(
        self,
        state: Floats,
        active: Mask,
        k: int,
        rng: np.random.Generator,
        mode: int,
        now_ms: int,
        allowed: Mask | None = None,
    ) -> Draw: ...
    def learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None: ...
    def means(self, state: Floats) -> tuple[Floats, Floats]: ...


@njit(cache=True, nogil=True)
def tally(state: Floats, row: int, op: Any) -> None:
    """The part of learning all policies share: the columns PLAYS, REWARDS and TAUGHT of one row."""
    if op.kind == PLAY:
        state[row + PLAYS] += 1.0
        if not math.isnan(op.default):
            state[row + REWARDS] += op.default
            state[row + TAUGHT] += 1.0
    elif op.first:
        state[row + REWARDS] += op.new
        state[row + TAUGHT] += 1.0
    else:
        state[row + REWARDS] += op.new - op.old


@njit(cache=True, nogil=True)
def lesson(op: Any) -> tuple[bool, float, float]:
    """(does this operation teach a play for the first time, the reward it takes back, the reward it teaches).

    A play without a default teaches nothing: (False, 0, 0)."""
    if op.kind == PLAY:
        if math.isnan(op.default):
            return False, 0.0, 0.0
        return True, 0.0, op.default
    if op.first:
        return True, 0.0, op.new
    return False, op.old, op.new


@njit(cache=True, nogil=True)
def pick(chances: Floats, u: float) -> int:
    """The first arm whose cumulative chance exceeds u * total, for 0 <= u < 1.

    Rounding can lift u * total to the total itself; then the likeliest arm is taken, and never an impossible one."""
    total = 0.0
    for i in range(chances.shape[0]):
        total += chances[i]
    target = u * total
    best = 0
    cumulative = 0.0
    for i in range(chances.shape[0]):
        cumulative += chances[i]
        if cumulative > target:
            return i
        if chances[i] > chances[best]:
            best = i
    return best


@njit(cache=True, nogil=True)
def share_best(scores: Floats, active: Mask, chances: Floats) -> None:
    """chances = 1 / n over the n active arms that share the highest score, 0 elsewhere."""
    best = -math.inf
    n = 0
    for i in range(scores.shape[0]):
        if active[i]:
            if scores[i] > best or n == 0:
                best = scores[i]
                n = 1
            elif scores[i] == best:
                n += 1
    for i in range(scores.shape[0]):
        chances[i] = 1.0 / n if active[i] and scores[i] == best else 0.0


@njit(cache=True, nogil=True)
def restrict(x: Floats, active: Mask) -> float:
    """Renormalise the distribution x to the active arms, in place; returns the sum of squares of the result."""
    total = 0.0
    for i in range(x.shape[0]):
        if not active[i]:
            x[i] = 0.0
        total += x[i]
    squares = 0.0
    for i in range(x.shape[0]):
        x[i] /= total
        squares += x[i] * x[i]
    return squares


class Arms:
    """What K-armed policies share. A policy is a frozen dataclass below it that says how an arm is chosen (`_weigh`)
    and how a batch is learned (`_learn`)."""

    algorithm: ClassVar[str]
    header: ClassVar[int]
    columns: ClassVar[int]
    learns_slate: ClassVar[bool]

    def _tail(self, n_arms: int) -> int:
        """Floats after the rows."""
        del n_arms
        return 0

    def size(self, n_arms: int) -> int:
        """Length of the state vector of a bank with `n_arms` arms."""
        return self.header + self.columns * n_arms + self._tail(n_arms)

    def arms(self, state: Floats) -> int:
        """How many arms this state vector has."""
        per_arm = self.size(1) - self.size(0)
        return (len(state) - self.size(0)) // per_arm

    def empty(self, n_arms: int) -> Floats:
        """The state of a bank that has seen nothing, shape (size(n_arms),)."""
        if n_arms < 1:
            raise ParameterError("arms", "a bank needs at least one arm")
        return np.zeros(self.size(n_arms))

    def grow(self, state: Floats, n_arms: int) -> Floats:
        """The same bank with arms appended up to `n_arms`; the new ones have seen nothing."""
        have = self.arms(state)
        if n_arms < have:
            raise ParameterError("arms", f"a bank cannot shrink from {have} to {n_arms} arms: make them inactive")
        grown = self.empty(n_arms)
        end = self.header + self.columns * have
        grown[:end] = state[:end]
        return grown

    def rows(self, state: Floats) -> Floats:
        """A view of the rows, shape (K, columns)."""
        n_arms = self.arms(state)
        return state[self.header : self.header + self.columns * n_arms].reshape(n_arms, self.columns)

    def means(self, state: Floats) -> tuple[Floats, Floats]:
        """(mean reward, width) of each arm, shape (K,), in units of reward; 0 and infinity for an untaught arm."""
        rows = self.rows(state)
        taught = rows[:, TAUGHT]
        seen = taught > 0
        mean = np.divide(rows[:, REWARDS], taught, out=np.zeros(len(rows)), where=seen)
        width = np.divide(self._scale(state), np.sqrt(taught), out=np.full(len(rows), np.inf), where=seen)
        return mean, width

    def _scale(self, state: Floats) -> float:
        """The size of a reward in this bank, for the width of a mean."""
        del state
        return 1.0

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        """Write each arm's exact chance to be the draw (0 where inactive), and the score later slots are ranked by."""
        raise NotImplementedError

    def _snapshot(self, state: Floats, arm: int) -> tuple[float, float]:
        """(a, c) of the token."""
        del state, arm
        return 0.0, 0.0

    def probabilities(self, state: Floats, active: Mask, now_ms: int) -> Floats:
        """The exact chance of each arm to be the next draw, shape (K,); NaN where there is no exact value."""
        del now_ms
        n_arms = len(active)
        chances, scores = np.empty(n_arms), np.empty(n_arms)
        if not active.any():
            return np.zeros(n_arms)
        self._weigh(state, active, chances, scores)
        return chances

    def draw(
        self,
        state: Floats,
        active: Mask,
        k: int,
        rng: np.random.Generator,
        mode: int,
        now_ms: int,
        allowed: Mask | None = None,
    ) -> Draw:
        """Draw a slate of at most `k` arms: the first by the policy's chances, the others by descending score.

        `active`, shape (K,), marks the arms of the bank: what is not active is renormalised away, and the play is
        funded. `allowed`, shape (K,), is this request's own restriction (exclude, candidates, paused): when it takes
        away an active arm, a policy that learns from its own chances does not learn from this play (not `funded`).
        Mode EXPLOIT shows the best scores without a draw, which such a policy cannot learn from either.
        """
        del now_ms
        may = active if allowed is None else active & allowed
        n_may = int(may.sum())
        if n_may == 0:
            return Draw(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), 0.0, 0.0, 0.0, 0.0, False)
        funded = self.learns_slate or (mode != EXPLOIT and (allowed is None or n_may == int(active.sum())))
        chances, scores = np.empty(len(may)), np.empty(len(may))
        self._weigh(state, may, chances, scores)
        if mode == EXPLOIT:
            ranks = self._greedy(state, scores)
            share_best(ranks, may, chances)
            scores = ranks
        first = pick(chances, rng.random())
        k = min(k, n_may)
        slate = np.empty(k, np.int64)
        slate[0] = first
        if k > 1:
            order = np.argsort(np.where(may, -scores, np.inf), kind="stable")[:n_may]
            slate[1:] = order[order != first][: k - 1]
        propensities = np.full(k, np.nan)
        propensities[0] = chances[first]
        if not funded:
            return Draw(slate, scores[slate], propensities, 0.0, 0.0, 0.0, 0.0, False)
        p = float(chances[first])
        w = max(0.0, 1.0 - p * p / float(chances @ chances))
        a, c = self._snapshot(state, first)
        return Draw(slate, scores[slate], propensities, p, w, a, c, True)

    def _greedy(self, state: Floats, scores: Floats) -> Floats:
        """What mode EXPLOIT ranks by: the scores themselves, unless a policy knows a mean."""
        del state
        return scores

    def learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        """Apply `ops` in order to `states`, shape (banks, size(n_arms)), in place; `status`, shape (len(ops),),
        becomes LEARNED or UNFUNDED (counted in PLAYS and REWARDS, and not learned from)."""
        assert ops.dtype == OP
        assert states.ndim == 2
        assert states.shape[1] == self.size(n_arms)
        assert len(status) == len(ops)
        self._learn(states, n_arms, ops, status)

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        raise NotImplementedError


def number(field: str, value: float, low: float, high: float, whole: bool = False) -> None:
    """Refuse a hyper-parameter that is not a number (a whole one) from `low` to `high`."""
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        what = "whole number" if whole else "number"
        raise ParameterError(field, f"must be a {what} from {low:g} to {high:g}, not {value!r:.40}")


def make(algorithm: str, params: Mapping[str, Any]) -> ArmPolicy:
    """The policy of that name with those hyper-parameters; ParameterError names the one that is wrong.

    >>> make("banker", {"c": 2.0}).algorithm
    'banker'
    >>> make("banker", {"colour": 1})
    Traceback (most recent call last):
        ...
    bandits.arms.ParameterError: colour: banker has no such parameter; it has regularizer, rule, c, rho, max_outstanding
    """
    # Imported here: the policies are written in terms of this module.
    from dataclasses import fields

    from bandits import adversarial, banker, classic

    kinds: dict[str, Any] = {
        "banker": banker.Banker,
        "thompson-beta": classic.ThompsonBeta,
        "thompson-normal": classic.ThompsonNormal,
        "ucb1": classic.UCB1,
        "epsilon-greedy": classic.EpsilonGreedy,
        "exp3": adversarial.Exp3,
        "ftrl": adversarial.DelayedFTRL,
    }
    if algorithm not in kinds:
        raise ParameterError("algorithm", f"no {algorithm!r} here; there are {', '.join(kinds)}")
    kind = kinds[algorithm]
    known = [f.name for f in fields(kind)]
    for name in params:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ParameterError(name, f"{algorithm} has no such parameter; {has}")
    policy: ArmPolicy = kind(**params)
    return policy
