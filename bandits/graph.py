"""The sparse cluster-item graph of Diag-LinUCB: which items can be shown to which user clusters.

    centroids f32[C, dim]   where the clusters lie in the space of user embeddings (dim 0: callers send clusters)
    indptr    i64[C + 1]    edges of cluster c are items[indptr[c]:indptr[c + 1]]
    items     u32[E]        item indices, ascending and unique within a cluster
    ids       N strings     the item at each index, unique

The file is an .npz without pickle of the same arrays (`ids` as a unicode array). Where `ids` is absent, `items` holds
the caller's own integer ids, in any order within a cluster; sorted, their decimal strings become the ids.
"""

import hashlib
import io
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ID_BYTES = 512


class GraphError(ValueError):
    """Arrays that are no graph: `field` names the array, the sentence says what is wrong with it and where."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


@dataclass(frozen=True, eq=False)
class Graph:
    """An immutable, checked graph; equality of content is equality of `version`.

    Raises:
        GraphError: naming the array that is wrong.

    >>> graph = Graph(np.zeros((2, 0), np.float32), np.array([0, 2, 3]), np.array([0, 1, 1], np.uint32), ("a", "b"))
    >>> graph.with_item("c", [0]).without_item("a").ids
    ('b', 'c')
    """

    centroids: NDArray[np.float32]
    indptr: NDArray[np.int64]
    items: NDArray[np.uint32]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "centroids", _array("centroids", self.centroids, np.float32, 2))
        object.__setattr__(self, "indptr", _array("indptr", self.indptr, np.int64, 1))
        object.__setattr__(self, "items", _array("items", self.items, np.uint32, 1))
        object.__setattr__(self, "ids", tuple(self.ids))
        _check_ids(self.ids)
        _check(self.centroids, self.indptr, self.items, len(self.ids))

    @property
    def n_clusters(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def version(self) -> str:
        """32 hex characters: BLAKE2b-16 of sizes, arrays and ids, each id with its length before it."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(struct.pack("<4q", *self.centroids.shape, len(self.items), len(self.ids)))
        for array in (self.centroids, self.indptr, self.items):
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        for item_id in self.ids:
            text = item_id.encode()
            digest.update(struct.pack("<q", len(text)) + text)
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The .npz file."""
        out = io.BytesIO()
        ids = np.array(self.ids, np.str_)
        np.savez(out, centroids=self.centroids, indptr=self.indptr, items=self.items, ids=ids)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Graph":
        """The graph in an .npz file.

        Raises:
            GraphError: field `graph` where it is no .npz, the array's name where an array is missing or wrong.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError, MemoryError) as error:
            raise GraphError(
                "graph", f"is not an .npz file of plain arrays ({error}); write it with numpy.savez"
            ) from None
        except Exception as error:  # zlib.error, struct.error, SyntaxError of a damaged header: all mean the same here
            raise GraphError("graph", f"is a damaged .npz file ({error}); write it again with numpy.savez") from None
        for name in ("centroids", "indptr", "items"):
            if name not in arrays:
                raise GraphError(name, "is missing; an .npz graph holds centroids, indptr, items and, if wanted, ids")
        indptr, items = _array("indptr", arrays["indptr"], np.int64, 1), arrays["items"]
        if "ids" in arrays:
            ids = arrays["ids"]
            if ids.ndim != 1 or ids.dtype.kind != "U":
                raise GraphError("ids", f"must be a 1-d array of strings, is {ids.ndim}-d of {ids.dtype}")
            return cls(arrays["centroids"], indptr, items, tuple(ids.tolist()))
        if items.ndim != 1 or items.dtype.kind not in "iu":
            raise GraphError("items", f"must be a 1-d array of whole numbers, is {items.ndim}-d of {items.dtype}")
        external, index = np.unique(items, return_inverse=True)
        _check_indptr(indptr, len(items))
        cluster = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        index = index[np.lexsort((index, cluster))]
        return cls(arrays["centroids"], indptr, index.astype(np.uint32), tuple(str(i) for i in external.tolist()))

    def save(self, path: str | Path) -> None:
        """Write the .npz file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Read an .npz file; GraphError as `from_bytes`, OSError where there is none."""
        return cls.from_bytes(Path(path).read_bytes())

    def with_item(self, item_id: str, clusters: Iterable[int]) -> "Graph":
        """This graph with one more item, of index N, joined to these clusters.

        Raises:
            GraphError: field `id` where the item is there already, `clusters` where one is none or comes twice.
        """
        if item_id in self.ids:
            raise GraphError("id", f"{item_id!r} is in the graph already")
        wanted = sorted(int(c) for c in clusters)
        for c in wanted:
            if not 0 <= c < self.n_clusters:
                raise GraphError("clusters", f"{c} is no cluster of this graph, which has 0 to {self.n_clusters - 1}")
        if len(set(wanted)) < len(wanted):
            raise GraphError("clusters", "must name each cluster once")
        ends = self.indptr[np.array(wanted, np.int64) + 1] if wanted else np.empty(0, np.int64)
        added = np.zeros(self.n_clusters + 1, np.int64)
        added[np.array(wanted, np.int64) + 1] = 1
        items = np.insert(self.items, ends, len(self.ids))
        return Graph(self.centroids, self.indptr + np.cumsum(added), items, (*self.ids, item_id))

    def without_item(self, item_id: str) -> "Graph":
        """This graph without one item; later items move down by one index.

        Raises:
            GraphError: field `id` where there is no such item.
        """
        if item_id not in self.ids:
            raise GraphError("id", f"{item_id!r} is not in the graph")
        gone = self.ids.index(item_id)
        kept = self.items != gone
        indptr = np.concatenate(([0], np.cumsum(kept)))[self.indptr]
        items = self.items[kept]
        return Graph(self.centroids, indptr, items - (items > gone), self.ids[:gone] + self.ids[gone + 1 :])


