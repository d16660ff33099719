"""The graph: what it refuses and how it says so; round trips; items in and out; the item order."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bandits.graph import Graph, GraphError, by_item


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    n_items = draw(st.integers(1, 8))
    rows = draw(st.lists(st.sets(st.integers(0, n_items - 1)), min_size=1, max_size=6))
    ids = draw(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9),
            min_size=n_items,
            max_size=n_items,
            unique=True,
        )
    )
    dim = draw(st.integers(0, 3))
    centroids = draw(st.lists(st.floats(-9, 9, width=32), min_size=dim * len(rows), max_size=dim * len(rows)))
    return Graph(
        np.array(centroids, np.float32).reshape(len(rows), dim),
        np.cumsum([0, *map(len, rows)]),
        np.array([j for row in rows for j in sorted(row)], np.uint32),
        tuple(ids),
    )


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_bytes_and_back_is_the_same_graph(graph: Graph) -> None:
    again = Graph.from_bytes(graph.to_bytes())
    assert again.version == graph.version
    assert again.ids == graph.ids
    for a, b in ((again.centroids, graph.centroids), (again.indptr, graph.indptr), (again.items, graph.items)):
        assert_array_equal(a, b)
        assert a.dtype == b.dtype


@given(graphs(), st.data())
@settings(max_examples=60, deadline=None)
def test_an_item_added_and_removed_leaves_the_graph_as_it_was(graph: Graph, data: st.DataObject) -> None:
    clusters = data.draw(st.sets(st.integers(0, graph.n_clusters - 1)))
    more = graph.with_item("\0new", clusters)
    assert {c for c in range(graph.n_clusters) if len(graph.ids) in row(more, c)} == clusters
    assert more.version != graph.version
    assert more.without_item("\0new").version == graph.version
    gone = data.draw(st.sampled_from(graph.ids)) if len(graph.ids) > 1 else None
    if gone is not None:
        less = graph.without_item(gone)
        for c in range(graph.n_clusters):
            assert [less.ids[j] for j in row(less, c)] == [
                i for i in (graph.ids[j] for j in row(graph, c)) if i != gone
            ]


def row(graph: Graph, c: int) -> list[int]:
    return [int(j) for j in graph.items[graph.indptr[c] : graph.indptr[c + 1]]]


@given(graphs(), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_item_order_holds_each_edge_once(graph: Graph, members: int) -> None:
    member = np.array([members >> i & 1 for i in range(len(graph.ids))], bool)
    for mask in (None, member):
        view = by_item(graph, mask)
        for j in range(len(graph.ids)):
            clusters = view.clusters[view.indptr[j] : view.indptr[j + 1]].tolist()
            joined = [c for c in range(graph.n_clusters) if j in row(graph, c)]
            assert clusters == (joined if mask is None or mask[j] else [])
            for c, e in zip(clusters, view.serving[view.indptr[j] : view.indptr[j + 1]], strict=True):
                assert graph.items[e] == j
                assert graph.indptr[c] <= e < graph.indptr[c + 1]


def arrays(**changes: Any) -> dict[str, Any]:
    """A good graph of two clusters and three items, with some arrays replaced."""
    good = {
        "centroids": np.eye(2, dtype=np.float32),
        "indptr": np.array([0, 2, 4]),
        "items": np.array([0, 2, 1, 2], np.uint32),
        "ids": ("a", "b", "c"),
    }
    return good | changes


BAD: list[tuple[str, dict[str, Any]]] = [
    ("centroids", {"centroids": np.zeros((3, 2))}),
    ("centroids", {"centroids": np.zeros(2)}),
    ("centroids", {"centroids": np.array([["a"], ["b"]])}),
    ("centroids", {"centroids": np.full((2, 2), np.nan)}),
    ("centroids", {"centroids": np.full((2, 2), 1e300)}),
    ("indptr", {"indptr": np.array([], np.int64)}),
    ("indptr", {"indptr": np.array([0, 2, 3])}),
    ("indptr", {"indptr": np.array([1, 2, 4])}),
    ("indptr", {"indptr": np.array([0, 5, 4])}),
    ("indptr", {"indptr": np.array([0.0, 2.0, 4.0])}),
    ("indptr", {"indptr": np.array([-1, 2, 4])}),
    ("items", {"items": np.array([0, 3, 1, 2])}),
    ("items", {"items": np.array([2, 0, 1, 2])}),
    ("items", {"items": np.array([0, 0, 1, 2])}),
    ("items", {"items": np.array([0, -2, 1, 2])}),
    ("items", {"items": np.array([[0, 2, 1, 2]])}),
    ("ids", {"ids": ("a", "b", "b")}),
    ("ids", {"ids": ("a", "", "c")}),
    ("ids", {"ids": ("a", "\ud800", "c")}),
    ("ids", {"ids": ("a", "x" * 513, "c")}),
    ("ids", {"ids": ()}),
]


@pytest.mark.parametrize(("field", "changes"), BAD)
def test_arrays_that_disagree_are_named(field: str, changes: dict[str, Any]) -> None:
    Graph(**arrays())
    with pytest.raises(GraphError) as caught:
        Graph(**arrays(**changes))
    assert caught.value.field == field


def npz(**members: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **members)
    return out.getvalue()


def test_files_that_are_no_graph_are_refused() -> None:
    good = Graph(**arrays()).to_bytes()
    without = {name: value for name, value in arrays().items() if name not in ("ids", "indptr")}
    objects = npz(**{**arrays(), "ids": np.array(["a", b"b", 3], object)})
    cases = [
        (b"", "graph"), (b"not a zip", "graph"), (good[: len(good) // 2], "graph"), (objects, "graph"),
        (npz(**without), "indptr"), (npz(**{**arrays(), "ids": np.arange(3)}), "ids"),
    ]  # fmt: skip
    for data, field in cases:
        with pytest.raises(GraphError) as caught:
            Graph.from_bytes(data)
        assert caught.value.field == field


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_give_the_graph_or_a_graph_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = Graph(**arrays())
    data = bytearray(graph.to_bytes())
    data[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
    with contextlib.suppress(GraphError):  # any other exception fails the test
        Graph.from_bytes(bytes(data))


def test_without_ids_the_items_are_external_numbers(tmp_path: Any) -> None:
    (tmp_path / "g.npz").write_bytes(
        npz(centroids=np.zeros((2, 1)), indptr=np.array([0, 2, 4]), items=np.array([318, 7, 50, 7]))
    )
    graph = Graph.load(tmp_path / "g.npz")
    assert graph.ids == ("7", "50", "318")
    assert [row(graph, 0), row(graph, 1)] == [[0, 2], [0, 1]]
    graph.save(tmp_path / "h.npz")
    assert Graph.load(tmp_path / "h.npz").version == graph.version
    with pytest.raises(GraphError, match="items"):
        Graph.from_bytes(npz(centroids=np.zeros((1, 1)), indptr=np.array([0, 2]), items=np.array([7, 7])))


def test_items_that_are_there_or_not_are_named() -> None:
    graph = Graph(**arrays())
    for call, field in (
        (lambda: graph.with_item("a", [0]), "id"),
        (lambda: graph.with_item("d", [2]), "clusters"),
        (lambda: graph.with_item("d", [-1]), "clusters"),
        (lambda: graph.with_item("d", [1, 1]), "clusters"),
        (lambda: graph.without_item("d"), "id"),
    ):
        with pytest.raises(GraphError) as caught:
            call()
        assert caught.value.field == field
