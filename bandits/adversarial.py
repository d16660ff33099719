"""Exp3 and the delayed FTRL of Zimmert and Seldin: policies that weigh each loss by its propensity.

Both know losses in [0, 1]: (hi - r) / (hi - lo), where [lo, hi] is [0, 1] and grows to hold every reward seen outside
it. They learn from slot 1 only, and not from plays without a propensity.

    header   HI, LO (the excess above 1 and below 0), T (plays that taught); FTRL: OUT, D, then a ring of windows
    row      PLAYS, REWARDS, TAUGHT, LOSS (the sum of loss / p)
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits import windows
from bandits.arms import ANSWER, LEARNED, OWN, PLAY, UNFUNDED, Arms, Floats, Mask, Records, lesson, restrict, tally
from bandits.scalar import exp, log

HI, LO, T, OUT, D, RING = 0, 1, 2, 3, 4, 5
EXP3_HEADER = 3
FTRL_HEADER = RING + windows.RING
LOSS = OWN
COLUMNS = OWN + 1


@njit(cache=True, nogil=True)
def learn_loss(state: Floats, header: int, op: Any) -> int:
    """Add the operation's loss over its propensity to its arm."""
    row = header + op.arm * COLUMNS
    tally(state, row, op)
    first, old, new = lesson(op)
    if op.kind == ANSWER or first:
        state[HI] = max(state[HI], new - 1.0)
        state[LO] = min(state[LO], new)
        if not op.p > 0.0:
            return UNFUNDED
        span = 1.0 + state[HI] - state[LO]
        if first:
            state[T] += 1.0
            state[row + LOSS] += (1.0 + state[HI] - new) / span / op.p
        else:
            state[row + LOSS] += (old - new) / span / op.p
    return LEARNED if op.p > 0.0 else UNFUNDED


@njit(cache=True, nogil=True)
def learn_ftrl_one(state: Floats, op: Any) -> int:
    """D sums, play by play, how many earlier plays were outstanding: without an answer, their window still open.

    With a default, an answer is a correction and more may come, so only the window's end makes a play complete."""
    bucket = windows.due(state, RING, op.log_time_ms)
    while bucket >= 0:
        state[OUT] -= state[bucket + 1]
        windows.close(state, RING, bucket)
        bucket = windows.due(state, RING, op.log_time_ms)
    if op.p > 0.0:
        if op.kind == PLAY:
            state[D] += max(0.0, state[OUT])
            state[OUT] += 1.0
            windows.add(state, RING, op.time_ms, op.window_ms, 1.0, 0.0)
        elif op.first:
            state[OUT] -= 1.0
            windows.add(state, RING, op.time_ms, op.window_ms, -1.0, 0.0)
    return learn_loss(state, FTRL_HEADER, op)


@njit(cache=True, nogil=True)
def learn_exp3(states: Floats, ops: Records, status: NDArray[np.uint8]) -> None:
    """All operations in order; `states` has shape (banks, size)."""
    for i in range(ops.shape[0]):
        status[i] = learn_loss(states[ops[i].bank], EXP3_HEADER, ops[i])


@njit(cache=True, nogil=True)
def learn_ftrl(states: Floats, ops: Records, status: NDArray[np.uint8]) -> None:
    """All operations in order; `states` has shape (banks, size)."""
    for i in range(ops.shape[0]):
        status[i] = learn_ftrl_one(states[ops[i].bank], ops[i])


@njit(cache=True, nogil=True)
def weigh_exp3(state: Floats, active: Mask, chances: Floats) -> None:
    """x_i ~ exp(-eta L_i), eta = sqrt(ln K / (K max(1, t)))."""
    n_arms = active.shape[0]
    eta = math.sqrt(log(float(n_arms)) / (n_arms * max(1.0, state[T])))
    low = math.inf
    for i in range(n_arms):
        if active[i]:
            low = min(low, state[EXP3_HEADER + i * COLUMNS + LOSS])
    for i in range(n_arms):
        chances[i] = exp(-eta * (state[EXP3_HEADER + i * COLUMNS + LOSS] - low)) if active[i] else 0.0
    restrict(chances, active)


