"""The usual K-armed policies, for comparison and because users expect them. Same state, operations and reward contract.

How each treats rewards outside [0, 1] is said in its docstring; none of them breaks. Those that weigh losses by their
propensity, Exp3 and DelayedFTRL, are in `bandits.adversarial`.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits import quadrature
from bandits.arms import (
    ANSWER,
    EXPLOIT,
    LEARNED,
    OWN,
    REWARDS,
    TAUGHT,
    Arms,
    Draw,
    Floats,
    Mask,
    ParameterError,
    Records,
    lesson,
    number,
    share_best,
    tally,
)
from bandits.scalar import log

SUCCESSES = OWN  # the column of ThompsonBeta
SCALE, SQUARES = 0, 1  # header of ThompsonNormal
UNTAUGHT = 1e308  # the score of an arm nothing is known of: above every mean, and still a number in JSON
HI, LO = 0, 1  # header of UCB1: the rewards seen beyond [0, 1], as excess above 1 and below 0


@njit(cache=True, nogil=True)
def learn_beta_one(state: Floats, op: Any) -> int:
    """Successes are rewards clipped to [0, 1]; a correction teaches the difference of the clipped ones."""
    row = op.arm * (OWN + 1)
    tally(state, row, op)
    first, old, new = lesson(op)
    if op.kind == ANSWER or first:
        gain = min(1.0, max(0.0, new))
        if not first:
            gain -= min(1.0, max(0.0, old))
        state[row + SUCCESSES] += gain
    return LEARNED


@njit(cache=True, nogil=True)
def learn_beta(states: Floats, ops: Records, status: NDArray[np.uint8]) -> None:
    """All operations in order; `states` has shape (banks, size). So have the batches below."""
    for i in range(ops.shape[0]):
        status[i] = learn_beta_one(states[ops[i].bank], ops[i])


@njit(cache=True, nogil=True)
def learn_normal_one(state: Floats, op: Any) -> int:
    """SQUARES is the sum of (r / SCALE)^2; SCALE is a power of two, so a larger one rescales without rounding."""
    tally(state, 2 + op.arm * OWN, op)
    first, old, new = lesson(op)
    if op.kind == ANSWER or first:
        size = abs(new)
        if size > state[SCALE]:
            scale = math.ldexp(1.0, math.frexp(size)[1])
            ratio = state[SCALE] / scale
            state[SQUARES] *= ratio * ratio
            state[SCALE] = scale
        if state[SCALE] > 0.0:
            state[SQUARES] += (new / state[SCALE]) ** 2
            if not first:
                state[SQUARES] -= (old / state[SCALE]) ** 2
    return LEARNED


@njit(cache=True, nogil=True)
def learn_normal(states: Floats, ops: Records, status: NDArray[np.uint8]) -> None:
    for i in range(ops.shape[0]):
        status[i] = learn_normal_one(states[ops[i].bank], ops[i])


@njit(cache=True, nogil=True)
def posterior_normal(state: Floats, mean: Floats, sd: Floats) -> None:
    """N((sum + m) / (n + 1), s^2 / (n + 1)): one play at the bank's mean m as the prior, s^2 pooled within arms."""
    n_arms = mean.shape[0]
    scale = state[SCALE]
    total = 0.0
    n = 0.0
    within = state[SQUARES]
    seen = 0.0
    for i in range(n_arms):
        taught = state[2 + i * OWN + TAUGHT]
        if taught > 0.0 and scale > 0.0:
            reward = state[2 + i * OWN + REWARDS] / scale
            within -= reward * reward / taught
            total += reward
            n += taught
            seen += 1.0
    prior = total / n if n > 0.0 else 0.0
    variance = max(0.0, within) / max(1.0, n - seen)
    for i in range(n_arms):
        taught = state[2 + i * OWN + TAUGHT] + 1.0
        reward = state[2 + i * OWN + REWARDS] / scale if scale > 0.0 else 0.0
        mean[i] = (reward + prior) / taught * scale
        sd[i] = math.sqrt(variance / taught) * scale


