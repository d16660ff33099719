"""How well do policies learn? Runs over many problems, worlds, delays and seeds, with regret curves.

A policy is named by a string: `banker`, `banker:classic`, `banker:classic,rho=0`, `banker:tsallis`, `thompson-beta`,
`thompson-normal`, `ucb1`, `epsilon-greedy`, `epsilon-greedy:epsilon=0.05`, `exp3`, `ftrl`, `uniform`. With the option
`on-arrival` a play teaches nothing until its answer comes, as papers have it; without it the default reward 0 is
learned at the decision and the answer corrects it, as the server has it. Rule `classic` always learns on arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bandits import simulation, worlds
from bandits.arms import ArmPolicy, Floats, ParameterError, make
from bandits.banker import Banker
from bandits.worlds import Delay, World

Progress = Callable[[int, int], None]  # (runs done, runs in all)


@dataclass(frozen=True)
class Contestant:
    """A policy under the name it was asked for; `policy` None is the uniform choice."""

    name: str
    policy: ArmPolicy | None
    on_arrival: bool


def contestant(spec: str) -> Contestant:
    """Read a policy's name; ParameterError says what is wrong with it.

    >>> contestant("banker:classic,rho=0").policy
    Banker(regularizer='log-barrier', rule='classic', c=None, rho=0.0, max_outstanding=1000)
    """
    name, _, rest = spec.partition(":")
    params: dict[str, Any] = {}
    on_arrival = False
    for option in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = option.partition("=")
        if option == "on-arrival":
            on_arrival = True
        elif option in ("reserve", "classic") and name == "banker":
            params["rule"] = option
        elif option in ("log-barrier", "tsallis") and name == "banker":
            params["regularizer"] = option
            if option == "tsallis":
                params["rule"] = "classic"
        elif equals:
            try:
                params[key] = int(value) if key == "max_outstanding" else float(value)
            except ValueError:
                raise ParameterError(key, f"{value!r} is not a number") from None
        else:
            raise ParameterError("policy", f"{option!r} in {spec!r} is neither an option nor name=value")
    if name == "uniform":
        if rest:
            raise ParameterError("policy", "uniform has no options")
        return Contestant(spec, None, False)
    policy = make(name, params)
    return Contestant(spec, policy, on_arrival or params.get("rule") == "classic")


@dataclass(frozen=True)
class Result:
    """One policy at one delay with one seed. `reward`, `uniform` and `best` are expected by the known rates and summed
    over problems; `curve`, shape (200,), is the regret after each part of the horizon."""

    policy: str
    delay: str
    seed: int
    reward: float
    uniform: float
    best: float
    curve: Floats

    @property
    def share(self) -> float:
        """Share of the attainable lift: (reward - uniform) / (best - uniform); NaN where nothing can be gained."""
        attainable = self.best - self.uniform
        return (self.reward - self.uniform) / attainable if attainable else float("nan")

    @property
    def regret(self) -> float:
        """best - reward, in units of reward."""
        return self.best - self.reward


def _delay(delay: int | Delay) -> Delay:
    if isinstance(delay, Delay):
        return delay
    if delay < 0:
        raise ParameterError("delay", f"must be a number of rounds from 0, not {delay}")
    return worlds.fixed(delay)


def _run(who: Contestant, world: World, delay: Delay, horizon: int, seed: Sequence[int]) -> Floats:
    policy = who.policy
    if policy is not None and policy.algorithm == "banker":
        assert isinstance(policy, Banker)
        # Rounds are milliseconds here, so as many plays as the window is long may wait at once.
        policy = replace(policy, max_outstanding=max(policy.max_outstanding, delay.window + 2))
    return simulation.run(policy, world, delay, horizon, np.random.default_rng(seed), who.on_arrival)


def _all(tasks: list[Callable[[], Result]], threads: int, progress: Progress | None) -> list[Result]:
    """Run the tasks; results keep their order, whatever the number of threads."""
    results = []
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(lambda task: task(), tasks):
            results.append(result)
            if progress:
                progress(len(results), len(tasks))
    return results


def evaluate_bernoulli(
    file: str | Path,
    policies: Iterable[str],
    delays: Iterable[int | Delay] = (0, 100, 1000),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    seeds: int = 1,
    threads: int = 1,
) -> list[Result]:
    """Policies on real tests with known click rates (`worlds.read_problems`); the horizon is a test's impressions.

    limit: at most so many tests, evenly spread over the file, starting further on with each seed. Each of the `seeds`
    runs from `seed` on is one Result, its totals summed over the tests.
    """
    problems = worlds.read_problems(file)
    if limit is not None and limit < 1:
        raise ParameterError("limit", f"must be at least 1, not {limit}")
    step = max(1, len(problems) // limit) if limit else 1
    tasks: list[Callable[[], Result]] = []
    for who in [contestant(spec) for spec in policies]:
        for delay in [_delay(d) for d in delays]:
            for s in range(seed, seed + seeds):
                chosen = list(enumerate(problems))[s % step :: step][: limit or len(problems)]
                tasks.append(lambda who=who, delay=delay, s=s, chosen=chosen: _bernoulli(who, delay, s, chosen))  # type: ignore[misc]
    return _all(tasks, threads, progress)


def _bernoulli(who: Contestant, delay: Delay, seed: int, problems: list[tuple[int, worlds.Problem]]) -> Result:
    curve = np.zeros(simulation.POINTS)
    steps = np.arange(1, simulation.POINTS + 1) / simulation.POINTS
    uniform = best = 0.0
    for index, problem in problems:
        run = _run(who, worlds.bernoulli(problem.rates), delay, problem.horizon, [seed, index])
        curve += problem.rates.max() * problem.horizon * steps - run
        uniform += problem.rates.mean() * problem.horizon
        best += problem.rates.max() * problem.horizon
    return Result(who.name, delay.name, seed, best - float(curve[-1]), uniform, best, curve)


def evaluate_world(
    world_of: Callable[[Delay], World],
    horizon: int,
    policies: Iterable[str],
    delays: Iterable[int | Delay] = (0, 100, 1000),
    seed: int = 0,
    progress: Progress | None = None,
    seeds: int = 1,
    threads: int = 1,
) -> list[Result]:
    """Policies in the world `world_of(delay)` for `horizon` rounds; regret is against the best arm of the horizon."""

    def one(who: Contestant, delay: Delay, s: int) -> Result:
        world = world_of(delay)
        totals = world.totals(horizon)
        run = _run(who, world, delay, horizon, [s])
        steps = (np.arange(1, simulation.POINTS + 1) * horizon) // simulation.POINTS
        arm = int(totals.argmax())
        best = np.array([world.totals(int(t))[arm] for t in steps])
        return Result(who.name, delay.name, s, float(run[-1]), float(totals.mean()), float(best[-1]), best - run)

    tasks: list[Callable[[], Result]] = [
        lambda who=who, delay=delay, s=s: one(who, delay, s)  # type: ignore[misc]
        for who in [contestant(spec) for spec in policies]
        for delay in [_delay(d) for d in delays]
        for s in range(seed, seed + seeds)
    ]
    return _all(tasks, threads, progress)


def evaluate_switching(
    policies: Iterable[str],
    delays: Iterable[int | Delay] = (0, 100, 1000),
    horizon: int = 200_000,
    n_arms: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    seeds: int = 1,
    threads: int = 1,
) -> list[Result]:
    """Policies in `worlds.switching`: all means jump between two levels, one arm stays best by 0.125.

    >>> results = evaluate_switching(["uniform"], delays=[0], horizon=8000)
    >>> results[0].best - results[0].uniform
    875.0
    """
    if horizon < simulation.POINTS:
        raise ParameterError("horizon", f"must be at least {simulation.POINTS} rounds, not {horizon}")
    world = worlds.switching(horizon, n_arms)
    return evaluate_world(lambda _: world, horizon, policies, delays, seed, progress, seeds, threads)


@dataclass(frozen=True)
class Summary:
    """Results of one policy at one delay over seeds: the mean and the 90th percentile of regret, and shares of lift.

    `share_p10` is the share that nine seeds of ten reach: the bad side of each, as regret's 90th percentile is."""

    policy: str
    delay: str
    seeds: int
    regret: float
    regret_p90: float
    share: float
    share_p10: float