@njit(cache=True, nogil=True)
def root_of(gap: float, a: float, b: float, start: float) -> float:
    """The s in (0, 1] where a / s - 2 b ln s = gap, for gap >= a > 0 and b >= 0.

    Newton on a concave increasing function: a step from anywhere lands at or below the root, then only rises. Where the
    first step from `start` falls below zero, a / gap, which is below the root, is taken instead.
    """
    if b == 0.0:
        return a / gap
    s = start
    for _ in range(60):
        step = s + (a / s - 2.0 * b * log(s) - gap) * (s * s) / (a + 2.0 * b * s)
        if not step > 0.0:
            step = a / gap
        if abs(step - s) <= 1e-14 * s:
            return step
        s = step
    return s


@njit(cache=True, nogil=True)
def weigh_ftrl(state: Floats, active: Mask, chances: Floats) -> None:
    """argmin_x <L, x> - 2 a sum sqrt x_i + b sum x_i ln x_i,   a = sqrt t,   b = sqrt(2 D / ln K).

    With s = sqrt x:  a / s_i - 2 b ln s_i = L_i + b - lambda. The sum of the x is convex and increasing in lambda;
    Newton starts where the best arm alone has x = 1 and comes down.
    """
    n_arms = active.shape[0]
    a = math.sqrt(state[T] + 1.0)
    b = math.sqrt(2.0 * (state[D] + max(0.0, state[OUT])) / log(float(n_arms))) if n_arms > 1 else 0.0
    low = math.inf
    for i in range(n_arms):
        low = min(low, state[FTRL_HEADER + i * COLUMNS + LOSS])
        chances[i] = 1.0  # holds s until the end
    gap = a  # L_min + b - lambda
    for _ in range(60):
        total = 0.0
        slope = 0.0
        for i in range(n_arms):
            s = root_of(state[FTRL_HEADER + i * COLUMNS + LOSS] - low + gap, a, b, chances[i])
            chances[i] = s
            total += s * s
            slope += 2.0 * s / (a / (s * s) + 2.0 * b / s)
        step = gap + (total - 1.0) / slope
        if not step > gap * (1.0 + 1e-15):
            break
        gap = step
    for i in range(n_arms):
        chances[i] *= chances[i]
    restrict(chances, active)


class Weighted(Arms):
    """What Exp3 and DelayedFTRL share."""

    columns: ClassVar[int] = COLUMNS
    learns_slate: ClassVar[bool] = False

    def _scale(self, state: Floats) -> float:
        return float(1.0 + state[HI] - state[LO])

    def grow(self, state: Floats, n_arms: int) -> Floats:
        """New arms enter at the mean loss."""
        grown = super().grow(state, n_arms)
        self.rows(grown)[self.arms(state) :, LOSS] = self.rows(state)[:, LOSS].mean()
        return grown


@dataclass(frozen=True)
class Exp3(Weighted):
    """Exp3 (Auer, Cesa-Bianchi, Freund, Schapire, 2002), anytime: eta_t = sqrt(ln K / (K t)), losses without mixing."""

    algorithm: ClassVar[str] = "exp3"
    header: ClassVar[int] = EXP3_HEADER

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        weigh_exp3(state, active, chances)
        scores[:] = chances

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_exp3(states, ops, status)


@dataclass(frozen=True)
class DelayedFTRL(Weighted):
    """Follow the regularized leader with the hybrid regularizer of Zimmert and Seldin, arXiv:1910.06054.

    Knows neither the horizon nor the delays: the negative entropy is weighed by the plays outstanding so far.
    """

    algorithm: ClassVar[str] = "ftrl"
    header: ClassVar[int] = FTRL_HEADER

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        weigh_ftrl(state, active, chances)
        scores[:] = chances

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_ftrl(states, ops, status)
