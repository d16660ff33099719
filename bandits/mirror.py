"""From a dual vector to the point of the simplex: safe Newton solvers, and the recentring of duals.

Both start at u = 1, where the sum is at least its target, and u only grows: convergence is monotone, nothing is ever
divided by zero, and at most 8 steps are needed at 10,000 arms.
"""

import math

from numba import njit

from bandits.arms import Floats

FAR = 1e12  # a dual this far above the least has no chance that a double could tell from zero
STEPS = 60


@njit(cache=True, nogil=True)
def least(y: Floats) -> float:
    """The smallest of y, which is not empty."""
    low = y[0]
    for i in range(1, y.shape[0]):
        low = min(low, y[i])
    return float(low)


@njit(cache=True, nogil=True)
def log_barrier(y: Floats, factor: float, x: Floats) -> None:
    """x_i = 1 / (d_i + u), sum x = 1, with d = factor * (y - min y): the point whose dual is y * factor.

        Psi(x) = -sum ln x_i;    u' = u + (s - 1) s / sum v^2,   v_i = 1 / (d_i + u),   s = sum v

    >>> import numpy as np
    >>> x = np.empty(2)
    >>> log_barrier(np.array([0.0, 1.5]), 1.0, x)
    >>> x.round(6).tolist()
    [0.666667, 0.333333]
    """
    n = y.shape[0]
    low = least(y)
    u = 1.0
    s = 1.0
    for _ in range(STEPS):
        s = 0.0
        squares = 0.0
        for i in range(n):
            v = 1.0 / (min((y[i] - low) * factor, FAR) + u)
            x[i] = v
            s += v
            squares += v * v
        step = u + (s - 1.0) * s / squares
        if not step > u:
            break
        u = step
    for i in range(n):
        x[i] /= s


@njit(cache=True, nogil=True)
def tsallis(y: Floats, factor: float, x: Floats) -> None:
    """x_i = 1 / (d_i + u)^2, sum x = 1, with d = factor * (y - min y).

    Psi(x) = -2 sum sqrt x_i;    u' = u + (s^1.5 - s) / sum v^3,   v_i = 1 / (d_i + u),   s = sum v^2
    """
    n = y.shape[0]
    low = least(y)
    u = 1.0
    s = 1.0
    for _ in range(STEPS):
        s = 0.0
        cubes = 0.0
        for i in range(n):
            v = 1.0 / (min((y[i] - low) * factor, FAR) + u)
            x[i] = v * v
            s += v * v
            cubes += v * v * v
        step = u + (s * math.sqrt(s) - s) / cubes
        if not step > u:
            break
        u = step
    for i in range(n):
        x[i] /= s


@njit(cache=True, nogil=True)
def recentre(y: Floats) -> None:
    """Bring the least dual to zero: the simplex absorbs a constant, and small numbers keep their digits."""
    low = least(y)
    if low != 0.0:
        for i in range(y.shape[0]):
            y[i] -= low
