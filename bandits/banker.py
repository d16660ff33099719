"""Banker-OMD: a K-armed bandit for delayed feedback and losses of unknown scale.

Source: Huang, Dai, Huang, "Banker Online Mirror Descent", ICML 2023, arXiv:2301.10500; scale-free form from
arXiv:2110.13400. Symbols follow the papers. A point x of the simplex is kept as its dual y = -grad Psi(x), up to a
constant; the uniform x_0 is the zero vector. The bank is one weighted mean: an amount V and a mean dual `pool`.

Two rules say how much each round invests:

`reserve` (this module; ours): investments go to zero and the reserve is the bank. A play leaves nothing behind but four
numbers in its token, so feedback may come at any time, in any order, through any server. The default.

`classic` (`bandits.banker_classic`): the paper's. Each play's investment waits inside the state for its feedback.

State of `reserve`:

    header   V, Q, Qmax, C, m, n (decisions in m), t (plays that have taught), then the ring of `bandits.windows`
    row      PLAYS, REWARDS, TAUGHT, pool, A (the sum of the scaled losses this arm has taught)
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits import banker_classic, windows
from bandits.arms import (
    LEARNED,
    OWN,
    PLAY,
    UNFUNDED,
    Arms,
    Floats,
    Mask,
    ParameterError,
    Records,
    lesson,
    number,
    restrict,
    tally,
)
from bandits.mirror import log_barrier, recentre
from bandits.scalar import log

V, Q, QMAX, C, M, N, T, RING = 0, 1, 2, 3, 4, 5, 6, 7  # header of `reserve`
POOL, A = OWN, OWN + 1  # columns
HEADER = RING + windows.RING
COLUMNS = OWN + 2
MEMORY = 100.0  # decisions the baseline remembers: see docs/decisions/0008-baseline-forgets.md
V_MIN = 2.0  # in units of C: the log-barrier is stable while |loss| / V <= 1/2


@njit(cache=True, nogil=True)
def shrink(state: Floats, n_arms: int, factor: float) -> None:
    """Borrow at x_0: the mean dual moves towards the zero vector."""
    for i in range(n_arms):
        state[HEADER + i * COLUMNS + POOL] *= factor


@njit(cache=True, nogil=True)
def teach(state: Floats, n_arms: int, c: float, arm: int, loss: float, op: Any) -> None:
    """One raw loss of one arm, with the snapshot (p, w, A, C) its play carries.

        u = loss / C;   Q += w (u^2 + 2 u (A_a - A_snap C_snap / C));   A_a += u;   pool_a += u / (p V)
        V' = max(2, c sqrt(Qmax / (K ln(2 + t))));   what V lacks is borrowed at x_0

    A loss beyond the known scale C first makes it the new scale. The pool keeps its minimum at zero.
    """
    size = abs(loss)
    if size > state[C]:
        if state[C] > 0.0:
            k = state[C] / size
            state[V] *= k
            state[Q] *= k * k
            state[QMAX] *= k * k
            for i in range(n_arms):
                state[HEADER + i * COLUMNS + A] *= k
        state[C] = size
        if state[V] < V_MIN:
            shrink(state, n_arms, state[V] / V_MIN)
            state[V] = V_MIN
    u = loss / state[C] if state[C] > 0.0 else 0.0
    # A snapshot's scale is never above the bank's, unless the token is from before a restore.
    then = op.a * min(1.0, op.c / state[C]) if state[C] > 0.0 else 0.0
    row = HEADER + arm * COLUMNS
    state[Q] += op.w * (u * u + 2.0 * u * (state[row + A] - then))
    state[QMAX] = max(state[QMAX], state[Q])
    state[row + A] += u
    state[row + POOL] += u / (op.p * state[V])
    recentre(state[HEADER + POOL : HEADER + n_arms * COLUMNS : COLUMNS])
    target = max(V_MIN, c * math.sqrt(state[QMAX] / (n_arms * log(2.0 + state[T]))))
    if target > state[V]:
        shrink(state, n_arms, state[V] / target)
        state[V] = target


@njit(cache=True, nogil=True)
def close_due(state: Floats, log_time_ms: int) -> None:
    """Move the baseline m towards the mean reward of the decisions whose window has closed, bucket by bucket.

        m += min(1, 2k / (min(n, MEMORY) + k)) (mean of the k - m);   n += k

    m only has to be near the present level, and must not lag behind a world that changes, so it soon forgets.
    """
    bucket = windows.due(state, RING, log_time_ms)
    while bucket >= 0:
        k = state[bucket + 1]
        if k > 0.0:  # 0: answers of decisions that were lost
            state[M] += min(1.0, 2.0 * k / (min(state[N], MEMORY) + k)) * (state[bucket + 2] / k - state[M])
            state[N] += k
        windows.close(state, RING, bucket)
        bucket = windows.due(state, RING, log_time_ms)


@njit(cache=True, nogil=True)
def learn_one(state: Floats, n_arms: int, c: float, op: Any) -> int:
    """One operation on one bank; LEARNED or UNFUNDED.

    At a play with a default the loss is m - default, at its reward r it is -(r - default); without a default the first
    reward r is the loss m - r. m starts at the default, or at the first reward where there is none.
    """
    close_due(state, op.log_time_ms)
    tally(state, HEADER + op.arm * COLUMNS, op)
    first, old, new = lesson(op)
    if first:
        if state[T] == 0.0:
            state[M] = new
        state[T] += 1.0
    if op.kind == PLAY and not first:
        return LEARNED if op.p > 0.0 else UNFUNDED
    windows.add(state, RING, op.time_ms, op.window_ms, 1.0 if first else 0.0, new - old)
    if not op.p > 0.0:
        return UNFUNDED
    teach(state, n_arms, c, op.arm, state[M] - new if first else old - new, op)
    return LEARNED


@njit(cache=True, nogil=True)
def learn_reserve(states: Floats, n_arms: int, c: float, ops: Records, status: NDArray[np.uint8]) -> None:
    """All operations in order; `states` has shape (banks, size)."""
    for i in range(ops.shape[0]):
        status[i] = learn_one(states[ops[i].bank], n_arms, c, ops[i])


@njit(cache=True, nogil=True)
def point(state: Floats, n_arms: int, x: Floats) -> None:
    """The point x, shape (K,), the next play is drawn from."""
    log_barrier(state[HEADER + POOL : HEADER + n_arms * COLUMNS : COLUMNS], 1.0, x)


@njit(cache=True, nogil=True)
def weigh(state: Floats, active: Mask, chances: Floats) -> None:
    point(state, active.shape[0], chances)
    restrict(chances, active)


@dataclass(frozen=True)
class Banker(Arms):
    """Banker-OMD with one pooled bank; any delay, any order, any scale of rewards, signed or not.

    regularizer: "log-barrier" (scale-free, adapts to small losses), or "tsallis" (1/2-Tsallis entropy; losses are
    brought to [0, 1] by the running range of the rewards; rule "classic" only).
    rule: "reserve" or "classic", see the module. c: the size of investments (None: 2 for reserve, 0.5 for classic,
    0.3 for classic with tsallis). rho (classic): the part of the outstanding money that is kept in reserve.
    max_outstanding (classic): plays that may wait for feedback at once; each takes K + 9 floats, and a play beyond
    them is not funded.

    >>> policy, rng = Banker(), np.random.default_rng(0)
    >>> policy.probabilities(policy.empty(4), np.ones(4, bool), 0).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    regularizer: str = "log-barrier"
    rule: str = "reserve"
    c: float | None = None
    rho: float = 0.3
    max_outstanding: int = 1000

    algorithm: ClassVar[str] = "banker"
    learns_slate: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.regularizer not in ("log-barrier", "tsallis"):
            raise ParameterError("regularizer", f'must be "log-barrier" or "tsallis", not {self.regularizer!r}')
        if self.rule not in ("reserve", "classic"):
            raise ParameterError("rule", f'must be "reserve" or "classic", not {self.rule!r}')
        if self.regularizer == "tsallis" and self.rule == "reserve":
            raise ParameterError("regularizer", '"tsallis" goes with rule "classic" only')
        if self.c is not None:
            number("c", self.c, 1e-9, 1e9)
        number("rho", self.rho, 0, 100)
        number("max_outstanding", self.max_outstanding, 1, 1_000_000, whole=True)

    @property
    def classic(self) -> bool:
        """Whether the paper's rule invests."""
        return self.rule == "classic"

    @property
    def investment(self) -> float:
        """c, or its default for the rule and the regularizer."""
        if self.c is not None:
            return float(self.c)  # a whole number would have the kernels compiled again for its type
        return (0.3 if self.regularizer == "tsallis" else 0.5) if self.classic else 2.0

    @property
    def header(self) -> int:  # type: ignore[override]
        return banker_classic.HEADER if self.classic else HEADER

    @property
    def columns(self) -> int:  # type: ignore[override]
        return banker_classic.COLUMNS if self.classic else COLUMNS

    def _tail(self, n_arms: int) -> int:
        return self.max_outstanding * (banker_classic.ENTRY + n_arms) if self.classic else 0

    def empty(self, n_arms: int) -> Floats:
        state = super().empty(n_arms)
        if not self.classic:
            state[V] = V_MIN
        return state

    def grow(self, state: Floats, n_arms: int) -> Floats:
        """New arms enter at the pool's mean, so they are neither the best nor the worst of the bank."""
        have = self.arms(state)
        grown = super().grow(state, n_arms)
        column = banker_classic.POOL if self.classic else POOL
        self.rows(grown)[have:, column] = self.rows(state)[:, column].mean()
        if self.classic:
            old = state[self.header + self.columns * have :].reshape(self.max_outstanding, -1)
            new = grown[self.header + self.columns * n_arms :].reshape(self.max_outstanding, -1)
            new[:, : old.shape[1]] = old
            new[:, old.shape[1] :] = old[:, banker_classic.ENTRY :].mean(axis=1, keepdims=True)
        return grown

    def _scale(self, state: Floats) -> float:
        if self.regularizer == "tsallis":
            return float(state[banker_classic.HI] - state[banker_classic.LO])
        return float(state[banker_classic.C if self.classic else C])

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        if self.classic:
            barrier = self.regularizer == "log-barrier"
            banker_classic.weigh(state, active, barrier, self.investment, float(self.rho), chances)
        else:
            weigh(state, active, chances)
        scores[:] = chances

    def _snapshot(self, state: Floats, arm: int) -> tuple[float, float]:
        if self.classic:
            return 0.0, float(state[banker_classic.C])
        return float(state[HEADER + arm * COLUMNS + A]), float(state[C])

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        if self.classic:
            barrier = self.regularizer == "log-barrier"
            banker_classic.learn_classic(
                states, n_arms, barrier, self.investment, float(self.rho), self.max_outstanding, ops, status
            )
        else:
            learn_reserve(states, n_arms, self.investment, ops, status)

    def balance(self, state: Floats) -> tuple[float, float]:
        """(reserve, outstanding): money in the bank and money invested in plays that wait, in units of the scale."""
        if self.classic:
            return float(state[banker_classic.V]), float(state[banker_classic.SIGMA_OUT])
        return float(state[V]), 0.0
