"""Do the K-armed policies learn? The tables of docs/algorithms: every world, delay and rival, with one set of defaults.

    python -m benchmarks.learns [--quick] [--seeds 16] [--problems 478] [--file ../shared/data/upworthy.csv] [--json]

Tables go to standard output, progress to standard error. `--quick` is a slice of it, in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bandits import evaluation, worlds
from bandits.evaluation import Result, Summary, evaluate_bernoulli, evaluate_world, summarise
from bandits.worlds import Delay, World

POLICIES = [
    "banker",
    "banker:on-arrival",
    "banker:classic",
    "banker:classic,rho=0",
    "banker:tsallis",
    "thompson-beta",
    "thompson-beta:on-arrival",
    "thompson-normal",
    "thompson-normal:on-arrival",
    "ucb1:on-arrival",
    "epsilon-greedy:on-arrival",
    "exp3",
    "exp3:on-arrival",
    "ftrl:on-arrival",
    "uniform",
]
DELAYS = (0, 100, 1000)
UPWORTHY = Path(__file__).resolve().parents[2] / "shared" / "data" / "upworthy.csv"
BARS_UPWORTHY = {"0": 0.53, "100": 0.52, "1000": 0.48}


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def progress(name: str) -> Callable[[int, int], None]:
    """A progress line that is rewritten at most once a second."""
    began = last = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1.0 or done == of:
            last = now
            end = "\n" if done == of or not sys.stderr.isatty() else "\r"
            if done == of or sys.stderr.isatty():
                print(f"{name}: {done} of {of} runs, {now - began:.0f} s", file=sys.stderr, end=end, flush=True)

    return show


def table(title: str, rows: list[Summary], share: bool) -> str:
    """A Markdown table: one row a policy, one column a delay; mean, and the bad side's 90th percentile."""
    delays = list(dict.fromkeys(row.delay for row in rows))
    cells = {
        (r.policy, r.delay): f"{r.share:.3f} ({r.share_p10:.3f})" if share else f"{r.regret:,.0f} ({r.regret_p90:,.0f})"
        for r in rows
    }
    what = "share of attainable lift, mean (p90: nine seeds of ten reach it)" if share else "regret, mean (p90)"
    lines = [f"**{title}**: {what}, {rows[0].seeds} seeds", "", "| delay | " + " | ".join(delays) + " |"]
    lines.append("|---" * (1 + len(delays)) + "|")
    for policy in dict.fromkeys(row.policy for row in rows):
        lines.append(f"| {policy} | " + " | ".join(cells.get((policy, d), "") for d in delays) + " |")
    return "\n".join(lines)


def worlds_of(horizon: int) -> dict[str, tuple[Callable[[Delay], World], int, tuple[int | Delay, ...]]]:
    """The worlds of the table: how each is made, its horizon (a quarter for those without a bar), its delays."""
    early = worlds.fixed(5, window=5000)
    short = horizon // 4
    return {
        "switching": (lambda _: worlds.switching(horizon), horizon, DELAYS),
        "switching, early answers, window 5,000": (lambda _: worlds.switching(horizon), horizon, (early,)),
        "still": (lambda _: worlds.still(), horizon, DELAYS),
        "still, early answers, window 5,000": (lambda _: worlds.still(), horizon, (early,)),
        "still, other delays": (
            lambda _: worlds.still(),
            short,
            (worlds.geometric(100), worlds.heavy_tailed(100), worlds.never(0.3, worlds.fixed(100))),
        ),
        "still + 100": (lambda _: worlds.shifted(worlds.still()), short, DELAYS),
        "anti-correlated": (lambda delay: worlds.anticorrelated(short, delay.window), short, DELAYS),
        "growing scale": (lambda _: worlds.growing(short), short, DELAYS),
    }


