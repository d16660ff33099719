"""A world made from ratings, and the policies compared in it: Diag-LinUCB, full LinUCB, popular, random.

What is real and what is not. The ratings are split at random in two halves, by the seed:

    past    what an operator would have: user and item embeddings, clusters and graph are built from it
    truth   a low-rank logistic model of P(rating >= 4) is fitted to it: that model is the world

So the policies never see the truth's own factors, only embeddings estimated from other ratings of the same people,
and have to learn what the past did not say. A round draws a user at random, the policy shows a slate of k films, each
is clicked on its own with that user's probability. What this leaves out: people rate what they chose to watch, so the
click rate (about one half) is that of films people pick; tastes stand still; a film shown twice is as good as new.

All policies meet the same users and the same coins: each (round, item) has one uniform number, whoever shows it.
Full LinUCB gets what Diag-LinUCB gets: the user's embedding, the same graph of items to choose from, the same rewards.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_array

from bandits.diag_linucb import DiagLinUCB, DiagParameters
from bandits.graph_builder import BuildError, Built, Progress, Ratings, from_ratings, read_ratings, silent

LIKED = 4.0


@dataclass(frozen=True)
class RatingsWorld:
    """Click probabilities f64[U, N] of users and items, and what is known of both beforehand."""

    click: NDArray[np.float64]
    built: Built
    past_likes: NDArray[np.float64]  # f64[N]: how often each item was liked in the past half

    def best(self, k: int) -> NDArray[np.float64]:
        """f64[U]: clicks expected of the best possible slate of k, knowing every probability."""
        return np.asarray(np.sort(self.click, axis=1)[:, -k:].sum(axis=1))


def make_world(
    ratings: Ratings, seed: int, limit: int = 1000, n_clusters: int | None = None, items_per_cluster: int = 150
) -> RatingsWorld:
    """The world of these ratings, of the `limit` most rated items.

    Raises:
        BuildError: naming what the ratings lack.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(ratings.item, minlength=len(ratings.items))
    kept = np.sort(np.argsort(-counts, kind="stable")[:limit])
    index = np.full(len(ratings.items), -1)
    index[kept] = np.arange(len(kept))
    rows = rng.permutation(np.flatnonzero(index[ratings.item] >= 0))
    names = tuple(ratings.items[i] for i in kept)
    halves = [
        Ratings(ratings.users, names, ratings.user[r], index[ratings.item[r]], ratings.rating[r])
        for r in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    ]
    past, truth = halves
    built = from_ratings(past, n_clusters, items_per_cluster, min_ratings=0, seed=seed)
    likes = np.bincount(past.item, past.rating >= LIKED, len(names)).astype(np.float64)
    return RatingsWorld(fit_likes(truth, rng), built, likes)


def fit_likes(
    ratings: Ratings, rng: np.random.Generator, rank: int = 8, penalty: float = 0.05, steps: int = 150
) -> NDArray[np.float64]:
    """P(rating >= 4) for all users and items, f64[U, N]: sigmoid(a + b_u + c_i + x_u . y_i), by Adam on all ratings.

    `penalty` times the squares of b, c, x and y per rating of the user or item keeps the thinly rated near the mean.
    """
    n_users, n_items = len(ratings.users), len(ratings.items)
    liked = (ratings.rating >= LIKED).astype(np.float64)
    base = math.log((liked.mean() + 1e-6) / (1.0 - liked.mean() + 1e-6))
    # Columns: rank factors, then (bias, 1) for users and (1, bias) for items; the ones are not learned.
    x = rng.normal(0.0, 0.1, (n_users, rank + 2))
    y = rng.normal(0.0, 0.1, (n_items, rank + 2))
    x[:, rank:], y[:, rank:] = (0.0, 1.0), (1.0, 0.0)
    free_x, free_y = np.ones(rank + 2), np.ones(rank + 2)
    free_x[rank + 1] = free_y[rank] = 0.0
    moments = [np.zeros_like(m) for m in (x, x, y, y)]
    for step in range(1, steps + 1):
        logit = base + np.einsum("rd,rd->r", x[ratings.user], y[ratings.item])
        wrong = coo_array(
            (1.0 / (1.0 + np.exp(-logit)) - liked, (ratings.user, ratings.item)), shape=(n_users, n_items)
        )
        wrong = wrong.tocsr()
        gradients = (wrong @ y + penalty * 20 * x) * free_x, (wrong.T @ x + penalty * 20 * y) * free_y
        for i, (array, gradient) in enumerate(zip((x, y), gradients, strict=True)):
            first, second = moments[2 * i], moments[2 * i + 1]
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient**2 - second)
            rate = 0.05 / (1 - 0.9**step) * math.sqrt(1 - 0.99**step)
            array -= rate * first / (np.sqrt(second) + 1e-8)
    return np.asarray(1.0 / (1.0 + np.exp(-(base + x @ y.T))))


