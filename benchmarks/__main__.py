"""Every benchmark, one report: `python -m benchmarks [--quick] [NAME ...]`; the same as `make bench`.

Each runs in a process of its own, one after another; its result goes to benchmarks/out/NAME.json. Exit status 1 when
a bar is missed or a benchmark fails.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import table

NAMES = (
    "kernels",
    "films",
    "learns",
    "log_store",
    "learner",
    "kafka",
    "redis",
    "router",
    "scale",
    "http",
    "freshness",
    "startup",
    "growth",
    "memory",
)
OUT = Path(__file__).parent / "out"
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


def run(name: str, quick: bool) -> dict[str, Any] | None:
    """One benchmark in a fresh process; None when it failed (its own words are on stderr)."""
    OUT.mkdir(exist_ok=True)
    out = OUT / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-c", CODE, name, "quick" if quick else "full", str(out)]
    status = subprocess.run(command, stdout=sys.stderr, cwd=OUT.parents[1]).returncode
    if status:
        return None
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all unless given: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and seeds: figures are rougher")
    parser.add_argument("--figures", action="store_true", help="print every figure, not only those with a bar")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results: dict[str, Any] = {}
    failed = []
    for name in arguments.names or NAMES:
        start = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = run(name, arguments.quick)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if result is None:
            failed.append(name)
        else:
            results[name] = result
    print(f"\n{machine()}{', quick' if arguments.quick else ''}\n")
    if arguments.figures:
        for name, result in results.items():
            print(name, *table.figures(result), "", sep="\n")
    rows = table.rows(results)
    print(*[row.text() for row in rows], sep="\n")
    for name in failed:
        print(f"  {name:<10} FAILED: python -m benchmarks.{name} says why")
    summary = {
        "machine": machine(),
        "quick": arguments.quick,
        "bars": [row._asdict() for row in rows],
        "failed": failed,
    }
    (OUT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwritten to {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT}/")
    if failed or not all(row.holds for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
