"""Requests to a worker all of whose arrays are fenced, `python -m tests.server.fenced back|front`: any access beyond
one ends this process. Graphs of every awkward size, requests of every size, whole, cut and altered."""

import contextlib
import faulthandler
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bandits import diag_linucb
from bandits.diag_linucb import MODES, DiagParameters, Serving
from bandits.graph import Graph
from bandits.reaching import MOST
from server import desk, errors, outbox, recommender, views
from server.bodies import check_query, decode
from server.routes.recommend import ONE
from streaming.control import ItemPut
from tests.fences import Fences
from tests.server.host_parts import Host


def fence(fences: Fences) -> None:
    """All that kernels of the hot path work on."""

    def blank_sums(n: int) -> Any:
        sums = fences.zeros((n, 2), np.float32)
        sums[:, 1] = -0.0
        return sums

    def outbox_made(self: outbox.Outbox, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        self.parts, self.fill = fences.array(self.parts[: 32 << 10]), fences.array([0, 32 << 10])

    made, mapped = outbox.Outbox.__init__, views.arrays_in
    outbox.Outbox.__init__ = outbox_made  # type: ignore[method-assign]
    views.arrays_in = lambda *args: {name: fences.array(each) for name, each in mapped(*args).items()}
    diag_linucb._blank_sums = blank_sums
    for module in (diag_linucb, desk, recommender):
        module.np = fences  # type: ignore[attr-defined]
    desk.bytearray = fences.buffer  # type: ignore[attr-defined]


def graph_of(rng: np.random.Generator, n: int, clusters: int, width: int, dim: int, ids: str) -> Graph:
    rows = [np.sort(rng.choice(n, min(width, n), replace=False)) for _ in range(clusters)]
    texts = {"short": "{}", "long": "{}" + "x" * 500, "escaped": "{}" + "\x01" * 500, "mixed": 'é "{}"'}
    return Graph(
        rng.standard_normal((clusters, dim)).astype(np.float32),
        np.arange(clusters + 1) * min(width, n),
        np.concatenate(rows).astype(np.uint32),
        tuple(texts[ids].format(i) for i in range(n)),
    )


def choose_everywhere(fences: Fences, rng: np.random.Generator) -> None:
    """`Serving` by itself: few items, many ties, wide contexts, every way to rank."""
    ways: list[dict[str, Any]] = [
        {}, {"mode": "thompson"}, {"mode": "exploit"}, {"explore_share": 0.5}, {"randomize_top": 9}, {"fresh": "first"}
    ]  # fmt: skip
    for n in [*range(1, 20), 31, 32, 33, MOST - 1, MOST, MOST + 1, 3000, 9000]:
        for clusters, width in ((1, n), (3, n // 2 + 1), (255, min(n // 9 + 1, 40))):
            graph = graph_of(rng, n, clusters, width, 3, "short")
            for way in ways if n < 3000 else ways[:3]:
                for taught in (False, True):
                    pairs = fences.zeros((len(graph.items), 2), np.float32)
                    pairs[:, 1] = -2.0
                    if taught:
                        pairs[:] = rng.standard_normal(pairs.shape)
                    arrays = [fences.array(each) for each in (graph.indptr, graph.items)]
                    parameters = DiagParameters(clusters_per_user=min(clusters, 64), **way)
                    serving = Serving(*arrays, pairs, n, parameters, fences.array(graph.centroids))
                    every = np.arange(clusters, dtype=np.uint32), np.full(clusters, 65535 // clusters, np.uint16)
                    for k in (1, min(n, 255)):
                        serving.choose(*every, k, int(rng.integers(1 << 62)))
                        serving.choose(*every, k, 7, MODES["explore"], np.arange(n // 2), np.arange(n // 3, n))
                    serving.choose(*serving.nearest(rng.standard_normal(3)), 1, 3)
        fences.forget()


GRAPHS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one": ((1, 1, 1, 1, "short"), {}),
    "seven": ((7, 3, 5, 4, "mixed"), {"mode": "thompson"}),
    "é" * 500: ((17, 70, 9, 2, "mixed"), {"clusters_per_user": 64}),
    "long": ((260, 2, 255, 1, "long"), {"randomize_top": 260}),
    "escaped": ((40, 2, 40, 1, "escaped"), {"explore_share": 0.3}),
    "many": ((9000, 80, 300, 8, "short"), {"clusters_per_user": 64, "alpha": 0.0}),
}


def body_of(rng: random.Random) -> bytes:
    name = rng.choice([*GRAPHS, "nobody"])
    (n, clusters, _, dim, ids), _ = GRAPHS.get(name, GRAPHS["one"])
    size = rng.choice([1, 2, 64, 65, 255])
    user: dict[str, Any] = {"embedding": [rng.uniform(-2, 2) * 10.0 ** rng.choice([0, 0, 19, 37]) for _ in range(dim)]}
    if rng.random() < 0.6:
        user = {"clusters": rng.sample(range(clusters), min(size, clusters))}
        if rng.random() < 0.5:
            user["weights"] = [rng.random() for _ in user["clusters"]]
    query: dict[str, Any] = {"policy": name, "user": user, "k": rng.choice([1, min(n, 255), min(n, 30)])}
    for member in ("exclude", "candidates"):
        if rng.random() < 0.2:
            many = rng.choice([1, 20, 2048, 4096, 4097])
            query[member] = [str(rng.randrange(n)) if ids == "short" else "x" * 9 for _ in range(many)]
    body = msgspec.json.encode(query)
    change, at = rng.random(), rng.randrange(len(body))
    if change < 0.1:
        body = body[:at]
    elif change < 0.2:
        body = body[:at] + bytes([rng.choice(b'"\\{}[],:09.e- \x00\xff')]) + body[at + rng.randint(0, 1) :]
    elif change < 0.25:
        body = body.ljust(rng.choice([desk.TEXT_BYTES - 1, desk.TEXT_BYTES, desk.TEXT_BYTES + 1]))
    return body


def ask(fences: Fences, path: Path, shards: int, requests: int) -> int:
    """How many of the requests were answered by kernels."""
    rng, answered = random.Random(shards), 0
    host = Host(path, shards, seed=shards)
    for name, (shape, parameters) in GRAPHS.items():
        host.diag(name, graph_of(np.random.default_rng(1), *shape), **parameters)
    for i in range(requests):
        body = body_of(rng)
        if host.recommender.answer(body) is not None:
            answered += 1
        elif len(body) < desk.TEXT_BYTES:
            with contextlib.suppress(errors.Problem):
                host.recommender.recommend(check_query(decode(ONE, body)))
        if i % 100 == 0:
            host.follow(ItemPut("one", "0", paused=i % 200 == 0))
            fences.check()
    return answered


def main(ends: str) -> None:
    faulthandler.enable()
    fences = Fences(ends)
    fence(fences)
    choose_everywhere(fences, np.random.default_rng(1))
    for shards in (1, 40):
        with tempfile.TemporaryDirectory() as folder:
            print(ask(fences, Path(folder), shards, 1500))


if __name__ == "__main__":
    main(sys.argv[1])
