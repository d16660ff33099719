"""The chance that one of several independent samples is the largest: P(i) = integral of f_i prod_{j != i} F_j.

scipy.special is imported where it is needed: it takes longer to load than a server to make its first decision.
"""

from typing import Any

import numpy as np

from bandits.arms import Floats

ARMS_MAX = 64  # beyond it the integral takes too long to be asked for while serving
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
SPREADS = np.array([-8.0, -6.0, -4.5, -3.25, -2.25, -1.5, -0.75, 0.0, 0.75, 1.5, 2.25, 3.25, 4.5, 6.0, 8.0])


def _points(mean: Floats, sd: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Nodes and weights of Gauss-Legendre panels that follow every density where the largest sample can be."""
    knots = (mean[:, None] + sd[:, None] * SPREADS).ravel()
    start = max(low, float((mean - 8.0 * sd).max()))
    end = min(high, float((mean + 8.0 * sd).max()))
    knots = np.unique(np.concatenate([knots[(knots > start) & (knots < end)], [start, end]]))
    half = np.diff(knots)[:, None] / 2.0
    middle = (knots[:-1] + knots[1:])[:, None] / 2.0
    return (middle + half * NODES).ravel(), (half * WEIGHTS).ravel()


def _integrate(density: Any, cumulative: Any, weights: Floats) -> Floats:
    """P from f and F at the nodes, both of shape (K, nodes); products leave one arm out by prefix and suffix."""
    n_arms = len(density)
    before, after = np.ones_like(cumulative), np.ones_like(cumulative)
    np.cumprod(cumulative[:-1], axis=0, out=before[1:])
    after[:-1] = np.cumprod(cumulative[:0:-1], axis=0)[::-1]
    chances = (density * before * after) @ weights
    assert len(chances) == n_arms
    result: Floats = chances / chances.sum()
    return result


def best_of_betas(alpha: Floats, beta: Floats) -> Floats:
    """The chance of each Beta(alpha_i, beta_i) to be the largest, shape (K,); alpha, beta >= 1.

    >>> best_of_betas(np.array([1.0, 2.0]), np.array([1.0, 1.0])).round(6).tolist()
    [0.333333, 0.666667]
    """
    from scipy import special

    n = alpha + beta
    mean = alpha / n
    x, weights = _points(mean, np.sqrt(alpha * beta / (n * n * (n + 1.0))), 0.0, 1.0)
    a, b = alpha[:, None], beta[:, None]
    density = np.exp((a - 1.0) * np.log(x) + (b - 1.0) * np.log1p(-x) - special.betaln(a, b))
    return _integrate(density, special.betainc(a, b, x), weights)


def best_of_normals(mean: Floats, sd: Floats) -> Floats:
    """The chance of each N(mean_i, sd_i^2) to be the largest, shape (K,); sd > 0.

    >>> best_of_normals(np.zeros(2), np.ones(2)).round(6).tolist()
    [0.5, 0.5]
    """
    from scipy import special

    x, weights = _points(mean, sd, -np.inf, np.inf)
    z = (x - mean[:, None]) / sd[:, None]
    density = np.exp(-0.5 * z * z) / (np.sqrt(2.0 * np.pi) * sd[:, None])
    return _integrate(density, special.ndtr(z), weights)
