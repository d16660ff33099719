"""Graphs from what a recommender already has: embeddings of users and items, or a table of ratings.

    ratings (user, item, rating) --truncated SVD--> embeddings --k-means over users--> centroids --top W items--> graph

All steps are deterministic in the seed. `progress(step, done, total)` is called as work goes on; who calls the builder
decides where that is shown.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds
from sklearn.cluster import MiniBatchKMeans

from bandits.graph import Graph

Progress = Callable[[str, int, int], None]
_BLOCK = 1024  # clusters whose products with all items are held at a time


class BuildError(ValueError):
    """An input no graph can be built from: `field` names it, the sentence says what is wrong with it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


class Ratings(NamedTuple):
    """A table of ratings: rows are (users[user[i]], items[item[i]], rating[i]); users and items sorted, as strings."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    rating: NDArray[np.float64]


class Built(NamedTuple):
    """A graph and the embeddings it came from: users f32[U, dim], items f32[N, dim], ids of the users."""

    graph: Graph
    users: NDArray[np.float32]
    items: NDArray[np.float32]
    user_ids: tuple[str, ...]


def silent(step: str, done: int, total: int) -> None:
    pass


def from_embeddings(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    ids: Sequence[str],
    n_clusters: int | None = None,
    items_per_cluster: int = 150,
    seed: int = 0,
    progress: Progress = silent,
) -> Graph:
    """Clusters of users by k-means; each joined to its items of largest inner product with the centroid.

    Args:
        users: f32[U, dim] and items: f32[N, dim] in one space, where the inner product says how well they fit.
        ids: the N items' ids. n_clusters: C, at most U; None: one for 25 users. items_per_cluster: W; N when larger.

    Raises:
        BuildError: naming the argument. GraphError: field `ids`.

    >>> rng = np.random.default_rng(0)
    >>> graph = from_embeddings(rng.normal(size=(50, 4)), rng.normal(size=(9, 4)), list("abcdefghi"), 3, 5)
    >>> graph.n_clusters, np.diff(graph.indptr).tolist()
    (3, [5, 5, 5])
    """
    users, items = np.asarray(users, np.float32), np.asarray(items, np.float32)
    for field, array in (("users", users), ("items", items)):
        if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] == 0 or not np.isfinite(array).all():
            raise BuildError(field, f"must be a non-empty 2-d array of finite numbers, has shape {array.shape}")
    if users.shape[1] != items.shape[1]:
        raise BuildError("items", f"has {items.shape[1]} numbers a row where users has {users.shape[1]}")
    if len(ids) != len(items):
        raise BuildError("ids", f"names {len(ids)} items, items has {len(items)} rows")
    n_clusters = max(1, len(users) // 25) if n_clusters is None else n_clusters
    if not 1 <= n_clusters <= len(users):
        raise BuildError("n_clusters", f"must be from 1 to the {len(users)} users, not {n_clusters}")
    if items_per_cluster < 1:
        raise BuildError("items_per_cluster", f"must be at least 1, not {items_per_cluster}")
    centroids = _k_means(users, n_clusters, seed, progress)
    width = min(items_per_cluster, len(items))
    best = np.empty((n_clusters, width), np.int64)
    for start in range(0, n_clusters, _BLOCK):
        products = centroids[start : start + _BLOCK] @ items.T
        # The W best by (product, lower index), then ascending as the graph wants them.
        best[start : start + _BLOCK] = np.sort(np.argsort(-products, axis=1, kind="stable")[:, :width], axis=1)
        progress("edges", min(start + _BLOCK, n_clusters), n_clusters)
    return Graph(centroids, np.arange(n_clusters + 1) * width, best.ravel().astype(np.uint32), tuple(ids))


def _k_means(users: NDArray[np.float32], n_clusters: int, seed: int, progress: Progress) -> NDArray[np.float32]:
    """Mini-batch k-means in passes of `batches` batches each, so that progress can be told between them."""
    batch = max(1024, 4 * n_clusters)
    passes = 20
    model = MiniBatchKMeans(n_clusters, random_state=seed, batch_size=batch, n_init=3)
    rng = np.random.default_rng(seed)
    for done in range(passes):
        order = rng.permutation(len(users))
        for start in range(0, len(users), batch):
            part = users[order[start : start + batch]]
            if done == 0 and start == 0 and len(part) < n_clusters:
                part = users
            model.partial_fit(part)
        progress("clusters", done + 1, passes)
    return np.asarray(model.cluster_centers_, np.float32)


def read_ratings(path: str | Path) -> Ratings:
    """The ratings of a MovieLens file: CSV with a header and columns userId, movieId, rating (any more are ignored).

    Raises:
        BuildError: field `ratings`, naming the line that cannot be read. OSError: no such file.
    """
    wanted = ("userId", "movieId", "rating")
    rows: list[tuple[str, str, float]] = []
    with open(path, encoding="utf-8-sig", errors="replace") as file:  # "-sig": spreadsheets put a mark first
        header = file.readline().strip().split(",")
        if any(name not in header for name in wanted):
            begins = ",".join(header)
            raise BuildError(
                "ratings", f"must begin with a header naming {','.join(wanted)}; begins with {begins!r:.60}"
            )
        places = [header.index(name) for name in wanted]
        for number, line in enumerate(file, 2):
            cells = line.strip().split(",")
            if cells == [""]:
                continue
            try:
                user, item, rating = (cells[place] for place in places)
                rows.append((user, item, float(rating)))
            except (IndexError, ValueError):
                raise BuildError("ratings", f"line {number} is not user,item,rating: {line.strip()!r:.60}") from None
            if not np.isfinite(rows[-1][2]):
                raise BuildError("ratings", f"line {number} has a rating that is not a finite number")
    if not rows:
        raise BuildError("ratings", "has no rows")
    users, user_index = np.unique([row[0] for row in rows], return_inverse=True)
    items, item_index = np.unique([row[1] for row in rows], return_inverse=True)
    return Ratings(
        tuple(users.tolist()), tuple(items.tolist()), user_index, item_index, np.array([row[2] for row in rows])
    )


def embed(ratings: Ratings, dim: int, shrink: float = 5.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings (users f32[U, dim], items f32[N, dim]) whose inner products approximate how ratings deviate.

    A rating less the mean of all is split into item, user and rest; the item's part (shrunk towards 0 where it has few
    ratings) is the first coordinate, with a constant on the user's side, and the rest's truncated SVD the others.
    """
    n_users, n_items = len(ratings.users), len(ratings.items)
    if not 2 <= dim <= min(n_users, n_items):
        raise BuildError("dim", f"must be from 2 to the smaller of {n_users} users and {n_items} items, not {dim}")
    rest = ratings.rating - ratings.rating.mean()
    item_part = np.bincount(ratings.item, rest, n_items) / (np.bincount(ratings.item, minlength=n_items) + shrink)
    rest = rest - item_part[ratings.item]
    user_part = np.bincount(ratings.user, rest, n_users) / (np.bincount(ratings.user, minlength=n_users) + shrink)
    rest = rest - user_part[ratings.user]
    matrix = coo_array((rest, (ratings.user, ratings.item)), shape=(n_users, n_items)).tocsr()
    left, values, right = svds(matrix, k=dim - 1, v0=np.ones(min(matrix.shape)), solver="arpack")
    signs = np.where(left.sum(axis=0) < 0, -1.0, 1.0)  # an SVD knows its vectors only up to their sign
    root = np.sqrt(values)
    users = np.hstack([np.ones((n_users, 1)), left * signs * root])
    # Only the ranking of items counts, so the users' unit is free: similarities of users spread by 1, and a temperature
    # means the same for every table of ratings.
    sample = users[:2000]
    users /= np.sqrt(max(float((sample @ sample.T).std()), 1e-12))
    items = np.hstack([item_part[:, None], (right.T * signs) * root])
    return users.astype(np.float32), items.astype(np.float32)


