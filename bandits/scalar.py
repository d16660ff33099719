"""Scalar mathematics shared by the learner kernels and their slow twins.

A replay of the log must give the same bits. The logarithm, the exponential and the power are the only operations here
that IEEE 754 does not fix, so kernels and twins all call these compiled ones and none of them can disagree with itself.
"""

import math

from numba import njit


@njit(cache=True, nogil=True)
def log(x: float) -> float:
    """Natural logarithm of x > 0.

    >>> log(1.0)
    0.0
    """
    return math.log(x)


@njit(cache=True, nogil=True)
def exp(x: float) -> float:
    """e to the x.

    >>> exp(0.0)
    1.0
    """
    return math.exp(x)


@njit(cache=True, nogil=True)
def power(x: float, y: float) -> float:
    """x to the y, for x >= 0.

    >>> power(4.0, 1.5)
    8.0
    """
    return x**y
