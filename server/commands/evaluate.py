"""`croupier evaluate ...`: policies compared on problems whose truth is known; no server needed."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from server.cli import Failed
from server.commands.progress import Progress

if TYPE_CHECKING:
    from bandits.evaluation import Result

FILE = click.Path(path_type=Path, dir_okay=False)
POLICIES = ("banker", "thompson-beta", "ucb1", "uniform")


class Listing(click.Command):
    """A command without arguments whose repeatable options take several values after one flag: `--delay 0 100`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        many = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        last = ""
        for arg in args:
            if arg.startswith("-") and not arg.lstrip("-").isdigit():
                last = arg
                spread.append(arg)
            elif last in many and spread[-1] != last:
                spread += [last, arg]
            else:
                spread.append(arg)
        return super().parse_args(ctx, spread)


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """What all evaluations share."""
    for option in (
        click.option("--plot", type=FILE, help="Draw the regret curves to a PNG."),
        click.option("--json", "as_json", is_flag=True, help="JSON on stdout in place of the table."),
        click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same result."),
    ):
        command = option(command)
    return command


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the evaluations of K-armed policies share."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 64), default=os.cpu_count() or 1, help="Runs at a time."),
        click.option(
            "--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs, from --seed on."
        ),
    ):
        command = option(command)
    return output(command)


def contest(command: Callable[..., Any]) -> Callable[..., Any]:
    """The K-armed policies and delays to compare."""
    command = click.option(
        "--delay", "delays", type=click.IntRange(0), multiple=True, default=(0, 100, 1000), show_default=True,
        help="Rounds until an answer comes; several may follow.",
    )(command)  # fmt: skip
    return click.option(
        "--policy", "policies", multiple=True, default=POLICIES, show_default=True,
        help="A policy, several may follow: banker, banker:classic, banker:classic,rho=0, thompson-beta, "
        "thompson-normal, ucb1, epsilon-greedy:epsilon=0.05, exp3, ftrl, uniform.",
    )(command)  # fmt: skip


@click.group()
def evaluate() -> None:
    """Compare policies on problems whose truth is known; no server needed.

    \b
    Examples
      croupier evaluate bernoulli --problems upworthy.csv --policy banker thompson-beta --delay 0 100 1000
      croupier evaluate ratings --ratings ratings.csv
      croupier evaluate switching --policy banker --policy ftrl --seeds 4 --plot switching.png
    """


