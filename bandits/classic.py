"""The usual K-armed policies, for comparison and because users expect them. Same state, operations and reward contract.

How each treats rewards outside [0, 1] is said in its docstring; none of them breaks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bandits.arms import ANSWER, EXPLOIT, LEARNED, OWN, TAUGHT, Arms, Draw, Floats, Mask, Records, lesson, tally

SUCCESSES = OWN  # the column of ThompsonBeta


@njit(cache=True, nogil=True)
def learn_beta_one(state: Floats, op: Any) -> int:
    """Successes are rewards clipped to [0, 1]; a correction teaches the difference of the clipped ones."""
    row = op.arm * 4
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
    for i in range(ops.shape[0]):
        status[i] = learn_beta_one(states[ops[i].bank], ops[i])


class Sampler(Arms):
    """A Thompson policy: one sample an arm, the largest first. Every shown arm teaches."""

    learns_slate: ClassVar[bool] = True
    propensity: bool

    def _sample(self, state: Floats, rng: np.random.Generator) -> Floats:
        raise NotImplementedError

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
        if k and self.propensity and mode != EXPLOIT:
            propensities[0] = self.probabilities(state, may, now_ms)[slate[0]]
        return Draw(slate, scores[slate], propensities, 1.0, 0.0, 0.0, 0.0, True)


@dataclass(frozen=True)
class ThompsonBeta(Sampler):
    """Thompson sampling with a Beta(1, 1) prior; rewards are clipped to [0, 1], and a fraction counts as a part.

    propensity: compute the drawn arm's chance by quadrature at each draw (milliseconds; up to 64 arms), else NaN.
    """

    propensity: bool = False
    algorithm: ClassVar[str] = "thompson-beta"
    header: ClassVar[int] = 0
    columns: ClassVar[int] = OWN + 1

    def posterior(self, state: Floats) -> tuple[Floats, Floats]:
        """(alpha, beta) of each arm, shape (K,)."""
        rows = self.rows(state)
        return 1.0 + np.maximum(rows[:, SUCCESSES], 0.0), 1.0 + np.maximum(rows[:, TAUGHT] - rows[:, SUCCESSES], 0.0)

    def _sample(self, state: Floats, rng: np.random.Generator) -> Floats:
        return rng.beta(*self.posterior(state))

    def means(self, state: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of each arm's posterior, shape (K,)."""
        alpha, beta = self.posterior(state)
        n = alpha + beta
        return alpha / n, np.sqrt(alpha * beta / (n * n * (n + 1.0)))

    def _learn(self, states: Floats, n_arms: int, ops: Records, status: NDArray[np.uint8]) -> None:
        del n_arms
        learn_beta(states, ops, status)
