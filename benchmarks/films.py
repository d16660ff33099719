"""Diag-LinUCB in the MovieLens world against full LinUCB, popular and random: `python -m benchmarks.films`.

One world a seed (bandits/ratings.py says what is real in it), the library's defaults, slates of 10. Clicks are given
over those of full LinUCB in the same world; p90 is the value that nine in ten seeds reach.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bandits.ratings import POLICIES, read_ratings, run_ratings

FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "movielens-latest-small" / "ratings.csv"
BAR = 0.97
SEEDS = 16


def run(quick: bool = False) -> dict[str, Any]:
    """{"bar", "seeds", "rounds", "diag_over_linucb", "policies": {name: mean and p90 of each figure}}; or "skipped"."""
    if not FILE.exists():
        return {"skipped": f"no shared/data/{FILE.parent.name}/{FILE.name} beside the project"}
    table = read_ratings(FILE)
    seeds, rounds = (4, 5_000) if quick else (SEEDS, 20_000)
    results = []
    for seed in range(seeds):
        results.append(run_ratings(table, seed=seed, rounds=rounds))
        print(f"\rfilms: seed {seed + 1} of {seeds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    policies: dict[str, Any] = {}
    for name in POLICIES:
        mine = [result["policies"][name] for result in results]
        ratio = np.array([m["clicks"] / r["policies"]["linucb"]["clicks"] for m, r in zip(mine, results, strict=True)])
        policies[name] = {
            "click_rate": float(np.mean([m["click_rate"] for m in mine])),
            "last_click_rate": float(np.mean([m["curve"][-1] for m in mine])),
            "share_of_best": float(np.mean([m["share_of_best"] for m in mine])),
            "over_linucb_mean": float(ratio.mean()),
            "over_linucb_p90": float(np.quantile(ratio, 0.1)),
            "us_per_round": float(np.median([m["us_per_round"] for m in mine])),
        }
    return {
        "bar": BAR,
        "seeds": seeds,
        "rounds": rounds,
        "best_click_rate": float(np.mean([r["best_click_rate"] for r in results])),
        "diag_over_linucb": policies["diag-linucb"]["over_linucb_mean"],
        "policies": policies,
        "text": text(policies),
    }


def text(policies: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = ["| policy | clicks | last twentieth | over full LinUCB, mean (p90) | µs a slate, choosing and learning |"]
    lines.append("|---" * 5 + "|")
    for name, row in policies.items():
        cells = [name, f"{row['click_rate']:.3f}", f"{row['last_click_rate']:.3f}"]
        cells.append(f"{row['over_linucb_mean']:.3f} ({row['over_linucb_p90']:.3f})")
        lines.append("| " + " | ".join([*cells, f"{row['us_per_round']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Diag-LinUCB against full LinUCB, popular and random on MovieLens.")
    parser.add_argument("--quick", action="store_true", help="fewer seeds and rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    result = run(arguments.quick)
    if "skipped" in result:
        sys.exit(result["skipped"])
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['seeds']} seeds, {result['rounds']} slates of 10; best possible {result['best_click_rate']:.3f}")
    print("policy       click rate  at the end  of best  clicks / LinUCB: mean, p90  us a slate, learned")
    for name, row in result["policies"].items():
        print(
            f"{name:<12} {row['click_rate']:10.3f}  {row['last_click_rate']:10.3f}  {row['share_of_best']:7.3f}"
            f"  {row['over_linucb_mean']:21.3f} {row['over_linucb_p90']:5.3f}  {row['us_per_round']:12.1f}"
        )
    print(f"bar: Diag-LinUCB at least {BAR} of full LinUCB's clicks: {result['diag_over_linucb']:.3f}")


if __name__ == "__main__":
    main()
