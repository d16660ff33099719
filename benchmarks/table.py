"""The bars of `make bench` and where each figure stands in the modules' results; the report that lays them together.

A bar names a module, a path into the dict that its `run` returns (`*` stands for every key), and what is asked of the
value found there: at most, at least, or exactly so. `learns` brings its bars along. Figures without a bar are in the
JSON and in each module's own `python -m benchmarks.NAME`.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Bar(NamedTuple):
    """What one figure has to be. `scale` and `unit` are for printing."""

    module: str
    what: str
    path: str
    op: str  # "<=", ">=" or "=="
    bar: float
    unit: str = ""
    scale: float = 1.0


BARS = [
    Bar("kernels", "choose, 1,000 edges: times touch-only", "choose/100/ratio", "<=", 2.0),
    Bar("kernels", "choose, 5,000 edges: times touch-only", "choose/500/ratio", "<=", 1.8),
    Bar("kernels", "choose, 20,000 edges: times touch-only", "choose/2000/ratio", "<=", 1.4),
    Bar("kernels", "edge updates, 100 a call", "learn/known_100_per_s", ">=", 30e6, "M/s and core", 1e-6),
    Bar(
        "learner", "learner from the SQLite log", "rows/k=9, records per commit=16/events_per_cpu_s", ">=", 300e3, "/s"
    ),
    Bar("films", "MovieLens clicks, over full LinUCB's", "diag_over_linucb", ">=", 0.97),
    Bar("http", "durable rewards over HTTP, 500 a request", "feedback/rewards_per_s", ">=", 50e3, "/s"),
    Bar("http", "each of them applied once", "all_applied_once", "==", 1),
    Bar("router", "JSON rewards routed, per core", "router_per_cpu_s", ">=", 10e3, "/s"),
    Bar("freshness", "acknowledged to visible, p99", "p99_ms", "<=", 100, "ms"),
    Bar("redis", "commit of 100 cells: times a GET of 100 bytes", "*/commit_100_cells_over_get", "<=", 4.0),
    Bar("redis", "commit of 1,000 cells: times a GET of 100 bytes", "*/commit_1000_cells_over_get", "<=", 7.0),
    Bar("redis", "Redis's memory per edge, b and d", "*/bytes_per_edge", "<=", 20.0, "B"),
    Bar("scale", "learned from Kafka, per core", "rows/*/learn/events_per_cpu_s", ">=", 100e3, "/s"),
    Bar("scale", "acknowledged to visible on both servers, 20k/s, p99", "rows/*/visible/p99_ms", "<=", 100, "ms"),
    Bar("startup", "exec to first recommendation", "first_recommendation_s", "<=", 1.0, "s"),
    Bar("growth", "a recommend at 10 million edges, times one at 10,000", "edges_ratio", "<=", 1.5),
    Bar("memory", "shared files, 10 million edges, an edge", "shared_bytes_per_edge", "<=", 12.5, "B"),
    Bar("memory", "a second worker's memory, an edge", "further_worker_from_1_bytes_per_edge", "<=", 0.5, "B"),
]


class Row(NamedTuple):
    """A figure beside its bar; `value` is NaN where the module did not give it, and then nothing holds."""

    module: str
    what: str
    value: float
    unit: str
    op: str
    bar: float
    holds: bool
    scale: float = 1.0

    def text(self) -> str:
        def number(value: float) -> str:
            value *= self.scale
            return "missing" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"

        return (
            f"  {self.module:<10} {self.what:<64} {number(self.value):>10} {self.unit:<13}"
            f" {self.op:>2} {number(self.bar):<8} {'holds' if self.holds else 'MISSED'}"
        )


def measured(bar: Bar, where: str, value: float) -> Row:
    """The row of a bar and what was found; NaN compares false with everything.

    >>> measured(Bar("startup", "start", "s", "<=", 1.5), "", 1.2).holds
    True
    """
    holds = {"<=": value <= bar.bar, ">=": value >= bar.bar, "==": value == bar.bar}[bar.op]
    what = f"{bar.what} ({where})" if where else bar.what
    return Row(bar.module, what, value, bar.unit, bar.op, bar.bar, holds, bar.scale)


def found(result: Any, path: str) -> Iterator[tuple[str, float]]:
    """(what `*` stood for, value) of every place a path leads to.

    >>> list(found({"a": {"x": {"p": 1}, "y": {"p": 2}}}, "a/*/p"))
    [('x', 1.0), ('y', 2.0)]
    >>> list(found({}, "a/p"))
    []
    """
    head, _, rest = path.partition("/")
    if not isinstance(result, dict):
        return
    for key in list(result) if head == "*" else [head]:
        if key not in result:
            continue
        star = str(key) if head == "*" else ""
        if rest:
            yield from ((f"{star} {more}".strip(), value) for more, value in found(result[key], rest))
        elif isinstance(result[key], int | float):
            yield star, float(result[key])


def rows(results: dict[str, Any]) -> list[Row]:
    """Every bar of the modules that were run, with its figures.

    A module whose bars depend on one another's figures judges by itself and returns them as a list `bars`, each with
    bar, measured, limit and holds.
    """
    out = []
    for module, result in results.items():
        for bar in BARS:
            if bar.module == module:
                places = list(found(result, bar.path)) or [("", math.nan)]
                out += [measured(bar, where, value) for where, value in places]
        for own in result.get("bars", []):
            out.append(Row(module, own["bar"], own["measured"], "", "", own["limit"], own["holds"]))
    return out


def figures(result: Any, prefix: str = "") -> Iterator[str]:
    """All numbers of a result, a line each, named by their path."""
    items = result.items() if isinstance(result, dict) else enumerate(result) if isinstance(result, list) else []
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from figures(value, f"{name} / ")
        else:
            shown = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else value
            shown = f"{shown:,.0f}" if isinstance(shown, float) else shown
            yield f"  {name:<70} {shown}"
