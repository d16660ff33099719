"""The view of a Diag-LinUCB policy."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits import diag_linucb
from bandits.diag_linucb import DiagError, Serving
from bandits.graph import Graph
from bandits.nearest import quantise
from server import errors
from server.catalog import Entry
from server.ids import Ids
from server.schemas import Item, ItemInfo, RecommendRequest, User
from server.view import MODE, Made, View, no_candidates, nothing_left, too_few
from streaming.shards import shard_of_item
from streaming.token import DIAG, Context


class DiagView(View):
    """A Diag-LinUCB policy with a graph."""

    def __init__(self, entry: Entry, arrays: dict[str, NDArray[Any]], shards: int, before: "DiagView | None") -> None:
        super().__init__(entry, arrays, shards)
        a = arrays
        n = len(a["numbers"])
        self.serving = Serving(a["indptr"], a["items"], a["pairs"], n, entry.spec.diag(), a["centroids"], a["paused"])
        self.numbers = a["numbers"]
        self._available = n - int(np.count_nonzero(a["paused"]))
        self.ids: Ids = before.ids if before is not None else Ids(a)
        self._sorted = a["numbers_sorted"].data
        assert entry.graph is not None
        self.lineage = entry.graph.lineage

    @property
    def available(self) -> int:
        return self._available

    @property
    def n_items(self) -> int:
        return len(self.ids)

    def _context(self, user: User) -> diag_linucb.Context:
        if user.embedding is not None:
            with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
                vector = np.array(user.embedding, np.float32)
            try:
                return self.serving.nearest(vector)
            except DiagError as error:
                raise errors.invalid("user.embedding", f"user.embedding {error.sentence}.") from None
        if user.clusters is None:
            raise errors.invalid("user", f"Policy {self.entry.name!r} needs user.embedding or user.clusters.")
        if max(user.clusters, default=0) >= self.serving.n_clusters:
            last = self.serving.n_clusters - 1
            at = next(i for i, cluster in enumerate(user.clusters) if cluster > last)
            raise errors.invalid(f"user.clusters[{at}]", f"The graph has clusters 0 to {last}.")
        context = diag_linucb.Context(np.array(user.clusters, np.uint32), np.empty(len(user.clusters), np.uint16))
        sound = quantise(np.array(user.weights or (), np.float64), context.weights)
        assert sound, "checked before"
        return context

    def indices(self, ids: Iterable[str]) -> list[int]:
        """Of those items that there are."""
        found = map(self.ids.find, ids)
        return [index for index in found if index is not None]

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, word: int, rng: np.random.Generator) -> Made:
        del rng
        context = self._context(query.user)
        if query.k > self._available:
            raise too_few(self, query.k)
        limits: dict[str, NDArray[np.int64]] = {}
        if query.exclude:
            limits["exclude"] = np.array(self.indices(query.exclude), np.int64)
        if query.candidates is not None:
            candidates = limits["candidates"] = np.array(self.indices(query.candidates), np.int64)
            if len(candidates) == 0 or self.arrays["paused"][candidates].all():
                raise no_candidates(query.candidates)
        mode = None if query.mode is None else MODE[query.mode]
        serving = self.serving
        got, used = serving.fill(context.clusters, context.weights, query.k, word, mode, **limits)
        if got == 0 and query.exclude:
            raise nothing_left()
        index = serving.index[:got]
        scores, propensities = serving.numbers[:, :got].tolist()
        ids = self.ids
        items = [
            Item(ids[i], score, p if p == p else None)
            for i, score, p in zip(index.tolist(), scores, propensities, strict=True)
        ]
        made = Context(
            DIAG, self.entry.number, decision, now_ms, self.window_ms, self.default, self.aggregation, used, True,
            self.numbers.take(index), serving.numbers[1, :got].astype(np.float16), self.lineage,
            context.clusters, context.weights,
        )  # fmt: skip
        shards = (0,) if self.shards == 1 else sorted(set(self.arrays["shards"][index].tolist()))
        return Made(made, items, shards if items else ())

    def numbers_of(self, item: str) -> Sequence[int]:
        index = self.ids.find(item)
        return () if index is None else (int(self.numbers[index]),)

    def places(self, items: Sequence[str], banks: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del banks
        index = self.ids.find_all(items)
        numbers = np.where(index < 0, -1, self.numbers.take(index, mode="clip").astype(np.int64))
        return numbers, self.arrays["shards"].take(index, mode="clip").astype(np.int64)

    def has_number(self, number: int) -> bool:
        place = bisect_left(self._sorted, number)
        return place < len(self._sorted) and self._sorted[place] == number

    def shard_of(self, number: int, bank: int) -> int:
        del bank
        return shard_of_item(self.entry.number, number, self.shards)

    def item(self, item: str) -> ItemInfo:
        index = self.ids.find(item)
        if index is None:
            raise errors.unknown_item(self.entry.name, item)
        edges = np.flatnonzero(self.arrays["items"] == index)
        clusters = np.searchsorted(self.arrays["indptr"], edges, "right") - 1
        return ItemInfo(item, int(self.numbers[index]), bool(self.arrays["paused"][index]), clusters.tolist())

    def graph(self) -> Graph:
        a = self.arrays
        return Graph(a["centroids"], a["indptr"], a["items"], tuple(self.ids.all()))


class GraphlessView(View):
    """A Diag-LinUCB policy before its first graph, or a policy of any kind that has no room for its table."""

    available = n_items = 0

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, word: int, rng: np.random.Generator) -> Made:
        del query, decision, now_ms, word, rng
        if self.entry.trouble:
            raise errors.unavailable(self.entry.trouble, 5.0)
        raise errors.no_graph(self.entry.name)

    def numbers_of(self, item: str) -> Sequence[int]:
        del item
        return ()

    def has_number(self, number: int) -> bool:
        del number
        return False

    def shard_of(self, number: int, bank: int) -> int:
        del bank
        return shard_of_item(self.entry.number, number, self.shards)

    def item(self, item: str) -> ItemInfo:
        raise errors.unknown_item(self.entry.name, item)
