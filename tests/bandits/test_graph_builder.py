"""Graphs from embeddings and from ratings: the same by seed, the edges asked for, errors that name the field."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bandits.graph_builder import BuildError, Ratings, embed, from_embeddings, from_ratings, read_ratings


def test_edges_are_the_items_of_largest_product_with_the_centroid() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(200, 5)), rng.normal(size=(30, 5)).astype(np.float32)
    steps: list[tuple[str, int, int]] = []
    graph = from_embeddings(users, items, [str(i) for i in range(30)], 7, 4, 1, lambda *step: steps.append(step))
    for c in range(7):
        best = sorted(range(30), key=lambda j: -float(graph.centroids[c] @ items[j]))[:4]
        assert graph.items[graph.indptr[c] : graph.indptr[c + 1]].tolist() == sorted(best)
    assert [done == total for _, done, total in steps].count(True) == 2
    assert from_embeddings(users, items, graph.ids, 7, 4, 1).version == graph.version
    assert from_embeddings(users, items, graph.ids, 7, 4, 2).version != graph.version
    assert from_embeddings(users, items, graph.ids).n_clusters == 8  # one for 25 users
    assert len(from_embeddings(users, items, graph.ids, 2, 1000).items) == 60  # never more than there are


def test_clusters_that_are_there_are_found() -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(4) * 10
    users = np.repeat(centres, 50, axis=0) + rng.normal(0, 0.1, (200, 4))
    graph = from_embeddings(users, np.eye(4), list("abcd"), 4, 1)
    assert sorted(graph.items.tolist()) == [0, 1, 2, 3]
    assert np.abs(np.sort(graph.centroids.max(axis=1)) - 10).max() < 0.5


GOOD: dict[str, Any] = {"users": np.ones((9, 2)), "items": np.ones((3, 2)), "ids": list("abc"), "n_clusters": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", np.ones(9)), ("users", np.empty((0, 2))), ("users", np.full((9, 2), np.nan)), ("ids", ["a"]),
        ("items", np.ones((3, 4))), ("n_clusters", 10), ("n_clusters", 0), ("items_per_cluster", 0),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(field: str, value: Any) -> None:
    with pytest.raises(BuildError) as caught:
        from_embeddings(**(GOOD | {field: value}))
    assert caught.value.field == field


def test_embeddings_tell_who_likes_what() -> None:
    """Two camps that like opposite halves of the items: the products must say so."""
    user, item = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(20), indexing="ij"))
    likes = (user % 2) == (item % 2)
    rng = np.random.default_rng(2)
    rating = np.where(likes, 4.5, 1.5) + rng.normal(0, 0.3, len(user))
    table = Ratings(tuple(map(str, range(40))), tuple(map(str, range(20))), user, item, rating)
    users, items = embed(table, 3)
    fit = users @ items.T
    assert fit[likes.reshape(40, 20)].min() > fit[~likes.reshape(40, 20)].max()
    assert (users @ users.T).std() == pytest.approx(1.0, rel=1e-3)
    for a, b in zip(embed(table, 3), (users, items), strict=True):
        assert_array_equal(a, b)
    with pytest.raises(BuildError, match="dim"):
        embed(table, 21)


def test_a_file_of_ratings_is_read_or_its_line_named(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n7,50,4.0,1\n7,318,2.5,2\n\n8,50,5,3\n")
    table = read_ratings(path)
    assert table.users == ("7", "8")
    assert table.items == ("318", "50")
    assert table.rating.tolist() == [4.0, 2.5, 5.0]
    for text, where in (
        ("", "header"), ("a,b,c\n1,2,3\n", "header"), ("userId,movieId,rating\n", "no rows"),
        ("userId,movieId,rating\n1,2,4\n1,2\n", "line 3"), ("userId,movieId,rating\n1,2,good\n", "line 2"),
        ("userId,movieId,rating\n1,2,nan\n", "line 2"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(BuildError, match=where) as caught:
            read_ratings(path)
        assert caught.value.field == "ratings"
    with pytest.raises(BuildError, match="min_ratings"):
        from_ratings(table, min_ratings=3)


def test_a_file_of_a_spreadsheet_is_read_and_a_file_that_is_no_text_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_bytes(b"\xef\xbb\xbfuserId,movieId,rating\r\n1,2,3.5\r\n")
    assert read_ratings(path).rating.tolist() == [3.5]
    path.write_bytes(bytes(range(256)))
    with pytest.raises(BuildError, match="must begin with a header"):
        read_ratings(path)


def test_real_ratings_give_a_graph(shared_data: Path) -> None:
    steps: list[str] = []
    built = from_ratings(
        shared_data / "movielens-latest-small" / "ratings.csv",
        min_ratings=20,
        progress=lambda step, *_: steps.append(step),
    )
    assert list(dict.fromkeys(steps)) == ["ratings", "embeddings", "clusters", "edges"]
    assert built.graph.n_clusters == 24
    assert built.users.shape == (610, 16) == (len(built.user_ids), built.graph.centroids.shape[1])
    assert "318" in built.graph.ids
    assert np.diff(built.graph.indptr).tolist() == [150] * 24
