"""What one worker sees of the replica: a view per policy over the mapped arrays, and how each kind decides.

A view is made when the catalog changes and serves one thread. It reads what the agent writes meanwhile: pairs one
8-byte word at a time, banks by their versions (`server.rows`).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandits import diag_linucb
from bandits.arms import EXPLOIT
from bandits.diag_linucb import DiagError, Serving
from bandits.graph import Graph
from server import errors
from server.catalog import Entry
from server.engine import PolicyInfo
from server.rows import address, read_row
from server.schemas import Item, ItemInfo, RecommendRequest, User
from server.shared import arrays_in, map_file
from streaming import events
from streaming.shards import segments_of_shard, shard_of_bank, shard_of_item
from streaming.token import AGGREGATIONS, ARMS, DIAG, MODES, Context, segment_key

_MODE = {name: code for code, name in enumerate(MODES)}
_SEGMENTS_MAX = 100_000  # segments whose key is remembered
Mask = NDArray[np.bool_]


class Made(NamedTuple):
    """A decision before it is signed. `shards` get its event; `first` goes before it to the first of them."""

    context: Context
    items: list[Item]
    shards: Sequence[int]
    first: bytes | None = None


class View:
    """One policy as the catalog's entry says, over the arrays of its file."""

    def __init__(self, entry: Entry, arrays: dict[str, NDArray[Any]], shards: int) -> None:
        self.entry = entry
        self.arrays = arrays
        self.shards = shards
        reward = entry.spec.reward
        self.window_ms = reward.window_ms
        self.default = reward.default
        self.aggregation = AGGREGATIONS.index(reward.aggregation)

    @property
    def available(self) -> int:
        """Items that may be shown."""
        raise NotImplementedError

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, rng: np.random.Generator) -> Made:
        """Chooses for one request; `decision` is the number it will have. Raises Problem."""
        raise NotImplementedError

    def slot(self, item: str, numbers: tuple[int, ...]) -> int | None:
        """Which of a decision's item numbers `item` is; None where it is none of them.

        Where the decision has an item that exists no longer, an id that is not known (any more) is taken for it: the
        reward's outcome is then `gone`, whichever it was.
        """
        for number in self.numbers_of(item):
            if number in numbers:
                return numbers.index(number)
        for slot, number in enumerate(numbers):
            if not self.has_number(number):
                return slot
        return None

    def numbers_of(self, item: str) -> Sequence[int]:
        raise NotImplementedError

    def has_number(self, number: int) -> bool:
        raise NotImplementedError

    def shard_of(self, number: int, bank: int) -> int:
        """The shard that learns a reward for this item of a decision."""
        raise NotImplementedError

    def info(self) -> PolicyInfo:
        entry = self.entry
        return PolicyInfo(
            entry.name,
            entry.number,
            entry.version,
            entry.spec,
            self.n_items,
            self.n_items - self.available,
            entry.graph,
        )

    @property
    def n_items(self) -> int:
        raise NotImplementedError

    def item(self, item: str) -> ItemInfo:
        raise NotImplementedError


