"""Choosing writes into its own arrays and nowhere else: each stands between bytes that have to stay as they are."""

from typing import Any

import numpy as np
import pytest

from bandits import diag_linucb
from bandits.diag_linucb import DiagParameters, Serving
from bandits.graph import Graph

CLUSTERS, DIM, GUARD, MARK = 12, 4, 256, 0xA5
WAYS: list[dict[str, Any]] = [
    {},
    {"mode": "thompson"},
    {"fresh": "first"},
    {"explore_share": 0.5},
    {"randomize_top": 5},
]


class Guarded:
    """numpy, but what `empty` makes is guarded."""

    def __init__(self) -> None:
        self.made: list[tuple[np.ndarray[Any, Any], int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = np.float64) -> Any:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.full(n_bytes + 2 * GUARD, MARK, np.uint8)
        begin = GUARD - (raw.ctypes.data + GUARD) % 64
        self.made.append((raw, begin, begin + n_bytes))
        return raw[begin : begin + n_bytes].view(dtype).reshape(shape)

    def check(self) -> None:
        for raw, begin, end in self.made:
            assert (raw[:begin] == MARK).all()
            assert (raw[end:] == MARK).all()


@pytest.mark.parametrize("items", [1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 4095, 4097])
def test_nothing_is_written_beside_the_scratch(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(items)
    for width in {1, min(7, items), min(items, 900)}:
        rows = [np.sort(rng.choice(items, width, replace=False)) for _ in range(CLUSTERS)]
        graph = Graph(
            rng.standard_normal((CLUSTERS, DIM), np.float32),
            np.arange(CLUSTERS + 1) * width,
            np.concatenate(rows).astype(np.uint32),
            tuple(map(str, range(items))),
        )
        for way in WAYS:
            guarded = Guarded()
            pairs = rng.standard_normal((len(graph.items), 2), np.float32)
            with monkeypatch.context() as patched:
                patched.setattr(diag_linucb, "np", guarded)
                serving = Serving(graph.indptr, graph.items, pairs, items, DiagParameters(**way), graph.centroids)
                for _ in range(8):
                    m = int(rng.integers(1, CLUSTERS))
                    clusters = rng.choice(CLUSTERS, m, replace=False).astype(np.uint32)
                    weights = rng.integers(0, 65536, m).astype(np.uint16)
                    k, word = int(rng.integers(1, min(items, 80) + 1)), int(rng.integers(1 << 62))
                    serving.choose(clusters, weights, k, word, None, rng.integers(0, items, 3))
                    serving.nearest(rng.standard_normal(DIM))
            guarded.check()
