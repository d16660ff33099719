"""The agent's side of one policy in shared memory: where its arrays are, and how commits get into them.

A file's name is never used again, also not by the next agent: workers know a table by its path.
A table is made anew when its shape changes (another graph, another arm, more banks than it has room for); everything
else is written in place, row by row, while the workers read.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandits import kernels
from bandits.graph import Graph, serving_of_shards
from server import ids
from server import rows as shared_rows
from server.catalog import Entry
from server.schemas import GraphInfo
from server.shared import RunFolder, arrays_in, lay_out
from streaming.control import Policy
from streaming.scan import decay
from streaming.shards import segments_of_shard, shards_of_items
from streaming.state import State

ALL_ROWS = None
Rows = NDArray[np.int64] | None  # rows of a shard's table, None for all


class Table:
    """A policy's file: `entry` is what the catalog says of it."""

    entry: Entry
    path: Path

    def __init__(self, folder: RunFolder, policy: Policy, arrays: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        specs, size = lay_out(arrays)
        self.path, mapped = folder.create(f"{policy.number}-{policy.version}-{secrets.token_hex(8)}", size)
        self.arrays = arrays_in(mapped, specs)
        self.entry = Entry(
            policy.name, policy.number, policy.version, policy.spec, policy.next_item, str(self.path), specs
        )

    def fits(self, policy: Policy, states: Sequence[State]) -> bool:
        """Whether this file can hold what the shards now have."""
        raise NotImplementedError

    def update(self, policy: Policy, states: Sequence[State]) -> None:
        """A change of definition that needs no new file."""
        raise NotImplementedError

    def write(self, shard: int, state: State, rows: dict[str, Rows], now_ms: int) -> None:
        """Rows of the shard's tables, by their kind, that a commit has changed."""
        raise NotImplementedError


class DiagTable(Table):
    """The serving arrays of a Diag-LinUCB policy."""

    def __init__(self, folder: RunFolder, policy: Policy, graph: Graph, states: Sequence[State], now_ms: int) -> None:
        n = len(graph.ids)
        places, of_ids = ids.layout(graph.ids)
        arrays = {
            "centroids": ("<f4", graph.centroids.shape),
            "indptr": ("<i8", graph.indptr.shape),
            "items": ("<u4", graph.items.shape),
            "pairs": ("<f4", (len(graph.items), 2)),
            "numbers": ("<u4", (n,)),
            "numbers_sorted": ("<u4", (n,)),
            "paused": ("<u1", (n,)),
            "shards": ("<u2", (n,)),
            **places,
        }
        super().__init__(folder, policy, arrays)
        assert policy.graph is not None
        self.graph_number = policy.graph.number
        numbers = states[0][f"numbers/{policy.number}"][:, 0]
        shards = shards_of_items(policy.number, numbers, len(states))
        a = self.arrays
        a["centroids"][:], a["indptr"][:], a["items"][:] = graph.centroids, graph.indptr, graph.items
        a["numbers"][:], a["numbers_sorted"][:], a["shards"][:] = numbers, np.sort(numbers), shards
        for name, array in of_ids.items():
            a[name][:] = array
        self.ids = ids.Ids(a)
        self.edges = serving_of_shards(graph, shards, len(states))
        self.info = GraphInfo(
            graph.version, policy.graph.lineage, graph.n_clusters, graph.centroids.shape[1], n, len(graph.items)
        )
        self.update(policy, states)
        self._sweep_all(states, now_ms)

    def fits(self, policy: Policy, states: Sequence[State]) -> bool:
        del states
        return policy.graph is not None and policy.graph.number == self.graph_number

    def update(self, policy: Policy, states: Sequence[State]) -> None:
        parameters = policy.spec.diag()
        before = getattr(self, "prior", None)
        self.prior, self.half_life_ms = parameters.prior, 1000.0 * (parameters.half_life_s or 0.0)
        paused = np.zeros(len(self.ids), np.uint8)
        paused[[index for item_id in policy.paused if (index := self.ids.find(item_id)) is not None]] = 1
        self.arrays["paused"][:] = paused
        self.entry = msgspec.structs.replace(
            self.entry, version=policy.version, spec=policy.spec, next_item=policy.next_item, graph=self.info
        )
        if before is not None and before != self.prior:
            self._sweep_all(states, self.swept_ms)

    def growth(self, state: State, now_ms: int) -> float:
        """g(now) of a forgetting policy as this shard counts it; 1 for any other."""
        if not self.half_life_ms:
            return 1.0
        origin_ms, exponent = state[f"decay/{self.entry.number}"][0].tolist()
        # A shard that heard nothing for long has not moved its exponent: g grows, and infinity would poison the means.
        return min(float(decay(now_ms, origin_ms, self.half_life_ms, exponent)), 1e300)

    def write(self, shard: int, state: State, rows: dict[str, Rows], now_ms: int) -> None:
        if "edges" not in rows:
            return
        edges, dirty = state[f"edges/{self.entry.number}"], rows["edges"]
        g, serving, pairs = self.growth(state, now_ms), self.edges[shard], self.arrays["pairs"]
        assert len(edges) == len(serving)
        if dirty is ALL_ROWS:
            kernels.refresh_all(edges, self.prior, g, serving, pairs)
        else:
            kernels.refresh(edges, self.prior, g, serving, dirty, pairs)

    def _sweep_all(self, states: Sequence[State], now_ms: int) -> None:
        self.swept_ms = now_ms
        for shard, state in enumerate(states):
            self.write(shard, state, {"edges": ALL_ROWS}, now_ms)

    def sweep(self, states: Sequence[State], now_ms: int) -> None:
        """Under a half-life every pair fades with time: all are written anew once g has moved by a thousandth."""
        if self.half_life_ms and now_ms - self.swept_ms >= max(50.0, self.half_life_ms / 700):
            self._sweep_all(states, now_ms)


class ArmsTable(Table):
    """The banks of a K-armed policy."""

    def __init__(self, folder: RunFolder, policy: Policy, states: Sequence[State]) -> None:
        number = policy.number
        most = 1 + segments_of_shard(policy.spec.max_segments, len(states))
        need = max(len(state[f"bank_keys/{number}"]) for state in states)
        room = max(need, min(most, max(4, 2 * need)))
        columns = states[0][f"banks/{number}"].shape[1]
        shards = len(states)
        arrays = {
            "keys": ("<u8", (shards, room)),
            "states": ("<f8", (shards, room, 2, columns)),
            "versions": ("<u8", (shards, room)),
            "used": ("<u8", (shards,)),
        }
        super().__init__(folder, policy, arrays)
        for shard, state in enumerate(states):
            self.write(shard, state, {"banks": ALL_ROWS}, 0)
        self.update(policy, states)

    def fits(self, policy: Policy, states: Sequence[State]) -> bool:
        _, room, _, columns = self.arrays["states"].shape
        return all(
            len(state[f"bank_keys/{policy.number}"]) <= room and state[f"banks/{policy.number}"].shape[1] == columns
            for state in states
        )

    def update(self, policy: Policy, states: Sequence[State]) -> None:
        del states
        self.entry = msgspec.structs.replace(
            self.entry, version=policy.version, spec=policy.spec, next_item=policy.next_item, items=policy.items
        )

    def write(self, shard: int, state: State, rows: dict[str, Rows], now_ms: int) -> None:
        del now_ms
        banks: Any = state[f"banks/{self.entry.number}"]
        keys = state[f"bank_keys/{self.entry.number}"][:, 0]
        dirty = rows.get("banks", np.empty(0, np.int64))
        # Each row once, in however many commits it has changed: readers give up on one that never holds still.
        dirty = np.arange(len(banks)) if dirty is ALL_ROWS else np.unique(dirty)
        a = self.arrays
        shared_rows.write_rows(a["states"][shard], a["versions"][shard], dirty, banks[dirty])
        used = int(a["used"][shard])
        if len(keys) > used:  # the row is there before its key, its key before the count: a reader looks from the end
            a["keys"][shard, used : len(keys)] = keys[used:]
            a["used"][shard] = len(keys)


def room_for(graph: Graph) -> int:
    """Bytes that the table of a graph takes, hardly more."""
    edges, clusters, items = len(graph.items), graph.centroids.size, len(graph.ids)
    text = sum(len(item_id.encode()) + 3 for item_id in graph.ids)
    return 12 * edges + 4 * clusters + 8 * len(graph.indptr) + 31 * items + text + 4096


def make(folder: RunFolder, policy: Policy, graph: Graph | None, states: Sequence[State], now_ms: int) -> Table:
    """A new file for the policy as the shards have it. Raises NoRoom."""
    if policy.spec.is_diag:
        assert graph is not None
        return DiagTable(folder, policy, graph, states, now_ms)
    return ArmsTable(folder, policy, states)
