"""Every benchmark, one report: `python -m benchmarks [--quick] [NAME ...]`; the same as `make bench`.

Each runs in a process of its own, one after another. Table in the terminal; benchmarks/out/ has the JSON, report.md and
report.png (benchmarks/report.py). Exit status 1 when a bar is missed or a benchmark fails.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report, table
from benchmarks.report import OUT


class Takes(NamedTuple):
    """Seconds on two cores of a shared machine; NaN where nobody looked. What a run took here counts before these."""

    quick: float
    full: float = math.nan


BENCHMARKS = {
    "kernels": Takes(10, 16),
    "peers": Takes(60, 133),
    "films": Takes(21),
    "learns": Takes(38),
    "log_store": Takes(1, 5),
    "learner": Takes(23),
    "kafka": Takes(24),
    "redis": Takes(9),
    "router": Takes(18),
    "scale": Takes(math.nan),
    "http": Takes(math.nan),
    "rewards": Takes(math.nan),
    "freshness": Takes(18),
    "startup": Takes(11, 24),
    "growth": Takes(math.nan),
    "memory": Takes(math.nan),
}
CODE = """
import importlib, json, sys
name, quick, out = sys.argv[1:]
result = importlib.import_module(f"benchmarks.{name}").run(quick == "quick")
with open(out, "w") as file:
    json.dump(result, file, indent=2, default=float)
"""


def machine() -> str:
    """Where these figures come from."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}"


def commit() -> str:
    """The commit that is measured, with a + when files differ from it; empty outside a clone."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=OUT.parents[1], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def run(name: str, quick: bool) -> dict[str, Any]:
    """One benchmark in a fresh process. Its result, or {"run": {"failed": ...}} (its own words are on stderr), is in
    out/NAME.json, too."""
    OUT.mkdir(exist_ok=True)
    out = OUT / f"{name}.json"
    out.unlink(missing_ok=True)
    about = {"machine": machine(), "commit": commit(), "at": datetime.now().strftime("%Y-%m-%d %H:%M"), "quick": quick}
    start = time.monotonic()
    status = subprocess.run(
        [sys.executable, "-c", CODE, name, "quick" if quick else "full", str(out)],
        stdout=sys.stderr,
        cwd=OUT.parents[1],
        env={"OPENBLAS_NUM_THREADS": "1"} | os.environ,  # numpy's product is a yardstick: on one core, as the kernels
    ).returncode
    result: dict[str, Any] = {} if status else json.loads(out.read_text())
    result["run"] = about | {"seconds": time.monotonic() - start}
    if status:
        result["run"]["failed"] = f"exit status {status}; python -m benchmarks.{name} says why"
    out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def takes(names: list[str], quick: bool) -> dict[str, float]:
    """Seconds each will take: what it took here last time, else what it took elsewhere."""
    before = report.load(OUT, names)
    out = {}
    for name in names:
        last = before.get(name, {}).get("run", {})
        same = last.get("quick") == quick and not table.reason(before[name])
        out[name] = float(last["seconds"]) if same else BENCHMARKS[name][0 if quick else 1]
    return out


def span(seconds: float) -> str:
    """
    >>> span(42.4), span(150), span(5400)
    ('42 s', '2 min', '90 min')
    >>> span(math.nan)
    '?'
    """
    if math.isnan(seconds):
        return "?"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def total(seconds: Iterable[float]) -> str:
    """
    >>> total([60, 60]), total([60, math.nan])
    ('about 2 min', 'more than 60 s')
    """
    each = list(seconds)
    known = [s for s in each if not math.isnan(s)]
    if not known:
        return "?"
    return f"{'about' if len(known) == len(each) else 'more than'} {span(sum(known))}"


def measure(names: list[str], quick: bool) -> None:
    """One after another, saying what is done and what is left."""
    left, began = takes(names, quick), time.monotonic()
    for i, name in enumerate(names):
        gone, rest = span(time.monotonic() - began), total(left.values())
        print(f"[{i + 1} of {len(names)}] {name} ... ({gone} gone, {rest} left)", file=sys.stderr, flush=True)
        result = run(name, quick)
        del left[name]
        what = table.reason(result) or "done"
        print(
            f"[{i + 1} of {len(names)}] {name}: {what}, {span(result['run']['seconds'])}", file=sys.stderr, flush=True
        )


def arguments() -> argparse.Namespace:
    times = {"": ("--quick", "full")} | {name: (span(t.quick), span(t.full)) for name, t in BENCHMARKS.items()}
    times["all"] = (total(t.quick for t in BENCHMARKS.values()), total(t.full for t in BENCHMARKS.values()))
    each = "\n".join(f"  {name:<10} {quick:>15} {full:>15}" for name, (quick, full) in times.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"how long it takes, on two cores:\n{each}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all unless given")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and seeds: figures are rougher")
    parser.add_argument("--report", action="store_true", help="measure nothing: report what is in benchmarks/out")
    parser.add_argument("--figures", action="store_true", help="print every figure, not only those with a bar")
    found = parser.parse_args()
    if unknown := set(found.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    found.names = found.names or list(BENCHMARKS)
    return found


def main() -> None:
    asked, stopped = arguments(), False
    try:
        if not asked.report:
            measure(asked.names, asked.quick)
    except KeyboardInterrupt:
        stopped = True
        print("stopped: the report has what there is", file=sys.stderr)
    results = report.load(OUT, asked.names)
    if not results:
        sys.exit(f"nothing measured yet: benchmarks/out has no result of {', '.join(asked.names)}")
    rows = report.write(results, OUT)
    if asked.figures:
        for name, result in results.items():
            print(name, *table.figures(result), "", sep="\n")
    print(report.terminal(results, rows))
    print("\nbenchmarks/out: report.png, report.md, summary.json and a JSON file for each")
    if stopped or not report.good(results, rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
