"""Worlds for simulated users: one policy, the people who come, and the true chance of each click.

Data: `users`, the JSON of each user's "user" field; `rates` f64[M, N], the chance that user m clicks item n when it
is shown; `ids`, the items' names. From the rates follow what a random choice and the best possible choice would
earn from the very people who came, which is what a click rate is compared with.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """One policy as its users know it. `k` is the length of a slate; every item of it is looked at."""

    policy: str
    spec: Mapping[str, Any]  # the body of PUT /v1/policies/{policy}
    ids: tuple[str, ...]
    users: tuple[bytes, ...]
    rates: Floats
    window_s: float
    k: int = 1
    graph: bytes | None = None  # the body of PUT /v1/policies/{policy}/graph

    def __post_init__(self) -> None:
        assert self.rates.shape == (len(self.users), len(self.ids))
        assert 1 <= self.k <= len(self.ids)
        assert self.rates.min() >= 0
        assert self.rates.max() <= 1

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def random(self) -> Floats:
        """Clicks per shown item when items are drawn at random, for each user, shape (M,)."""
        return np.asarray(self.rates.mean(axis=1))

    @cached_property
    def best(self) -> Floats:
        """Clicks per shown item of the k best items, for each user, shape (M,)."""
        top = np.partition(self.rates, -self.k, axis=1)[:, -self.k :]
        return np.asarray(top.mean(axis=1))


def reward_contract(window_s: float) -> dict[str, Any]:
    return {"window": f"{window_s:g}s", "default": 0, "aggregation": "first"}


def headlines(
    rates: Mapping[str, Sequence[float]] | None = None,
    *,
    policy: str = "headlines",
    window_s: float = 30.0,
    algorithm: Mapping[str, Any] | None = None,
) -> World:
    """K arms whose click rates differ by segment; a segment has one bank.

    >>> world = headlines({"day": [0.02, 0.04], "night": [0.06, 0.02]})
    >>> world.ids, world.users
    (('a', 'b'), (b'{"segment":"day"}', b'{"segment":"night"}'))
    >>> world.random.tolist(), world.best.tolist()
    ([0.03, 0.04], [0.04, 0.06])
    """
    rates = rates or {
        "day": [0.02, 0.03, 0.12, 0.02, 0.03, 0.02, 0.04, 0.03],
        "night": [0.03, 0.12, 0.02, 0.02, 0.02, 0.04, 0.03, 0.03],
    }
    table = np.array(list(rates.values()), dtype=np.float64)
    ids = tuple(chr(ord("a") + i) if i < 26 else f"arm{i}" for i in range(table.shape[1]))
    kind = algorithm or {"algorithm": "banker", "regularizer": "log-barrier"}
    return World(
        policy=policy,
        spec={**kind, "arms": list(ids), "reward": reward_contract(window_s)},
        ids=ids,
        users=tuple(msgspec.json.encode({"segment": name}) for name in rates),
        rates=table,
        window_s=window_s,
    )


@dataclass(frozen=True)
class Taste:
    """People and films as vectors of length one: `users` f32[M, dim], `items` f32[N, dim], `groups` f32[G, dim].

    A click is more likely where the two agree, and where the film is good, which no embedding tells:
    rate = scale * exp(sharpness * <user, item>) * quality(item), with the scale set so that random earns `random`.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    groups: NDArray[np.float32]
    rates: Floats

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        users: int = 2000,
        items: int = 300,
        groups: int = 12,
        dim: int = 16,
        random: float = 0.04,
        sharpness: float = 1.0,
        spread: float = 0.5,
    ) -> "Taste":
        """`spread` is the standard deviation of the films' log quality."""

        def unit(x: Floats) -> Floats:
            return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

        centres = unit(rng.normal(size=(groups, dim)))
        people = unit(centres[rng.integers(groups, size=users)] + 0.12 * rng.normal(size=(users, dim)))
        films = unit(centres[rng.integers(groups, size=items)] + 0.25 * rng.normal(size=(items, dim)))
        quality = np.exp(spread * rng.normal(size=items))
        rates = np.exp(sharpness * people @ films.T) * quality
        for _ in range(20):  # the cap takes from the mean, so scale again until the mean is what was asked for
            rates = np.minimum(rates * (random / rates.mean()), 0.5)
        return cls(people.astype(np.float32), films.astype(np.float32), centres.astype(np.float32), rates)


def graph_bytes(centroids: NDArray[np.float32], items: NDArray[np.float32], ids: Sequence[str], width: int) -> bytes:
    """The graph of known centroids: each has edges to its `width` best items by inner product; npz as PUT takes it."""
    width = min(width, len(ids))
    best = np.sort(np.argpartition(-(centroids @ items.T), width - 1, axis=1)[:, :width], axis=1)
    indptr = np.arange(len(centroids) + 1, dtype=np.int64) * width
    out = io.BytesIO()
    np.savez(out, centroids=centroids, indptr=indptr, items=best.astype(np.uint32).ravel(), ids=np.array(ids))
    return out.getvalue()


def films(
    taste: Taste,
    *,
    policy: str = "films",
    window_s: float = 30.0,
    k: int = 5,
    width: int = 60,
    graph: bytes | None = None,
    **params: Any,
) -> World:
    """Users with embeddings and a Diag-LinUCB policy; the graph is made of the true groups unless one is given.

    >>> world = films(Taste.draw(np.random.default_rng(0), users=10, items=80, groups=3), width=8)
    >>> world.rates.shape, bool((world.best > 2 * world.random).all())
    ((10, 80), True)
    """
    ids = tuple(f"film{i}" for i in range(len(taste.items)))
    spec = {"algorithm": "diag-linucb", "clusters_per_user": 3, "alpha": 0.3, **params}
    return World(
        policy=policy,
        spec={**spec, "reward": reward_contract(window_s)},
        ids=ids,
        users=tuple(msgspec.json.encode({"embedding": [round(float(x), 5) for x in row]}) for row in taste.users),
        rates=taste.rates,
        window_s=window_s,
        k=k,
        graph=graph if graph is not None else graph_bytes(taste.groups, taste.items, ids, width),
    )
