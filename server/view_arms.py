"""The view of a K-armed policy: its banks by segment, read while the agent writes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits.arms import EXPLOIT
from server import errors
from server.catalog import Entry
from server.rows import address, read_row
from server.schemas import Item, ItemInfo, RecommendRequest
from server.view import Made, View, no_candidates, nothing_left, too_few
from streaming import events
from streaming.shards import segments_of_shard, shard_of_bank
from streaming.token import ARMS, Context, segment_key

_SEGMENTS_MAX = 100_000  # segments whose key is remembered
Mask = NDArray[np.bool_]


class ArmsView(View):
    """A K-armed policy: a bank for each segment that has been seen, and the shared one in row 0."""

    def __init__(self, entry: Entry, arrays: dict[str, NDArray[Any]], shards: int) -> None:
        super().__init__(entry, arrays, shards)
        self.policy = entry.spec.arm_policy()
        n = len(entry.items)
        self.numbers = np.array([item.number for item in entry.items], np.uint32)
        self.active: Mask = np.array([not (item.removed or item.paused) for item in entry.items], bool)
        self._available = int(self.active.sum())
        self._index = {item.id: index for index, item in enumerate(entry.items) if not item.removed}
        self._numbers: dict[str, tuple[int, ...]] = {}  # an id that was removed and came back has several
        for item in entry.items:
            self._numbers[item.id] = (*self._numbers.get(item.id, ()), item.number)
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
        if row is None and len(self._rows[shard]) < self._room:
            return self._empty, key, shard, events.segment(self.entry.number, key, segment)
        if row is None:
            key, shard, row = 0, self._shared, 0
        self._read(shard, row)
        return self._state, key, shard, None

    def _allowed(self, query: RecommendRequest) -> Mask | None:
        """The arms this request may be shown, None for all that are active."""
        if not query.exclude and query.candidates is None:
            return None
        allowed = self.active.copy()
        if query.candidates is not None:
            wanted = [self._index[item] for item in query.candidates if item in self._index]
            some = np.zeros(len(allowed), bool)
            some[wanted] = True
            allowed &= some
            if not allowed.any():
                raise no_candidates(query.candidates)
        if query.exclude:
            allowed[[self._index[item] for item in query.exclude if item in self._index]] = False
            if not allowed.any():
                raise nothing_left()
        return allowed

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, word: int, rng: np.random.Generator) -> Made:
        del word
        user = query.user
        for field in ("embedding", "clusters"):
            if getattr(user, field) is not None:
                detail = f"Policy {self.entry.name!r} chooses by segment: send user.segment, or nothing."
                raise errors.invalid(f"user.{field}", detail)
        mode = self._modes.get(query.mode)
        if mode is None:
            raise errors.invalid("mode", f"{self.entry.spec.algorithm} has the modes explore and exploit.")
        if query.k > self._available:
            raise too_few(self, query.k)
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
        return self._numbers.get(item, ())

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
