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


def top_arms(replica: Replica, policy: Policy, segment: str, n: int, now_ms: int) -> tuple[list[Arm], int]:
    """(the n arms with the most plays, how many there are); none where the policy or the segment has none yet."""
    try:
        if not policy.spec.is_diag:
            page = arms_page(replica, policy.name, segment, len(policy.items), 0, now_ms)
            return sorted(page.arms, key=lambda arm: -arm.plays)[:n], page.total
        table = _diag_table(replica, policy)
    except errors.Problem:
        return [], 0
    totals = _totals(replica, policy)
    top = np.argsort(-totals[:, 0], kind="stable")[:n]
    return _diag_arms(table, totals, top), len(table.ids)


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
    table = _diag_table(replica, policy)
    n = len(table.ids)
    which = np.arange(offset, min(n, offset + limit))
    return Arms(policy.name, segment, n, _diag_arms(table, _totals(replica, policy), which))


def _diag_table(replica: Replica, policy: Policy) -> DiagTable:
    table = replica.tables.get(policy.number)
    if not isinstance(table, DiagTable):
        raise errors.no_graph(policy.name)
    return table


def _totals(replica: Replica, policy: Policy) -> NDArray[np.float64]:
    """(plays, sum of rewards) by item, f64[n, 2]."""
    return np.sum([shard.state[f"items/{policy.number}"] for shard in replica.shards], axis=0)


def _diag_arms(table: DiagTable, totals: NDArray[np.float64], which: NDArray[np.int64]) -> list[Arm]:
    """Means over all edges of an item, as if the user stood in all its clusters with equal weights summing to 1."""
    place = np.full(len(table.ids), -1, np.int64)
    place[which] = np.arange(len(which))
    at = place[table.arrays["items"]]
    mine = np.flatnonzero(at >= 0)
    at, pairs, n = at[mine], table.arrays["pairs"][mine].astype(np.float64), len(which)
    edges = np.maximum(np.bincount(at, minlength=n), 1)
    means = np.bincount(at, pairs[:, 0], n) / edges
    widths = np.sqrt(np.bincount(at, np.abs(pairs[:, 1]), n)) / edges
    paused = table.arrays["paused"]
    return [
        Arm(table.ids[i], float(mean), float(width), None, float(totals[i, 0]), float(totals[i, 1]), bool(paused[i]))
        for i, mean, width in zip(which.tolist(), means, widths, strict=True)
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