@njit(cache=True, nogil=True)
def learn_mean_one(state: Floats, header: int, op: Any) -> int:
    """UCB1 (header 2) also keeps the excess of rewards above 1 and below 0; epsilon-greedy keeps nothing more."""
    tally(state, header + op.arm * OWN, op)
    if header > 0:
        first, _, new = lesson(op)
        if op.kind == ANSWER or first:
            state[HI] = max(state[HI], new - 1.0)
            state[LO] = min(state[LO], new)
    return LEARNED


@njit(cache=True, nogil=True)
def learn_mean(states: Floats, header: int, ops: Records, status: NDArray[np.uint8]) -> None:
    for i in range(ops.shape[0]):
        status[i] = learn_mean_one(states[ops[i].bank], header, ops[i])


@njit(cache=True, nogil=True)
def score_ucb1(state: Floats, scores: Floats) -> None:
    """mean_i + range sqrt(2 ln N / n_i); an untaught arm comes before all others."""
    n_arms = scores.shape[0]
    total = 0.0
    for i in range(n_arms):
        total += state[2 + i * OWN + TAUGHT]
    span = 1.0 + state[HI] - state[LO]
    for i in range(n_arms):
        taught = state[2 + i * OWN + TAUGHT]
        if taught > 0.0:
            scores[i] = state[2 + i * OWN + REWARDS] / taught + span * math.sqrt(2.0 * log(total) / taught)
        else:
            scores[i] = UNTAUGHT


@njit(cache=True, nogil=True)
def weigh_greedy(state: Floats, epsilon: float, active: Mask, chances: Floats, scores: Floats) -> None:
    """epsilon / n + (1 - epsilon) shared by the best means; an untaught arm counts as the best."""
    n_arms = scores.shape[0]
    n = 0
    for i in range(n_arms):
        taught = state[i * OWN + TAUGHT]
        scores[i] = state[i * OWN + REWARDS] / taught if taught > 0.0 else UNTAUGHT
        n += active[i]
    share_best(scores, active, chances)
    for i in range(n_arms):
        if active[i]:
            chances[i] = epsilon / n + (1.0 - epsilon) * chances[i]


class Sampler(Arms):
    """A Thompson policy: one sample an arm, the largest first. Every shown arm teaches.

    The drawn arm's propensity has no closed form. `probabilities` integrates it (up to 64 arms, else NaN); a draw gives
    NaN unless the policy was made with `propensity`, since the integral takes a millisecond or more.
    """

    learns_slate: ClassVar[bool] = True
    propensity: bool

    def __post_init__(self) -> None:
        if not isinstance(self.propensity, bool):
            raise ParameterError("propensity", f"must be true or false, not {self.propensity!r}")

    def _sample(self, state: Floats, rng: np.random.Generator) -> Floats:
        raise NotImplementedError

    def _best(self, state: Floats, arms: NDArray[np.int64]) -> Floats:
        """The chance of each of `arms` to have the largest sample among them."""
        raise NotImplementedError

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        arms = np.flatnonzero(active)
        chances[:] = 0.0
        chances[arms] = self._best(state, arms) if len(arms) <= quadrature.ARMS_MAX else np.nan
        scores[:] = self.means(state)[0]

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
        may = active if allowed is None else active & allowed
        k = min(k, int(may.sum()))
        scores = self.means(state)[0] if mode == EXPLOIT else self._sample(state, rng)
        # Equal scores are common before anything is learned; a random order keeps the first arm from having them all.
        order = rng.permutation(np.flatnonzero(may))
        slate = order[np.argsort(-scores[order], kind="stable")[:k]]
        propensities = np.full(k, np.nan)
        if k and mode == EXPLOIT:
            propensities[0] = 1.0 / np.count_nonzero(scores[order] == scores[slate[0]])
        elif k and self.propensity:
            propensities[0] = self.probabilities(state, may, now_ms)[slate[0]]
        return Draw(slate, scores[slate], propensities, 1.0 if k else 0.0, 0.0, 0.0, 0.0, k > 0)


