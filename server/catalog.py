"""The catalog: what the replica shows, as one MessagePack file that is swapped whole.

The agent writes it (`server.replica`), every worker reads it (`server.views`). Arrays lie in files of their own, which
the catalog names; how big tables become does not matter here.

    diag-linucb   centroids f32[C, dim]   indptr i64[C+1]   items u32[E]   pairs f32[E, 2] (bandits.kernels)
                  numbers u32[N]   paused u8[N]   shards u16[N]: by item index   numbers_sorted u32[N]
                  ids u8[bytes]   ids_at i64[N+1]   ids_hash u32[N]   ids_order u32[N] (server.ids)
    arms          keys u64[P, R]   states f64[P, R, 2, S] and versions u64[P, R] (server.rows)   used u64[P]:
                  P shards, up to R banks in each
"""

import msgspec

from server.schemas import GraphInfo
from server.shared import ArraySpec
from streaming.control import Item, Key, PolicySpec


class Entry(msgspec.Struct, frozen=True):
    """One policy. `path` "" means that it has no graph yet; `items` are the arms (removed ones keep their place).

    An item's number is less than `next_item`; where it is not, the item is newer than this entry. `trouble` says why
    there is no table though there should be one: then every item is newer.
    """

    name: str
    number: int
    version: int
    spec: PolicySpec
    next_item: int
    path: str = ""
    arrays: dict[str, ArraySpec] = {}
    graph: GraphInfo | None = None
    items: list[Item] = []
    trouble: str = ""


class Catalog(msgspec.Struct, frozen=True):
    """All policies as of control record `applied`, and the keys."""

    applied: int
    shards: int
    keys: dict[int, Key]
    entries: list[Entry]


def name_of(generation: int) -> str:
    """The catalog's file."""
    return f"catalog-{generation}"