class ItemEdges(NamedTuple):
    """The same edges item by item: indptr i64[N+1], clusters u32[E'] ascending within an item, and `serving` u32[E'],
    the position of each edge in cluster order."""

    indptr: NDArray[np.int64]
    clusters: NDArray[np.uint32]
    serving: NDArray[np.uint32]


def by_item(graph: Graph, member: NDArray[np.bool_] | None = None) -> ItemEdges:
    """The edges in item order; items that are no member (another shard's) have none.

    >>> graph = Graph(np.zeros((2, 0), np.float32), np.array([0, 2, 3]), np.array([0, 1, 1], np.uint32), ("a", "b"))
    >>> edges = by_item(graph)
    >>> edges.indptr.tolist(), edges.clusters.tolist(), edges.serving.tolist()
    ([0, 1, 3], [0, 0, 1], [0, 1, 2])
    """
    serving = _by_item(graph)
    counts = np.bincount(graph.items, minlength=len(graph.ids))
    if member is not None:
        serving = serving[np.repeat(member, counts)]
        counts[~member] = 0
    cluster = np.repeat(np.arange(graph.n_clusters, dtype=np.uint32), np.diff(graph.indptr))
    return ItemEdges(np.concatenate(([0], np.cumsum(counts))).astype(np.int64), cluster[serving], serving)


def serving_of_shards(graph: Graph, shard_of_item: NDArray[np.int32], shards: int) -> list[NDArray[np.uint32]]:
    """`by_item(graph, shard_of_item == shard).serving` of each shard, from one sort of the edges."""
    serving = _by_item(graph)
    if shards == 1:
        return [serving]
    owner = np.repeat(shard_of_item, np.bincount(graph.items, minlength=len(graph.ids)))
    return [serving[owner == shard] for shard in range(shards)]


