"""What one worker sees of one policy: how a view decides, and how it finds what a reward is for.

A view is made when the catalog changes and serves one thread. It reads what the agent writes meanwhile: pairs one
8-byte word at a time, banks by their versions (`server.rows`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server import errors
from server.catalog import Entry
from server.engine import PolicyInfo
from server.schemas import Item, ItemInfo, RecommendRequest
from streaming.token import AGGREGATIONS, MODES, Context

MODE = {name: code for code, name in enumerate(MODES)}


class Made(NamedTuple):
    """A decision before it is signed. `shards` get its event; `first` goes before it to the first of them."""

    context: Context
    items: list[Item]
    shards: Sequence[int]
    first: bytes | None = None


class NotYet(Exception):
    """Another server has shown something that is not seen here yet."""


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

    def decide(self, query: RecommendRequest, decision: int, now_ms: int, word: int, rng: np.random.Generator) -> Made:
        """Chooses for one request; `decision` is the number it will have. Raises Problem.

        The lot is drawn by `word`, 63 random bits, or by `rng`.
        """
        raise NotImplementedError

    def slot(self, item: str, numbers: tuple[int, ...]) -> int | None:
        """Which of a decision's item numbers `item` is; None where it is none of them.

        Where the decision has an item that exists no longer, an id that is not known (any more) is taken for it: the
        reward's outcome is then `gone`, whichever it was. Raises NotYet where the decision has items that are newer
        than what is seen here, and `item` may be one of them.
        """
        for number in self.numbers_of(item):
            if number in numbers:
                return numbers.index(number)
        if max(numbers, default=0) >= self.entry.next_item:
            raise NotYet
        for slot, number in enumerate(numbers):
            if not self.has_number(number):
                return slot
        return None

    def numbers_of(self, item: str) -> Sequence[int]:
        raise NotImplementedError

    def places(self, items: Sequence[str], banks: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number, shard) of each of these items, which decisions for these banks have shown; number -1: not there."""
        found = [self.numbers_of(item) for item in items]
        numbers = [each[-1] if each and self.has_number(each[-1]) else -1 for each in found]
        shards = [0 if n < 0 else self.shard_of(n, bank) for n, bank in zip(numbers, banks.tolist(), strict=True)]
        return np.array(numbers, np.int64), np.array(shards, np.int64)

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


def too_few(view: View, k: int) -> errors.Problem:
    if view.available == 0:
        return errors.no_arms(view.entry.name)
    return errors.k_too_large(k, view.available)


def no_candidates(candidates: list[str]) -> errors.Problem:
    what = "is empty" if not candidates else "names no item of the policy that is not paused"
    return errors.invalid("candidates", f"candidates {what}; leave it out to choose among all items.")


def nothing_left() -> errors.Problem:
    return errors.invalid("exclude", "exclude leaves no item to show; exclude fewer.")