def flatness(longest: int, seeds: int, threads: int) -> list[dict[str, float | str]]:
    """Regret over sqrt(T), and over sqrt(T + D) at a delay, as T grows to `longest`."""
    rows: list[dict[str, float | str]] = []
    horizons = [longest // 4**i for i in range(4, -1, -1)]
    for policy in ("banker", "banker:classic"):
        for delay in (0, 100):
            for t in horizons:
                say(f"flatness: {policy}, delay {delay}, T = {t:,}")
                results = evaluate_world(
                    lambda _, t=t: worlds.switching(t),  # type: ignore[misc]
                    t,
                    [policy],
                    [delay],
                    seeds=seeds,
                    threads=threads,
                )
                regret = float(np.mean([r.regret for r in results]))
                rows.append(
                    {"policy": policy, "delay": str(delay), "horizon": t, "ratio": regret / (t * (1 + delay)) ** 0.5}
                )
    return rows


def run(quick: bool, seeds: int = 16, problems: int = 478, file: Path = UPWORTHY, threads: int = 2) -> dict[str, Any]:
    """All tables. Keys: `tables` (title to rows), `flatness`, `bars` (measured, limit, holds), `text` (Markdown)."""
    horizon = 200_000
    if quick:
        seeds, problems, horizon = 2, 24, 20_000
    results: dict[str, list[Result]] = {}
    if file.exists():
        early = worlds.fixed(5, window=5000)
        results["Upworthy"] = evaluate_bernoulli(
            file, ["banker"], DELAYS, problems, 0, progress("Upworthy"), seeds, threads
        )
        results["Upworthy, early answers, window 5,000"] = evaluate_bernoulli(
            file, ["banker"], [early], problems, 0, progress("Upworthy, early answers"), seeds, threads
        )
        results["Upworthy, every rival, an eighth of the problems"] = evaluate_bernoulli(
            file, POLICIES, DELAYS, max(1, problems // 8), 0, progress("Upworthy, rivals"), seeds, threads
        )
    else:
        say(f"no {file}: the real problems are left out")
    for name, (world_of, length, delays) in worlds_of(horizon).items():
        results[name] = evaluate_world(world_of, length, POLICIES, delays, 0, progress(name), seeds, threads)
    few = [
        p for p in POLICIES if p in ("banker", "banker:classic", "thompson-beta", "thompson-beta:on-arrival", "uniform")
    ]
    results["1,000 arms, rare clicks"] = evaluate_world(
        lambda _: worlds.rare(), horizon, few, (0, 1000), 0, progress("1,000 arms"), min(seeds, 4), threads
    )
    flat = flatness(20_000 if quick else 3_276_800, min(seeds, 4), threads)
    return report(results, flat, judged=not quick)


def report(results: dict[str, list[Result]], flat: list[dict[str, float | str]], judged: bool = True) -> dict[str, Any]:
    """The tables as text and as data, with the bars; a slice is too short for them, and is not judged."""
    summaries = {name: summarise(rows) for name, rows in results.items()}
    text = [table(name, rows, share=name.startswith("Upworthy")) for name, rows in summaries.items()]
    lines = ["**Regret over sqrt(T + D)**, switching world", "", "| policy | delay | T | ratio |", "|---|---|---|---|"]
    lines += [f"| {r['policy']} | {r['delay']} | {r['horizon']:,} | {r['ratio']:.2f} |" for r in flat]
    text.append("\n".join(lines))
    bars = bars_of(summaries)
    title = "**Bars**" if judged else "**Bars**, which a slice this short need not reach"
    lines = [title, "", "| bar | measured | at | holds |", "|---|---|---|---|"]
    lines += [
        f"| {b['bar']} | {b['measured']:.3f} | {b['limit']:.3f} | {'yes' if b['holds'] else 'NO'} |" for b in bars
    ]
    text.append("\n".join(lines))
    return {
        "tables": {name: [vars(row) for row in rows] for name, rows in summaries.items()},
        "flatness": flat,
        "bars" if judged else "bars of a slice": bars,
        "plots": [plot(flat)],
        "text": "\n\n".join(text),
    }


def plot(flat: list[dict[str, Any]]) -> dict[str, Any]:
    """Regret over sqrt(T + D), a line for each policy and delay."""
    lines: dict[str, list[list[float]]] = {}
    for row in flat:
        lines.setdefault(f"{row['policy']}, delay {row['delay']}", []).append([row["horizon"], row["ratio"]])
    y = "regret / sqrt(T + D)"
    return {"title": "Regret in the switching world", "series": lines, "x": "rounds T", "y": y, "log": "xy"}


def bars_of(summaries: dict[str, list[Summary]]) -> list[dict[str, Any]]:
    """What must hold, and whether it does."""
    found = {(name, r.policy, r.delay): r for name, rows in summaries.items() for r in rows}
    bars = []

    def bar(name: str, measured: float, limit: float, holds: bool) -> None:
        bars.append({"bar": name, "measured": measured, "limit": limit, "holds": holds})

    for delay, limit in BARS_UPWORTHY.items():
        if row := found.get(("Upworthy", "banker", delay)):
            bar(f"Upworthy, delay {delay}: at least", row.share, limit, row.share >= limit)
    for delay in map(str, DELAYS):
        mine = found["switching", "banker", delay].regret
        limit = found["switching", "thompson-beta:on-arrival", delay].regret / 3.0
        bar(f"switching, delay {delay}: at most a third of Thompson's, learning on arrival", mine, limit, mine <= limit)
    ratio = found["still", "banker", "100"].regret / found["still", "banker", "0"].regret
    bar("still, delay 100 over delay 0: at most", ratio, 1.5, ratio <= 1.5)
    return bars


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learns", description="Do the K-armed policies learn?")
    parser.add_argument("--quick", action="store_true", help="a slice, in seconds")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--problems", type=int, default=478, help="Upworthy tests a seed")
    parser.add_argument("--file", type=Path, default=UPWORTHY)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw the switching world's regret curves to this PNG")
    options = parser.parse_args()
    out = run(options.quick, options.seeds, options.problems, options.file, options.threads)
    print(json.dumps({k: v for k, v in out.items() if k != "text"}) if options.json else out["text"])
    if options.plot:
        horizon = 20_000 if options.quick else 200_000
        chosen = ["banker", "banker:classic", "thompson-beta:on-arrival", "ftrl:on-arrival", "uniform"]
        curves = evaluation.evaluate_switching(chosen, DELAYS, horizon, seeds=options.seeds, threads=options.threads)
        evaluation.plot(curves, options.plot, "Switching world")


if __name__ == "__main__":
    main()