class Policy(Protocol):
    """What the comparison asks of a policy."""

    def choose(self, user: int, k: int) -> NDArray[Any]: ...

    def learn(self, user: int, items: NDArray[Any], rewards: NDArray[np.float64]) -> None: ...


class Diag:
    """Diag-LinUCB with the library's defaults."""

    def __init__(self, world: RatingsWorld, rng: np.random.Generator, parameters: DiagParameters) -> None:
        self.policy = DiagLinUCB(world.built.graph, parameters)
        self.contexts = [self.policy.nearest(user) for user in world.built.users]
        self.rng = rng

    def choose(self, user: int, k: int) -> NDArray[Any]:
        return self.policy.choose(self.contexts[user], k, self.rng).items

    def learn(self, user: int, items: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        self.policy.learn(self.contexts[user], items, rewards)


class LinUCB:
    """Full LinUCB, disjoint: a ridge regression with its whole matrix for each item (Li et al., WWW 2010, algorithm 1).

    The features are a constant 1 and the user's embedding, each coordinate scaled to `spread` over users. It chooses
    among the items that the graph joins to the user's clusters, as Diag-LinUCB does. The defaults are the best of those
    tried on seeds that the comparison does not use.
    """

    def __init__(
        self,
        world: RatingsWorld,
        rng: np.random.Generator,
        parameters: DiagParameters,
        alpha: float = 0.7,
        spread: float = 0.7,
    ) -> None:
        features = world.built.users[:, 1:].astype(np.float64)
        features = spread * features / np.maximum(features.std(axis=0), 1e-12)
        self.features = np.ascontiguousarray(np.hstack([np.ones((len(features), 1)), features]))
        graph, d = world.built.graph, self.features.shape[1]
        nearest = DiagLinUCB(graph, parameters).nearest
        self.candidates = [
            np.unique(
                np.concatenate([graph.items[graph.indptr[c] : graph.indptr[c + 1]] for c in nearest(user).clusters])
            )
            for user in world.built.users
        ]
        n = len(graph.ids)
        self.inverse = np.tile(np.eye(d), (n, 1, 1))
        self.b, self.theta = np.zeros((n, d)), np.zeros((n, d))
        self.alpha, self.rng = alpha, rng
        self.scores = np.empty(n)

    def choose(self, user: int, k: int) -> NDArray[Any]:
        items = self.candidates[user]
        scores = self.scores[: len(items)]
        linucb_scores(self.features[user], items, self.inverse, self.theta, self.alpha, scores)
        scores += 1e-12 * self.rng.random(len(items))  # ties by lot
        k = min(k, len(items))
        best = np.argpartition(-scores, k - 1)[:k]
        return items[best]

    def learn(self, user: int, items: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        linucb_learn(self.features[user], items, rewards, self.inverse, self.b, self.theta)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def linucb_scores(
    x: NDArray[np.float64],
    items: NDArray[np.uint32],
    inverse: NDArray[np.float64],
    theta: NDArray[np.float64],
    alpha: float,
    out: NDArray[np.float64],
) -> None:
    """out = theta_j . x + alpha sqrt(x' A_j^-1 x)."""
    d = x.shape[0]
    for i in range(items.shape[0]):
        j = items[i]
        mean, spread = 0.0, 0.0
        for a in range(d):
            row = 0.0
            for c in range(d):
                row += inverse[j, a, c] * x[c]
            spread += x[a] * row
            mean += theta[j, a] * x[a]
        out[i] = mean + alpha * math.sqrt(max(spread, 0.0))


@njit(cache=True, nogil=True)
def linucb_learn(
    x: NDArray[np.float64],
    items: NDArray[np.uint32],
    rewards: NDArray[np.float64],
    inverse: NDArray[np.float64],
    b: NDArray[np.float64],
    theta: NDArray[np.float64],
) -> None:
    """A_j += x x' (by Sherman and Morrison on its inverse), b_j += r x, theta_j = A_j^-1 b_j."""
    d = x.shape[0]
    for i in range(items.shape[0]):
        j = items[i]
        v = np.zeros(d)
        for a in range(d):
            for c in range(d):
                v[a] += inverse[j, a, c] * x[c]
        scale = 1.0
        for a in range(d):
            scale += x[a] * v[a]
            b[j, a] += rewards[i] * x[a]
        for a in range(d):
            for c in range(d):
                inverse[j, a, c] -= v[a] * v[c] / scale
        for a in range(d):
            theta[j, a] = 0.0
            for c in range(d):
                theta[j, a] += inverse[j, a, c] * b[j, c]


class Popular:
    """The k items liked most often in the past, for everyone."""

    def __init__(self, world: RatingsWorld, rng: np.random.Generator, parameters: DiagParameters) -> None:  # noqa: ARG002
        self.order = np.argsort(-world.past_likes, kind="stable")

    def choose(self, user: int, k: int) -> NDArray[Any]:  # noqa: ARG002
        return self.order[:k]

    def learn(self, user: int, items: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        pass


class Random:
    """Any k items."""

    def __init__(self, world: RatingsWorld, rng: np.random.Generator, parameters: DiagParameters) -> None:  # noqa: ARG002
        self.n_items, self.rng = len(world.built.graph.ids), rng

    def choose(self, user: int, k: int) -> NDArray[Any]:  # noqa: ARG002
        return self.rng.permutation(self.n_items)[:k]

    def learn(self, user: int, items: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        pass


POLICIES: dict[str, Callable[..., Policy]] = {
    "diag-linucb": Diag,
    "linucb": LinUCB,
    "popular": Popular,
    "random": Random,
}


def play(
    world: RatingsWorld, policy: Policy, seed: int, rounds: int, k: int, points: int, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Click rate, its curve over `points` stretches, share of the best possible, and microseconds a round."""
    rng = np.random.default_rng([seed, 1])
    users = rng.integers(0, len(world.click), rounds)
    best = world.best(k)[users]
    clicks, shown, uniforms = np.zeros(rounds), np.zeros(rounds), np.empty((64, world.click.shape[1]))
    took = 0
    for r in range(rounds):
        user = int(users[r])
        if r % len(uniforms) == 0:
            rng.random(out=uniforms)
        coins = uniforms[r % len(uniforms)]  # one for every item, so that all policies meet the same ones
        begin = time.perf_counter_ns()
        items = policy.choose(user, k)
        took += time.perf_counter_ns() - begin
        rewards = (coins[items] < world.click[user, items]).astype(np.float64)
        begin = time.perf_counter_ns()
        policy.learn(user, items, rewards)
        took += time.perf_counter_ns() - begin
        clicks[r], shown[r] = rewards.sum(), len(items)
        if r % max(1, rounds // 20) == 0:
            tell(r)
    stretches = np.array_split(np.arange(rounds), min(points, rounds))
    return {
        "clicks": float(clicks.sum()),
        "click_rate": float(clicks.sum() / shown.sum()),
        "share_of_best": float(clicks.sum() / best.sum()),
        "curve": [float(clicks[s].sum() / shown[s].sum()) for s in stretches],
        "us_per_round": took / 1e3 / rounds,
    }


def run_ratings(
    path: str | Path | Ratings,
    policies: Sequence[str] = tuple(POLICIES),
    seed: int = 0,
    rounds: int = 20_000,
    limit: int = 1000,
    k: int = 10,
    parameters: DiagParameters | None = None,
    points: int = 20,
    progress: Progress = silent,
    **world: Any,
) -> dict[str, Any]:
    """Play the named policies in the world of these ratings; everything but the microseconds is a function of the seed.

    Args:
        path: a MovieLens ratings file, or ratings already read. limit: items of the world, the most rated ones.
        rounds: slates of k shown by each policy. points: length of the click-rate curves.

    Returns:
        {"rounds", "k", "users", "items", "edges", "best_click_rate", "policies": {name: {"clicks", "click_rate",
        "share_of_best", "curve": click rate in each of `points` stretches, "us_per_round": choosing and learning}}}

    Raises:
        BuildError: field `policy`, `rounds`, `limit` or what the file lacks.
    """
    for name in policies:
        if name not in POLICIES:
            raise BuildError("policy", f"{name!r} is none of {', '.join(POLICIES)}")
    if rounds < 1 or k < 1:
        raise BuildError("rounds" if rounds < 1 else "k", "must be at least 1")
    if limit < max(k, 32):
        raise BuildError("limit", f"must leave at least {max(k, 32)} items, not {limit}")
    table = path if isinstance(path, Ratings) else read_ratings(path)
    progress("world", 0, 1)
    place = make_world(table, seed, limit, **world)
    progress("world", 1, 1)
    users = np.random.default_rng([seed, 1]).integers(0, len(place.click), rounds)
    results = {}
    for name in policies:
        policy = POLICIES[name](place, np.random.default_rng([seed, 3]), parameters or DiagParameters())
        results[name] = play(
            place,
            policy,
            seed,
            rounds,
            k,
            points,
            lambda done, name=name: progress(name, done, rounds),  # type: ignore[misc]
        )
        progress(name, rounds, rounds)
    return {
        "rounds": rounds,
        "k": k,
        "users": len(place.click),
        "items": place.click.shape[1],
        "edges": len(place.built.graph.items),
        "best_click_rate": float(place.best(k)[users].mean() / k),
        "policies": results,
    }