@dataclass(frozen=True)
class ThompsonBeta(Sampler):
    """Thompson sampling with a Beta(1, 1) prior; rewards are clipped to [0, 1], and a fraction counts as a part.

    propensity: give the drawn arm's exact chance at each draw (see Sampler), else NaN.

    >>> policy = ThompsonBeta()
    >>> policy.means(policy.empty(2))[0].tolist()
    [0.5, 0.5]
    """

    propensity: bool = False

    algorithm: ClassVar[str] = "thompson-beta"
    header: ClassVar[int] = 0
    columns: ClassVar[int] = OWN + 1

    def posterior(self, state: Floats) -> tuple[Floats, Floats]:
        """(alpha, beta) of each arm, shape (K,)."""
        rows = self.rows(state)
        successes, taught = rows[:, SUCCESSES], rows[:, TAUGHT]
        return 1.0 + np.maximum(successes, 0.0), 1.0 + np.maximum(taught - successes, 0.0)

    def _sample(self, state: Floats, rng: np.random.Generator) -> Floats:
        return rng.beta(*self.posterior(state))

    def _best(self, state: Floats, arms: NDArray[np.int64]) -> Floats:
        alpha, beta = self.posterior(state)
        return quadrature.best_of_betas(alpha[arms], beta[arms])

    def means(self, state: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of each arm's posterior, shape (K,)."""
        alpha, beta = self.posterior(state)
        n = alpha + beta
        return alpha / n, np.sqrt(alpha * beta / (n * n * (n + 1.0)))

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_beta(states, ops, status)


@dataclass(frozen=True)
class ThompsonNormal(Sampler):
    """Thompson sampling with a normal posterior; rewards of any size and sign.

    The prior of an arm is one play at the bank's mean; the variance is the bank's, pooled within arms. While every
    reward was equal there is no variance, and the arms are drawn evenly. propensity: as for ThompsonBeta.
    """

    propensity: bool = False

    algorithm: ClassVar[str] = "thompson-normal"
    header: ClassVar[int] = 2
    columns: ClassVar[int] = OWN

    def means(self, state: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of each arm's posterior, shape (K,), in units of reward."""
        mean, sd = np.empty((2, self.arms(state)))
        posterior_normal(state, mean, sd)
        return mean, sd

    def _sample(self, state: Floats, rng: np.random.Generator) -> Floats:
        mean, sd = self.means(state)
        return mean + sd * rng.standard_normal(len(mean))

    def _best(self, state: Floats, arms: NDArray[np.int64]) -> Floats:
        mean, sd = self.means(state)
        mean, sd = mean[arms], sd[arms]
        if not (sd > 0).all():
            chances = np.empty(len(arms))
            share_best(mean, np.ones(len(arms), np.bool_), chances)
            return chances
        scale = sd.max()
        return quadrature.best_of_normals((mean - mean.max()) / scale, sd / scale)

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_normal(states, ops, status)


@dataclass(frozen=True)
class UCB1(Arms):
    """UCB1 (Auer, Cesa-Bianchi, Fischer, 2002): mean + range * sqrt(2 ln N / n), ties at random.

    The range is 1 for rewards within [0, 1], and grows to hold every reward seen outside it.
    """

    algorithm: ClassVar[str] = "ucb1"
    header: ClassVar[int] = 2
    columns: ClassVar[int] = OWN
    learns_slate: ClassVar[bool] = True

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        score_ucb1(state, scores)
        share_best(scores, active, chances)

    def _scale(self, state: Floats) -> float:
        return float(1.0 + state[HI] - state[LO])

    def _greedy(self, state: Floats, scores: Floats) -> Floats:
        del scores
        return self.means(state)[0]

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_mean(states, self.header, ops, status)


@dataclass(frozen=True)
class EpsilonGreedy(Arms):
    """The best mean, and any arm with chance epsilon; untaught arms first. Only the order of the means matters, so
    rewards may have any size and sign."""

    epsilon: float = 0.1

    algorithm: ClassVar[str] = "epsilon-greedy"
    header: ClassVar[int] = 0
    columns: ClassVar[int] = OWN
    learns_slate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, 0, 1)

    def _weigh(self, state: Floats, active: Mask, chances: Floats, scores: Floats) -> None:
        weigh_greedy(state, float(self.epsilon), active, chances, scores)

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_mean(states, self.header, ops, status)
