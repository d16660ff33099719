"""The ids of a graph's items where all processes share them: read one at a time, found by their hash.

    ids         u8[bytes]   the ids as one JSON array
    ids_at      i64[N + 1]  where each id stands in it, quoted, up to the comma after it
    ids_hash    u32[N]      CRC-32 of the ids' UTF-8, ascending
    ids_order   u32[N]      the index of the item that has this hash

A process that kept a million ids itself would pay 70 MB for the list and as much for a dict to find them by, and stand
still for a quarter of a second while it made them. So it remembers only those that it meets.
"""

import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

KEPT_MAX = 1 << 16
"""Ids that one process remembers of one graph, some 10 MB."""


def layout(ids: Sequence[str]) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, NDArray[Any]]]:
    """The arrays of these ids: their types and shapes, and what is in them."""
    quoted = [msgspec.json.encode(item_id) for item_id in ids]
    hashes = np.array([zlib.crc32(item_id.encode()) for item_id in ids], np.uint32)
    order = np.argsort(hashes, kind="stable").astype(np.uint32)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.frombuffer(b"[" + b",".join(quoted) + b"]", np.uint8),
        "ids_at": np.cumsum([1] + [len(each) + 1 for each in quoted]),
        "ids_hash": hashes[order],
        "ids_order": order,
    }
    return {name: (array.dtype.str, array.shape) for name, array in arrays.items()}, arrays


class Ids(Sequence[str]):
    """The ids of one graph, in the arrays of its file.

    >>> _, arrays = layout(["a", "b", "é"])
    >>> ids = Ids(arrays)
    >>> ids[2], ids.find("b"), ids.find("c"), list(ids)
    ('é', 1, None, ['a', 'b', 'é'])
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._text, self._at, self._hash, self._order = (
            arrays[name].data for name in ("ids", "ids_at", "ids_hash", "ids_order")
        )
        self._read: dict[int, str] = {}
        self._found: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._hash)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item_id = self._read.get(index)
        if item_id is None:
            if not 0 <= index < len(self):
                raise IndexError(index)
            item_id = msgspec.json.decode(self._text[self._at[index] : self._at[index + 1] - 1], type=str)
            if len(self._read) >= KEPT_MAX:
                self._read.clear()
            self._read[index] = item_id
        return item_id

    def all(self) -> list[str]:
        """Every id, none of them remembered."""
        return msgspec.json.decode(self._text, type=list[str])

    def find(self, item_id: str) -> int | None:
        """The index of the item with this id."""
        found = self._found.get(item_id)
        return self._look_up(item_id) if found is None else found

    def find_all(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The index of each, -1 where there is no such item."""
        found = list(map(self._found.get, item_ids))
        for i, index in enumerate(found) if None in found else ():
            if index is None:
                looked_up = self._look_up(item_ids[i])
                found[i] = -1 if looked_up is None else looked_up
        return np.array(found, np.int64)

    def _look_up(self, item_id: str) -> int | None:
        wanted = zlib.crc32(item_id.encode(errors="replace"))
        place = bisect_left(self._hash, wanted)
        while place < len(self._hash) and self._hash[place] == wanted:
            index: int = self._order[place]
            if self[index] == item_id:
                if len(self._found) >= KEPT_MAX:
                    self._found.clear()
                self._found[item_id] = index
                return index
            place += 1
        return None