class DiagView(View):
    """A Diag-LinUCB policy with a graph."""

    def __init__(self, entry: Entry, arrays: dict[str, NDArray[Any]], shards: int, before: "DiagView | None") -> None:
        super().__init__(entry, arrays, shards)
        a = arrays
        n = len(a["numbers"])
        self.serving = Serving(a["indptr"], a["items"], a["pairs"], n, entry.spec.diag(), a["centroids"], a["paused"])
        self.numbers = a["numbers"]
        self._available = n - int(np.count_nonzero(a["paused"]))
        self.ids: list[str] = before.ids if before is not None else msgspec.json.decode(a["ids"].tobytes())
        if before is not None and "_index" in before.__dict__:
            self._index = before._index
        assert entry.graph is not None
        self.lineage = entry.graph.lineage

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.ids)}

    @cached_property
    def _index_of_number(self) -> dict[int, int]:
        return {number: index for index, number in enumerate(self.numbers.tolist())}

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
        clusters = np.array(user.clusters, np.int64)
        if clusters.max(initial=0) >= self.serving.n_clusters:
            at = int(np.argmax(clusters >= self.serving.n_clusters))
            last = self.serving.n_clusters - 1
            raise errors.invalid(f"user.clusters[{at}]", f"The graph has clusters 0 to {last}.")
        if user.weights is None:
            weights = np.full(len(clusters), 1.0 / len(clusters))
        else:
            weights = np.array(user.weights, np.float64)
            weights /= weights.max()  # first, so that the sum of huge weights is finite
            weights /= weights.sum()
        return diag_linucb.Context(clusters.astype(np.uint32), np.rint(65535.0 * weights).astype(np.uint16))

    def _indices(self, ids: list[str]) -> NDArray[np.int64]:
        index = self._index
        return np.array([index[item_id] for item_id in ids if item_id in index], np.int64)

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, rng: np.random.Generator) -> Made:
        context = self._context(query.user)
        if query.k > self._available:
            raise _too_few(self, query.k)
        limits: dict[str, NDArray[np.int64]] = {}
        if query.exclude:
            limits["exclude"] = self._indices(query.exclude)
        if query.candidates is not None:
            candidates = limits["candidates"] = self._indices(query.candidates)
            if len(candidates) == 0 or self.arrays["paused"][candidates].all():
                raise _no_candidates(query.candidates)
        word = int(rng.bit_generator.random_raw()) >> 1
        mode = None if query.mode is None else _MODE[query.mode]
        slate = self.serving.choose(context.clusters, context.weights, query.k, word, mode, **limits)
        index = slate.items
        if len(index) == 0 and query.exclude:
            raise _nothing_left()
        propensities = slate.propensities
        ids = self.ids
        items = [
            Item(ids[i], score, p if p == p else None)
            for i, score, p in zip(index.tolist(), slate.scores.tolist(), propensities.tolist(), strict=True)
        ]
        made = Context(
            DIAG, self.entry.number, decision, now_ms, self.window_ms, self.default, self.aggregation, slate.mode, True,
            self.numbers[index], propensities.astype(np.float16), self.lineage, context.clusters, context.weights,
        )  # fmt: skip
        shards = (0,) if self.shards == 1 else sorted(set(self.arrays["shards"][index].tolist()))
        return Made(made, items, shards if items else ())

    def numbers_of(self, item: str) -> Sequence[int]:
        index = self._index.get(item)
        return () if index is None else (int(self.numbers[index]),)

    def has_number(self, number: int) -> bool:
        return number in self._index_of_number

    def shard_of(self, number: int, bank: int) -> int:
        del bank
        index = self._index_of_number.get(number)
        if index is not None:
            return int(self.arrays["shards"][index])
        return shard_of_item(self.entry.number, number, self.shards)

    def item(self, item: str) -> ItemInfo:
        index = self._index.get(item)
        if index is None:
            raise errors.unknown_item(self.entry.name, item)
        edges = np.flatnonzero(self.arrays["items"] == index)
        clusters = np.searchsorted(self.arrays["indptr"], edges, "right") - 1
        return ItemInfo(item, int(self.numbers[index]), bool(self.arrays["paused"][index]), clusters.tolist())

    def graph(self) -> Graph:
        a = self.arrays
        return Graph(a["centroids"], a["indptr"], a["items"], tuple(self.ids))


class GraphlessView(View):
    """A Diag-LinUCB policy before its first graph."""

    available = n_items = 0

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, rng: np.random.Generator) -> Made:
        del query, decision, now_ms, rng
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


