"""A policy of some library, as its users call it."""

from collections.abc import Callable, Sequence
from typing import Any

DIM = 10  # numbers in a context


class Subject:
    """`choose` takes a context and gives an arm, 0 to arms - 1; `learn` teaches the reward of the arm just chosen."""

    def __init__(self, arms: int) -> None:
        self.arms = arms

    def contexts(self, rows: Any) -> Sequence[Any]:
        """The contexts f64[n, DIM] in the library's own form."""
        return [row.reshape(1, -1) for row in rows]

    def begin(self, rows: Any, arms: Sequence[int], rewards: Sequence[float]) -> None:
        """Teach a first history; libraries that want one in a batch do so here."""
        for context, arm, reward in zip(self.contexts(rows), arms, rewards, strict=True):
            self.learn(context, arm, reward)

    def choose(self, context: Any) -> int:
        raise NotImplementedError

    def learn(self, context: Any, arm: int, reward: float) -> None:
        raise NotImplementedError


class Drawn(Subject):
    """A policy that can only learn what it drew."""

    def begin(self, rows: Any, arms: Sequence[int], rewards: Sequence[float]) -> None:
        del arms
        for context, reward in zip(self.contexts(rows), rewards, strict=True):
            self.learn(context, self.choose(context), reward)


Subjects = dict[str, Callable[[int], Subject]]
"""By name, how each is made for so many arms."""
