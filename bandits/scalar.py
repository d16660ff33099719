"""Scalar mathematics shared by the learner kernels and their slow twins.

A replay of the log must give the same bits. Logarithm, exponential and power of two are the only operations the
learners use that IEEE 754 does not fix (a power of 3/2 is x sqrt x), so kernels and twins all call these compiled ones.
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
def exp2(x: float) -> float:
    """2 to the x.

    >>> exp2(-1.0)
    0.5
    """
    return float(2.0**x)