def from_ratings(
    ratings: str | Path | Ratings,
    n_clusters: int | None = None,
    items_per_cluster: int = 150,
    dim: int = 16,
    min_ratings: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> Built:
    """A graph and embeddings from ratings: a MovieLens CSV file or arrays; items with few ratings are left out.

    Raises:
        BuildError: naming the argument or the line of the file.
    """
    table = ratings if isinstance(ratings, Ratings) else read_ratings(ratings)
    progress("ratings", len(table.rating), len(table.rating))
    table = with_min_ratings(table, min_ratings)
    users, items = embed(table, dim)
    progress("embeddings", 1, 1)
    graph = from_embeddings(users, items, table.items, n_clusters, items_per_cluster, seed, progress)
    return Built(graph, users, items, table.users)


def with_min_ratings(ratings: Ratings, least: int) -> Ratings:
    """The ratings of items that have at least `least`; every user stays.

    Raises:
        BuildError: field `min_ratings` where no item has that many.
    """
    counts = np.bincount(ratings.item, minlength=len(ratings.items))
    kept = np.flatnonzero(counts >= least)
    if len(kept) == 0:
        raise BuildError("min_ratings", f"no item has {least} ratings, the most is {counts.max()}")
    index = np.full(len(ratings.items), -1)
    index[kept] = np.arange(len(kept))
    rows = index[ratings.item] >= 0
    names = tuple(ratings.items[i] for i in kept)
    return Ratings(ratings.users, names, ratings.user[rows], index[ratings.item[rows]], ratings.rating[rows])
