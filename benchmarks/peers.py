"""What a decision and its reward cost in other libraries, in process: `python -m benchmarks.peers [--quick]`.

Each library is asked as its users ask it: choose one of 100 or 1,000 arms for a context of ten numbers, then learn one
binary reward. Models differ, so this is a cost per decision, not a race of algorithms; the fair pairs are marked "same"
(UCB1, Thompson with Beta(1, 1), disjoint LinUCB with alpha 1), the others "kin": what one would use instead. Cheap is
no merit by itself, so the last column says what each earns in one small world (`worth` in benchmarks/peer_calls).

What favours whom: MABWiser's UCB1 works all bounds out while it learns. Our K-armed policies are called through
`bandits.arms`, one reward a call (the server hands over whole batches), full LinUCB as the films benchmark has it.
Diag-LinUCB chooses ten from so many edges, of 20,000 items, while the others choose one arm of so many.

Peers live in an environment of their own, .cache/peers, made on demand from benchmarks/peers.txt. One that does not
install or run is left out, and the result says why. A process for each library stays up; rounds are interleaved, and a
ratio is the median over rounds of the round's own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peer_library import FOLDER, PEERS, Library, Peer, Unavailable, install

ARMS = (100, 1000)
PARTS = ("choose", "learn", "both")
Key = tuple[str, str]  # library, policy
Times = dict[Key, dict[int, list[dict[str, float]]]]  # by arms, an entry a round


class Pair(NamedTuple):
    """A policy of a peer and ours that is compared with it."""

    peer: str
    policy: str
    ours: str
    kind: str  # same: the same algorithm; kin: another one for the same use


PAIRS = (
    Pair("mabwiser", "UCB1", "UCB1", "same"),
    Pair("river", "UCB1", "UCB1", "same"),
    Pair("mabwiser", "Thompson", "Thompson", "same"),
    Pair("river", "Thompson", "Thompson", "same"),
    Pair("obp", "Thompson", "Thompson", "same"),
    Pair("river", "Exp3", "Banker", "kin"),
    Pair("mabwiser", "LinUCB", "LinUCB", "same"),
    Pair("river", "LinUCB", "LinUCB", "same"),
    Pair("contextualbandits", "LinUCB", "LinUCB", "same"),
    Pair("obp", "LinUCB", "LinUCB", "same"),
    Pair("vowpalwabbit", "epsilon-greedy (mtr)", "Diag-LinUCB", "kin"),
    Pair("vowpalwabbit", "SquareCB", "Diag-LinUCB", "kin"),
)


def opened(peers: Sequence[Peer], folder: Path, left_out: dict[str, str]) -> dict[str, Library]:
    """Ours, and each peer that can be had; why not goes into `left_out`."""
    libraries = {"croupier": Library(sys.executable, "croupier")}
    for peer in peers:
        try:
            libraries[peer.name] = Library(install(peer, folder), peer.name)
        except (Unavailable, OSError) as error:
            left_out[peer.name] = str(error)
            print(f"peers: {peer.name} is left out: {error}", file=sys.stderr, flush=True)
    return libraries


def order(libraries: dict[str, Library]) -> list[tuple[str, str]]:
    """(library, policy) of all that is measured: each of ours beside what is compared with it."""
    out = []
    for ours in libraries["croupier"].subjects:
        out.append(("croupier", ours))
        out += [(p.peer, p.policy) for p in PAIRS if p.ours == ours and p.peer in libraries]
    return out


def measure(
    libraries: dict[str, Library],
    left_out: dict[str, str],
    arms: Sequence[int],
    rounds: int,
    seconds: float,
    seeds: int,
) -> tuple[Times, dict[Key, float]]:
    """Times, and clicks over those of the best arm. A peer's policy that fails is left out."""
    times: Times = {}
    worth: dict[Key, float] = {}
    for r in range(-1, rounds):  # the first is not counted; what fails, fails there
        for key in order(libraries):
            library, policy = libraries[key[0]], key[1]
            if " ".join(key) in left_out:
                continue
            try:
                if r < 0:
                    worth[key] = float(np.mean([library.ask(subject=policy, seed=s)["of_best"] for s in range(seeds)]))
                for n in arms:
                    answer = library.ask(subject=policy, arms=n, seconds=seconds if r >= 0 else 0.0)
                    if r >= 0:
                        times.setdefault(key, {}).setdefault(n, []).append(answer)
            except Unavailable as error:
                if key[0] == "croupier":
                    raise
                left_out[" ".join(key)] = str(error)
                times.pop(key, None)
        print(f"peers: {r + 1} of {rounds} rounds", file=sys.stderr, flush=True)
    return times, worth


