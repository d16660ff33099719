"""The policies of other libraries; each is imported by its own function, where it is installed."""

import random
import sys
from collections.abc import Sequence
from typing import Any

from subject import DIM, Drawn, Subject, Subjects


def mabwiser() -> Subjects:
    from mabwiser.mab import MAB, LearningPolicy

    class Wiser(Subject):
        def __init__(self, arms: int, policy: Any, contextual: bool = False) -> None:
            super().__init__(arms)
            self.mab, self.contextual = MAB(list(range(arms)), policy, seed=1), contextual

        def begin(self, rows: Any, arms: Sequence[int], rewards: Sequence[float]) -> None:
            self.mab.fit(arms, rewards, rows if self.contextual else None)

        def choose(self, context: Any) -> int:
            return int(self.mab.predict(context) if self.contextual else self.mab.predict())

        def learn(self, context: Any, arm: int, reward: float) -> None:
            self.mab.partial_fit([arm], [reward], context if self.contextual else None)

    return {
        "UCB1": lambda n: Wiser(n, LearningPolicy.UCB1(alpha=1.0)),
        "Thompson": lambda n: Wiser(n, LearningPolicy.ThompsonSampling()),
        "LinUCB": lambda n: Wiser(n, LearningPolicy.LinUCB(alpha=1.0), contextual=True),
    }


def river() -> Subjects:
    from river import bandit, proba

    class Free(Subject):
        def __init__(self, arms: int, policy: Any) -> None:
            super().__init__(arms)
            self.policy, self.ids = policy, list(range(arms))

        def choose(self, context: Any) -> int:
            del context
            return int(self.policy.pull(self.ids))

        def learn(self, context: Any, arm: int, reward: float) -> None:
            del context
            self.policy.update(arm, reward)

    class Exp3(Free, Drawn):
        pass

    class Contextual(Free):
        def contexts(self, rows: Any) -> Sequence[Any]:
            return [{f"x{i}": float(x) for i, x in enumerate(row)} for row in rows]

        def choose(self, context: Any) -> int:
            return int(self.policy.pull(self.ids, context))

        def learn(self, context: Any, arm: int, reward: float) -> None:
            self.policy.update(arm, context, reward)

    return {
        "UCB1": lambda n: Free(n, bandit.UCB(delta=1, seed=1)),
        "Thompson": lambda n: Free(n, bandit.ThompsonSampling(reward_obj=proba.Beta(1, 1), seed=1)),
        "Exp3": lambda n: Exp3(n, bandit.Exp3(gamma=0.1, seed=1)),
        "LinUCB": lambda n: Contextual(n, bandit.LinUCBDisjoint(seed=1)),
    }


def contextualbandits() -> Subjects:
    import numpy as np
    from contextualbandits.online import LinUCB

    class Fitted(Subject):
        def __init__(self, arms: int) -> None:
            super().__init__(arms)
            self.policy = LinUCB(arms, alpha=1.0, fit_intercept=False, use_float=False, random_state=1, njobs=1)

        def begin(self, rows: Any, arms: Sequence[int], rewards: Sequence[float]) -> None:
            self.policy.fit(rows, np.array(arms), np.array(rewards))

        def choose(self, context: Any) -> int:
            return int(self.policy.predict(context)[0])

        def learn(self, context: Any, arm: int, reward: float) -> None:
            self.policy.partial_fit(context, np.array([arm]), np.array([reward]))

    return {"LinUCB": Fitted}


def obp() -> Subjects:
    class Absent(type):
        """torch: gigabytes that obp imports for its offline learners, which nobody calls here."""

        def __getattr__(cls, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return cls

    stand_in: Any = Absent("Torch", (), {})
    for name in ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data"):
        sys.modules[name] = stand_in
    from obp.policy import BernoulliTS, LinUCB

    class Free(Subject):
        def __init__(self, arms: int) -> None:
            super().__init__(arms)
            self.policy = BernoulliTS(n_actions=arms, random_state=1)

        def choose(self, context: Any) -> int:
            del context
            return int(self.policy.select_action()[0])

        def learn(self, context: Any, arm: int, reward: float) -> None:
            del context
            self.policy.update_params(arm, reward)

    class Contextual(Subject):
        def __init__(self, arms: int) -> None:
            super().__init__(arms)
            self.policy = LinUCB(dim=DIM, n_actions=arms, epsilon=1.0, random_state=1)

        def choose(self, context: Any) -> int:
            return int(self.policy.select_action(context)[0])

        def learn(self, context: Any, arm: int, reward: float) -> None:
            self.policy.update_params(arm, reward, context)

    return {"Thompson": Free, "LinUCB": Contextual}


def vowpalwabbit() -> Subjects:
    from vowpalwabbit import Workspace

    class Text(Subject):
        """Features of the user crossed with an id for each action, as text: one regressor shared by all actions."""

        def __init__(self, arms: int, flags: str) -> None:
            super().__init__(arms)
            self.vw = Workspace(f"--cb_explore_adf {flags} -q ua --quiet --random_seed 1")
            self.actions = [f"|a i{i}" for i in range(arms)]
            self.rng, self.p = random.Random(1), 1.0

        def contexts(self, rows: Any) -> Sequence[Any]:
            return [row.tolist() for row in rows]

        def user(self, context: Any) -> str:
            return "shared |u " + " ".join(f"x{i}:{x:.6g}" for i, x in enumerate(context))

        def choose(self, context: Any) -> int:
            chances = self.vw.predict([self.user(context), *self.actions])
            arm = self.rng.choices(range(self.arms), chances)[0]
            self.p = chances[arm]
            return arm

        def learn(self, context: Any, arm: int, reward: float) -> None:
            lines = [self.user(context), *self.actions]
            lines[arm + 1] = f"0:{-reward}:{self.p} {lines[arm + 1]}"
            self.vw.learn(lines)

    return {
        "epsilon-greedy (mtr)": lambda n: Text(n, "--cb_type mtr --epsilon 0.1"),
        "SquareCB": lambda n: Text(n, "--squarecb"),
    }
