"""Plays per item, looked at every few seconds: how many there were, and how many were of items still new."""

import numpy as np
from numpy.typing import NDArray

from bandits.arms import PLAYS
from server.replica import Replica
from streaming.control import Policy

FRESH_PLAYS = 100
"""An item with fewer plays is fresh."""
Floats = NDArray[np.float64]


def plays_of(replica: Replica, policy: Policy) -> tuple[NDArray[np.int64], Floats]:
    """(item numbers i64[n], plays f64[n]) of a policy's items, in the order of its tables; summed over shards."""
    states = [shard.state for shard in replica.shards]
    if policy.spec.is_diag:
        name = f"items/{policy.number}"
        tables = [state[name] for state in states if name in state]
        if not tables:
            return np.zeros(0, np.int64), np.zeros(0)
        numbers = replica.shards[0].state[f"numbers/{policy.number}"][:, 0].astype(np.int64)
        return numbers, np.sum([table[:, 0] for table in tables], axis=0)
    kind, n = policy.spec.arm_policy(), len(policy.items)
    banks = np.concatenate([state[f"banks/{policy.number}"] for state in states])
    rows = banks[:, kind.header : kind.header + kind.columns * n].reshape(len(banks), n, kind.columns)
    plays: Floats = rows[:, :, PLAYS].sum(axis=0)
    return np.array([item.number for item in policy.items], np.int64), plays


class Plays:
    """Counts from one look to the next; what was there at the first look is not counted."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[NDArray[np.int64], Floats]] = {}
        self._counts: dict[int, tuple[float, float]] = {}

    def counts(self, policy: int) -> tuple[float, float]:
        """(plays, those of fresh items) of a policy, by number, since the first look."""
        return self._counts.get(policy, (0.0, 0.0))

    def look(self, replica: Replica) -> None:
        """Counts what was played since the last look. The replica holds still meanwhile."""
        policies = [policy for _, policy in replica.whole()]
        for policy in policies:
            numbers, plays = plays_of(replica, policy)
            if policy.number in self._before:
                self._add(policy.number, numbers, plays)
            self._before[policy.number] = numbers, plays
        for gone in self._before.keys() - {entry.number for entry in replica.catalog.entries}:
            del self._before[gone]
            self._counts.pop(gone, None)

    def _add(self, policy: int, numbers: NDArray[np.int64], plays: Floats) -> None:
        old_numbers, old = self._before[policy]
        then = old
        if not np.array_equal(numbers, old_numbers):  # another graph, or an arm more
            then = np.zeros(len(plays))
            _, here, there = np.intersect1d(numbers, old_numbers, assume_unique=True, return_indices=True)
            then[here] = old[there]
        more = np.maximum(plays - then, 0.0)  # a restore takes plays back
        counted, fresh = self.counts(policy)
        self._counts[policy] = counted + float(more.sum()), fresh + float(more[then < FRESH_PLAYS].sum())