@evaluate.command(cls=Listing)
@click.option("--problems", type=FILE, required=True, help="CSV with the columns test_id, arm, impressions, clicks.")
@click.option("--limit", type=click.IntRange(1), default=None, help="At most so many tests, spread over the file.")
@contest
@options
def bernoulli(
    problems: Path, limit: int | None, policies: Sequence[str], delays: Sequence[int], seed: int, seeds: int,
    threads: int, as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """Real tests with known click rates: each arm is clicked by the rate it had.

    Prints for each policy and delay the share of attainable lift, (reward - uniform) / (best - uniform), expected by
    the known rates; the horizon is a test's impressions.

    \b
    Examples
      croupier evaluate bernoulli --problems upworthy.csv --limit 50
      croupier evaluate bernoulli --problems upworthy.csv --policy banker --delay 0 1000 --json
    """
    from bandits import evaluation

    results = run(lambda p: evaluation.evaluate_bernoulli(problems, policies, delays, limit, seed, p, seeds, threads))
    show(results, as_json, plot, {"problems": str(problems), "limit": limit})


@evaluate.command(cls=Listing)
@click.option("--horizon", type=click.IntRange(1), default=200_000, show_default=True, help="Rounds.")
@click.option("--arms", type=click.IntRange(2), default=8, show_default=True, help="Arms.")
@contest
@options
def switching(
    horizon: int, arms: int, policies: Sequence[str], delays: Sequence[int], seed: int, seeds: int, threads: int,
    as_json: bool, plot: Path | None,
) -> None:  # fmt: skip
    """A world that turns against what was learned: all means jump between two levels, one arm stays best by 0.125.

    \b
    Example
      croupier evaluate switching --policy banker thompson-beta ftrl --delay 0 100
    """
    from bandits import evaluation

    results = run(lambda p: evaluation.evaluate_switching(policies, delays, horizon, arms, seed, p, seeds, threads))
    show(results, as_json, plot, {"horizon": horizon, "arms": arms})


@evaluate.command(cls=Listing)
@click.option(
    "--ratings", type=FILE, required=True, help="CSV with the columns userId, movieId, rating (as MovieLens)."
)
@click.option(
    "--policy", "policies", multiple=True, default=("diag-linucb", "linucb", "popular", "random"), show_default=True,
    help="A policy, several may follow.",
)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=20_000, show_default=True, help="Slates each policy shows.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="The most rated items only.")
@click.option("--k", type=click.IntRange(1, 255), default=10, show_default=True, help="Items of a slate.")
@output
def ratings(
    ratings: Path, policies: Sequence[str], rounds: int, limit: int, k: int, seed: int, as_json: bool, plot: Path | None
) -> None:
    """A world made from ratings: Diag-LinUCB against full LinUCB, popular, random.

    One half of the ratings makes the world; embeddings, clusters and graph come from the other half, as an operator
    would have them. Prints each policy's click rate, its share of the best possible, and what a round costs.

    \b
    Example
      croupier evaluate ratings --ratings ratings.csv --policy diag-linucb random --rounds 5000
    """
    from bandits.graph import GraphError
    from bandits.graph_builder import BuildError
    from bandits.ratings import run_ratings

    try:
        with Progress() as progress:
            found = run_ratings(ratings, policies, seed, rounds, limit, k, progress=progress)
    except OSError as error:
        raise Failed(error) from None
    except (BuildError, GraphError) as error:
        raise Failed(f"{error}.") from None
    if as_json:
        click.echo(json.dumps({"ratings": str(ratings), "seed": seed, **found}, indent=2))
    else:
        click.echo(f"{'policy':12}  {'click rate':>10}  {'share of best':>13}  {'microseconds a round':>20}")
        for name, row in found["policies"].items():
            numbers = f"{row['click_rate']:10.4f}  {row['share_of_best']:13.3f}  {row['us_per_round']:20.1f}"
            click.echo(f"{name:12}  {numbers}")
    if plot is not None:
        draw_ratings(found, plot)


def draw_ratings(found: dict[str, Any], path: Path) -> None:
    """The regret of each policy, in clicks, over the rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    panel = figure.subplots()
    for name, row in found["policies"].items():
        shown = found["rounds"] * found["k"] / len(row["curve"])
        regret, rounds = [0.0], [0.0]
        for rate in row["curve"]:
            regret.append(regret[-1] + (found["best_click_rate"] - rate) * shown)
            rounds.append(rounds[-1] + found["rounds"] / len(row["curve"]))
        panel.plot(rounds, regret, label=name)
    panel.set(title="Regret", xlabel="rounds", ylabel="clicks missed")
    panel.legend()
    save(lambda: figure.savefig(path, format="png"), path)


def save(write: Callable[[], None], path: Path) -> None:
    try:
        write()
    except OSError as error:
        raise Failed(error) from None
    click.echo(f"{path}: the regret curves", err=True)


def run(work: Callable[[Any], "list[Result]"]) -> "list[Result]":
    from bandits.arms import ParameterError
    from bandits.worlds import WorldError

    try:
        with Progress() as progress:
            return work(lambda done, total: progress("runs", done, total))
    except (ParameterError, WorldError, OSError) as error:
        raise Failed(f"{error}.") from None


def show(results: "list[Result]", as_json: bool, plot: Path | None, about: dict[str, Any]) -> None:
    from bandits import evaluation

    rows = evaluation.summarise(results)
    if as_json:
        totals = [
            {"policy": r.policy, "delay": r.delay, "seed": r.seed, "share": r.share, "regret": r.regret,
             "reward": r.reward, "uniform": r.uniform, "best": r.best}
            for r in results
        ]  # fmt: skip
        click.echo(json.dumps({**about, "results": [asdict(row) for row in rows], "runs": totals}, indent=2))
    else:
        width = max(len(row.policy) for row in rows)
        click.echo(
            f"{'policy':{width}}  {'delay':>12}  {'share of lift':>13}  {'regret':>10}  {'regret p90':>10}  seeds"
        )
        for row in rows:
            regret = f"{row.regret:10,.0f}  {row.regret_p90:10,.0f}"
            click.echo(f"{row.policy:{width}}  {row.delay:>12}  {row.share:13.3f}  {regret}  {row.seeds:5}")
    if plot is not None:
        save(lambda: evaluation.plot(results, plot), plot)
