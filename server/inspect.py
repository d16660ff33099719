"""What has been learned about each arm, read from the shards' tables as this host holds them."""

import numpy as np
from numpy.typing import NDArray

from bandits.arms import PLAYS, REWARDS
from server import errors
from server.replica import Replica
from server.schemas import Arm, Arms
from server.tables import DiagTable
from streaming.control import Policy
from streaming.shards import shard_of_bank
from streaming.token import segment_key


def arms_page(replica: Replica, name: str, segment: str, limit: int, offset: int, now_ms: int) -> Arms:
    """A page of a policy's arms; 404 for a policy or a segment that is not there, 409 before the first graph."""
    policy = replica.policy(name)
    if policy is None:
        raise errors.unknown_policy(name)
    if policy.spec.is_diag:
        return _diag(replica, policy, segment, limit, offset)
    key = segment_key(segment)
    state = replica.shards[shard_of_bank(policy.number, key, len(replica.shards))].state
    keys = state[f"bank_keys/{policy.number}"][:, 0]
    rows = np.flatnonzero(keys == np.uint64(key))
    if len(rows) == 0:
        if segment != "all":
            detail = f"Policy {name!r} has no bank for segment {errors.shown(segment)} of its own."
            raise errors.Problem(404, "Unknown segment", detail, "segment")
        bank = policy.spec.arm_policy().empty(len(policy.items))  # nobody has asked yet
    else:
        bank = np.asarray(state[f"banks/{policy.number}"][rows[0]], np.float64)
    return _arms(policy, bank, segment, limit, offset, now_ms)


def _arms(policy: Policy, bank: NDArray[np.float64], segment: str, limit: int, offset: int, now_ms: int) -> Arms:
    kind = policy.spec.arm_policy()
    active = np.array([not item.removed for item in policy.items])
    unpaused = active & np.array([not item.paused for item in policy.items])
    chances = kind.probabilities(bank, unpaused, now_ms)
    means, widths = kind.means(bank)
    width = kind.columns
    rows = bank[kind.header : kind.header + width * len(active)].reshape(len(active), width)
    live = np.flatnonzero(active)
    arms = [
        Arm(
            policy.items[i].id, _number(means[i]), _number(widths[i]), _number(chances[i]),
            float(rows[i, PLAYS]), float(rows[i, REWARDS]), policy.items[i].paused,
        )
        for i in live[offset : offset + limit]
    ]  # fmt: skip
    return Arms(policy.name, segment, len(live), arms)


def _diag(replica: Replica, policy: Policy, segment: str, limit: int, offset: int) -> Arms:
    """Means over all edges of an item, as if the user stood in all its clusters with equal weights summing to 1."""
    table = replica.tables.get(policy.number)
    if not isinstance(table, DiagTable):
        raise errors.no_graph(policy.name)
    items, pairs = table.arrays["items"], table.arrays["pairs"].astype(np.float64)
    n = len(table.ids)
    edges = np.maximum(np.bincount(items, minlength=n), 1)
    means = np.bincount(items, pairs[:, 0], n) / edges
    widths = np.sqrt(np.bincount(items, np.abs(pairs[:, 1]), n)) / edges
    totals = sum(shard.state[f"items/{policy.number}"] for shard in replica.shards)
    assert isinstance(totals, np.ndarray)
    arms = [
        Arm(
            table.ids[i], float(means[i]), float(widths[i]), None,
            float(totals[i, 0]), float(totals[i, 1]), bool(table.arrays["paused"][i]),
        )
        for i in range(offset, min(n, offset + limit))
    ]  # fmt: skip
    return Arms(policy.name, segment, n, arms)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
