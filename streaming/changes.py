"""What a control record does to a shard's tables, beside the table of control itself.

policy made       outcomes/, shown/, delays/, and decay/ or the shared bank
policy removed    its outcomes go to those of 0
arm added         every bank's row grows
graph replaced    numbers/, edges/, items/ anew, with what the same edges and items have learned
restored          edges/, items/, decay/, or banks/ as a snapshot's blob has them (`streaming.restore`)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.graph import Graph, ItemEdges, by_item
from streaming import contract
from streaming.control import Policy
from streaming.prepared import Here
from streaming.shards import shards_of_items
from streaming.token import MODES

NAME = "S64"
"""The dtype of a bank's name."""


def remove(here: Here, number: int) -> None:
    """Drops a policy's tables; its outcomes are added to those of what exists no longer."""
    state = here.state
    outcomes = state[f"outcomes/{number}"].copy()
    state["outcomes/0"][:] += outcomes
    state.changed("outcomes/0", np.zeros(1, np.int64))
    for name in [name for name in state.tables if name.endswith(f"/{number}")]:
        if not name.startswith("answered/"):
            state.drop(name)


def change(here: Here, policy: Policy, before: Policy | None, log_time_ms: int) -> None:
    """Makes the tables of a new policy, or gives a changed one those of its new shape."""
    number, state = policy.number, here.state
    if before is None:
        state.write(f"outcomes/{number}", np.zeros((1, len(contract.COLUMNS)), np.int64))
        state.write(f"shown/{number}", np.zeros((len(MODES), len(contract.SHOWN))))
        state.write(f"delays/{number}", np.zeros((1, len(contract.DELAY_S) + 2), np.int64))
    if policy.spec.is_diag:
        if before is None:
            state.write(f"decay/{number}", np.array([[log_time_ms, 0]], np.int64))
        if policy.graph is not None and (before is None or before.graph != policy.graph):
            _take_graph(here, policy, before)
        return
    k = len(policy.items)
    learner = policy.spec.arm_policy()
    if before is None:
        state.write(f"banks/{number}", learner.empty(k).reshape(1, -1))
        state.write(f"bank_keys/{number}", np.zeros((1, 1), np.uint64))
        state.write(f"bank_names/{number}", np.zeros((1, 1), NAME))
    elif k > len(before.items):
        state.write(f"banks/{number}", np.stack([learner.grow(row, k) for row in state[f"banks/{number}"]]))


def _take_graph(here: Here, policy: Policy, before: Policy | None) -> None:
    """Numbers the new graph's items and carries over what the same edges have learned, if the clusters are kept."""
    assert policy.graph is not None
    number, state = policy.number, here.state
    graph = Graph.from_bytes(here.blobs(policy.graph.blob))
    old, old_graph = None, None
    numbers: dict[str, int] = {}
    if before is not None and before.graph is not None:
        old_graph = Graph.from_bytes(here.blobs(before.graph.blob))
        old = Learned(state[f"numbers/{number}"][:, 0].copy(), state[f"edges/{number}"], state[f"items/{number}"])
        numbers = dict(zip(old_graph.ids, old.numbers.tolist(), strict=True))
    first = policy.next_item
    fresh = [item_id for item_id in graph.ids if item_id not in numbers]
    numbers.update(zip(fresh, range(first, first + len(fresh)), strict=True))
    policy.next_item = first + len(fresh)
    table = np.array([numbers[item_id] for item_id in graph.ids], np.uint32)
    new = Learned.empty(table, edges_here(graph, number, table, here.number, here.shards))
    if old is not None and old_graph is not None and before is not None and before.graph is not None:
        kept = before.graph.lineage == policy.graph.lineage
        carry_over(number, here.number, here.shards, old, old_graph, new, graph, edges=kept)
    state.write(f"numbers/{number}", table)
    state.write(f"edges/{number}", new.edges)
    state.write(f"items/{number}", new.items)


class Learned(NamedTuple):
    """What a shard has learned on a graph: item numbers u32[N], edges (b, d) [E, 2], items (plays, rewards) [N, 2]."""

    numbers: NDArray[np.uint32]
    edges: NDArray[np.float64]
    items: NDArray[np.float64]

    @classmethod
    def empty(cls, numbers: NDArray[np.uint32], edges: ItemEdges) -> "Learned":
        return cls(numbers, np.zeros((len(edges.clusters), 2)), np.zeros((len(numbers), 2)))


def edges_here(graph: Graph, policy: int, numbers: NDArray[np.uint32], shard: int, shards: int) -> ItemEdges:
    """The edges of the graph's items that belong to this shard."""
    return by_item(graph, shards_of_items(policy, numbers, shards) == shard)


def carry_over(
    policy: int, shard: int, shards: int, old: Learned, old_graph: Graph, new: Learned, graph: Graph, *, edges: bool
) -> None:
    """Copies what items of the same number, and `edges` between the same clusters and items, have learned."""
    _, now, then = np.intersect1d(new.numbers, old.numbers, assume_unique=True, return_indices=True)
    new.items[now] = old.items[then]
    if edges:
        mine = _edge_keys(edges_here(graph, policy, new.numbers, shard, shards), new.numbers)
        theirs = _edge_keys(edges_here(old_graph, policy, old.numbers, shard, shards), old.numbers)
        _, now, then = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
        new.edges[now] = old.edges[then]


def _edge_keys(edges: ItemEdges, numbers: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Each edge as item number << 32 | cluster."""
    item = np.repeat(numbers.astype(np.uint64), np.diff(edges.indptr))
    return item << np.uint64(32) | edges.clusters.astype(np.uint64)
