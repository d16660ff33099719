"""One run of one policy against one world, compiled. It calls the same kernels that serve and that learn.

The loop of round t: choose from the state; log the decision; then log every answer whose delay ends now. So at delay d
the choice of round t knows the answers of the rounds before t - d. Under `on_arrival` there is no default: every answer
is sent, and a play teaches when it comes, as papers have it. Otherwise the default is 0 and learned at the decision, as
the server has it, and an answer of 0 is not sent, as a user who does not click sends nothing.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from bandits import adversarial, banker, banker_classic, classic
from bandits.arms import ANSWER, OWN, PLAY, ArmPolicy, Floats, Mask, Numbers, Records, operations, pick, share_best
from bandits.worlds import Delay, World

UNIFORM, RESERVE, LOG_BARRIER, TSALLIS, BETA, NORMAL, UCB, GREEDY, EXP3, FTRL = range(10)
POINTS = 200  # of a curve


@njit(cache=True, nogil=True)
def learn_op(code: int, state: Floats, n_arms: int, c: float, rho: float, room: int, op: Any) -> None:
    """The kernel `learn` runs for one operation."""
    if code == RESERVE:
        banker.learn_one(state, n_arms, c, op)
    elif code in (LOG_BARRIER, TSALLIS):
        banker_classic.learn_one(state, n_arms, code == LOG_BARRIER, c, rho, room, op)
    elif code == BETA:
        classic.learn_beta_one(state, op)
    elif code == NORMAL:
        classic.learn_normal_one(state, op)
    elif code == UCB:
        classic.learn_mean_one(state, 2, op)
    elif code == GREEDY:
        classic.learn_mean_one(state, 0, op)
    elif code == EXP3:
        adversarial.learn_loss(state, adversarial.EXP3_HEADER, op)
    elif code == FTRL:
        adversarial.learn_ftrl_one(state, op)


@njit(cache=True, nogil=True)
def weigh(code: int, state: Floats, c: float, rho: float, active: Mask, chances: Floats, scores: Floats) -> None:
    """The chances `draw` draws from, of the policies that have them."""
    if code == RESERVE:
        banker.weigh(state, active, chances)
    elif code in (LOG_BARRIER, TSALLIS):
        banker_classic.weigh(state, active, code == LOG_BARRIER, c, rho, chances)
    elif code == UCB:
        classic.score_ucb1(state, scores)
        share_best(scores, active, chances)
    elif code == GREEDY:
        classic.weigh_greedy(state, c, active, chances, scores)
    elif code == EXP3:
        adversarial.weigh_exp3(state, active, chances)
    elif code == FTRL:
        adversarial.weigh_ftrl(state, active, chances)
    else:
        for i in range(chances.shape[0]):
            chances[i] = 1.0 / chances.shape[0]


@njit(cache=True, nogil=True)
def choose(
    code: int, state: Floats, c: float, rho: float, rng: Any, active: Mask, chances: Floats, scores: Floats
) -> int:
    """One choice; `chances` are left for the snapshot."""
    n_arms = chances.shape[0]
    if code == BETA:
        best = -1.0
        arm = 0
        for i in range(n_arms):
            good = max(state[i * (OWN + 1) + classic.SUCCESSES], 0.0)
            bad = max(state[i * (OWN + 1) + 2] - state[i * (OWN + 1) + classic.SUCCESSES], 0.0)
            sample = rng.beta(1.0 + good, 1.0 + bad)
            if sample > best:
                best = sample
                arm = i
        return arm
    if code == NORMAL:
        classic.posterior_normal(state, scores, chances)
        if chances[0] > 0.0:
            for i in range(n_arms):
                scores[i] += chances[i] * rng.standard_normal()
        share_best(scores, active, chances)
    else:
        weigh(code, state, c, rho, active, chances, scores)
    return pick(chances, rng.random())


@njit(cache=True, nogil=True)
def simulate(
    code: int,
    state: Floats,
    c: float,
    rho: float,
    room: int,
    starts: Numbers,
    chances_of: Floats,
    scale: Floats,
    offset: float,
    order: Numbers,
    ends: Numbers,
    window: int,
    default: float,
    rng: Any,
    op: Records,
    plays: Floats,
    reward_of: Floats,
    arm_of: Numbers,
    active: Mask,
    chances: Floats,
    scores: Floats,
    curve: Floats,
) -> float:
    """Expected reward of one run of len(ends) rounds. Answer `order[j]` comes in round `ends[j]`, ascending.

    `plays` f64[T, 4] (p, w, a, c), `reward_of` f64[T] and `arm_of` i64[T] are scratch; `curve` f64[POINTS] receives the
    expected reward so far at even steps."""
    horizon = arm_of.shape[0]
    on_arrival = math.isnan(default)
    n_arms = chances.shape[0]
    total = 0.0
    phase = 0
    j = 0
    while j < order.shape[0] and ends[j] < 0:
        j += 1  # never
    point = 0
    for t in range(horizon):
        while phase + 1 < starts.shape[0] and starts[phase + 1] <= t:
            phase += 1
        arm = choose(code, state, c, rho, rng, active, chances, scores)
        arm_of[t] = arm
        p = chances[arm]
        squares = 0.0
        for i in range(n_arms):
            squares += chances[i] * chances[i]
        plays[t, 0] = p
        plays[t, 1] = max(0.0, 1.0 - p * p / squares)
        if code == RESERVE:
            plays[t, 2] = state[banker.HEADER + arm * banker.COLUMNS + banker.A]
            plays[t, 3] = state[banker.C]
        if code == BETA:
            plays[t, 0] = 1.0
        rate = chances_of[phase, arm]
        total += offset + scale[phase] * rate
        reward_of[t] = offset + (scale[phase] if rng.random() < rate else 0.0)
        write(op, PLAY, t, t, window, default, arm_of, plays, reward_of)
        learn_op(code, state, n_arms, c, rho, room, op[0])
        while j < order.shape[0] and ends[j] <= t:
            s = order[j]
            if (on_arrival or reward_of[s] != 0.0) and ends[j] - s <= window:
                write(op, ANSWER, s, t, window, default, arm_of, plays, reward_of)
                learn_op(code, state, n_arms, c, rho, room, op[0])
            j += 1
        while point < curve.shape[0] and (point + 1) * horizon <= (t + 1) * curve.shape[0]:
            curve[point] = total
            point += 1
    return total


@njit(cache=True, nogil=True)
def write(
    op: Records,
    kind: int,
    s: int,
    now: int,
    window: int,
    default: float,
    arm_of: Numbers,
    plays: Floats,
    reward_of: Floats,
) -> None:
    """The operation of round s's play or answer, logged in round `now`."""
    o = op[0]
    o.kind = kind
    o.decision = s
    o.arm = arm_of[s]
    o.time_ms = s
    o.window_ms = window
    o.log_time_ms = now
    o.p = plays[s, 0]
    o.w = plays[s, 1]
    o.a = plays[s, 2]
    o.c = plays[s, 3]
    o.default = default
    o.old = 0.0
    o.new = reward_of[s]
    o.first = 1 if kind == ANSWER and math.isnan(default) else 0


