"""`python -m tests.faults --runs 100 --seed 1`: runs with troubles drawn from seeds, a verdict after each.

Progress goes to stdout, a line or two a run, and to --json. At the first verdict that fails it ends with status 1, says
how to do that run again, and keeps what every process has written. A run's troubles and load come from its seed; what
the machine makes of them does not, so a seed that failed may have to be run several times.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.director import Run, Stage, drawn, stage
from tests.faults.scenarios import SCENARIOS, away
from tests.faults.scenarios import lines as lines_of
from tests.faults.site import Site
from tests.faults.troubles import TROUBLES
from tests.parts.kafka import Broker
from tests.parts.redis import Cluster


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1, help="how many runs, with the seeds that follow --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="these troubles in every run, separated by commas: " + ", ".join(TROUBLES))
    parser.add_argument("--scenario", choices=SCENARIOS, help="one run with the log, or the store, away under load")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long")
    parser.add_argument("--team-runs", type=int, default=4, help="runs before the processes are replaced by new ones")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/out/faults.json"), help="where the figures go")
    parser.add_argument("--keep", type=Path, help="folder for the logs of a run that fails (default: a new one)")
    arguments = parser.parse_args()
    arguments.keep = arguments.keep or Path(tempfile.gettempdir()) / f"croupier-failed-{time.time_ns()}"
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="croupier-site-"))
    runs: list[Run] = []
    try:
        with Broker(folder / "kafka") as broker, Cluster(folder / "redis", proxied=True) as cluster:
            site = Site(broker, cluster)
            failed = scenario(site, arguments, runs) if arguments.scenario else all_runs(site, arguments, runs)
        if failed is not None:
            for log in (folder / "kafka" / "broker.log", *folder.glob("redis/*/redis.log")):
                shutil.copy(log, arguments.keep / f"{log.parent.name}-{log.name}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summary(runs, time.monotonic() - began), indent=2) + "\n")
    print("\n".join(lines(runs, time.monotonic() - began)), flush=True)
    if failed is not None:
        print(f"\nFAILED at seed {failed.seed}; what the processes wrote is in {arguments.keep}")
        print(*(f"  {sentence}" for sentence in failed.wrong), sep="\n")
        print(f"again: python -m tests.faults --seed {failed.seed} --runs 1   (or --runs 4, on one team)")
        sys.exit(1)


def all_runs(site: Site, arguments: argparse.Namespace, runs: list[Run]) -> Run | None:
    """Every run, teams of `--team-runs` runs; the first that fails ends it and is returned."""
    seeds = range(arguments.seed, arguments.seed + arguments.runs)
    for start in range(0, len(seeds), arguments.team_runs):
        block = seeds[start : start + arguments.team_runs]
        with stage(site, block[0], arguments.keep) as made:
            for seed in block:
                run = one(made, seed, arguments.only.split(",") if arguments.only else None)
                runs.append(run)
                print(run.line(), flush=True)
                if run.wrong:
                    made.failed = True
                    return run
    return None


def scenario(site: Site, arguments: argparse.Namespace, runs: list[Run]) -> Run | None:
    """Log or store away, once; returns the run where its verdict fails."""
    with stage(site, arguments.seed, arguments.keep) as made:
        run, figures = away(made, arguments.scenario, arguments.seconds, arguments.seed)
        runs.append(run)
        made.failed = bool(run.wrong)
    print(run.line(), *lines_of(figures), sep="\n", flush=True)
    return run if run.wrong else None


def one(made: Stage, seed: int, only: list[str] | None) -> Run:
    """One run; what the harness itself cannot do is a failure of the run, too."""
    try:
        return made.run(seed, drawn(made.team, seed, only))
    except Exception as error:
        return Run(seed, wrong=[f"{type(error).__name__}: {error}"])


def summary(runs: list[Run], seconds: float) -> dict[str, object]:
    return {"runs": [run.to_dict() for run in runs], "ok": not any(run.wrong for run in runs), "seconds": seconds}


def lines(runs: list[Run], seconds: float) -> list[str]:
    """The figures of all runs together."""
    kinds = Counter(name.split(" (")[0] for run in runs for name in run.troubles)
    return [
        f"{len(runs)} runs, {sum(not run.wrong for run in runs)} ok, in {seconds / 60:.1f} minutes",
        "  troubles: " + ", ".join(f"{name} {n}" for name, n in kinds.most_common()),
        f"  {sum(run.recommends for run in runs):,} recommended, {sum(run.acknowledged for run in runs):,} rewards "
        f"acknowledged over HTTP, {sum(run.feedback.get(503, 0) for run in runs):,} answers of 503",
    ]


if __name__ == "__main__":
    main()
