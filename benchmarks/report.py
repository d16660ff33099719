"""One report of all benchmarks, from the JSON in benchmarks/out: `python -m benchmarks --report`.

    out/NAME.json     what NAME's `run` returned, and under "run" when, where and how long
    out/summary.json  every bar with its figure, and what failed
    out/report.md     the same as tables, in Markdown
    out/report.png    the same as a picture (benchmarks/plots.py)

What a result may hold besides its figures: "plots", panels for the picture, in the shapes that benchmarks/plots.py
says; "text", Markdown that follows under the module's heading; "bars", judged by the module itself
(benchmarks/table.py); "skipped", a sentence instead of figures when something from outside is absent. What is not there
is left out.
"""

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, table
from benchmarks.table import Row

HERE = Path(__file__).parent
OUT = HERE / "out"
Results = dict[str, dict[str, Any]]


def load(out: Path, names: Sequence[str]) -> Results:
    """The results that are there, in this order."""
    files = {name: out / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def absent(results: Results) -> dict[str, str]:
    """Each benchmark without figures, and why: "skipped: ..." or "FAILED: ..."."""
    return {
        name: f"{'skipped' if 'skipped' in result else 'FAILED'}: {table.reason(result)}"
        for name, result in results.items()
        if table.reason(result)
    }


def good(results: Results, rows: Sequence[Row]) -> bool:
    """Every bar holds and nothing failed; what was skipped is said, and no failure."""
    return all(row.holds for row in rows) and not any(why.startswith("FAILED") for why in absent(results).values())


def origin(results: Results) -> str:
    """Where the figures come from: each machine, state of the code and day once.

    >>> run = {"machine": "2 x CPU", "commit": "abc", "at": "2026-11-28 12:00", "quick": True}
    >>> origin({"kernels": {"run": run}, "http": {"run": run | {"at": "2026-11-28 13:00"}}})
    '2 x CPU; abc; 2026-11-28; quick, figures are rougher'
    """
    runs = [result.get("run", {}) for result in results.values()]
    parts = [", ".join(dict.fromkeys(str(run[key]) for run in runs if key in run)) for key in ("machine", "commit")]
    parts.append(", ".join(dict.fromkeys(str(run["at"])[:10] for run in runs if "at" in run)))
    quick = [name for name, result in results.items() if result.get("run", {}).get("quick")]
    if quick:
        parts.append(
            ("quick" if len(quick) == len(results) else f"quick: {', '.join(quick)}") + ", figures are rougher"
        )
    return "; ".join(part for part in parts if part)


def verdict(results: Results, rows: Sequence[Row]) -> str:
    """One line: how many bars hold, what is absent."""
    judged = [row for row in rows if row.judged]
    missed = sum(not row.holds for row in judged)
    line = f"{len(judged) - missed} of {len(judged)} bars hold" if judged else "no bars here"
    line += f", {missed} MISSED" if missed else ""
    return "; ".join([line, *(f"{name} {why.split(':')[0]}" for name, why in absent(results).items())])


def terminal(results: Results, rows: Sequence[Row]) -> str:
    """The table for people."""
    lines = [*(row.text() for row in rows)]
    lines += [f"  {name:<10} {why}" for name, why in absent(results).items()]
    return "\n".join([origin(results), "", *lines, "", verdict(results, rows)])


def command(name: str, result: dict[str, Any]) -> str:
    return f"python -m benchmarks {name}" + (" --quick" if result.get("run", {}).get("quick") else "")


def markdown(results: Results, rows: Sequence[Row]) -> str:
    """The tables of docs/benchmarks.md: a row for every figure with its command, then each module's own text."""
    lines = [f"Measured on {origin(results)}. {verdict(results, rows)}.", "", "## Speed", ""]
    lines += ["| what | measured | spread | bar | | command |", "|---|---|---|---|---|---|"]
    for row in rows:
        value = f"{row.number(row.value)} {row.unit}".strip() + (f" ({row.beside})" if row.beside else "")
        held = {"MISSED": "**MISSED**"}.get(row.verdict, row.verdict)
        cells = [
            row.what,
            value,
            row.spread,
            table.signs(row.asked),
            held,
            f"`{command(row.module, results[row.module])}`",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for name, why in absent(results).items():
        lines.append(f"| {name} | {why} | | | | `{command(name, results[name])}` |")
    lines += ["", "![Every bar, and what was measured beside it](report.png)", ""]
    for name, result in results.items():
        if "text" in result:
            lines += [f"## {heading(name)}", "", f"`{command(name, result)}`", "", result["text"], ""]
    took = [f"{name} {result['run']['seconds']:.0f} s" for name, result in results.items() if "run" in result]
    lines += [f"How long each took: {', '.join(took)}.", ""] if took else []
    return "\n".join(lines)


def heading(name: str) -> str:
    """What a benchmark calls itself: its docstring up to the first colon, stop or question mark.

    >>> heading("films"), heading("learns")
    ('Diag-LinUCB in the MovieLens world against full LinUCB, popular and random', 'Do the K-armed policies learn?')
    """
    path = HERE / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
    first = (text or name).partition("\n\n")[0].replace("\n", " ")
    ends = [end for mark, keep in ((": ", 0), (". ", 0), ("? ", 1)) if (end := first.find(mark) + keep) >= keep + 1]
    return first[: min(ends)] if ends else first.rstrip(".:")


def panels(results: Results) -> list[dict[str, Any]]:
    """Every plot that a result asks for; one that cannot be drawn is named on standard error and left out."""
    specs = []
    for name, result in results.items():
        for spec in result.get("plots", []):
            try:
                plots.check(spec)
                specs.append(spec)
            except plots.PlotError as error:
                print(f"report: a plot of {name} is left out: {error}", file=sys.stderr)
    return specs


def write(results: Results, out: Path = OUT) -> list[Row]:
    """All files of the report; returns the rows."""
    rows = table.rows(results)
    summary = {
        "origin": origin(results),
        "bars": [row._asdict() | {"verdict": row.verdict} for row in rows],
        "absent": absent(results),
    }
    out.mkdir(exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "report.md").write_text(markdown(results, rows))
    heading_ = f"croupier: {verdict(results, rows)}\n{origin(results)}"
    plots.draw(out / "report.png", heading_, rows, panels(results))
    return rows
