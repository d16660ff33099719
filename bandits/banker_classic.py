"""Rule `classic` of Banker-OMD: the paper's investments, each waiting inside the state for its own feedback.

Source: arXiv:2301.10500, arXiv:2110.13400. What is ours: the bank is pooled (any split of the savings is legal, so it
is one mean dual), and before a play the bank holds at least rho times the outstanding money.

    header   V, C, S_ARRIVED, S_OUT, S_ALL, T, OUT, SIGMA_OUT, BORROWED, NEXT_EXPIRY, HI, LO, RANGED
    row      PLAYS, REWARDS, TAUGHT, pool
    tail     max_outstanding entries; the first OUT of them are plays that wait:
             stream, sequence (the decision number's halves, exact in a double), arm, p, sigma, out, expires_ms,
             has_default, default, then y (K floats): the dual the play's money was withdrawn at

An entry leaves at its answer, or when the log's time passes its window: then its reward was the default, and without a
default its money returns as it was. So V + SIGMA_OUT = BORROWED always, in units of the scale C.
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.arms import LEARNED, OWN, PLAY, UNFUNDED, Floats, Mask, Records, restrict, tally
from bandits.mirror import log_barrier, recentre, tsallis
from bandits.scalar import log

V, C, S_ARRIVED, S_OUT, S_ALL, T, OUT, SIGMA_OUT, BORROWED, NEXT_EXPIRY, HI, LO, RANGED = range(13)
HEADER = 13
POOL = OWN
COLUMNS = OWN + 1
STREAM, SEQUENCE, ARM, P, SIGMA, OUT_THEN, EXPIRES, HAS_DEFAULT, DEFAULT = range(9)
ENTRY = 9
TINY = 1e-300  # a product that underflows is still a divisor
STEP_MAX = 1e15  # beyond it a dual is past telling, and a sum of them stays finite


@njit(cache=True, nogil=True)
def invest(state: Floats, n_arms: int, barrier: bool, c: float) -> float:
    """sigma of the next play.

    log-barrier: c sqrt(S / (K ln(2 + t) (1 + ln(1 + out)))) / (out + 1),   S = 3 + S_ARRIVED + S_OUT
    tsallis:     c sqrt(S' / (1 + ln(1 + out))) / (out + 1),                S' = 3 + S_ALL with this play
    """
    out = state[OUT]
    late = 1.0 + log(1.0 + out)
    if barrier:
        s = 3.0 + state[S_ARRIVED] + state[S_OUT]
        return float(c * math.sqrt(s / (n_arms * log(2.0 + state[T]) * late)) / (out + 1.0))
    return float(c * math.sqrt((3.0 + state[S_ALL] + out + 1.0) / late) / (out + 1.0))


@njit(cache=True, nogil=True)
def withdrawal(state: Floats, sigma: float, rho: float) -> tuple[float, float]:
    """(V with the reserve, factor of the pool's dual) when sigma is taken: what is missing is borrowed at x_0."""
    v = max(state[V], rho * state[SIGMA_OUT])
    factor = state[V] / v if v > state[V] else 1.0
    return v, factor * (v / sigma) if v < sigma else factor


@njit(cache=True, nogil=True)
def weigh(state: Floats, active: Mask, barrier: bool, c: float, rho: float, chances: Floats) -> None:
    """The chances of the next play, shape (K,)."""
    n_arms = active.shape[0]
    pool = state[HEADER + POOL : HEADER + n_arms * COLUMNS : COLUMNS]
    _, factor = withdrawal(state, invest(state, n_arms, barrier, c), rho)
    if barrier:
        log_barrier(pool, factor, chances)
    else:
        tsallis(pool, factor, chances)
    restrict(chances, active)


@njit(cache=True, nogil=True)
def play(state: Floats, n_arms: int, barrier: bool, c: float, rho: float, op: Any) -> None:
    """Withdraw sigma at the pool's mean (and x_0), and write the entry that waits."""
    pool = state[HEADER + POOL : HEADER + n_arms * COLUMNS : COLUMNS]
    sigma = invest(state, n_arms, barrier, c)
    v, factor = withdrawal(state, sigma, rho)
    if v > state[V]:
        for i in range(n_arms):
            pool[i] *= state[V] / v
        factor = v / sigma if v < sigma else 1.0
    state[BORROWED] += max(v, sigma) - state[V]
    state[V] = max(v - sigma, 0.0)
    out = int(state[OUT])
    entry = HEADER + n_arms * COLUMNS + out * (ENTRY + n_arms)
    state[entry + STREAM] = float(op.decision >> np.uint64(32))
    state[entry + SEQUENCE] = float(op.decision & np.uint64(0xFFFFFFFF))
    state[entry + ARM] = float(op.arm)
    state[entry + P] = op.p
    state[entry + SIGMA] = sigma
    state[entry + OUT_THEN] = float(out)
    expires = float(op.time_ms + op.window_ms)
    state[entry + EXPIRES] = expires
    known = not math.isnan(op.default)
    state[entry + HAS_DEFAULT] = 1.0 if known else 0.0
    state[entry + DEFAULT] = op.default if known else 0.0
    for i in range(n_arms):
        state[entry + ENTRY + i] = pool[i] * factor
    state[NEXT_EXPIRY] = expires if out == 0 else min(state[NEXT_EXPIRY], expires)
    state[OUT] += 1.0
    state[T] += 1.0
    state[SIGMA_OUT] += sigma
    state[S_OUT] += out + 1.0
    state[S_ALL] += out + 1.0


@njit(cache=True, nogil=True)
def loss_of(state: Floats, n_arms: int, barrier: bool, reward: float) -> float:
    """The loss in units of the scale: -r / C, where a larger r first makes C larger; tsallis: (hi - r) / (hi - lo)."""
    if not barrier:
        if state[RANGED] == 0.0:
            state[RANGED] = 1.0
            state[HI] = reward
            state[LO] = reward
        state[HI] = max(state[HI], reward)
        state[LO] = min(state[LO], reward)
        if state[HI] == state[LO]:
            return 0.0
        return (state[HI] - reward) / (state[HI] - state[LO])
    size = abs(reward)
    if size > state[C]:
        if state[C] > 0.0:  # at the first loss all money is at x_0 and means the same in any unit
            k = state[C] / size
            state[V] *= k
            state[BORROWED] *= k
            state[S_ARRIVED] *= k * k
            total = 0.0
            for e in range(int(state[OUT])):
                entry = HEADER + n_arms * COLUMNS + e * (ENTRY + n_arms)
                state[entry + SIGMA] *= k
                total += state[entry + SIGMA]
            state[SIGMA_OUT] = total
        state[C] = size
    return float(-reward / state[C]) if state[C] > 0.0 else 0.0


@njit(cache=True, nogil=True)
def settle(state: Floats, n_arms: int, barrier: bool, e: int, answered: bool, reward: float) -> None:
    """Return entry e's money at its updated dual, y + e_A l / (p sigma), and forget the entry."""
    entry = HEADER + n_arms * COLUMNS + e * (ENTRY + n_arms)
    pool = state[HEADER + POOL : HEADER + n_arms * COLUMNS : COLUMNS]
    loss = loss_of(state, n_arms, barrier, reward) if answered else 0.0
    sigma = state[entry + SIGMA]
    total = state[V] + sigma
    if total > 0.0:  # 0: a loss so much larger came that all older money is worth nothing
        for i in range(n_arms):
            pool[i] = (state[V] * pool[i] + sigma * state[entry + ENTRY + i]) / total
        price = max(state[entry + P] * total, TINY)
        pool[int(state[entry + ARM])] += min(STEP_MAX, max(-STEP_MAX, loss / price))
        recentre(pool)
    state[V] = total
    state[S_ARRIVED] += (state[entry + OUT_THEN] + 1.0) * loss * loss
    state[S_OUT] -= state[entry + OUT_THEN] + 1.0
    state[OUT] -= 1.0
    state[SIGMA_OUT] = max(0.0, state[SIGMA_OUT] - sigma) if state[OUT] > 0.0 else 0.0
    last = HEADER + n_arms * COLUMNS + int(state[OUT]) * (ENTRY + n_arms)
    for i in range(ENTRY + n_arms):
        state[entry + i] = state[last + i]
        state[last + i] = 0.0


@njit(cache=True, nogil=True)
def expire(state: Floats, n_arms: int, barrier: bool, log_time_ms: int) -> None:
    """Settle, in the tail's order, every entry whose window the log's time has passed."""
    if state[OUT] == 0.0 or log_time_ms <= state[NEXT_EXPIRY]:
        return
    e = 0
    while e < int(state[OUT]):
        entry = HEADER + n_arms * COLUMNS + e * (ENTRY + n_arms)
        if log_time_ms > state[entry + EXPIRES]:
            settle(state, n_arms, barrier, e, state[entry + HAS_DEFAULT] == 1.0, state[entry + DEFAULT])
        else:
            if e == 0 or state[entry + EXPIRES] < state[NEXT_EXPIRY]:
                state[NEXT_EXPIRY] = state[entry + EXPIRES]
            e += 1


@njit(cache=True, nogil=True)
def learn_one(state: Floats, n_arms: int, barrier: bool, c: float, rho: float, room: int, op: Any) -> int:
    """One operation on one bank; UNFUNDED when the tail is full, or when no entry waits for this answer."""
    expire(state, n_arms, barrier, op.log_time_ms)
    tally(state, HEADER + op.arm * COLUMNS, op)
    if op.kind == PLAY:
        if state[OUT] >= room or not op.p > 0.0:
            return UNFUNDED
        play(state, n_arms, barrier, c, rho, op)
        return LEARNED
    stream = float(op.decision >> np.uint64(32))
    sequence = float(op.decision & np.uint64(0xFFFFFFFF))
    for e in range(int(state[OUT])):
        entry = HEADER + n_arms * COLUMNS + e * (ENTRY + n_arms)
        if state[entry + SEQUENCE] == sequence and state[entry + STREAM] == stream:
            settle(state, n_arms, barrier, e, True, op.new)
            return LEARNED
    return UNFUNDED


@njit(cache=True, nogil=True)
def learn_classic(
    states: Floats,
    n_arms: int,
    barrier: bool,
    c: float,
    rho: float,
    room: int,
    ops: Records,
    status: NDArray[np.uint8],
) -> None:
    """All operations in order; `states` has shape (banks, size)."""
    for i in range(ops.shape[0]):
        status[i] = learn_one(states[ops[i].bank], n_arms, barrier, c, rho, room, ops[i])
