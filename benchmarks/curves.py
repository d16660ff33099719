"""The curves of docs/algorithms.md: how regret and click rate go, round by round, as small SVG files.

    python -m benchmarks.curves [--quick] [--seeds 8] [--ratings FILE] [--out docs/assets]

Regret is cumulative, in the switching and the still world of `benchmarks.learns`, for policies that learn as the server
has them: the default reward 0 at the decision, the answer as its correction. The click rate is that of
`benchmarks.films`. A figure is the mean over seeds 0, 1, ...; the range is the least and the most of them. The table
that goes with each plot is printed, progress goes to standard error.
"""

import argparse
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bandits.evaluation import evaluate_world
from bandits.graph_builder import read_ratings
from bandits.ratings import run_ratings
from benchmarks import films, plots
from benchmarks.learns import progress, say, worlds_of

POLICIES = ("banker", "thompson-beta", "ucb1", "exp3", "ftrl")
FILM_POLICIES = ("diag-linucb", "linucb", "random")
WORLDS = ("switching", "still")
DELAYS = (0, 1000)
STEPS = 10  # points of a regret curve, evenly spaced on a logarithmic axis
OUT = Path(__file__).resolve().parents[1] / "docs" / "assets"
# Text stays text, and the same run gives the same file.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "croupier", "font.sans-serif": ["DejaVu Sans"]}

Line = list[list[float]]  # points [x, mean, least, most]
Lines = dict[str, Line]


def over_seeds(xs: Sequence[float], curves: Sequence[Sequence[float]]) -> Line:
    """The points of one line from a curve for each seed.

    >>> over_seeds([1, 2], [[0.25, 0.5], [0.75, 1.0]])
    [[1.0, 0.5, 0.25, 0.75], [2.0, 0.75, 0.5, 1.0]]
    """
    table = np.asarray(curves, np.float64)
    columns = np.asarray(xs, np.float64), table.mean(axis=0), table.min(axis=0), table.max(axis=0)
    return [[float(value) for value in point] for point in zip(*columns, strict=True)]


def regret(world: str, horizon: int, seeds: int) -> dict[int, Lines]:
    """Cumulative regret, in units of reward, over rounds: lines by delay and policy."""
    world_of, _, _ = worlds_of(horizon)[world]
    results = evaluate_world(world_of, horizon, POLICIES, DELAYS, 0, progress(world), seeds)
    n = len(results[0].curve)
    kept = np.unique(np.geomspace(1, n, STEPS).round().astype(int)) - 1
    rounds = ((np.arange(1, n + 1) * horizon) // n)[kept].tolist()
    panels: dict[int, Lines] = {delay: {} for delay in DELAYS}
    for delay, lines in panels.items():
        for policy in POLICIES:
            mine = [r.curve[kept] for r in results if (r.policy, r.delay) == (policy, str(delay))]
            lines[policy] = over_seeds(rounds, mine)
    return panels


def clicks(ratings: Path, slates: int, seeds: int) -> tuple[Lines, float]:
    """Click rate in each twentieth of the decisions, drawn at its end; and that of the best possible slates."""
    table = read_ratings(ratings)
    results = []
    for seed in range(seeds):
        results.append(run_ratings(table, FILM_POLICIES, seed, slates))
        say(f"films: {seed + 1} of {seeds} seeds")
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(slates), 20)]).tolist()
    lines = {p: over_seeds(ends, [r["policies"][p]["curve"] for r in results]) for p in FILM_POLICIES}
    return lines, float(np.mean([r["best_click_rate"] for r in results]))


def svg(path: Path, title: str, panels: Sequence[dict[str, Any]]) -> None:
    """Specs of benchmarks/plots.py, side by side."""
    with mpl.rc_context(SVG):
        figure = Figure(figsize=(4.6 * len(panels) + 1.0, 3.9), layout="constrained", facecolor="white")
        for axes, spec in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            plots.panel(axes, spec)
            axes.minorticks_off()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Title": title, "Date": None})
    # A hundredth of a point is no longer seen: half the bytes are decimals after it, and indents.
    path.write_text(re.sub(r"\n\s+", "\n", re.sub(r"(\.\d\d)\d+", r"\1", text.getvalue())))
    say(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def cell(point: Sequence[float], form: str) -> str:
    """
    >>> cell([200_000, 1234.5, 900, 2000], ",.0f")
    '1,234 (900 to 2,000)'
    """
    return "{:{f}} ({:{f}} to {:{f}})".format(*point[1:], f=form)


def markdown(title: str, columns: dict[str, Lines], form: str) -> str:
    """A table of the last point of every line: a row for each policy, a column for each set of lines."""
    lines = [f"**{title}**", "", "| policy | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for policy in next(iter(columns.values())):
        lines.append(f"| {policy} | " + " | ".join(cell(c[policy][-1], form) for c in columns.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="What docs/algorithms.md draws.")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rounds: to see that it runs")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--ratings", type=Path, default=films.FILE, help="ratings in the MovieLens format")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    horizon, slates = (2_000, 200) if options.quick else (200_000, 20_000)
    options.out.mkdir(parents=True, exist_ok=True)
    for world in WORLDS:
        panels = regret(world, horizon, options.seeds)
        specs = [
            {"title": f"{world} world, delay {delay:,} rounds", "series": lines, "log": "xy"}
            | {"x": "rounds", "y": "cumulative regret" if delay == DELAYS[0] else ""}
            for delay, lines in panels.items()
        ]
        title = f"Cumulative regret in the {world} world"
        svg(options.out / f"regret-{world}.svg", title, specs)
        title += f" after {horizon:,} rounds, {options.seeds} seeds: mean (least to most)"
        print(markdown(title, {f"delay {delay:,}": lines for delay, lines in panels.items()}, ",.0f"), end="\n\n")
    if not options.ratings.exists():
        say(f"no {options.ratings}: the films are left out")
        return
    lines, best = clicks(options.ratings, slates, options.seeds)
    spec = {"title": "films, slates of 10", "series": lines, "x": "decisions", "y": "clicks per item shown"}
    svg(options.out / "clicks-films.svg", "Click rate over decisions in the films world", [spec])
    first = {p: line[:1] for p, line in lines.items()}
    title = f"Click rate of {slates:,} slates, {options.seeds} seeds: mean (least to most); best possible {best:.3f}"
    print(markdown(title, {"first twentieth": first, "last twentieth": lines}, ".3f"))


if __name__ == "__main__":
    main()