def code_of(policy: ArmPolicy | None) -> tuple[int, float, float, int]:
    """(code, c, rho, room) of a policy for the kernels here; None is the uniform choice."""
    if policy is None:
        return UNIFORM, 0.0, 0.0, 0
    if isinstance(policy, banker.Banker):
        code = RESERVE if not policy.classic else LOG_BARRIER if policy.regularizer == "log-barrier" else TSALLIS
        return code, policy.investment, policy.rho, policy.max_outstanding
    if isinstance(policy, classic.EpsilonGreedy):
        return GREEDY, policy.epsilon, 0.0, 0
    codes = {"thompson-beta": BETA, "thompson-normal": NORMAL, "ucb1": UCB, "exp3": EXP3, "ftrl": FTRL}
    return codes[policy.algorithm], 0.0, 0.0, 0


def run(
    policy: ArmPolicy | None,
    world: World,
    delay: Delay,
    horizon: int,
    rng: np.random.Generator,
    on_arrival: bool = False,
) -> Floats:
    """The curve of one run: expected reward after each of POINTS even steps of `horizon` rounds, shape (POINTS,).

    >>> from bandits import worlds
    >>> run(None, worlds.bernoulli(np.array([0.5, 0.5])), worlds.fixed(0), 1000, np.random.default_rng(0))[-1].item()
    500.0
    """
    n_arms = world.n_arms
    code, c, rho, room = code_of(policy)
    state = np.zeros(1) if policy is None else policy.empty(n_arms)
    rounds = np.arange(horizon, dtype=np.int64)
    delays = delay.sample(rng, horizon)
    ends = np.where(delays < 0, -1, rounds + delays)
    order = np.argsort(ends, kind="stable")
    curve = np.zeros(POINTS)
    simulate(
        code,
        state,
        c,
        rho,
        room,
        world.starts,
        world.chances,
        world.scale,
        world.offset,
        order,
        ends[order],
        delay.window,
        math.nan if on_arrival else 0.0,
        rng,
        operations(1),
        np.zeros((horizon, 4)),
        np.empty(horizon),
        np.empty(horizon, np.int64),
        np.ones(n_arms, np.bool_),
        np.full(n_arms, 1.0 / n_arms),  # a policy that has no chances leaves these
        np.empty(n_arms),
        curve,
    )
    assert math.isfinite(curve[-1])
    return curve
