"""The policies of this project, from Python, one decision at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from subject import DIM, Drawn, Subject, Subjects

from bandits.arms import ANSWER, EXPLORE, PLAY, make, operations
from bandits.diag_linucb import Context, DiagLinUCB, DiagParameters
from bandits.graph import Graph
from bandits.ratings import linucb_learn, linucb_scores

SLATE = 10  # items that Diag-LinUCB chooses
N_CLUSTERS, N_ITEMS = 1000, 20_000


class Armed(Subject):
    """A K-armed policy: one draw; a play and its answer, without a default reward."""

    def __init__(self, arms: int, algorithm: str) -> None:
        super().__init__(arms)
        self.policy: Any = make(algorithm, {})
        self.states = self.policy.empty(arms)[None]
        self.active, self.rng = np.ones(arms, np.bool_), np.random.default_rng(1)
        self.ops, self.status = operations(2), np.zeros(2, np.uint8)
        self.now, self.ticket = 0, (1.0, 0.0, 0.0, 0.0)

    def choose(self, context: Any) -> int:
        del context
        draw = self.policy.draw(self.states[0], self.active, 1, self.rng, EXPLORE, self.now)
        self.ticket = (draw.p, draw.w, draw.a, draw.c)
        return int(draw.arms[0])

    def learn(self, context: Any, arm: int, reward: float) -> None:
        del context
        self.now += 1
        decision = (0, self.now, arm, self.now, 1000, self.now, *self.ticket, np.nan, 0.0)
        self.ops[0] = (*decision, 0.0, PLAY, 0)
        self.ops[1] = (*decision, reward, ANSWER, 1)
        self.policy.learn(self.states, self.arms, self.ops, self.status)


class Banker(Armed, Drawn):
    def __init__(self, arms: int) -> None:
        super().__init__(arms, "banker")


class LinUCB(Subject):
    """The kernels of bandits/ratings.py, as `benchmarks.films` has them; the best of all arms."""

    def __init__(self, arms: int) -> None:
        super().__init__(arms)
        self.items = np.arange(arms, dtype=np.uint32)
        self.inverse = np.tile(np.eye(DIM), (arms, 1, 1))
        self.b, self.theta, self.scores = np.zeros((arms, DIM)), np.zeros((arms, DIM)), np.empty(arms)

    def contexts(self, rows: Any) -> Sequence[Any]:
        return [np.ascontiguousarray(row) for row in rows]

    def choose(self, context: Any) -> int:
        linucb_scores(context, self.items, self.inverse, self.theta, 1.0, self.scores)
        return int(self.scores.argmax())

    def learn(self, context: Any, arm: int, reward: float) -> None:
        linucb_learn(context, self.items[arm : arm + 1], np.array([reward]), self.inverse, self.b, self.theta)


class Diag(Drawn):
    """A slate of ten from `arms` edges: ten of 1,000 clusters, each joined to arms / 10 of 20,000 items.

    With ten arms there are no other items, and every cluster is joined to each.
    """

    def __init__(self, arms: int) -> None:
        super().__init__(arms)
        rng, n_items, wide = np.random.default_rng(0), N_ITEMS if arms > 10 else arms, max(10, arms // 10)
        rows = np.sort(rng.integers(0, n_items - wide + 1, (N_CLUSTERS, wide)), axis=1) + np.arange(wide)
        centroids = rng.standard_normal((N_CLUSTERS, DIM))
        centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
        indptr, names = np.arange(N_CLUSTERS + 1) * wide, tuple(map(str, range(n_items)))
        graph = Graph(centroids, indptr, rows.astype(np.uint32).ravel(), names)
        self.policy = DiagLinUCB(graph, DiagParameters(temperature=0.1), default=None)
        self.rng = np.random.default_rng(1)

    def contexts(self, rows: Any) -> Sequence[Any]:
        return [self.policy.nearest(row) for row in rows]

    def choose(self, context: Context) -> int:
        return int(self.policy.choose(context, SLATE, self.rng).items[0])

    def learn(self, context: Context, arm: int, reward: float) -> None:
        self.policy.rewarded(context, arm, reward)


class DiagEmbedding(Diag):
    """The same from the ten numbers: the nearest ten clusters are found first."""

    user: Context

    def contexts(self, rows: Any) -> Sequence[Any]:
        return [row.astype(np.float32) for row in rows]

    def choose(self, context: Any) -> int:
        self.user = self.policy.nearest(context)
        return super().choose(self.user)

    def learn(self, context: Any, arm: int, reward: float) -> None:
        del context
        super().learn(self.user, arm, reward)


def croupier() -> Subjects:
    return {
        "UCB1": lambda arms: Armed(arms, "ucb1"),
        "Thompson": lambda arms: Armed(arms, "thompson-beta"),
        "Banker": Banker,
        "LinUCB": LinUCB,
        "Diag-LinUCB, clusters given": Diag,
        "Diag-LinUCB": DiagEmbedding,
    }