def _by_item(graph: Graph) -> NDArray[np.uint32]:
    """The positions of all edges, item by item, clusters ascending."""
    assert len(graph.items) < 1 << 32
    low = graph.items.astype(np.uint16)  # numpy sorts numbers of 16 bits by their digits, ten times as fast as others
    order = np.argsort(low, kind="stable").astype(np.uint32)
    if len(graph.ids) > 1 << 16:
        high = (graph.items >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    return order


def _array(field: str, value: Any, dtype: Any, ndim: int) -> NDArray[Any]:
    """The value as a read-only, contiguous array of that type, if it loses nothing."""
    array = np.asarray(value)
    whole = np.issubdtype(dtype, np.integer)
    if array.ndim != ndim or array.dtype.kind not in ("iu" if whole else "fiu"):
        kind = "whole numbers" if whole else "numbers"
        raise GraphError(field, f"must be a {ndim}-d array of {kind}, is {array.ndim}-d of {array.dtype}")
    if whole and array.size and (int(array.min()) < 0 or int(array.max()) > np.iinfo(dtype).max):
        raise GraphError(
            field, f"must hold numbers from 0 to {np.iinfo(dtype).max}, holds {array.min()} to {array.max()}"
        )
    with np.errstate(over="ignore"):
        result = np.array(array, dtype, order="C")
    result.flags.writeable = False
    return result


def _check_ids(ids: tuple[str, ...]) -> None:
    if not ids:
        raise GraphError("ids", "must name at least one item")
    for i, item_id in enumerate(ids):
        if not isinstance(item_id, str) or not item_id or len(item_id.encode(errors="replace")) > MAX_ID_BYTES:
            raise GraphError(
                "ids", f"must be non-empty strings of at most {MAX_ID_BYTES} bytes; item {i} is {item_id!r:.40}"
            )
        try:
            item_id.encode()
        except UnicodeEncodeError:
            raise GraphError("ids", f"must be valid unicode; item {i} is {item_id!r:.40}") from None
        if item_id.endswith("\0"):
            raise GraphError("ids", f"must not end with a zero character; item {i} does")
    if len(set(ids)) < len(ids):
        twice = next(a for a, b in zip(sorted(ids), sorted(ids)[1:], strict=False) if a == b)
        raise GraphError("ids", f"must be unique; {twice!r:.40} comes twice")


def _check_indptr(indptr: NDArray[np.int64], n_edges: int) -> None:
    if len(indptr) < 2:
        raise GraphError("indptr", "must have one entry more than there are clusters, and there must be one")
    if indptr[0] != 0 or indptr[-1] != n_edges:
        raise GraphError(
            "indptr", f"must run from 0 to the {n_edges} edges of items, runs from {indptr[0]} to {indptr[-1]}"
        )
    down = np.flatnonzero(np.diff(indptr) < 0)
    if len(down):
        raise GraphError("indptr", f"must not decrease; it does after cluster {down[0]}")


def _check(centroids: NDArray[np.float32], indptr: NDArray[np.int64], items: NDArray[np.uint32], n_items: int) -> None:
    _check_indptr(indptr, len(items))
    if len(centroids) != len(indptr) - 1:
        raise GraphError("centroids", f"has {len(centroids)} rows, but indptr speaks of {len(indptr) - 1} clusters")
    bad = np.flatnonzero(~np.isfinite(centroids).all(axis=1))
    if len(bad):
        raise GraphError("centroids", f"must be finite float32 numbers; row {bad[0]} is not")
    if len(items) and int(items.max()) >= n_items:
        where = int(np.argmax(items))
        raise GraphError("items", f"holds item index {items[where]} at edge {where}, but ids names {n_items} items")
    rising = np.diff(items.astype(np.int64)) > 0
    first_of_cluster = np.zeros(len(items) + 1, bool)
    first_of_cluster[indptr] = True
    bad = np.flatnonzero(~(rising | first_of_cluster[1:-1])) if len(items) else bad
    if len(bad):
        raise GraphError("items", f"must ascend without repeats within a cluster; they do not at edge {bad[0] + 1}")
