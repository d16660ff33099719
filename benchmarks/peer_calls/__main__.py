"""What `benchmarks.peers` has each library do, in that library's own environment: `python benchmarks/peer_calls NAME`.

The same script runs in our environment and in theirs: nothing of this project is imported but for NAME croupier. It
speaks JSON lines: first what there is, {"version", "subjects"}; then an answer to each request,

    {"subject": "UCB1", "arms": 100, "seconds": 0.1}  ->  {"choose_us", "learn_us", "both_us", "calls"}, see `Clock`
    {"subject": "UCB1", "seed": 3}                    ->  {"of_best"}, see `worth`

or {"error": sentence}. A subject is one policy as its users call it (subject.py). Contexts are in the library's own
form before the clock starts; for Vowpal Wabbit that is the text of the whole request, made while the clock runs.
"""

import importlib
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from subject import DIM, Subject, Subjects

CYCLES_LEAST = 3
WARM_S = 0.02
LONG_US = 50.0
WORTH_ARMS, WORTH_ROUNDS = 10, 2000


class Clock:
    """One subject of so many arms, kept from round to round. Each arm has been taught once before the clock starts."""

    def __init__(self, make: Callable[[int], Subject], arms: int, n: int = 2000) -> None:
        rng = np.random.default_rng(arms)
        self.subject = make(arms)
        order = rng.permutation(arms).tolist()
        self.subject.begin(rng.random((arms, DIM)), order, (rng.random(arms) < 0.1).astype(float).tolist())
        self.contexts = self.subject.contexts(rng.random((n, DIM)))
        self.rewards = (rng.random(n) < 0.1).astype(float).tolist()
        self.turn = 0
        self.clocks = [time.perf_counter_ns, time.perf_counter_ns]
        warm = self.run(WARM_S)
        self.clocks = [
            time.thread_time_ns if warm[part] > LONG_US else time.perf_counter_ns for part in ("choose_us", "learn_us")
        ]

    def run(self, seconds: float) -> dict[str, float]:
        """Choose and learn in turns for so long; each call is timed by itself. Medians.

        Calls so long that other processes come in between are timed by the thread's own clock: their median would
        grow with whatever else runs, that of short calls does not.
        """
        chosen: list[int] = []
        learned: list[int] = []
        end, (clock, later) = time.perf_counter() + seconds, self.clocks
        while time.perf_counter() < end or len(chosen) < CYCLES_LEAST:
            context, reward = self.contexts[self.turn], self.rewards[self.turn]
            self.turn = (self.turn + 1) % len(self.rewards)
            begin = clock()
            arm = self.subject.choose(context)
            chosen.append(clock() - begin)
            begin = later()
            self.subject.learn(context, arm, reward)
            learned.append(later() - begin)
        return {
            "choose_us": statistics.median(chosen) / 1e3,
            "learn_us": statistics.median(learned) / 1e3,
            "both_us": statistics.median(a + b for a, b in zip(chosen, learned, strict=True)) / 1e3,
            "calls": len(chosen),
        }


def worth(make: Callable[[int], Subject], seed: int) -> float:
    """Clicks over those of the best arm each time: ten arms, 2,000 users, chance sigmoid(-2 + 3 x . theta_arm).

    x is uniform on the unit sphere. Without a context the best that one arm can do is well below one.
    """
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((WORTH_ARMS, DIM)) / DIM**0.5
    rows = rng.standard_normal((WORTH_ROUNDS, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chances = 1 / (1 + np.exp(2 - 3 * (rows @ theta.T) - rng.standard_normal(WORTH_ARMS) / 2))
    coins = rng.random(WORTH_ROUNDS)
    first = rng.standard_normal((WORTH_ARMS, DIM))
    subject = make(WORTH_ARMS)
    subject.begin(first, list(range(WORTH_ARMS)), [0.0] * WORTH_ARMS)
    clicks = 0.0
    for context, chance, coin in zip(subject.contexts(rows), chances, coins, strict=True):
        arm = subject.choose(context)
        reward = float(coin < chance[arm])
        subject.learn(context, arm, reward)
        clicks += chance[arm]
    return float(clicks / chances.max(axis=1).sum())


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    module = importlib.import_module("ours" if name == "croupier" else "theirs")
    subjects: Subjects = getattr(module, name)()
    clocks: dict[tuple[str, int], Clock] = {}
    say({"version": importlib.metadata.version(name), "subjects": list(subjects)})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            make = subjects[request["subject"]]
            if "seed" in request:
                say({"of_best": worth(make, request["seed"])})
                continue
            key = (request["subject"], request["arms"])
            clocks[key] = clocks.get(key) or Clock(make, request["arms"])
            say(clocks[key].run(request["seconds"]))
        except Exception as error:  # one subject that fails leaves the others
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv[1])