class ArmsView(View):
    """A K-armed policy: a bank for each segment that has been seen, and the shared one in row 0."""

    def __init__(self, entry: Entry, arrays: dict[str, NDArray[Any]], shards: int) -> None:
        super().__init__(entry, arrays, shards)
        self.policy = entry.spec.arm_policy()
        n = len(entry.items)
        self.numbers = np.array([item.number for item in entry.items], np.uint32)
        self.active: Mask = np.array([not item.removed for item in entry.items], bool)
        self.unpaused: Mask = self.active & np.array([not item.paused for item in entry.items], bool)
        self._available = int(self.unpaused.sum())
        self._any_paused = self._available < int(self.active.sum())
        self._index = {item.id: index for index, item in enumerate(entry.items) if not item.removed}
        self._live_numbers = {item.number for item in entry.items if not item.removed}
        thompson = entry.spec.algorithm.startswith("thompson")
        self._modes = {None: 2 if thompson else 0, "explore": 2 if thompson else 0, "exploit": 1}
        if thompson:
            self._modes["thompson"] = 2
        self._rows: list[dict[int, int]] = [{} for _ in range(shards)]
        self._keys: dict[str, tuple[int, int]] = {}
        self._room = 1 + segments_of_shard(entry.spec.max_segments, shards)
        self._shared = shard_of_bank(entry.number, 0, shards)
        self._empty = self.policy.empty(n)
        self._state = np.empty_like(self._empty)
        states, versions = arrays["states"], arrays["versions"]
        assert states.shape[3] == len(self._empty), "the catalog's arms are the banks'"
        self._places = [(address(states[s]), address(versions[s])) for s in range(shards)]

    @property
    def available(self) -> int:
        return self._available

    @property
    def n_items(self) -> int:
        return len(self._index)

    def _bank(self, segment: str) -> tuple[int, int]:
        """(bank key, its shard) of a segment."""
        found = self._keys.get(segment)
        if found is None:
            key = segment_key(segment)
            found = key, shard_of_bank(self.entry.number, key, self.shards)
            if len(self._keys) < _SEGMENTS_MAX:
                self._keys[segment] = found
        return found

    def _row(self, shard: int, key: int) -> int | None:
        rows = self._rows[shard]
        used = int(self.arrays["used"][shard])
        for row in range(len(rows), used):
            rows[int(self.arrays["keys"][shard, row])] = row
        return rows.get(key)

    def _read(self, shard: int, row: int) -> None:
        whole = read_row(*self._places[shard], row, self._state)
        assert whole, "no row is rewritten a thousand times while it is read as often"

    def state_of(self, segment: str) -> tuple[NDArray[np.float64], int, int, bytes | None]:
        """(state, bank key, shard, the event that names a new bank) to draw from for a segment."""
        key, shard = self._bank(segment)
        row = self._row(shard, key)
        first = None
        if row is None and len(self._rows[shard]) < self._room:
            return self._empty, key, shard, events.segment(self.entry.number, key, segment)
        if row is None:
            key, shard, row = 0, self._shared, 0
        self._read(shard, row)
        return self._state, key, shard, first

    def _allowed(self, query: RecommendRequest) -> Mask | None:
        """The arms this request may be shown, None for all."""
        if not (self._any_paused or query.exclude or query.candidates is not None):
            return None
        allowed = self.unpaused.copy()
        if query.candidates is not None:
            wanted = [self._index[item] for item in query.candidates if item in self._index]
            some = np.zeros(len(allowed), bool)
            some[wanted] = True
            allowed &= some
            if not allowed.any():
                raise _no_candidates(query.candidates)
        if query.exclude:
            allowed[[self._index[item] for item in query.exclude if item in self._index]] = False
            if not allowed.any():
                raise _nothing_left()
        return allowed

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, rng: np.random.Generator) -> Made:
        user = query.user
        for field in ("embedding", "clusters"):
            if getattr(user, field) is not None:
                detail = f"Policy {self.entry.name!r} chooses by segment: send user.segment, or nothing."
                raise errors.invalid(f"user.{field}", detail)
        mode = self._modes.get(query.mode)
        if mode is None:
            raise errors.invalid("mode", f"{self.entry.spec.algorithm} has the modes explore and exploit.")
        if query.k > self._available:
            raise _too_few(self, query.k)
        allowed = self._allowed(query)
        state, key, shard, first = self.state_of("all" if user.segment is None else user.segment)
        draw = self.policy.draw(state, self.active, query.k, rng, EXPLOIT if mode == 1 else mode, now_ms, allowed)
        entry = self.entry
        items = [
            Item(entry.items[arm].id, score, p if p == p else None)
            for arm, score, p in zip(draw.arms.tolist(), draw.scores.tolist(), draw.propensities.tolist(), strict=True)
        ]
        made = Context(
            ARMS, entry.number, decision, now_ms, self.window_ms, self.default, self.aggregation, mode, draw.funded,
            self.numbers[draw.arms], draw.propensities.astype(np.float16),
            bank=key, p=draw.p, w=draw.w, a=draw.a, c=draw.c,
        )  # fmt: skip
        return Made(made, items, (shard,), first)

    def numbers_of(self, item: str) -> Sequence[int]:
        return [each.number for each in self.entry.items if each.id == item]

    def has_number(self, number: int) -> bool:
        return number in self._live_numbers

    def shard_of(self, number: int, bank: int) -> int:
        del number
        return shard_of_bank(self.entry.number, bank, self.shards)

    def item(self, item: str) -> ItemInfo:
        index = self._index.get(item)
        if index is None:
            raise errors.unknown_item(self.entry.name, item)
        found = self.entry.items[index]
        return ItemInfo(found.id, found.number, found.paused)


def _too_few(view: View, k: int) -> errors.Problem:
    if view.available == 0:
        return errors.no_arms(view.entry.name)
    return errors.k_too_large(k, view.available)


def _no_candidates(candidates: list[str]) -> errors.Problem:
    what = "is empty" if not candidates else "names no item of the policy that is not paused"
    return errors.invalid("candidates", f"candidates {what}; leave it out to choose among all items.")


def _nothing_left() -> errors.Problem:
    return errors.invalid("exclude", "exclude leaves no item to show; exclude fewer.")


def make(entry: Entry, shards: int, before: View | None) -> View:
    """The view of an entry; `before`, the policy's former view, lends what is the same. FileNotFoundError: too late."""
    if not entry.path:
        return GraphlessView(entry, {}, shards)
    same = before is not None and before.entry.path == entry.path
    arrays = before.arrays if same and before is not None else arrays_in(map_file(entry.path), entry.arrays)
    if entry.spec.is_diag:
        return DiagView(entry, arrays, shards, before if same and isinstance(before, DiagView) else None)
    return ArmsView(entry, arrays, shards)