def summarise(results: Iterable[Result]) -> list[Summary]:
    """One row for each (policy, delay), in the order they first come."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.policy, result.delay), []).append(result)
    rows = []
    for (policy, delay), group in groups.items():
        regret = np.array([r.regret for r in group])
        share = np.array([r.share for r in group])
        rows.append(
            Summary(
                policy,
                delay,
                len(group),
                float(regret.mean()),
                float(np.quantile(regret, 0.9)),
                float(share.mean()),
                float(np.quantile(share, 0.1)),
            )
        )
    return rows


def plot(results: Iterable[Result], path: str | Path, title: str = "Regret") -> None:
    """Draw the regret curves to a PNG, one panel for each delay, the mean over seeds with the range of them."""
    from matplotlib.figure import Figure  # a second to import, and few callers draw; a Figure has the Agg canvas

    groups: dict[str, dict[str, list[Floats]]] = {}
    for result in results:
        groups.setdefault(result.delay, {}).setdefault(result.policy, []).append(result.curve)
    if not groups:
        raise ParameterError("results", "there is nothing to draw")
    figure = Figure(figsize=(5.0 * len(groups), 4.0), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, (delay, policies) in zip(panels, groups.items(), strict=True):
        for policy, curves in policies.items():
            table = np.array(curves)
            steps = np.arange(1, table.shape[1] + 1) / table.shape[1] * 100.0
            (line,) = panel.plot(steps, table.mean(axis=0), label=policy)
            if len(table) > 1:
                panel.fill_between(steps, table.min(axis=0), table.max(axis=0), color=line.get_color(), alpha=0.15)
        panel.set(title=f"{title}, delay {delay}", xlabel="% of the horizon", ylabel="regret (units of reward)")
        panel.legend()
    figure.savefig(path, format="png")
