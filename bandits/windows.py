"""Decisions by window: a ring of buckets inside a bank's header, closed by the log's time.

    state[ring]              when the first bucket closes, ms (0: no bucket is open)
    state[ring + 1 + 3 j]    when bucket j closes, ms (0: empty);  + 1: decisions in it;  + 2: sum of their rewards

A bucket spans 1/32 of the window in decision time and closes when the window of its last decision has. At most 34 are
open at once while the window stays the same. After a change two may share a slot, which then closes with the later one;
so may decisions that come to the log only after their window, and those of 34 buckets later.
"""

from numba import njit

from bandits.arms import Floats

BUCKETS = 32  # per window
SLOTS = BUCKETS + 2
RING = 1 + 3 * SLOTS  # floats


@njit(cache=True, nogil=True)
def _find_first(state: Floats, ring: int) -> None:
    first = 0.0
    for j in range(SLOTS):
        at = state[ring + 1 + 3 * j]
        if at > 0.0 and (first == 0.0 or at < first):
            first = at
    state[ring] = first


@njit(cache=True, nogil=True)
def due(state: Floats, ring: int, log_time_ms: int) -> int:
    """Position of the earliest bucket that closes by `log_time_ms`, or -1. The caller reads it, then calls `close`."""
    if state[ring] == 0.0 or state[ring] > log_time_ms:
        return -1
    for j in range(SLOTS):
        if state[ring + 1 + 3 * j] == state[ring]:
            return ring + 1 + 3 * j
    return -1


@njit(cache=True, nogil=True)
def close(state: Floats, ring: int, bucket: int) -> None:
    """Empty the bucket at `bucket` and find which closes next."""
    state[bucket] = 0.0
    state[bucket + 1] = 0.0
    state[bucket + 2] = 0.0
    _find_first(state, ring)


@njit(cache=True, nogil=True)
def add(state: Floats, ring: int, time_ms: int, window_ms: int, count: float, reward: float) -> None:
    """Add `count` decisions and `reward` to the bucket of a decision made at `time_ms`."""
    width = max(1, (window_ms + BUCKETS - 1) // BUCKETS)
    number = time_ms // width
    closes = float((number + 1) * width + window_ms)
    bucket = ring + 1 + 3 * (number % SLOTS)
    if closes > state[bucket]:
        state[bucket] = closes
        _find_first(state, ring)
    state[bucket + 1] += count
    state[bucket + 2] += reward
