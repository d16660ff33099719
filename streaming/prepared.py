"""What a shard needs of each policy beside the tables to learn; made from control, graphs and tables alone."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import arms as arm_policies
from bandits.graph import Graph, ItemEdges, by_item
from streaming import contract
from streaming.control import Policy
from streaming.shards import segments_of_shard, shards_of_items
from streaming.state import State
from streaming.token import ARMS, DIAG

Blobs = Callable[[str], bytes]
"""Fetches bulk by its hash: content, so no outside influence."""


class Here(NamedTuple):
    """A shard: its number, how many there are, its tables, and where bulk comes from."""

    number: int
    shards: int
    state: State
    blobs: Blobs


class Diag(NamedTuple):
    """A Diag-LinUCB policy in this shard: `index_of` by item number, its edges, and its half-life in ms (0: none).

    `touched` is scratch of the learning kernel, all zero between batches.
    """

    policy: Policy
    index_of: NDArray[np.int32]
    edges: ItemEdges
    half_life_ms: float
    touched: NDArray[np.uint8]


class Arms(NamedTuple):
    """A K-armed policy in this shard; `rows` finds a bank's row by its key."""

    policy: Policy
    index_of: NDArray[np.int32]
    learner: arm_policies.ArmPolicy
    rows: dict[int, int]
    rows_max: int


Prepared = Diag | Arms


def prepare(here: Here, policy: Policy) -> Prepared | None:
    """The policy as this shard learns it; None for a Diag-LinUCB policy that has no graph yet."""
    number = policy.number
    if not policy.spec.is_diag:
        index_of = np.full(policy.next_item, -1, np.int32)
        for index, item in enumerate(policy.items):
            if not item.removed:
                index_of[item.number] = index
        keys = here.state[f"bank_keys/{number}"][:, 0]
        rows_max = 1 + segments_of_shard(policy.spec.max_segments, here.shards)
        rows = {int(key): row for row, key in enumerate(keys)}
        return Arms(policy, index_of, policy.spec.arm_policy(), rows, rows_max)
    if policy.graph is None:
        return None
    graph = Graph.from_bytes(here.blobs(policy.graph.blob))
    numbers = here.state[f"numbers/{number}"][:, 0]
    mine = shards_of_items(number, range(policy.next_item), here.shards) == here.number
    member = mine[numbers]
    index_of = np.where(mine, -1, -2).astype(np.int32)
    index_of[numbers[member]] = np.flatnonzero(member)
    half_life = policy.spec.diag().half_life_s
    edges = by_item(graph, member)._replace(serving=np.empty(0, np.uint32))  # the replica's business: 4 bytes an edge
    touched = np.zeros(len(edges.clusters), np.uint8)
    return Diag(policy, index_of, edges, 1000.0 * (half_life or 0.0), touched)


def contract_policies(chosen: list[Prepared]) -> contract.Policies:
    """The policies, which are sorted by number, as the contract's kernel sees them."""
    sizes = np.array([len(each.index_of) for each in chosen], np.int64)
    return contract.Policies(
        np.array([each.policy.number for each in chosen], np.uint32),
        np.array([DIAG if isinstance(each, Diag) else ARMS for each in chosen], np.uint8),
        np.array([_lineage(each.policy) for each in chosen], np.uint32),
        np.array([isinstance(each, Diag) or each.learner.learns_slate for each in chosen], np.uint8),
        np.array([each.policy.spec.reward.min for each in chosen], np.float64),
        np.array([each.policy.spec.reward.max for each in chosen], np.float64),
        np.cumsum(sizes) - sizes,
        sizes,
        _concatenated(each.index_of for each in chosen),
    )


def _lineage(policy: Policy) -> int:
    return policy.graph.lineage if policy.graph is not None else 0


def _concatenated(arrays: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *arrays])