def spread(values: Sequence[float]) -> dict[str, float]:
    """
    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def costs(times: Times) -> dict[str, Any]:
    """Of each policy and number of arms: microseconds to choose, to learn, and both together."""
    return {
        " ".join(key): {
            str(n): {part: spread([row[f"{part}_us"] for row in rows]) for part in PARTS} for n, rows in by_arms.items()
        }
        for key, by_arms in times.items()
    }


def ratios(times: Times) -> dict[str, Any]:
    """Of each pair and number of arms: the peer's time over ours in the same round."""
    out: dict[str, Any] = {}
    for pair in PAIRS:
        theirs, ours = times.get((pair.peer, pair.policy)), times["croupier", pair.ours]
        if theirs is not None:
            found = out[f"{pair.peer} {pair.policy}"] = {"over": f"croupier {pair.ours}", "kind": pair.kind}
            for n, rows in theirs.items():
                both = list(zip(rows, ours[n], strict=True))
                found[str(n)] = {part: spread([t[f"{part}_us"] / o[f"{part}_us"] for t, o in both]) for part in PARTS}
    return out


def text(result: dict[str, Any]) -> str:
    """A Markdown table for each number of arms, what was left out and why."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [f"Medians of {result['rounds']} interleaved rounds. {versions}."]
    head = [
        "choose, µs",
        "learn, µs",
        "times ours: choose",
        "learn",
        "both (min to max)",
        "over",
        "of the best's clicks",
    ]
    for n in result["arms"]:
        lines = [f"| {n:,} arms | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for name, cost in result["cost"].items():
            ratio = result["ratios"].get(name)
            cells = [name, *(short(cost[str(n)][part]["median"]) for part in ("choose", "learn"))]
            cells += times_ours(ratio, str(n)) if ratio else [""] * 4
            lines.append("| " + " | ".join([*cells, f"{result['of_best'][name]:.2f}"]) + " |")
        parts.append("\n".join(lines))
    parts += [f"Left out: {name}: {reason}." for name, reason in result["left_out"].items()]
    return "\n\n".join(parts)


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def times_ours(ratio: dict[str, Any], arms: str) -> list[str]:
    choose, learn, both = (ratio[arms][part] for part in PARTS)
    spread = f"{short(both['median'])} ({short(both['min'])} to {short(both['max'])})"
    return [short(choose["median"]), short(learn["median"]), spread, f"{ratio['over']} ({ratio['kind']})"]


def plot(result: dict[str, Any]) -> dict[str, Any]:
    """A dot for choosing and one for learning; see benchmarks/plots.py."""
    n = str(result["arms"][-1])
    dots = {
        part: {
            name: [by_arms[n][part][q] for q in ("median", "min", "max")] for name, by_arms in result["cost"].items()
        }
        for part in ("choose", "learn")
    }
    title = f"One decision and one reward in process, {result['arms'][-1]:,} arms"
    return {"title": title, "x": "µs", "log": "x", "dots": dots}


def run(
    quick: bool = False,
    peers: Sequence[Peer] = PEERS,
    folder: Path = FOLDER,
    arms: Sequence[int] = ARMS,
    rounds: int | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Costs, ratios and worth; seven rounds of 0.1 s for each policy and number of arms, three of 0.05 s when quick."""
    left_out: dict[str, str] = {}
    libraries = opened(peers, folder, left_out)
    try:
        versions = {name: library.version for name, library in libraries.items()}
        rounds, seconds = rounds or (3 if quick else 7), seconds or (0.05 if quick else 0.1)
        times, worth = measure(libraries, left_out, arms, rounds, seconds, 2 if quick else 5)
    finally:
        for library in libraries.values():
            library.close()
    result: dict[str, Any] = {
        "arms": list(arms),
        "rounds": rounds,
        "versions": versions,
        "left_out": left_out,
        "cost": costs(times),
        "ratios": ratios(times),
        "of_best": {" ".join(key): value for key, value in worth.items()},
    }
    return result | {"text": text(result), "plots": [plot(result)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    result = run(arguments.quick)
    print(json.dumps(result, indent=2) if arguments.json else result["text"])


if __name__ == "__main__":
    main()
